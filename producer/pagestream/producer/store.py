"""Every command a client sends to Redis, and what its failures mean.

Each may be repeated after a lost connection: scripts are idempotent by job id, the rest reads.
This module knows Redis and the scripts: no text, no chunks, no user arguments.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec
from redis.exceptions import NoScriptError

from .calls import Calls, may_pass
from .connection import AsyncHeldConnection, connect_async
from .durability import check_on_disk, has_barrier
from .errors import JobConflict, JobLost, JobNotFound, PagestreamError, QueueFull, RateLimited
from .job import CancelOutcome, JobStatus, Source
from .keys import QUEUES, Keys
from .lua import Script
from .mirror import Mirror, Subscription
from .presence import Attended, Presence, ReadSource
from .protocol import Entry, ModelInfo, decode_entry
from .reader import BLOCK_MS, Connection, Feed, Reader
from .request import Request
from .schedules import ScheduleStore
from .tenants import Tenants

PIPELINE_JOBS = 256
PIPELINE_BYTES = 1 << 20
"""A pipeline of `submit_many` holds at most this many jobs, or bytes of payloads."""
PAGE_ENTRIES = 1_000
"""Entries of a reply read in one call."""
MIRROR_CONNECTIONS = 10_000

_CLIENT_NAME = "pagestream-client"
_STATUS = (
    *("state", "lane", "tenant", "epoch", "crashes", "owner"),
    *("queued_ms", "claimed_ms", "finished_ms", "reader_timeout_ms"),
)

Accepted = bool
"""What a submit found: True for a new job, False for one that was there with the same payload."""


class JobStore:
    """One queue's jobs, seen from a client; belongs to one event loop."""

    def __init__(
        self,
        url: str,
        keys: Keys,
        *,
        timeout_ms: int,
        reconnect_ms: int,
        strict: bool = False,
        sync_replicas: int = 0,
    ) -> None:
        """Prepare; the first command connects.

        `strict`: accepted means on disk, and on that of so many replicas.

        Raises:
            InvalidRequest: the URL is not one that Redis clients take.
        """
        self.keys = keys
        self._redis: Any = connect_async(url, client_name=_CLIENT_NAME)
        self._held = AsyncHeldConnection(self._redis)
        self._calls = Calls(self._held, url, timeout_ms)
        self._timeout_ms = timeout_ms
        self._strict = strict
        self._sync_replicas = sync_replicas
        self._has_barrier: bool | None = None
        """Whether the server can say that writes are on disk; None until it was asked."""
        # Connections of their own for what blocks: a reader must not hold up a submit.
        self._blocking: Any = connect_async(
            url,
            client_name=f"{_CLIENT_NAME}-reader",
            timeout_s=BLOCK_MS / 1000 + 5,
            max_connections=MIRROR_CONNECTIONS,
        )
        self._reader = Reader(self._new_connection, self._unblock, reconnect_ms=reconnect_ms)
        self._mirrors: set[Mirror] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._submit, self._cancel, self._delete = map(Script, ("submit", "cancel", "delete"))
        renew = Script("renew")
        self._presence = Presence(
            lambda ids: self._calls.run(lambda: renew.run(self._held, self.keys.bell, *ids))
        )
        self.tenants = Tenants(self._calls, self.keys)
        """What operators allow."""
        self.schedules = ScheduleStore(self._calls)
        """What is to be submitted later, on any queue."""

    # What the client asks for -------------------------------------------------------------------

    async def submit(self, request: Request) -> Accepted:
        """Hand one job over.

        Raises:
            JobConflict: the id is taken by another payload.
            QueueFull: the tenant has as many unfinished jobs as it may.
            RateLimited: the tenant sends more than it may a second.
            InvalidRequest: the script refuses an argument.
            QueueUnavailable: Redis cannot be reached.
            NotDurable: `strict` is more than this server can do.
        """
        reply = await self._calls.run(lambda: self._send_one(request), job_id=request.id)
        return self._outcome(request, reply)

    async def submit_many(self, requests: Sequence[Request]) -> list[Accepted | PagestreamError]:
        """Hand over several jobs in few round trips; per job the answer, or why not."""
        outcomes: list[Accepted | PagestreamError] = []
        for part in _parts(requests):
            try:
                replies = await self._calls.run(lambda part=part: self._pipeline(part))
            except PagestreamError as error:
                outcomes += [error] * len(part)
            else:
                outcomes += [
                    self._outcome_or_error(*pair) for pair in zip(part, replies, strict=True)
                ]
        return outcomes

    async def cancel(self, job_id: str) -> CancelOutcome:
        """Cancel a job, wherever it is."""
        reply = await self._calls.run(lambda: self._cancel.run(self._held, self.keys.bell, job_id))
        return cast(CancelOutcome, reply.decode())

    async def delete(self, job_id: str) -> bool:
        """Remove a job's data; return whether there was any."""
        reply = await self._calls.run(lambda: self._delete.run(self._held, self.keys.bell, job_id))
        return reply == b"deleted"

    async def status(self, job_id: str) -> JobStatus:
        """Read a job's record.

        Raises:
            JobNotFound: there is none.
        """
        values = await self._calls.command("HMGET", self.keys.job(job_id), *_STATUS)
        if values[0] is None:
            raise JobNotFound(
                f"queue {self.keys.queue} has no job {job_id}: it was never submitted, or its "
                "retention has passed"
            )
        fields = dict(zip(_STATUS, (value and value.decode() for value in values), strict=True))
        fields["worker"] = fields.pop("owner") or None
        record = {name: value for name, value in fields.items() if value is not None}
        return msgspec.convert({"id": job_id, **record}, JobStatus, strict=False)

    async def entries(self, job_id: str, after: str | None) -> list[Entry]:
        """Read a reply's entries from behind an id, without waiting.

        Raises:
            JobLost: Redis no longer has the reply.
        """
        key = self.keys.out(job_id)
        entries: list[Entry] = []
        while True:
            begin = f"({entries[-1].id}" if entries else f"({after}" if after else "-"
            page = await self._calls.command("XRANGE", key, begin, "+", "COUNT", PAGE_ENTRIES)
            entries += [decode_entry(entry_id, fields) for entry_id, fields in page]
            if len(page) < PAGE_ENTRIES:
                break
        if not entries and not await self._calls.command("EXISTS", key):
            raise JobLost(f"Redis no longer has {key}; submit the job again")
        return entries

    async def models(self) -> list[ModelInfo]:
        """Return what the queue's live workers serve."""
        return await self._models_of(self.keys)

    async def served_queues(self) -> list[str]:
        """Return the names of the queues that live workers serve, on this whole server."""
        names = [name.decode() for name in await self._calls.command("SMEMBERS", QUEUES)]
        return sorted([name for name in names if await self._models_of(Keys(name))])

    async def _models_of(self, keys: Keys) -> list[ModelInfo]:
        infos: dict[bytes, bytes] = await self._calls.command("HGETALL", keys.model)
        alive = [
            await self._calls.command("EXISTS", keys.heartbeat(worker.decode())) for worker in infos
        ]
        found: list[ModelInfo] = []
        for info, is_alive in zip(infos.values(), alive, strict=True):
            try:
                found += [msgspec.json.decode(info, type=ModelInfo)] if is_alive else []
            except msgspec.MsgspecError:
                continue  # a newer worker describes itself differently: no early checks against it
        return found

    def feed(self, job_id: str, after: str | None) -> Feed:
        """Open a reader of a job's reply on a shared connection."""
        return self._reader.open(self.keys.out(job_id), after)

    def mirror(self, job_id: str, after: str | None) -> Mirror:
        """Open a subscriber of a job's mirror on a connection of its own."""
        mirror = Mirror(
            after,
            lambda: self._calls.run(lambda: self._subscribe(job_id)),
            lambda cursor: self.entries(job_id, cursor),
            self._release,
        )
        self._mirrors.add(mirror)
        return mirror

    def attended(self, job: Attended, source: Source) -> Source:
        """Return a source whose reader keeps a job with a reader timeout alive."""
        return ReadSource(source, self._presence, job)

    @property
    def reader_connections(self) -> int:
        """Connections that wait for replies now."""
        return self._reader.connections

    async def aclose(self) -> None:
        """Close every connection; whoever still reads gets `QueueUnavailable`."""
        await self._presence.aclose()
        await self._reader.aclose()
        for mirror in list(self._mirrors):
            self._release(mirror)
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._held.aclose()
        await self._redis.aclose()
        await self._blocking.aclose()

    # How it is sent -----------------------------------------------------------------------------

    async def _send_one(self, request: Request) -> list[Any]:
        if not self._strict:
            arguments = self._submit_arguments(request)
            return await self._submit.run(self._held, self.keys.bell, *arguments)
        (reply,) = await self._pipeline([request])
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _pipeline(self, part: Sequence[Request]) -> list[Any]:
        """Send the jobs of one part in one round trip; a reply or an exception each."""
        if self._strict and self._has_barrier is None:
            self._has_barrier = await has_barrier(self._redis, self._sync_replicas)
        replies = await self._send(part)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            await self._redis.script_load(self._submit.text)
            replies = await self._send(part)
        if self._has_barrier:
            *replies, _, barrier = replies
            check_on_disk(barrier, self._sync_replicas)
        for reply in replies:
            if isinstance(reply, Exception) and may_pass(reply):
                raise reply
        return replies

    async def _send(self, part: Sequence[Request]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for request in part:
                words = self._submit.words(self.keys.bell, *self._submit_arguments(request))
                pipeline.execute_command(*words)
            if self._has_barrier:
                # A write of this connection comes after every job that was there already.
                pipeline.xadd(self.keys.bell, {"ring": ""}, maxlen=1, approximate=False)
                wait_ms = self._timeout_ms // 2
                pipeline.execute_command("WAITAOF", 1, self._sync_replicas, wait_ms)
            return await pipeline.execute(raise_on_error=False)

    def _submit_arguments(self, request: Request) -> tuple[str, bytes, bytes]:
        return request.id, request.body, msgspec.json.encode(request.options)

    def _outcome(self, request: Request, reply: list[Any]) -> Accepted:
        verdict, retry_after_ms = reply[0], int(reply[2])
        if verdict == b"conflict":
            raise JobConflict(f"job {request.id} exists with another payload; take a new id")
        if verdict == b"full":
            raise QueueFull(
                f"queue {self.keys.queue} holds {reply[3].decode()} unfinished jobs of "
                f"tenant {request.options.tenant}; try again in {retry_after_ms} ms",
                retry_after_ms=retry_after_ms,
            )
        if verdict == b"limited":
            raise RateLimited(
                f"tenant {request.options.tenant} has used up its {reply[3].decode()} a second on "
                f"queue {self.keys.queue}; try again in {retry_after_ms} ms",
                retry_after_ms=retry_after_ms,
            )
        return verdict == b"accepted"

    def _outcome_or_error(self, request: Request, reply: Any) -> Accepted | PagestreamError:
        if isinstance(reply, Exception):
            return self._calls.refused(reply)
        try:
            return self._outcome(request, reply)
        except PagestreamError as error:
            return error

    def _new_connection(self) -> Connection:
        return cast(Connection, self._blocking.connection_pool.make_connection())

    async def _unblock(self, client_id: int) -> None:
        await self._redis.execute_command("CLIENT", "UNBLOCK", client_id)

    async def _subscribe(self, job_id: str) -> Subscription:
        subscription = self._blocking.pubsub()
        try:
            await subscription.subscribe(self.keys.tokens(job_id))
        except BaseException:
            await subscription.aclose()
            raise
        return cast(Subscription, subscription)

    def _release(self, mirror: Mirror) -> None:
        if mirror in self._mirrors:
            self._mirrors.remove(mirror)
            task = asyncio.get_running_loop().create_task(mirror.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _parts(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """Cut requests into parts that a pipeline may hold."""
    begin = held_bytes = 0
    for end, request in enumerate(requests):
        if end - begin == PIPELINE_JOBS or (end > begin and held_bytes >= PIPELINE_BYTES):
            yield requests[begin:end]
            begin, held_bytes = end, 0
        held_bytes += len(request.body)
    if begin < len(requests):
        yield requests[begin:]

"""The arq worker: takes what is due and does it, through outages, until it is told to stop.

arq runs the functions; when they are due is kept in our own list (`batch.due`), because arq's entry
of a job whose process was killed stays marked as running for as long as the job might have taken.
This module knows which kinds of work there are; what they do is their modules' matter.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import msgspec
from arq.connections import ArqRedis
from arq.worker import Worker, func
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from ..batch.batches import BatchNotFound, BatchStore
from ..batch.due import Due
from ..batch.files import FileStore
from ..batch.runner import Runner
from ..calls import Calls
from ..connection import connect_async
from ..errors import QueueUnavailable
from ..gateway.settings import GatewaySettings
from ..hooks.addresses import Allowed
from ..hooks.collector import Collector
from ..hooks.events import of_batch
from ..hooks.sender import Sender
from ..hooks.signing import read_secrets
from ..hooks.store import HookStore
from ..keys import Around
from .answering import in_process
from .settings import JobsSettings
from .upkeep import Upkeep

log = logging.getLogger(__name__)

TIMEOUT_MS = 5_000
LOOK_S = 0.5
"""How often the list is looked at; arq looks at its own queue as often."""
CONCURRENT = 1_000
"""Functions that run at a time; nearly all of them wait."""
LONGEST_S = 7 * 24 * 3600
"""No function takes so long; a batch's window is far shorter."""
RETRY_MS = 5_000
"""When what failed is tried again."""

Work = Callable[[str], Awaitable[int | None]]
"""Does what an entry of the list stands for, given its id; returns in how many ms it is due again,
if it is."""


def arq_redis(url: str) -> ArqRedis:
    """Return arq's connection to our queue of it: msgpack in place of pickle, which runs code.

    Raises:
        InvalidRequest: the URL is not one that Redis clients take.
    """
    redis = connect_async(url, client_name="pagestream-jobs-arq", max_connections=100)
    return ArqRedis(
        cast(ConnectionPool, redis.connection_pool),
        job_serializer=msgspec.msgpack.encode,
        job_deserializer=msgspec.msgpack.decode,
        default_queue_name=Around.ARQ,
    )


class JobsProcess:
    """What one process does; belongs to one event loop."""

    def __init__(
        self, due: Due, work: Mapping[str, Work], arq: ArqRedis, *, always: Sequence[str] = ()
    ) -> None:
        """`work` by the kind that entries begin with; `always`: entries that never go away."""
        self._due = due
        self._always = always
        self._work = work
        self._arq = arq

    async def run(self) -> None:
        """Work until cancelled; sit outages out."""
        while True:
            worker = Worker(
                [func(self.do, name="do", keep_result=0, max_tries=1, timeout=LONGEST_S)],
                redis_pool=self._arq,
                queue_name=Around.ARQ,
                handle_signals=False,
                max_jobs=CONCURRENT,
                poll_delay=LOOK_S,
                retry_jobs=False,
                job_serializer=msgspec.msgpack.encode,
                job_deserializer=msgspec.msgpack.decode,
            )
            tasks = [asyncio.create_task(worker.async_run()), asyncio.create_task(self._hand_out())]
            try:
                await asyncio.gather(*tasks)
            except (RedisError, OSError, QueueUnavailable) as error:
                log.warning("Redis is away, trying again: %s", error)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, *worker.tasks.values(), return_exceptions=True)
            await asyncio.sleep(1)

    async def do(self, ctx: dict[Any, Any], entry: str, ticket: str) -> None:
        """Do what an entry stands for, unless somebody else does by now."""
        kind, _, name = entry.partition(":")
        async with self._due.held(entry, ticket) as is_ours:
            if not is_ours:
                return
            try:
                again_ms = await self._work[kind](name)
            except asyncio.CancelledError:
                await asyncio.shield(self._due.put(entry))  # others need not wait for the lease
                raise
            except QueueUnavailable:
                raise
            except Exception:
                log.exception("%s failed, and is tried again", entry)
                await self._due.put(entry, RETRY_MS)
                return
        if again_ms is None:
            await self._due.done(entry)
        else:
            await self._due.put(entry, again_ms)

    async def _hand_out(self) -> None:
        while True:
            await self._due.keep(self._always)
            for entry, ticket in await self._due.take(CONCURRENT):
                await self._arq.enqueue_job("do", entry, ticket, _job_id=f"{entry}@{ticket}")
            await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def jobs_process(settings: JobsSettings) -> AsyncGenerator[JobsProcess]:
    """Connect everything a jobs process needs.

    Raises:
        InvalidRequest: the URL is not one that Redis clients take.
    """
    redis = connect_async(settings.redis_url, client_name="pagestream-jobs", max_connections=64)
    calls = Calls(redis, settings.redis_url, TIMEOUT_MS)
    arq = arq_redis(settings.redis_url)
    gateway = GatewaySettings(
        redis_url=settings.redis_url, queue_limit=settings.queue_limit, api_keys=None
    )
    due, batches = Due(calls), BatchStore(calls)
    hooks = HookStore(calls, due)
    sender = Sender(hooks, _keys(settings), Allowed(settings.webhook_allow), count=lambda _: None)
    try:
        async with in_process(gateway) as asked:
            runner = Runner(FileStore(calls), batches, asked, in_flight=settings.batch_in_flight)

            async def run_batch(batch_id: str) -> None:
                await runner.run(batch_id)
                with suppress(BatchNotFound):
                    if (hook := of_batch(await batches.get(batch_id))) is not None:
                        await hooks.put(hook)

            work: Mapping[str, Work] = {
                "batch": run_batch,
                "hook": sender.send,
                "hooks": Collector(calls, hooks).collect,
                "hourly": Upkeep(calls).hourly,
            }
            yield JobsProcess(due, work, arq, always=["hooks:", "hourly:"])
    finally:
        await sender.aclose()
        await arq.aclose()
        await redis.aclose()


def _keys(settings: JobsSettings) -> list[bytes]:
    if settings.webhook_secret is None:
        log.warning("no PAGESTREAM_WEBHOOK_SECRET is set: webhooks become dead letters")
        return []
    return read_secrets(settings.webhook_secret.get_secret_value())

"""What an operator asks of a queue: what is there, who serves it, what died, and what to do.

Synchronous, a few commands a call, for command lines and scripts of an operator; every change of a
job is one of the scripts. This module knows no terminal and no running worker's insides.
"""

import itertools
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from redis.exceptions import RedisError

from .calls import unavailable
from .connection import connect
from .errors import InvalidRequest, JobNotFound, WorkerNotFound
from .keys import LANES, QUEUES, Keys, check_name
from .lua import Script

TIMEOUT_S = 5.0
RETRIES = 3

PAGE = 100
"""Dead letters read in one call: they hold prompts, which may be long."""

_LETTER = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A job that was given up, or an entry of a lane that never was a job (`malformed`)."""

    letter: str
    """The entry's id in the stream of dead letters; its first half is when, in Redis's ms."""
    id: str
    """The job's; empty where there was none."""
    reason: str
    message: str
    error: str = ""
    """What the engine or the worker said last: a traceback, where there was one."""
    worker: str = ""
    crashes: int = 0
    epoch: int = 0
    lane: str = ""
    tenant: str = ""
    payload: bytes = b""

    @property
    def died_ms(self) -> int:
        """When it was written, in Redis's milliseconds since 1970."""
        return int(self.letter.split("-")[0])

    def request(self) -> Any:
        """Return the payload as it can be shown."""
        try:
            return msgspec.msgpack.decode(self.payload)
        except msgspec.MsgspecError:
            return self.payload.decode("utf-8", "replace")


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as the others see it."""

    name: str
    is_alive: bool
    jobs: int
    """Jobs it holds."""
    counters: dict[str, Any] = {}
    """What its last heartbeat said."""


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A queue at one moment."""

    name: str
    unfinished: dict[str, int]
    """Lane -> jobs that wait or run."""
    running: int
    suspects: int
    """Jobs that wait to be run alone."""
    dead: int
    workers: list[WorkerStatus]


class KeptJob(msgspec.Struct, frozen=True, kw_only=True):
    """All that Redis holds of a job, but for the payload and the tokens."""

    id: str
    record: dict[str, str]
    entries: int
    """Entries of its reply."""
    bytes: int
    """Memory of record and reply."""
    kept_ms: int | None
    """How long they are still kept; None while the job is unfinished."""


class UnfinishedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that waits or runs."""

    id: str
    lane: str
    tenant: str
    state: str
    """`queued` or `running`; `unknown` where the record is gone."""
    worker: str
    """Who runs it; empty while it waits."""
    queued_ms: int
    """When it was accepted, in Redis's ms."""
    crashes: int
    prompt_tokens_max: int


class Admin:
    """One Redis server, seen by whoever looks after it; a context manager.

    Every method may raise `QueueUnavailable`: Redis cannot be reached, or refuses the command.
    """

    def __init__(self, url: str) -> None:
        """Prepare; the first call connects.

        Raises:
            InvalidRequest: the URL is not one that Redis clients take.
        """
        self._url = url
        self._redis: Any = connect(
            url, client_name="pagestream-admin", timeout_s=TIMEOUT_S, retries=RETRIES
        )

    def queues(self) -> list[str]:
        """Return the name of every queue that was ever served or submitted to."""
        with self._available():
            return sorted(name.decode() for name in self._redis.smembers(QUEUES))

    def status(self, queue: str) -> QueueStatus:
        """Return how full a queue is and who serves it."""
        keys = Keys(check_name("queue", queue))
        with self._available():
            tenants = [tenant.decode() for tenant in self._redis.zrange(keys.served, 0, -1)]
            unfinished = {
                lane: sum(self._redis.xlen(keys.jobs(lane, tenant)) for tenant in tenants)
                for lane in LANES
            }
            workers = self._workers(keys)
            return QueueStatus(
                name=queue,
                unfinished=unfinished,
                running=sum(worker.jobs for worker in workers),
                suspects=self._redis.zcard(keys.suspects),
                dead=self._redis.xlen(keys.dead),
                workers=workers,
            )

    def _workers(self, keys: Keys) -> list[WorkerStatus]:
        found: list[WorkerStatus] = []
        for name in sorted(worker.decode() for worker in self._redis.hkeys(keys.model)):
            beat: bytes | None = self._redis.get(keys.heartbeat(name))
            found.append(
                WorkerStatus(
                    name=name,
                    is_alive=beat is not None,
                    jobs=self._redis.hlen(keys.running(name)),
                    counters=msgspec.json.decode(beat, type=dict[str, Any]) if beat else {},
                )
            )
        return found

    def drain(self, queue: str, worker: str, *, at_once: bool = False) -> None:
        """Tell a worker to take no new job and leave once it is done, or `at_once`.

        Raises:
            WorkerNotFound: no live worker of the queue has the name.
        """
        keys = Keys(check_name("queue", queue))
        key = keys.step(check_name("worker", worker))
        with self._available():
            if Script("drain")(self._redis, key, worker, int(at_once)) == b"unknown":
                raise WorkerNotFound(f"queue {queue!r} has no live worker {worker!r}")

    def job(self, queue: str, job_id: str) -> KeptJob:
        """Return what Redis holds of a job.

        Raises:
            JobNotFound: nothing.
        """
        keys = Keys(check_name("queue", queue))
        record_key, reply_key = keys.job(check_name("job id", job_id)), keys.out(job_id)
        with self._available():
            record: dict[bytes, bytes] = self._redis.hgetall(record_key)
            if not record:
                raise JobNotFound(
                    f"queue {queue!r} has no job {job_id}: it was never submitted, or its "
                    "retention has passed"
                )
            kept_ms: int = self._redis.pttl(record_key)
            return KeptJob(
                id=job_id,
                record={
                    name.decode(): value.decode("utf-8", "replace")
                    for name, value in record.items()
                    if name not in (b"payload", b"hash")
                },
                entries=self._redis.xlen(reply_key),
                bytes=sum(self._redis.memory_usage(key) or 0 for key in (record_key, reply_key)),
                kept_ms=kept_ms if kept_ms >= 0 else None,
            )

    def unfinished(self, queue: str, limit: int) -> list[UnfinishedJob]:
        """Return the oldest `limit` unfinished jobs of each lane and tenant, better lanes first."""
        keys = Keys(check_name("queue", queue))
        fields = ("state", "owner", "queued_ms", "crashes", "tokens_max")
        found: list[UnfinishedJob] = []
        with self._available():
            tenants = [tenant.decode() for tenant in self._redis.zrange(keys.served, 0, -1)]
            for lane, tenant in itertools.product(LANES, tenants):
                entries = self._redis.xrange(keys.jobs(lane, tenant), count=limit)
                ids = [entry[b"id"].decode() for _, entry in entries if b"id" in entry]
                for job_id in ids:
                    values = self._redis.hmget(keys.job(job_id), fields)
                    text = dict(zip(fields, ((one or b"").decode() for one in values), strict=True))
                    found.append(
                        UnfinishedJob(
                            id=job_id,
                            lane=lane,
                            tenant=tenant,
                            state=text["state"] or "unknown",
                            worker=text["owner"],
                            queued_ms=int(text["queued_ms"] or 0),
                            crashes=int(text["crashes"] or 0),
                            prompt_tokens_max=int(text["tokens_max"] or 0),
                        )
                    )
        return found

    def now_ms(self) -> int:
        """Return Redis's milliseconds since 1970."""
        with self._available():
            seconds, micros = self._redis.time()
        return seconds * 1000 + micros // 1000

    def delete(self, queue: str, job_id: str) -> bool:
        """Remove all of a job's data, running or not; return whether there was any."""
        keys = Keys(check_name("queue", queue))
        with self._available():
            answer = Script("delete")(self._redis, keys.bell, check_name("job id", job_id))
        return answer == b"deleted"

    # Dead letters -------------------------------------------------------------------------------

    def letters(self, queue: str, *, newest_first: bool = False) -> Iterator[DeadLetter]:
        """Yield a queue's dead letters, oldest first unless asked otherwise."""
        key, first = Keys(check_name("queue", queue)).dead, ""
        read = self._redis.xrevrange if newest_first else self._redis.xrange
        bound = "max" if newest_first else "min"
        while True:
            with self._available():
                page: Any = read(key, count=PAGE, **({bound: first} if first else {}))
            for letter_id, fields in page:
                yield _read_letter(letter_id, fields)
            if len(page) < PAGE:
                return
            first = f"({page[-1][0].decode()}"

    def letter(self, queue: str, name: str) -> DeadLetter:
        """Return the letter of a job, or the one with an entry id.

        Raises:
            JobNotFound: there is none.
        """
        key = Keys(check_name("queue", queue)).dead
        if _LETTER.fullmatch(name):
            with self._available():
                page: Any = self._redis.xrange(key, min=name, max=name)
            if page:
                return _read_letter(*page[0])
        for one in self.letters(queue):
            if name in (one.id, one.letter):
                return one
        raise JobNotFound(f"queue {queue!r} has no dead letter {name!r}")

    def retry(self, queue: str, letter: DeadLetter) -> None:
        """Queue a dead letter's job again, under its id: its readers go on where they stopped.

        It runs alone, without its old deadlines, and one more death makes it a dead letter again.

        Raises:
            JobNotFound: somebody else has dealt with the letter.
            InvalidRequest: it never was a job, or its id is another job's now.
        """
        with self._available():
            answer = Script("retry")(self._redis, Keys(queue).bell, letter.letter)
        if answer == b"unknown":
            raise JobNotFound(f"queue {queue!r} has no dead letter {letter.letter} any more")
        if answer == b"malformed":
            raise InvalidRequest(f"letter {letter.letter} never was a job; only purge it")
        if answer == b"taken":
            raise InvalidRequest(
                f"another job has the id {letter.id} now; purge letter {letter.letter}, or submit "
                "its payload under another id"
            )

    def purge(self, queue: str, letter: DeadLetter) -> None:
        """Remove a dead letter and all data of its job."""
        keys = Keys(queue)
        with self._available():
            if letter.id:
                owner: bytes | None = self._redis.hget(keys.job(letter.id), "letter")
                if owner == letter.letter.encode():  # else the id is another job's now
                    Script("delete")(self._redis, keys.bell, letter.id)
            self._redis.xdel(keys.dead, letter.letter)

    # --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def __enter__(self) -> "Admin":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _available(self) -> Generator[None, None, None]:
        try:
            yield
        except RedisError as error:
            raise unavailable(self._url, error) from error


def _read_letter(letter_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    text = {
        name.decode(): value.decode("utf-8", "replace")
        for name, value in fields.items()
        if name not in (b"payload", b"entry")
    }
    known = {name: text[name] for name in text if name in DeadLetter.__struct_fields__}
    payload = fields.get(b"payload") or fields.get(b"entry") or b""
    letter = msgspec.convert({"letter": letter_id.decode(), **known}, DeadLetter, strict=False)
    return msgspec.structs.replace(letter, payload=payload)

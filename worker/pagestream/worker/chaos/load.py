"""The load: jobs that are submitted, read as they are written, and remembered for the audit.

A reader here is any reader: it goes on through outages, and submits again what Redis forgot.
This module knows the client library and answers: no processes, no faults.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from pagestream.producer.client import AsyncClient
from pagestream.producer.errors import JobFailed, JobLost, QueueFull, QueueUnavailable
from pagestream.producer.job import AsyncJob, Chunk
from pagestream.producer.keys import DEFAULT_TENANT
from pagestream.producer.protocol import Entry
from pagestream.producer.request import JobSpec, Lane

from .answers import Answer, Answers

DEADLINE_MS = 1_800_000
"""Far off; a worker or a client whose clock is an hour ahead must not think it has passed."""

RETENTION_MS = 600_000
"""How long Redis keeps a reply: past its audit, and not for the whole of a long run."""

LANES: tuple[Lane, ...] = ("normal", "normal", "high", "low")
TENANTS = (DEFAULT_TENANT, DEFAULT_TENANT, "anna", "ben")

SLOW_READ_S = 0.2
SLOW_ONE_IN = 8


@dataclass
class Wait:
    """Somebody wants to know when a job's stream goes on after a fault."""

    began_s: float
    after_tokens: int
    heard: Callable[[float], None]


@dataclass
class LoadJob:
    """One job of the load, from its submission to the audit."""

    id: str
    answer: Answer
    lane: Lane = "normal"
    tenant: str = DEFAULT_TENANT
    cancel_at: int | None = None
    """Cancel once so many tokens have come; 0: as soon as it is accepted."""
    is_slow: bool = False
    """Its reader dawdles."""
    may_be_cancelled: bool = False
    """A cancel was sent: the reply may end early."""
    is_deleted: bool = False
    """Somebody deleted the reply: there is nothing more to read."""
    accepted_s: float | None = None
    entries: list[Entry] = field(default_factory=list)
    """What the reader was given."""
    tokens: int = 0
    ended: bool = False
    left_s: float | None = None
    """When its reader had come to the end, or could read no more."""
    error: JobFailed | None = None
    forgotten: int = 0
    """Times that Redis forgot the job and it was submitted again."""
    faults: set[str] = field(default_factory=set)
    """Faults that happened while it was unfinished."""
    waits: list[Wait] = field(default_factory=list)

    def take(self, chunk: Chunk) -> None:
        """Remember what the reader was given."""
        ended = chunk.finish_reason is not None
        self.tokens += len(chunk.ids)
        self.entries.append(
            Entry(
                id=chunk.id,
                event="end" if ended else "tokens",
                start=chunk.index,
                ids=chunk.ids,
                text=chunk.text,
                reason=chunk.finish_reason,
            )
        )
        self.ended = ended
        for wait in [one for one in self.waits if self.tokens > one.after_tokens or ended]:
            self.waits.remove(wait)
            wait.heard(time.monotonic() - wait.began_s)

    @property
    def spec(self) -> JobSpec:
        """How it is submitted, whoever does it."""
        return {
            "id": self.id,
            "lane": self.lane,
            "tenant": self.tenant,
            "prompt_ids": self.answer.prompt_ids,
            "temperature": 0.0,
            "max_tokens": self.answer.max_tokens,
            "ignore_eos": self.answer.ignore_eos,
            "deadline_ms": DEADLINE_MS,
            "retention_ms": RETENTION_MS,
        }

    @property
    def cursor(self) -> str | None:
        """Where to go on reading."""
        return self.entries[-1].id if self.entries else None

    @property
    def is_decoding(self) -> bool:
        """Whether it has begun and not ended."""
        return self.tokens > 0 and not self.ended


class Load:
    """Keeps a number of jobs in flight; every job's reader runs in a task of its own."""

    def __init__(
        self, client: AsyncClient, answers: Answers, random: Random, *, in_flight: int, name: str
    ) -> None:
        self.jobs: dict[str, LoadJob] = {}
        """Every job that waits for its audit."""
        self.running: dict[str, LoadJob] = {}
        """Those whose readers have not come to the end."""
        self.refused = 0
        """Submissions that were refused with a hint, and came again."""
        self.forgotten = 0
        """Times that Redis forgot a job and it was submitted again."""
        self._numbers = itertools.count()
        self._client = client
        self._answers = answers
        self._random = random
        self._in_flight = in_flight
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._changed = asyncio.Event()

    def start(self) -> None:
        """Begin; each job that ends is followed by another."""
        for _ in range(self._in_flight):
            self._spawn(self._go_on())

    async def stop(self, timeout_s: float) -> None:
        """Start no more jobs, and wait for the ends of those that run."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check_alive(self) -> None:
        """Raise what ended a reader that should not have ended."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def new_job(self, tokens_min: int = 8) -> LoadJob:
        """Make a job that nobody has submitted yet."""
        job = LoadJob(
            f"{self._name}-{next(self._numbers)}",
            self._answers.pick(self._random, tokens_min),
            lane=self._random.choice(LANES),
            tenant=self._random.choice(TENANTS),
            is_slow=self._random.randrange(SLOW_ONE_IN) == 0,
        )
        self.jobs[job.id] = job
        return job

    def run_job(self, job: LoadJob, client: AsyncClient | None = None) -> asyncio.Task[None]:
        """Submit a job and read it to its end, in a task."""
        return self._spawn(self._run(job, client or self._client, submitted=False))

    def follow(self, job: LoadJob) -> asyncio.Task[None]:
        """Read a job that somebody else has submitted and seen accepted."""
        job.accepted_s = time.monotonic()
        return self._spawn(self._run(job, self._client, submitted=True))

    async def wait_for(self, enough: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `enough()`, looked at whenever a reader hears something."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not enough():
                    self._changed.clear()
                    await self._changed.wait()
                    self.check_alive()
        return enough()

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            if task.cancelled() or task.exception() is None:
                self._tasks.discard(task)
            self._changed.set()

        task.add_done_callback(done)
        return task

    async def _go_on(self) -> None:
        while not self._stopping:
            await self._run(self.new_job(), self._client, submitted=False)

    async def _run(self, job: LoadJob, client: AsyncClient, *, submitted: bool) -> None:
        self.running[job.id] = job
        try:
            handle = client.job(job.id) if submitted else await self._submit(job, client)
            while not job.ended:
                try:
                    await self._read(job, handle)
                except QueueUnavailable:
                    continue  # it was away for long; the cursor is where we were
                except JobLost:
                    if job.is_deleted:
                        break
                    job.forgotten += 1
                    self.forgotten += 1
                    job.entries.clear()
                    job.tokens = 0
                    handle = await self._submit(job, client)
                except JobFailed as error:
                    job.error = error
                    job.ended = True
        finally:
            self.running.pop(job.id, None)
            job.left_s = time.monotonic()
            for wait in job.waits:
                wait.heard(time.monotonic() - wait.began_s)
            job.waits.clear()
            self._changed.set()

    async def _submit(self, job: LoadJob, client: AsyncClient) -> AsyncJob:
        while True:
            try:
                handle = await client.submit(**job.spec)
            except QueueFull as error:
                self.refused += 1
                await asyncio.sleep(error.retry_after_ms / 1000 * self._random.uniform(0.5, 1.5))
            except QueueUnavailable:
                await asyncio.sleep(self._random.uniform(0.05, 0.2))
            else:
                job.accepted_s = time.monotonic()
                if job.cancel_at == 0:
                    await self._cancel(job, handle)
                return handle

    async def _read(self, job: LoadJob, handle: AsyncJob) -> None:
        async with handle.stream(after=job.cursor) as stream:
            while chunks := await stream.take():
                for chunk in chunks:
                    job.take(chunk)
                self._changed.set()
                if job.cancel_at and job.tokens >= job.cancel_at:
                    await self._cancel(job, handle)
                if job.is_slow:
                    await asyncio.sleep(self._random.uniform(0, SLOW_READ_S))

    async def _cancel(self, job: LoadJob, handle: AsyncJob) -> None:
        job.may_be_cancelled = True
        job.cancel_at = None
        with suppress(QueueUnavailable):  # it was not cancelled, then
            await handle.cancel()
            await handle.cancel()  # twice is once

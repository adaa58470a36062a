"""The load: sends requests when they are due, reads every token, and writes down when it came.

Runs in a process of its own, so that its work takes nothing from what it measures. What it speaks
to is a `Target`, at a `Place`: the queue is one, a gateway (`gateway.py`) another.
Knows no engine and imports no torch.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from pagestream.producer import AsyncClient, AsyncJob, SamplingParams
from pagestream.producer.errors import PagestreamError
from pagestream.producer.request import JobSpec

from .datasets import Sample, Workload
from .metrics import Timeline
from .progress import progress_bar

RETENTION_MS = 60_000
"""Nobody reads a benchmark's answers twice."""


class Reply(Protocol):
    """One request's answer, while it comes."""

    queue_ms: float | None
    """How long the request waited before somebody ran it, once that is known."""

    def arrivals(self) -> AsyncIterator[int]:
        """Number of tokens, each time some arrive; ends with the answer, or raises what failed."""
        ...


class Target(Protocol):
    """Where requests go."""

    async def send(self, samples: Sequence[Sample]) -> list["Reply | PagestreamError"]:
        """Send requests together; in order, their replies or why they were refused."""
        ...


class Place(Protocol):
    """Where a target is; travels to the client's process."""

    def open(self, requests: int) -> AbstractAsyncContextManager[Target]:
        """Connect, for a run of so many requests."""
        ...


class QueueReply:
    """A job's reply stream."""

    def __init__(self, job: AsyncJob) -> None:
        self.queue_ms: float | None = None
        self._stream = job.stream()

    async def arrivals(self) -> AsyncIterator[int]:
        """As `Reply`."""
        while chunks := await self._stream.take():
            if tokens := sum(len(chunk.ids) for chunk in chunks):
                yield tokens
            if (timings := chunks[-1].timings) is not None:
                self.queue_ms = timings.queue_ms


class QueueTarget:
    """The queue on Redis, through the client that everybody uses."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def send(self, samples: Sequence[Sample]) -> list[Reply | PagestreamError]:
        """As `Target`: greedy, to the exact length."""
        answers = await self._client.submit_many(
            JobSpec(
                prompt_ids=ids,
                sampling=SamplingParams(temperature=0, ignore_eos=True, max_tokens=tokens),
                retention_ms=RETENTION_MS,
            )
            for ids, tokens in samples
        )
        return [QueueReply(one) if isinstance(one, AsyncJob) else one for one in answers]


@dataclass(frozen=True)
class QueuePlace:
    """A queue on a Redis."""

    url: str
    queue: str

    @asynccontextmanager
    async def open(self, requests: int) -> AsyncGenerator[Target]:
        """As `Place`."""
        # The queue's own bound is not what is measured.
        limit = max(10_000, 2 * requests)
        async with AsyncClient(self.url, queue=self.queue, queue_limit=limit) as client:
            yield QueueTarget(client)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send where, and when."""

    place: Place
    workload: Workload
    arrivals_s: list[float]
    max_concurrency: int | None = None
    """Requests unanswered at most; one that is due beyond them is sent when another has ended."""
    title: str = ""


@dataclass(frozen=True)
class Driven:
    """What became of the requests, and what it cost this process."""

    timelines: list[Timeline]
    cpu_share: float
    """Of one core, over the run: near 1, the client was the bottleneck."""


def drive_load(load: Load) -> Driven:
    """Main function of the client process."""
    return asyncio.run(_drive_load(load))


async def _drive_load(load: Load) -> Driven:
    async with load.place.open(len(load.workload)) as target:
        with progress_bar(load.title, len(load.workload)) as told:
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            lines = await drive(target, load.workload, load.arrivals_s, load.max_concurrency, told)
            cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return Driven(lines, round(cpu_s / wall_s, 3))


async def drive(
    target: Target,
    workload: Sequence[Sample],
    arrivals_s: Sequence[float],
    max_concurrency: int | None = None,
    told: Callable[[int, int], None] = lambda ended, tokens: None,
) -> list[Timeline]:
    """Send every request when it is due, and read every answer to its end."""
    conversation = _Conversation(target, workload, max_concurrency, told)
    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for due_s, indices in groupby(range(len(workload)), key=lambda index: arrivals_s[index]):
            await asyncio.sleep(max(0.0, began_s + due_s - time.perf_counter()))
            if max_concurrency is None:
                tasks.create_task(conversation.hold(list(indices)))
                continue
            for index in indices:
                tasks.create_task(conversation.hold([index]))
    return conversation.timelines


@dataclass
class _Conversation:
    """All requests of a run, and who may be sent now."""

    target: Target
    workload: Sequence[Sample]
    max_concurrency: int | None
    told: Callable[[int, int], None]
    timelines: list[Timeline] = field(default_factory=list[Timeline])

    def __post_init__(self) -> None:
        self.timelines = [Timeline() for _ in self.workload]
        self._seats = asyncio.Semaphore(self.max_concurrency or len(self.workload) or 1)
        self._ended = self._tokens = 0

    async def hold(self, indices: list[int]) -> None:
        """Send these requests together and read them all."""
        async with self._seats:
            sent_s = time.perf_counter()
            for index in indices:
                self.timelines[index].sent_s = sent_s
            replies = await self.target.send([self.workload[index] for index in indices])
            await asyncio.gather(*map(self._read, indices, replies))

    async def _read(self, index: int, reply: Reply | PagestreamError) -> None:
        line, wanted = self.timelines[index], self.workload[index].output_tokens
        try:
            if isinstance(reply, PagestreamError):
                raise reply
            async for tokens in reply.arrivals():
                line.arrivals_s.append(time.perf_counter())
                line.tokens.append(tokens)
                self._tokens += tokens
        except PagestreamError as error:
            line.error = f"{error.code}: {error}"
        else:
            line.queue_ms = reply.queue_ms
            if line.output_tokens == wanted:
                line.ended_s = time.perf_counter()
            else:
                line.error = f"{line.output_tokens} of {wanted} tokens came"
        self._ended += 1
        self.told(self._ended, self._tokens)

"""The synchronous client: an `AsyncClient` on an event loop of its own, in a thread of its own.

There is one implementation; each method here hands its call to that loop and waits. So threads may
share one client, and their token streams share its connections.
This module knows the asyncio client and threads: no Redis.
"""

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from .client import TIMEOUT_MS, AsyncClient, Durability
from .errors import PagestreamError, QueueUnavailable
from .job import AsyncJob, CancelOutcome, Chunk, JobStatus, Result, TokenStream
from .keys import DEFAULT_TENANT
from .protocol import ModelInfo
from .reader import RECONNECT_MS
from .request import QUEUE_LIMIT_JOBS, JobSpec, SubmitOptions
from .tenants import TenantLimits

GRACE_S = 0.2
"""What a closing client gives the calls of other threads to end by themselves."""

T = TypeVar("T")


class _Loop:
    """An event loop in a daemon thread; `run` is called from any other thread.

    Invariant: what `run` has handed to the loop gets an answer, also when the loop is stopped.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.RLock()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="pagestream-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and wait for it; an interrupt of the wait cancels it.

        Raises:
            RuntimeError: the client is closed.
            QueueUnavailable: the client was closed while this waited.
        """
        with self._lock:
            if self._stopping:
                coroutine.close()
                raise RuntimeError("this client is closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise QueueUnavailable("the client was closed while this waited") from None
        except BaseException:
            future.cancel()
            raise

    def stop(self, close: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Run `close` in the loop and end the thread; harmless twice."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            asyncio.run_coroutine_threadsafe(self._finish(close), self._loop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    async def _finish(self, close: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
        """Close, let what is under way end, cancel what does not, and end the loop."""
        try:
            if close is not None:
                await close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if others:
                _, late = await asyncio.wait(others, timeout=GRACE_S)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
        finally:
            self._loop.stop()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()


class Job:
    """One job of a queue: read it, ask after it, cancel it, delete it."""

    def __init__(self, loop: _Loop, job: AsyncJob, client: "Client") -> None:
        self.id = job.id
        self.attached = job.attached
        """Whether `submit` found the job already there, with the same payload."""
        self._loop = loop
        self._job = job
        self._client = client  # whose thread ends when nobody refers to it

    def __repr__(self) -> str:
        return repr(self._job).replace("AsyncJob", "Job")

    def stream(self, after: str | None = None) -> Iterator[Chunk]:
        """Yield the job's chunks from behind the cursor `after`, or from the first.

        Any number of readers may read one job, while it runs or later: each gets the same tokens.

        Raises:
            InvalidRequest: `after` is not a cursor.
            JobFailed: the job ended in an error; or `JobCancelled`, `JobExpired`.
            JobNotFound: there is no such job.
            JobLost: Redis no longer has the job.
            QueueUnavailable: Redis could not be reached for too long.
        """
        return self._chunks(self._loop.run(_open(self._job.stream, after)))

    def subscribe(self, after: str | None = None) -> Iterator[Chunk]:
        """Yield the same chunks, taken from the pub/sub mirror: see `AsyncJob.subscribe`."""
        return self._chunks(self._loop.run(_open(self._job.subscribe, after)))

    def result(self, timeout_ms: int | None = None) -> Result:
        """Wait for the end and return the whole answer; raises as `AsyncJob.result` does."""
        return self._loop.run(self._job.result(timeout_ms))

    def status(self) -> JobStatus:
        """Return the job's record as it is now; raises as `AsyncJob.status` does."""
        return self._loop.run(self._job.status())

    def cancel(self) -> CancelOutcome:
        """Cancel the job; its readers get what was published, then `JobCancelled`."""
        return self._loop.run(self._job.cancel())

    def delete(self) -> bool:
        """Delete everything Redis holds of the job; return whether there was anything."""
        return self._loop.run(self._job.delete())

    def _chunks(self, stream: TokenStream) -> Iterator[Chunk]:
        try:
            while chunks := self._loop.run(stream.take()):
                yield from chunks
        finally:
            with contextlib.suppress(RuntimeError):  # the client was closed first
                self._loop.run(stream.aclose())


async def _open(method: Any, after: str | None) -> TokenStream:
    return method(after)


class Client:
    """A queue, seen from a program that wants text from it; a context manager, shared by threads.

    Takes the arguments of `AsyncClient` and does the same.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        model: str | None = None,
        queue: str | None = None,
        tenant: str = DEFAULT_TENANT,
        queue_limit: int = QUEUE_LIMIT_JOBS,
        timeout_ms: int = TIMEOUT_MS,
        reconnect_ms: int = RECONNECT_MS,
        durability: Durability = "server",
        sync_replicas: int = 0,
    ) -> None:
        self._loop = _Loop()
        try:
            self._client = self._loop.run(
                _make(
                    redis_url,
                    model=model,
                    queue=queue,
                    tenant=tenant,
                    queue_limit=queue_limit,
                    timeout_ms=timeout_ms,
                    reconnect_ms=reconnect_ms,
                    durability=durability,
                    sync_replicas=sync_replicas,
                )
            )
        except BaseException:
            self._loop.stop()
            raise
        # A client that is forgotten is closed, too.
        self._close = weakref.finalize(self, self._loop.stop, self._client.aclose)
        self.queue = self._client.queue

    def submit(self, prompt: str | None = None, **options: Unpack[SubmitOptions]) -> Job:
        """Enqueue one job and return its handle, as `AsyncClient.submit` does."""
        return self._handle(self._loop.run(self._client.submit(prompt, **options)))

    def submit_many(self, jobs: Iterable[str | JobSpec]) -> list[Job | PagestreamError]:
        """Enqueue many jobs in few round trips: a handle or an error each, in order."""
        outcomes = self._loop.run(self._client.submit_many(jobs))
        return [
            self._handle(outcome) if isinstance(outcome, AsyncJob) else outcome
            for outcome in outcomes
        ]

    def schedule(
        self, prompt: str | None = None, *, delay_ms: int, **options: Unpack[SubmitOptions]
    ) -> str:
        """Have a job submitted later, as `AsyncClient.schedule` does; return its id."""
        return self._loop.run(self._client.schedule(prompt, delay_ms=delay_ms, **options))

    def unschedule(self, schedule_id: str) -> bool:
        """Remove a schedule, as `AsyncClient.unschedule` does; return whether there was one."""
        return self._loop.run(self._client.unschedule(schedule_id))

    def job(self, job_id: str) -> Job:
        """Return the handle of a job that some client has submitted; nothing is asked yet."""
        return self._handle(self._client.job(job_id))

    def models(self) -> list[ModelInfo]:
        """Return what the queue's live workers serve."""
        return self._loop.run(self._client.models())

    def limits(self, tenant: str | None = None) -> TenantLimits:
        """Return what an operator has set for a tenant, this client's by default."""
        return self._loop.run(self._client.limits(tenant))

    def close(self) -> None:
        """Close the connections and end the thread; harmless twice."""
        self._close()

    def _handle(self, job: AsyncJob) -> Job:
        return Job(self._loop, job, self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


async def _make(redis_url: str | None, **options: Any) -> AsyncClient:
    return AsyncClient(redis_url, **options)

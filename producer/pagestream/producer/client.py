"""The asyncio client: submit jobs to a queue, find them again, read what they write.

`AsyncClient` is the implementation; the synchronous `Client` in `sync` runs one on a thread of its
own. A client belongs to the event loop it is used in.
This module knows what a caller may ask for; how it reaches Redis is `store`'s matter.
"""

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Literal, Self, Unpack

from .embedded import default_url
from .errors import InvalidRequest, NotDurable, PagestreamError
from .job import AsyncJob
from .keys import DEFAULT_TENANT, Keys, check_name
from .protocol import ModelInfo
from .reader import RECONNECT_MS
from .request import QUEUE_LIMIT_JOBS, JobSpec, Request, SubmitOptions, build_request, check_against
from .schedules import build_scheduled, check_delay
from .store import JobStore
from .tenants import TenantLimits
from .tracing import submit_span

Durability = Literal["server", "strict"]

TIMEOUT_MS = 5_000
"""How long a call tries to reach Redis before `QueueUnavailable`."""
MODELS_MS = 10_000
"""How long a client believes what it read about the queue's models."""
NO_MODELS_MS = 500
"""How long it believes that there are none: a worker may be about to be ready."""


class AsyncClient:
    """A queue, seen from a program that wants text from it; an async context manager.

    Connects when first used. Closing it leaves the jobs alone: they go on, and any client can read
    them by their ids.
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
        """Prepare a client of one queue.

        Args:
            redis_url: `redis://`, `rediss://` or `unix://`; None takes `PAGESTREAM_REDIS_URL`, else
                the server that `pagestream up` runs here, else `redis://localhost:6379/0`.
            model: the served model; jobs for it are refused by a worker that serves another.
            queue: the queue's name; None is the model's name. One of the two is needed.
            tenant: whose jobs these are.
            queue_limit: unfinished jobs the tenant may have before `QueueFull`.
            timeout_ms: how long a call tries to reach Redis before `QueueUnavailable`.
            reconnect_ms: how long open token streams sit out an outage.
            durability: what accepted means. `server`: as durable as the server's settings make it;
                `strict`: on the server's disk, or `NotDurable` where it cannot say so.
            sync_replicas: with `strict`, on the disks of so many replicas as well.

        Raises:
            InvalidRequest: no queue is named, or a name or the URL has characters it may not have.
        """
        if durability not in ("server", "strict"):
            raise InvalidRequest(f"durability={durability!r} is neither 'server' nor 'strict'")
        if sync_replicas < 0 or (sync_replicas and durability != "strict"):
            raise InvalidRequest(
                f"sync_replicas={sync_replicas} needs to be 0 or more, and durability='strict'"
            )
        name = queue or model
        if name is None:
            raise InvalidRequest("name the model, or the queue: AsyncClient(url, model='…')")
        self.queue = check_name("queue", name)
        self._model = model
        self._tenant = check_name("tenant", tenant)
        self._queue_limit = queue_limit
        self._models: list[ModelInfo] = []
        self._models_until = 0.0
        self._durability = durability
        self._store = JobStore(
            redis_url or default_url(),
            Keys(self.queue),
            timeout_ms=timeout_ms,
            reconnect_ms=reconnect_ms,
            strict=durability == "strict",
            sync_replicas=sync_replicas,
        )

    async def submit(self, prompt: str | None = None, **options: Unpack[SubmitOptions]) -> AsyncJob:
        """Enqueue one job and return its handle.

        Give one of `prompt`, `messages` and `prompt_ids`; how to sample as `sampling` or parameter
        by parameter; see `SubmitOptions` for the rest. Under an `id` the call is idempotent: with
        the same payload it attaches to the job that is there, whatever became of it. Where no seed
        is given one is made from the id, so a resubmission is the same job with the same answer.

        Raises:
            InvalidRequest: the job could never run; the message says why. `UnsupportedParameter`
                and `UnknownModel` are kinds of it.
            JobConflict: the id is taken by a job with another payload.
            QueueFull: the tenant has too many unfinished jobs; the error says when to try again.
            RateLimited: the tenant sends more than it may a second; the error says when, too.
            QueueUnavailable: Redis cannot be reached; try again under the same id. `RedisFull` is
                a kind of it.
            NotDurable: the server cannot do what `durability="strict"` asks for.
        """
        given = JobSpec(**options) if prompt is None else JobSpec(prompt=prompt, **options)
        request = self._request(given)
        check_against(request.payload, await self.models())
        with submit_span(self.queue, 1, request.id) as context:
            accepted = await self._store.submit(request.traced(context))
        return self._handle(request, accepted)

    async def submit_many(self, jobs: Iterable[str | JobSpec]) -> list[AsyncJob | PagestreamError]:
        """Enqueue many jobs in few round trips: prompts, or maps of what `submit` takes.

        Returns, in order, a handle for each job that was accepted and an error (not raised) for
        each that was not.

        Raises:
            QueueUnavailable: Redis cannot be reached, and nothing was sent.
        """
        models = await self.models()
        outcomes: list[AsyncJob | PagestreamError | None] = []
        requests: list[tuple[int, Request]] = []
        for place, job in enumerate(jobs):
            outcomes.append(None)
            try:
                request = self._request({"prompt": job} if isinstance(job, str) else job)
                check_against(request.payload, models)
                requests.append((place, request))
            except PagestreamError as error:
                outcomes[place] = error
        with submit_span(self.queue, len(requests), None) as context:
            traced = [request.traced(context) for _, request in requests]
            answers = await self._store.submit_many(traced)
        for (place, request), answer in zip(requests, answers, strict=True):
            is_error = isinstance(answer, PagestreamError)
            outcomes[place] = answer if is_error else self._handle(request, answer)
        return [outcome for outcome in outcomes if outcome is not None]

    async def schedule(
        self, prompt: str | None = None, *, delay_ms: int, **options: Unpack[SubmitOptions]
    ) -> str:
        """Have a job submitted in `delay_ms`, by a jobs process, and return its id.

        Takes what `submit` takes; durations among it count from the later submit. Nothing is on the
        queue before: `job(id)` finds the job once it was due. Idempotent under an `id`.

        Raises:
            InvalidRequest: the job could never run; the message says why.
            JobConflict: the id is another schedule's.
            QueueUnavailable: Redis cannot be reached; try again under the same id.
            NotDurable: this client was to be `strict`, which nothing but a submit can be.
        """
        if self._durability == "strict":
            raise NotDurable("a schedule is as durable as the server; use durability='server'")
        check_delay(delay_ms)
        given = JobSpec(**options) if prompt is None else JobSpec(prompt=prompt, **options)
        scheduled = build_scheduled(
            given,
            queue=self.queue,
            model=self._model,
            tenant=self._tenant,
            queue_limit=self._queue_limit,
        )
        store = self._store.schedules
        await store.put(scheduled, await store.now_ms() + delay_ms)
        return scheduled.id

    async def unschedule(self, schedule_id: str) -> bool:
        """Remove a schedule; return whether there was one.

        False where it has been submitted: then cancel its job. One that is being submitted at this
        very moment may still be, too.

        Raises:
            InvalidRequest: no schedule can have this id.
            QueueUnavailable: Redis cannot be reached.
        """
        return await self._store.schedules.remove(check_name("job id", schedule_id))

    def job(self, job_id: str) -> AsyncJob:
        """Return the handle of a job that some client has submitted; nothing is asked yet.

        Raises:
            InvalidRequest: no job can have this id.
        """
        return AsyncJob(self._store, check_name("job id", job_id), submitted=False, attached=True)

    async def models(self) -> list[ModelInfo]:
        """Return what the queue's live workers serve; known for ten seconds once anything is.

        Raises:
            QueueUnavailable: Redis cannot be reached.
        """
        if time.monotonic() > self._models_until:
            self._models = await self._store.models()
            known_ms = MODELS_MS if self._models else NO_MODELS_MS
            self._models_until = time.monotonic() + known_ms / 1000
        return self._models

    async def limits(self, tenant: str | None = None) -> TenantLimits:
        """Return what an operator has set for a tenant (this client's by default) on this queue.

        Raises:
            InvalidRequest: no tenant can have this name.
            QueueUnavailable: Redis cannot be reached.
        """
        return await self._store.tenants.limits(check_name("tenant", tenant or self._tenant))

    @property
    def reader_connections(self) -> int:
        """Connections that wait for replies now: one for each 256 token streams."""
        return self._store.reader_connections

    async def aclose(self) -> None:
        """Close the connections; token streams that are still read get `QueueUnavailable`."""
        await self._store.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _request(self, given: JobSpec) -> Request:
        return build_request(
            given, model=self._model, tenant=self._tenant, queue_limit=self._queue_limit
        )

    def _handle(self, request: Request, accepted: bool) -> AsyncJob:
        return AsyncJob(
            self._store,
            request.id,
            submitted=accepted,  # a job that was there may have another timeout
            attached=not accepted,
            reader_timeout_ms=request.options.reader_timeout_ms,
        )

"""What other services may call through arq: `generate` and `generate_nowait`.

A call's job has the id that arq gave the call: whoever runs it again after a crash finds the job
and reads on. arq marks a call as running so that nobody else runs it; here the mark is short and
renewed, so that a call whose process was killed is taken up within seconds.
This module knows arq's contexts and clients; not how the functions are run.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix
from arq.worker import Function, Retry, Worker, func
from redis.exceptions import RedisError

from ..errors import InvalidRequest, JobLost, QueueFull, QueueUnavailable, RateLimited
from ..gateway.queues import Queues
from ..job import AsyncJob
from ..keys import Around
from .packing import pack, unpack

MARK_S = 10
"""How long a call counts as running after its process has died."""
TRIES = 1_000
"""A call is tried again while Redis is away or its queue is full; both may last."""
KEEP_RESULT_S = 3_600
LONGEST_S = 7 * 24 * 3_600
RETRY_S = 1.0


class Calling:
    """The functions; belongs to one event loop."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues

    @property
    def functions(self) -> list[Function]:
        """What an arq worker is told."""
        return [self._function(self.generate), self._function(self.generate_nowait)]

    async def generate(
        self, ctx: dict[str, Any], prompt: str | None = None, *, model: str, **options: Any
    ) -> str:
        """Return the text for a prompt; `options` are those of `submit`, but for the id."""
        async with _marked(ctx), _retried():
            job = await self._submit(ctx, prompt, model, options)
            return (await job.result()).text

    async def generate_nowait(
        self, ctx: dict[str, Any], prompt: str | None = None, *, model: str, **options: Any
    ) -> str:
        """Submit the same, and return the job's id."""
        async with _retried():
            return (await self._submit(ctx, prompt, model, options)).id

    async def _submit(
        self, ctx: dict[str, Any], prompt: str | None, model: str, options: dict[str, Any]
    ) -> AsyncJob:
        if "id" in options:
            raise InvalidRequest("id: the job's id is that of the call: enqueue_job(_job_id=…)")
        client = await self._queues.of_model(model)
        return await client.submit(prompt, **options, id=ctx["job_id"])

    def _function(self, coroutine: Callable[..., Any]) -> Function:
        return func(
            coroutine,
            name=coroutine.__name__,
            keep_result=KEEP_RESULT_S,
            max_tries=TRIES,
            timeout=LONGEST_S,
        )


def calls_worker(arq: ArqRedis, calling: Calling, *, concurrent: int, poll_s: float) -> Worker:
    """Return the arq worker that runs calls."""
    worker = Worker(
        calling.functions,
        redis_pool=arq,
        queue_name=Around.CALLS,
        handle_signals=False,
        max_jobs=concurrent,
        poll_delay=poll_s,
        job_serializer=pack,
        job_deserializer=unpack,
    )
    worker.in_progress_timeout_s = MARK_S
    return worker


@asynccontextmanager
async def _marked(ctx: dict[str, Any]) -> AsyncGenerator[None]:
    """Keep arq's mark of a running call while the block runs."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(MARK_S / 3)
            with suppress(RedisError, OSError):
                await ctx["redis"].expire(f"{in_progress_key_prefix}{ctx['job_id']}", MARK_S)

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)


@asynccontextmanager
async def _retried() -> AsyncGenerator[None]:
    """Have arq run the call again after what passes by itself."""
    try:
        yield
    except (QueueFull, RateLimited) as error:
        raise Retry(defer=error.retry_after_ms / 1000) from error
    except (QueueUnavailable, JobLost) as error:
        raise Retry(defer=RETRY_S) from error

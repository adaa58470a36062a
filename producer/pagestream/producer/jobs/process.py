"""The arq worker: takes what is due and does it, through outages, until it is told to stop.

arq runs the functions; when they are due is kept in our own list (`batch.due`), because arq's entry
of a job whose process was killed stays marked as running for as long as the job might have taken.
This module knows which kinds of work there are; what they do is their modules' matter.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from arq.connections import ArqRedis
from arq.worker import Worker, func
from redis.exceptions import RedisError

from ..batch.due import Due
from ..errors import QueueUnavailable
from ..keys import Around
from .packing import pack, unpack

log = logging.getLogger(__name__)

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


class JobsProcess:
    """What one process does; belongs to one event loop."""

    def __init__(
        self,
        due: Due,
        work: Mapping[str, Work],
        arq: ArqRedis,
        *,
        always: Sequence[str],
        calls_worker: Callable[[], Worker],
    ) -> None:
        """Prepare.

        Args:
            due: the list.
            work: what is done, by the kind that entries begin with.
            arq: the queue of functions that do it.
            always: entries that never go away.
            calls_worker: makes the arq worker for what other services call.
        """
        self._due = due
        self._always = always
        self._work = work
        self._arq = arq
        self._calls_worker = calls_worker
        self._looked_s = time.monotonic()

    async def run(self) -> None:
        """Work until cancelled; sit outages out."""
        while True:
            workers = [self._own_worker(), self._calls_worker()]
            tasks = [asyncio.create_task(worker.async_run()) for worker in workers]
            tasks.append(asyncio.create_task(self._hand_out()))
            try:
                await asyncio.gather(*tasks)
            except (RedisError, OSError, QueueUnavailable) as error:
                log.warning("Redis is away, trying again: %s", error)
                self._looked_s = time.monotonic()
            finally:
                tasks += [task for worker in workers for task in worker.tasks.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(1)

    def silent_s(self) -> float:
        """Return how long ago the list was looked at, or Redis found away."""
        return time.monotonic() - self._looked_s

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

    def _own_worker(self) -> Worker:
        return Worker(
            [func(self.do, name="do", keep_result=0, max_tries=1, timeout=LONGEST_S)],
            redis_pool=self._arq,
            queue_name=Around.ARQ,
            handle_signals=False,
            max_jobs=CONCURRENT,
            poll_delay=LOOK_S,
            retry_jobs=False,
            job_serializer=pack,
            job_deserializer=unpack,
        )

    async def _hand_out(self) -> None:
        while True:
            await self._due.keep(self._always)
            for entry, ticket in await self._due.take(CONCURRENT):
                await self._arq.enqueue_job("do", entry, ticket, _job_id=f"{entry}@{ticket}")
            self._looked_s = time.monotonic()
            await asyncio.sleep(LOOK_S)

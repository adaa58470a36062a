"""Submits scheduled prompts when they are due.

What was due while no process was up is submitted once, and then goes on at its times. This module
knows schedules and queues; not who waits for the answers.
"""

import logging

from ..errors import PagestreamError, QueueFull, QueueUnavailable, RateLimited
from ..keys import Keys
from ..request import build_request
from ..schedules import Planned, ScheduleStore
from ..store import JobStore
from .cron import next_ms

TIMEOUT_MS = 5_000

log = logging.getLogger(__name__)


class Prompts:
    """Submits prompts; belongs to one event loop."""

    def __init__(self, url: str, schedules: ScheduleStore) -> None:
        self._url = url
        self._schedules = schedules
        self._stores: dict[str, JobStore] = {}

    async def submit(self, schedule_id: str) -> int | None:
        """Submit what a schedule asks; return in how many ms it is due again, if it is.

        Raises:
            QueueUnavailable: Redis cannot be reached.
        """
        planned = await self._schedules.get(schedule_id)
        if planned is None:
            return None
        try:
            await self._submit(planned)
        except QueueUnavailable:
            raise
        except (QueueFull, RateLimited) as error:
            return error.retry_after_ms
        except PagestreamError as error:
            log.error("schedule %s: job %s is refused: %s", schedule_id, planned.job_id, error)
        cron = planned.scheduled.cron
        if cron is None:
            await self._schedules.remove(schedule_id)
            return None
        now_ms = await self._schedules.now_ms()
        again_ms = next_ms(cron, max(now_ms, planned.next_ms))
        await self._schedules.advance(schedule_id, again_ms)
        return again_ms - now_ms

    async def aclose(self) -> None:
        """Close the connections."""
        for store in self._stores.values():
            await store.aclose()

    async def _submit(self, planned: Planned) -> None:
        one = planned.scheduled
        request = build_request(
            {**one.spec, "id": planned.job_id},
            model=one.model,
            tenant=one.tenant,
            queue_limit=one.queue_limit,
        )
        store = self._stores.get(one.queue)
        if store is None:
            store = self._stores[one.queue] = JobStore(
                self._url, Keys(one.queue), timeout_ms=TIMEOUT_MS, reconnect_ms=TIMEOUT_MS
            )
        await store.submit(request)

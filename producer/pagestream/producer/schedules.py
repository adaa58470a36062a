"""Prompts that are to be submitted later, once or again and again, kept in Redis.

A jobs process submits them when they are due, under ids that are known before: the schedule's own,
or for one that recurs `<schedule>.<ms>`, so that none is submitted twice. This module knows when a
schedule is due next; not how its times are made.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from .calls import Calls
from .errors import InvalidRequest, JobConflict
from .keys import FILE_RETENTION_MS, Around
from .lua import Script
from .request import build_request

DELAY_MS_MAX = 366 * 24 * 3_600_000
ID_CHARACTERS_MAX = 100
"""A job's id has a time behind it where the schedule recurs."""


class Scheduled(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be submitted, and by which rule."""

    id: str
    queue: str
    model: str | None
    tenant: str
    queue_limit: int
    spec: dict[str, Any]
    """What `submit` takes, but for the id."""
    cron: str | None = None
    """When it recurs, in UTC; None: it is submitted once."""


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule, and when it is due next."""

    scheduled: Scheduled
    next_ms: int
    """In Redis's ms since 1970."""

    @property
    def job_id(self) -> str:
        """The id that the next job has."""
        one = self.scheduled
        return one.id if one.cron is None else f"{one.id}.{self.next_ms}"


class ScheduleStore:
    """The schedules of one Redis; belongs to one event loop.

    Every method raises `QueueUnavailable` when Redis cannot be reached.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._script = Script("schedule")

    async def put(self, scheduled: Scheduled, next_ms: int) -> None:
        """Keep a schedule and have it done at `next_ms`; harmless when repeated.

        Raises:
            JobConflict: the id is another schedule's.
        """
        kept_ms = 0
        if scheduled.cron is None:
            kept_ms = max(0, next_ms - await self._calls.now_ms()) + FILE_RETENTION_MS
        about = msgspec.json.encode(scheduled, order="deterministic")
        kept = await self._calls.run(
            lambda: self._script.run(
                self._calls.client, Around.DUE, scheduled.id, about, next_ms, kept_ms
            )
        )
        if not kept:
            raise JobConflict(f"schedule {scheduled.id} exists with other content; take a new id")

    async def get(self, schedule_id: str) -> Planned | None:
        """Return a schedule; None if there is none of this id."""
        about, next_ms = await self._calls.command(
            "HMGET", Around.schedule(schedule_id), "about", "next_ms"
        )
        if about is None:
            return None
        return Planned(scheduled=msgspec.json.decode(about, type=Scheduled), next_ms=int(next_ms))

    async def advance(self, schedule_id: str, next_ms: int) -> None:
        """Say when a schedule that recurs is due after what was submitted."""
        await self._calls.command("HSET", Around.schedule(schedule_id), "next_ms", next_ms)

    async def remove(self, schedule_id: str) -> bool:
        """Remove a schedule; return whether there was one."""
        await self._calls.command("ZREM", Around.DUE, entry_of(schedule_id))
        return bool(await self._calls.command("DEL", Around.schedule(schedule_id)))

    async def all(self) -> AsyncIterator[Planned]:
        """Yield every schedule, in no order."""
        cursor = 0
        while True:
            cursor, page = await self._calls.command(
                "ZSCAN", Around.DUE, cursor, "MATCH", entry_of("*"), "COUNT", 1_000
            )
            for entry, _ in page:
                found = await self.get(entry.decode().partition(":")[2])
                if found is not None:
                    yield found
            if int(cursor) == 0:
                return

    async def now_ms(self) -> int:
        """Return what time it is on the server, in ms since 1970."""
        return await self._calls.now_ms()


def entry_of(schedule_id: str) -> str:
    """Return a schedule's entry in the list of what is due."""
    return f"prompt:{schedule_id}"


def build_scheduled(
    given: Mapping[str, Any],
    *,
    queue: str,
    model: str | None,
    tenant: str,
    queue_limit: int,
    cron: str | None = None,
) -> Scheduled:
    """Return what `given`, the arguments of `submit`, is as a schedule.

    Raises:
        InvalidRequest: it could not be submitted.
    """
    kept = dict(given)
    if kept.get("prompt_ids") is not None:
        kept["prompt_ids"] = list(kept["prompt_ids"])  # it may be one that can be read once
    request = build_request(kept, model=model, tenant=tenant, queue_limit=queue_limit)
    if len(request.id) > ID_CHARACTERS_MAX:
        raise InvalidRequest(
            f"the id {request.id!r} has more than {ID_CHARACTERS_MAX} characters", param="id"
        )
    kept.pop("id", None)
    return Scheduled(
        id=request.id,
        queue=queue,
        model=model,
        tenant=tenant,
        queue_limit=queue_limit,
        spec=msgspec.json.decode(msgspec.json.encode(kept)),
        cron=cron,
    )


def check_delay(delay_ms: int) -> int:
    """Return `delay_ms` if a prompt may wait for so long.

    Raises:
        InvalidRequest: it may not.
    """
    if not isinstance(delay_ms, int) or not 0 <= delay_ms <= DELAY_MS_MAX:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(
            f"delay_ms={delay_ms!r} is not a whole number of ms from 0 to {DELAY_MS_MAX}, a year",
            param="delay_ms",
        )
    return delay_ms

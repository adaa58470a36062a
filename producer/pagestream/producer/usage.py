"""What tenants have used: requests and tokens by queue and UTC day, and months of them.

The script that ends a job counts it, on the day of Redis's clock; a day that is over is added to
its month, once. This module reads and adds: it knows no jobs.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec

from .calls import Calls
from .errors import InvalidRequest
from .keys import QUEUES, Keys
from .lua import Script

DAY_MS = 24 * 3_600_000
DAYS_KEPT = 35
MONTH_KEPT_MS = 400 * DAY_MS

_EPOCH = date(1970, 1, 1)


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant used on one queue, on a day or in a month."""

    period: str
    """`2026-11-25`, or `2026-11`."""
    queue: str
    tenant: str
    requests: int = 0
    """Jobs that ended, however."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were found in the prefix cache."""


class UsageStore:
    """The usage of every queue of one Redis; belongs to one event loop.

    Every method raises `QueueUnavailable` when Redis cannot be reached.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._roll = Script("usage_roll")

    async def days(self, count: int) -> list[Used]:
        """Return the usage of the last `count` days, today included, the newest first."""
        today = await self._today()
        return [
            one
            for day in _days_back(today, min(count, DAYS_KEPT))
            for queue in await self._queues()
            for one in _used(day.isoformat(), queue, await self._counts(queue, _number(day)))
        ]

    async def month(self, month: str) -> list[Used]:
        """Return the usage of a month such as `2026-11`, as far as it has gone.

        Raises:
            InvalidRequest: it is no month.
        """
        today = await self._today()
        try:
            first = date.fromisoformat(f"{month}-01")
        except ValueError as error:
            raise InvalidRequest(f"--month {month!r} is not a month like {today:%Y-%m}") from error
        kept = _days_back(today, DAYS_KEPT)
        open_days = [day for day in kept if (day.year, day.month) == (first.year, first.month)]
        found: list[Used] = []
        for queue in await self._queues():
            counts = await self._counts(queue, month)
            for day in open_days:
                if f":{_number(day)}" not in counts:
                    for name, count in (await self._counts(queue, _number(day))).items():
                        counts[name] = counts.get(name, 0) + count
            found += _used(month, queue, counts)
        return found

    async def roll(self) -> int:
        """Add every day that is over to its month; return how many were added now."""
        today = await self._today()
        added = 0
        for queue in await self._queues():
            for day in _days_back(today - timedelta(days=1), DAYS_KEPT - 1):
                key = Keys(queue).usage(_number(day))
                if await self._calls.command("EXISTS", key):
                    added += await self._calls.run(
                        lambda key=key, day=day: self._roll.run(
                            self._calls.client, key, _number(day), f"{day:%Y-%m}", MONTH_KEPT_MS
                        )
                    )
        return added

    async def _queues(self) -> list[str]:
        return sorted(name.decode() for name in await self._calls.command("SMEMBERS", QUEUES))

    async def _counts(self, queue: str, period: int | str) -> dict[str, int]:
        fields: dict[bytes, bytes] = await self._calls.command("HGETALL", Keys(queue).usage(period))
        return {name.decode(): int(count) for name, count in fields.items()}

    async def _today(self) -> date:
        return datetime.fromtimestamp(await self._calls.now_ms() / 1000, UTC).date()


def _number(day: date) -> int:
    return (day - _EPOCH).days


def _days_back(last: date, count: int) -> Iterator[date]:
    return (last - timedelta(days=back) for back in range(count))


def _used(period: str, queue: str, counts: Mapping[str, int]) -> list[Used]:
    tenants: dict[str, dict[str, Any]] = {}
    for field, count in counts.items():
        tenant, _, name = field.partition(":")
        if tenant and name in Used.__struct_fields__:
            tenants.setdefault(tenant, {})[name] = count
    return [
        Used(period=period, queue=queue, tenant=tenant, **found)
        for tenant, found in sorted(tenants.items())
    ]

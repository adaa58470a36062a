"""What is to be done around the queues, and when: the one list that outlives every process.

Whoever takes an entry has it for a lease, and renews that while at work: what a process that died
had taken is taken again within seconds. Doing an entry twice must be harmless all the same.
This module knows names and times: not what an entry stands for.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from ..calls import Calls
from ..keys import Around
from ..lua import Argument, Script

LEASE_MS = 5_000
"""How soon what a process that died had taken is taken by another."""


class Due:
    """The list; belongs to one event loop. Every method raises `QueueUnavailable` without Redis."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._script = Script("due")

    async def put(self, entry: str, delay_ms: int = 0) -> None:
        """Have an entry done after so long, whatever was planned for it before."""
        await self._run("put", entry, delay_ms)

    async def keep(self, entries: Iterable[str]) -> None:
        """Have entries done that are always there: at once, where they are not there yet."""
        pairs = [one for entry in entries for one in (0, entry)]
        await self._calls.command("ZADD", Around.DUE, "NX", *pairs)

    async def take(self, count_max: int) -> list[tuple[str, str]]:
        """Return (entry, ticket) of what is due; who does not begin with it in a lease loses it."""
        ticket, entries = await self._run("take", LEASE_MS, count_max)
        return [(entry.decode(), ticket.decode()) for entry in entries]

    @asynccontextmanager
    async def held(self, entry: str, ticket: str) -> AsyncGenerator[bool]:
        """Keep a taken entry from others while the block runs; False: another has it by now."""
        if not await self._run("begin", LEASE_MS, entry, ticket):
            yield False
            return
        renewing = asyncio.create_task(self._renew(entry))
        try:
            yield True
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def look(self) -> tuple[dict[str, int], int]:
        """Return how many entries there are of each kind, and how late the latest is, in ms."""
        kinds: dict[str, int] = {}
        now_ms = first_ms = await self._calls.now_ms()
        cursor = 0
        while True:
            cursor, page = await self._calls.command("ZSCAN", Around.DUE, cursor, "COUNT", 1_000)
            for entry, at_ms in page:
                kind = entry.decode().partition(":")[0]
                kinds[kind] = kinds.get(kind, 0) + 1
                if float(at_ms) > 0:  # what is always there has no time before it is first done
                    first_ms = min(first_ms, round(float(at_ms)))
            if int(cursor) == 0:
                return kinds, now_ms - first_ms

    async def done(self, entry: str) -> None:
        """Forget an entry."""
        await self._calls.command("ZREM", Around.DUE, entry)

    async def _renew(self, entry: str) -> None:
        while True:
            await asyncio.sleep(LEASE_MS / 3000)
            await self._run("hold", LEASE_MS, entry)

    async def _run(self, *arguments: Argument) -> Any:
        redis = self._calls.client
        return await self._calls.run(lambda: self._script.run(redis, Around.DUE, *arguments))

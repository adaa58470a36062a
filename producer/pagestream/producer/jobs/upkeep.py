"""What is done once an hour: days of usage become months, and what nothing refers to goes.

Everything here has a lifetime of its own; what is left are names in indexes whose files and batches
have expired, and keys whose lifetime a process that died did not come to set.
"""

from collections.abc import AsyncIterator, Callable

from ..calls import Calls
from ..keys import FILE_RETENTION_MS, Around
from ..usage import UsageStore

HOUR_MS = 3_600_000

_INDEXES = {Around.files(""): Around.file, Around.batches(""): Around.batch}
_KEPT = (Around.file(""), Around.batch(""), Around.hook(""))
_LEFT_MS = FILE_RETENTION_MS + 24 * HOUR_MS
"""How long a key may stay whose lifetime nobody set: no shorter than what it was to be."""
_PAGE = 1_000


class Upkeep:
    """Sweeps and adds up; belongs to one event loop."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._usage = UsageStore(calls)

    async def hourly(self, _: str) -> int:
        """Do it; return in how many ms it is to be done again.

        Raises:
            QueueUnavailable: Redis cannot be reached.
        """
        await self._usage.roll()
        await self.sweep()
        return HOUR_MS

    async def sweep(self) -> int:
        """Take expired names from indexes, and give lifetimes to keys without; return how many."""
        swept = 0
        async for key in self._keys():
            index = next((one for one in _INDEXES if key.startswith(one)), None)
            if index is not None:
                swept += await self._sweep_index(key, _INDEXES[index])
            elif key.startswith(_KEPT) and await self._calls.command("PTTL", key) == -1:
                swept += await self._calls.command("PEXPIRE", key, _LEFT_MS)
        return swept

    async def _sweep_index(self, index: str, key_of: Callable[[str], str]) -> int:
        swept = 0
        for name in await self._calls.command("ZRANGE", index, 0, -1):
            if not await self._calls.command("EXISTS", key_of(name.decode())):
                swept += await self._calls.command("ZREM", index, name)
        return swept

    async def _keys(self) -> AsyncIterator[str]:
        """Yield the keys around the queues."""
        cursor = 0
        while True:
            cursor, keys = await self._calls.command(
                "SCAN", cursor, "MATCH", f"{Around.PREFIX}*", "COUNT", _PAGE
            )
            for key in keys:
                yield key.decode()
            if int(cursor) == 0:
                return

"""Webhooks in Redis: those to be sent, and those that were given up.

A webhook is a hash and an entry `hook:<id>` in the list of what is due; one that was given up is in
a sorted set instead, until somebody retries it or a week has passed. This module sends nothing.
"""

import msgspec

from ..batch.due import Due
from ..calls import Calls
from ..errors import JobNotFound
from ..keys import FILE_RETENTION_MS, Around
from .events import Hook

GIVE_UP_MS = 3 * 24 * 3_600_000
"""How long a webhook is tried."""


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook that has not been delivered."""

    hook: Hook
    since_ms: int
    """When it was first to be sent, in Redis's ms since 1970."""
    attempts: int
    error: str
    """What the last attempt met."""
    died_ms: int | None = None
    """When it was given up."""


class HookStore:
    """The webhooks of one Redis; belongs to one event loop.

    Every method raises `QueueUnavailable` when Redis cannot be reached.
    """

    def __init__(self, calls: Calls, due: Due) -> None:
        self._calls = calls
        self._due = due

    async def put(self, hook: Hook) -> None:
        """Have a webhook sent; harmless when repeated."""
        key, now_ms = Around.hook(hook.id), await self._calls.now_ms()
        await self._calls.command("HSETNX", key, "since_ms", now_ms)
        await self._calls.command("HSETNX", key, "hook", msgspec.json.encode(hook))
        await self._calls.command("PEXPIRE", key, GIVE_UP_MS + FILE_RETENTION_MS)
        await self._due.put(entry_of(hook.id))

    async def get(self, hook_id: str) -> Pending | None:
        """Return a webhook that has not been delivered; None if there is none of this id."""
        fields: dict[bytes, bytes] = await self._calls.command("HGETALL", Around.hook(hook_id))
        if not {b"hook", b"since_ms"} <= fields.keys():
            return None
        died_ms: bytes | None = await self._calls.command("ZSCORE", Around.DEAD_HOOKS, hook_id)
        return Pending(
            hook=msgspec.json.decode(fields[b"hook"], type=Hook),
            since_ms=int(fields[b"since_ms"]),
            attempts=int(fields.get(b"attempts", b"0")),
            error=fields.get(b"error", b"").decode("utf-8", "replace"),
            died_ms=None if died_ms is None else int(float(died_ms)),
        )

    async def now_ms(self) -> int:
        """Return what time it is on the server, in ms since 1970."""
        return await self._calls.now_ms()

    async def failed(self, hook_id: str, error: str) -> int:
        """Count an attempt that failed; return how many there were."""
        key = Around.hook(hook_id)
        await self._calls.command("HSET", key, "error", error)
        return await self._calls.command("HINCRBY", key, "attempts", 1)

    async def bury(self, hook_id: str) -> None:
        """Give a webhook up, and keep it for a week."""
        now_ms = await self._calls.now_ms()
        dead = Around.DEAD_HOOKS
        await self._calls.command("ZADD", dead, now_ms, hook_id)
        await self._calls.command(
            "ZREMRANGEBYSCORE", dead, "-inf", f"({now_ms - FILE_RETENTION_MS}"
        )
        await self._calls.command("PEXPIRE", dead, FILE_RETENTION_MS)
        await self._calls.command("PEXPIRE", Around.hook(hook_id), FILE_RETENTION_MS)

    async def forget(self, hook_id: str) -> None:
        """Remove a webhook, wherever it is."""
        await self._calls.command("DEL", Around.hook(hook_id))
        await self._calls.command("ZREM", Around.DEAD_HOOKS, hook_id)
        await self._due.done(entry_of(hook_id))

    # What was given up --------------------------------------------------------------------------

    async def dead(self) -> list[Pending]:
        """Return the webhooks that were given up, the oldest first."""
        ids: list[bytes] = await self._calls.command("ZRANGE", Around.DEAD_HOOKS, 0, -1)
        found = [await self.get(one.decode()) for one in ids]
        return [one for one in found if one is not None]

    async def dead_count(self) -> int:
        """Return how many were given up."""
        return await self._calls.command("ZCARD", Around.DEAD_HOOKS)

    async def find(self, name: str) -> Pending:
        """Return the dead webhook of an event's id, or of a job's or a batch's.

        Raises:
            JobNotFound: there is none.
        """
        for one in await self.dead():
            if name in (one.hook.id, one.hook.about, one.hook.about.rpartition("/")[2]):
                return one
        raise JobNotFound(f"there is no dead webhook {name!r}; `pagestream hooks list` shows them")

    async def retry(self, hook_id: str) -> None:
        """Have a dead webhook sent again, as if it were new."""
        key = Around.hook(hook_id)
        now_ms = await self._calls.now_ms()
        await self._calls.command("HSET", key, "since_ms", now_ms, "attempts", 0)
        await self._calls.command("PEXPIRE", key, GIVE_UP_MS + FILE_RETENTION_MS)
        # Not due before it is no longer among the dead, where a new failure would put it again.
        await self._due.put(entry_of(hook_id), 1_000)
        await self._calls.command("ZREM", Around.DEAD_HOOKS, hook_id)


def entry_of(hook_id: str) -> str:
    """Return a webhook's entry in the list of what is due."""
    return f"hook:{hook_id}"

"""Reads one job from its pub/sub mirror, filling from the stream what the mirror lost.

Pub/sub delivers at most once and says nothing of what it dropped. Each message carries the fields
of its stream entry and the entry's id, so the next message shows a gap; where no next one comes, a
quiet second is treated as one. The stream is the truth, the mirror only says it sooner.
This module knows one channel and one stream: no records, no other job.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
from redis.exceptions import RedisError

from .protocol import Entry, decode_entry

QUIET_MS = 1_000
"""After how long without a message the stream is read."""


class Subscription(Protocol):
    """The part of redis-py's asyncio PubSub that a mirror uses, subscribed to the job's channel."""

    async def get_message(self, *, timeout: float) -> dict[str, Any] | None: ...  # noqa: D102
    async def aclose(self) -> None: ...  # noqa: D102


class Mirror:
    """The source of one subscriber's token stream: see `TokenStream`."""

    def __init__(
        self,
        after: str | None,
        subscribe: Callable[[], Awaitable[Subscription]],
        read: Callable[[str | None], Awaitable[list[Entry]]],
        release: Callable[["Mirror"], None],
    ) -> None:
        """Prepare; it subscribes at the first `take`.

        Args:
            after: id of the entry to begin behind.
            subscribe: opens a connection that is subscribed to the job's channel.
            read: reads the stream from behind an id.
            release: called when the reader leaves.
        """
        self._cursor = after
        self._tokens = int(after.split("-")[1]) if after else 0
        self._subscribe = subscribe
        self._read = read
        self._release = release
        self._subscription: Subscription | None = None

    async def take(self) -> list[Entry]:
        """Wait until there is an entry, and return all there are.

        Raises:
            QueueUnavailable: Redis cannot be reached.
            JobLost: Redis no longer has the job.
        """
        entries: list[Entry] = []
        while not entries:
            if self._subscription is None:
                # First subscribe, then read: what is published in between comes twice, not never.
                self._subscription = await self._subscribe()
                entries = await self._read(self._cursor)
            else:
                entries = await self._next(self._subscription)
        self._cursor = entries[-1].id
        self._tokens = max(
            [self._tokens, *(one.offset for one in entries if one.event == "tokens")]
        )
        return entries

    async def _next(self, subscription: Subscription) -> list[Entry]:
        """Return the next message's entry, or the stream's where something may be missing."""
        try:
            message = await subscription.get_message(timeout=QUIET_MS / 1000)
        except (RedisError, OSError):
            await self.aclose()
            return []
        if message is None:
            return await self._read(self._cursor)
        if message["type"] != "message":
            return []
        entry = _frame(message["data"])
        if self._is_old(entry):
            return []
        return await self._read(self._cursor) if self._misses_some(entry) else [entry]

    def close(self) -> None:
        """Leave the channel; harmless twice."""
        self._release(self)

    async def aclose(self) -> None:
        """Close the pub/sub connection."""
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            await subscription.aclose()

    def _is_old(self, entry: Entry) -> bool:
        return self._cursor is not None and _place(entry.id) <= _place(self._cursor)

    def _misses_some(self, entry: Entry) -> bool:
        """Return whether tokens lie between the reader's place and the entry."""
        if entry.event == "tokens":
            return entry.offset - len(entry.ids) > self._tokens
        return entry.event == "end" and entry.offset - 1 > self._tokens


def _frame(data: bytes) -> Entry:
    """Read a message: the entry's fields and its id, as one JSON object of strings."""
    fields = msgspec.json.decode(data, type=dict[str, str])
    entry_id = fields.pop("id")
    return decode_entry(
        entry_id.encode(), {key.encode(): value.encode() for key, value in fields.items()}
    )


def _place(entry_id: str) -> tuple[int, int]:
    epoch, _, offset = entry_id.partition("-")
    return int(epoch), int(offset)

"""Reads many reply streams over few connections.

Each connection, a line, waits in one XREAD BLOCK on at most 256 streams: a connection a stream
would cost the server, and so the worker's publishing, more than twice as much, and naming 2,048
streams in one call costs 5 ms. A stream that joins ends the wait with CLIENT UNBLOCK; one whose
reader is slow is left out until it has caught up, so that it delays nobody and fills no memory.

A reader's place is the id of the last entry it was given. A new connection continues from there:
nothing is missed and nothing comes twice. A stream that Redis no longer has ends in `JobLost`; one
that Redis remembers only in part (it lost its last writes) is read again from its beginning, and
the caller drops what it has seen by the entries' offsets.
This module knows streams of entries: no jobs' records, no scripts, no text.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from redis.exceptions import RedisError

from .calls import may_pass
from .errors import JobLost, PagestreamError, QueueUnavailable
from .protocol import Entry, decode_entry

STREAMS_PER_LINE = 256
ENTRIES_PER_READ = 64
"""Entries a stream may bring in one call: bounds a reply when many late readers catch up."""
BUFFERED_ENTRIES = 1_024
"""Entries a feed holds before its stream is left out of the next call."""
BLOCK_MS = 1_000
"""The longest wait in one call, and how often silent streams are looked at."""
ANSWER_MS = 5_000
"""How long the server may take to answer, beyond the wait it was asked for."""
UNBLOCK_AGAIN_S = 0.001
"""A CLIENT UNBLOCK that came before the wait it was to end is sent again, with growing pauses."""
RECONNECT_MS = 60_000
"""How long readers sit out an outage before they get `QueueUnavailable`."""

_BEGINNING = b"0-0"
_log = logging.getLogger(__name__)


class Connection(Protocol):
    """The part of redis-py's asyncio connection that a line uses; RESP2, bytes out."""

    socket_timeout: float | None

    async def connect(self) -> None: ...  # noqa: D102
    async def send_command(self, *args: Any) -> None: ...  # noqa: D102
    async def send_packed_command(self, command: Any) -> None: ...  # noqa: D102
    def pack_commands(self, commands: Any) -> Any: ...  # noqa: D102
    async def read_response(self, disable_decoding: bool = ...) -> Any: ...  # noqa: D102
    async def disconnect(self, nowait: bool = ...) -> None: ...  # noqa: D102


class Feed:
    """One reader of one stream: `take` gives its entries in order."""

    def __init__(self, line: "_Line", key: bytes, after: bytes) -> None:
        self.key = key
        self.cursor = after
        """Id of the last entry put into the feed."""
        self.heard_at = time.monotonic()
        self._line = line
        self._entries: deque[Entry] = deque()
        self._error: PagestreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def take(self) -> list[Entry]:
        """Wait until there is an entry, and return all there are.

        Raises:
            JobLost: Redis no longer has the stream.
            QueueUnavailable: Redis could not be reached for too long.
        """
        while not self._entries:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        was_full = self.full
        entries = list(self._entries)
        self._entries.clear()
        if was_full:
            self._line.poke()
        return entries

    @property
    def full(self) -> bool:
        """Whether the reader is so slow that its stream should wait for it."""
        return len(self._entries) >= BUFFERED_ENTRIES

    def close(self) -> None:
        """Leave the line; harmless twice."""
        self._line.leave(self)

    def put(self, entries: list[Entry]) -> None:
        """Append entries and wake the reader."""
        self._entries.extend(entries)
        self._wake()

    def fail(self, error: PagestreamError) -> None:
        """End the feed: the reader gets what was put before, then the error."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Reader:
    """All the reply streams one client reads."""

    def __init__(
        self,
        connection: Callable[[], Connection],
        unblock: Callable[[int], Awaitable[object]],
        *,
        reconnect_ms: int = RECONNECT_MS,
    ) -> None:
        """Prepare a reader; it connects when there is something to read.

        Args:
            connection: makes a connection; the reader keeps the time itself.
            unblock: sends CLIENT UNBLOCK with a client id, over another connection.
            reconnect_ms: how long to sit out an outage.
        """
        self._connection = connection
        self._unblock = unblock
        self._reconnect_ms = reconnect_ms
        self._lines: list[_Line] = []

    def open(self, key: str, after: str | None = None) -> Feed:
        """Read `key` from behind the entry id `after`, or from the beginning."""
        for line in self._lines:
            if line.has_room and not line.closed:
                break
        else:
            self._lines = [line for line in self._lines if not line.closed]
            line = _Line(self._connection, self._unblock, self._reconnect_ms)
            self._lines.append(line)
        return line.join(key.encode(), after.encode() if after else _BEGINNING)

    @property
    def connections(self) -> int:
        """Connections in use now."""
        return sum(not line.closed for line in self._lines)

    async def aclose(self) -> None:
        """End every line and its connection."""
        await asyncio.gather(*(line.aclose() for line in self._lines))
        self._lines = []


class _Line:
    """One connection, the feeds that share it, and the task that reads it."""

    def __init__(
        self,
        connection: Callable[[], Connection],
        unblock: Callable[[int], Awaitable[object]],
        reconnect_ms: int,
    ) -> None:
        self._make_connection = connection
        self._unblock = unblock
        self._reconnect_ms = reconnect_ms
        self._feeds: dict[bytes, list[Feed]] = {}
        self._changed = asyncio.Event()
        """The next call must name other streams than the one under way."""
        self._waiting_as: int | None = None
        """Client id of the connection while a call is under way."""
        self._call = 0
        """Calls so far."""
        self._poked_call = 0
        """The one that is being ended, or was."""
        self._pokers: set[asyncio.Task[None]] = set()
        self._checked_at = time.monotonic()
        self._task = asyncio.create_task(self._run(), name="pagestream-reader")

    @property
    def has_room(self) -> bool:
        return len(self._feeds) < STREAMS_PER_LINE

    @property
    def closed(self) -> bool:
        return self._task.done()

    def join(self, key: bytes, after: bytes) -> Feed:
        feed = Feed(self, key, after)
        self._feeds.setdefault(key, []).append(feed)
        self.poke()
        return feed

    def leave(self, feed: Feed) -> None:
        feeds = self._feeds.get(feed.key, [])
        if feed in feeds:
            feeds.remove(feed)
            if not feeds:
                # The call under way still names the stream; what it brings is for nobody.
                del self._feeds[feed.key]
            if not self._feeds:
                self.poke()  # whoever joins next need not end the wait first

    def poke(self) -> None:
        """Make the task look at its feeds again, ending its wait if it is in one."""
        self._changed.set()
        if self._waiting_as is not None and self._poked_call != self._call:
            self._poked_call = self._call
            poker = asyncio.create_task(self._end_call(self._call), name="pagestream-unblock")
            self._pokers.add(poker)
            poker.add_done_callback(self._pokers.discard)

    async def aclose(self) -> None:
        tasks = [*self._pokers, self._task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _end_call(self, call: int) -> None:
        """Send CLIENT UNBLOCK until the call has ended: it may arrive before the call it is for."""
        pause_s = UNBLOCK_AGAIN_S
        while self._call == call and (client := self._waiting_as) is not None:
            try:
                await self._unblock(client)
            except (RedisError, OSError) as error:
                # Not fatal: the wait ends by itself within BLOCK_MS.
                _log.warning("CLIENT UNBLOCK failed, new streams join late: %s", error)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.1)

    async def _run(self) -> None:
        connection: Connection | None = None
        down_since: float | None = None
        pause_s, client = 0.02, 0
        try:
            while True:
                await self._until_wanted()
                try:
                    if connection is None:
                        connection = self._make_connection()
                        client = await self._connect(connection)
                        down_since, pause_s = None, 0.02
                    async with asyncio.timeout((BLOCK_MS + ANSWER_MS) / 1000):
                        await self._read(connection, client)
                except (RedisError, OSError) as error:
                    self._waiting_as = None
                    if connection is not None:
                        await connection.disconnect(nowait=True)
                        connection = None
                    now = time.monotonic()
                    down_since = down_since or now
                    if not may_pass(error) or now - down_since > self._reconnect_ms / 1000:
                        self._fail_all(QueueUnavailable(f"reading replies failed: {error}"))
                        down_since = None
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, 1.0)
        finally:
            self._waiting_as = None
            if connection is not None:
                await connection.disconnect(nowait=True)
            self._fail_all(QueueUnavailable("the client was closed while the reply was read"))

    async def _connect(self, connection: Connection) -> int:
        """Connect and return the client id; have all streams looked at: Redis may have changed."""
        connection.socket_timeout = None  # a URL's may be shorter than a call that blocks
        async with asyncio.timeout(ANSWER_MS / 1000):
            await connection.connect()
            await connection.send_command("CLIENT", "ID")
            client = int(await connection.read_response())
        self._checked_at = 0.0
        for feeds in self._feeds.values():
            for feed in feeds:
                feed.heard_at = 0.0
        return client

    async def _until_wanted(self) -> None:
        while not self._reading():
            self._changed.clear()
            await self._changed.wait()

    def _reading(self) -> dict[bytes, list[Feed]]:
        """Return the feeds that have room, by stream."""
        reading: dict[bytes, list[Feed]] = {}
        for key, feeds in self._feeds.items():
            ready = [feed for feed in feeds if not feed.full]
            if ready:
                reading[key] = ready
        return reading

    async def _read(self, connection: Connection, client: int) -> None:
        """One call: wait for entries of any stream and hand them out."""
        if time.monotonic() - self._checked_at > BLOCK_MS / 1000:
            await self._check_silent(connection)
        self._changed.clear()
        reading = self._reading()
        if not reading:
            return
        cursors = [min((feed.cursor for feed in feeds), key=_place) for feeds in reading.values()]
        await connection.send_command(
            *("XREAD", "COUNT", ENTRIES_PER_READ, "BLOCK", BLOCK_MS, "STREAMS"), *reading, *cursors
        )
        self._waiting_as = client
        self._call += 1
        if self._changed.is_set():  # somebody joined while the command was being sent
            self.poke()
        reply = await connection.read_response(disable_decoding=True)
        self._waiting_as = None
        now = time.monotonic()
        for key, raw in reply or ():
            for feed in reading[key]:
                feed.heard_at = now
            _hand_out(raw, reading[key])
        if reply:
            await asyncio.sleep(0)  # who waits has its entries before the next call is sent

    async def _check_silent(self, connection: Connection) -> None:
        """Look at the streams that brought nothing lately: gone, or shorter than what was read?"""
        self._checked_at = now = time.monotonic()
        silent = [
            key
            for key, feeds in self._feeds.items()
            if any(now - feed.heard_at > BLOCK_MS / 1000 for feed in feeds)
        ]
        if not silent:
            return
        commands = [("XREVRANGE", key, "+", "-", "COUNT", 1) for key in silent]
        await connection.send_packed_command(connection.pack_commands(commands))
        for key in silent:
            last = await connection.read_response(disable_decoding=True)
            for feed in list(self._feeds.get(key, ())):
                if not last:
                    feed.close()
                    feed.fail(JobLost(f"Redis no longer has {key.decode()}; submit the job again"))
                elif _place(last[0][0]) < _place(feed.cursor):
                    feed.cursor = _BEGINNING

    def _fail_all(self, error: PagestreamError) -> None:
        feeds, self._feeds = self._feeds, {}
        for feed in (feed for group in feeds.values() for feed in group):
            feed.fail(error)


def _place(entry_id: bytes) -> tuple[int, int]:
    """Return an entry id as what it means: (epoch, offset)."""
    epoch, _, offset = entry_id.partition(b"-")
    return int(epoch), int(offset or 0)


def _hand_out(raw: list[Any], feeds: list[Feed]) -> None:
    """Give a stream's new entries to each of its readers, from behind where that one stands."""
    try:
        entries = [
            decode_entry(one[0], dict(zip(one[1][::2], one[1][1::2], strict=True))) for one in raw
        ]
    except (KeyError, ValueError, TypeError) as error:
        for feed in feeds:
            feed.close()
            feed.fail(
                PagestreamError(f"{feed.key.decode()} holds an entry that is not ours: {error!r}")
            )
        return
    last = raw[-1][0]
    for feed in feeds:
        if len(feeds) > 1:
            seen = _place(feed.cursor)
            feed.put([e for one, e in zip(raw, entries, strict=True) if _place(one[0]) > seen])
            feed.cursor = max(feed.cursor, last, key=_place)
        else:
            feed.put(entries)
            feed.cursor = last

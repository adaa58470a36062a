"""Where the queue process's loop waits: for its engine, for prepared jobs, for signals.

This module knows no Redis and no jobs.
"""

import select
import socket
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol


class Source(Protocol):
    """What says something on a socket: an engine process."""

    @property
    def readable(self) -> socket.socket | None:
        """What to wait for; None while nothing can come."""
        ...

    def take(self) -> list[Any]:
        """Return what it has said; never waits."""
        ...


class Inbox:
    """Any thread puts, one takes all that waits. Putting from a signal handler is safe."""

    def __init__(self) -> None:
        self._events: SimpleQueue[Any] = SimpleQueue()
        self._source: Source | None = None
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def listen_to(self, source: Source) -> None:
        """Take what it says as well."""
        self._source = source

    def put(self, event: object) -> None:
        """Add an event; never blocks."""
        self._events.put(event)
        with suppress(OSError):  # full: it is awake already; closed: nobody takes any more
            self._waker.send(b"\0")

    def take(self, timeout_s: float) -> list[Any]:
        """Return every event that waits; if there is none, wait until something stirs.

        That may be half a message, or the source's end: then there is still none. What the source
        said comes before what was put after it.
        """
        heard = self._source.readable if self._source is not None else None
        poll = select.poll()
        for end in (self._woken, heard):
            if end is not None:
                poll.register(end, select.POLLIN)
        ready = dict(poll.poll(max(timeout_s, 0.0) * 1000))
        events: list[Any] = []
        if self._source is not None and heard is not None and heard.fileno() in ready:
            events += self._source.take()
        if self._woken.fileno() in ready:  # what was put was put before this was said
            self._woken.recv(1 << 16)
            with suppress(Empty):
                while True:
                    events.append(self._events.get_nowait())
        return events

    def close(self) -> None:
        """Nobody takes any more."""
        self._woken.close()
        self._waker.close()

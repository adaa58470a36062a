"""What waits for the queue process's loop: engine frames, prepared jobs, signals.

Frames of the engine are bounded in bytes and in age: while the loop cannot get on (Redis is away)
the engine's socket is no longer read, and the engine stops by itself. This module knows no Redis
and no engine.
"""

import threading
import time
from queue import Empty, SimpleQueue
from typing import Any

MAX_BYTES = 64 * 2**20
MAX_AGE_S = 60.0


class Inbox:
    """Many threads put, one takes all that waits. Putting from a signal handler is safe."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_age_s: float = MAX_AGE_S) -> None:
        self._events: SimpleQueue[tuple[Any, int]] = SimpleQueue()
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._room = threading.Condition()
        self._bytes = 0
        self._oldest_s: float | None = None
        self.arrived_s = time.monotonic()
        """When the oldest frame of those last taken arrived, at the latest."""
        self._closed = False

    def put(self, event: object) -> None:
        """Add an event that takes no room; never blocks."""
        self._events.put((event, 0))

    def put_frame(self, event: object, size_bytes: int) -> None:
        """Add a frame of the engine; blocks while those that wait are too many or too old."""
        with self._room:
            self._room.wait_for(lambda: self._closed or not self._is_full())
            self._bytes += size_bytes
            if self._oldest_s is None:
                self._oldest_s = time.monotonic()
            self._events.put((event, size_bytes))

    def take(self, timeout_s: float) -> list[Any]:
        """Return every event that waits; wait for the first one if there is none."""
        events: list[Any] = []
        size_bytes = 0
        try:
            event, size = self._events.get(timeout=max(timeout_s, 0.0))
            while True:
                events.append(event)
                size_bytes += size
                event, size = self._events.get_nowait()
        except Empty:
            pass
        if size_bytes:
            with self._room:
                self._bytes -= size_bytes
                self.arrived_s = self._oldest_s or time.monotonic()
                # Frames put since then are new: they came while the loop was getting on.
                self._oldest_s = time.monotonic() if self._bytes else None
                self._room.notify_all()
        return events

    def close(self) -> None:
        """Let every blocked `put_frame` go; nobody takes any more."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def _is_full(self) -> bool:
        if self._bytes >= self._max_bytes:
            return True
        return self._oldest_s is not None and time.monotonic() - self._oldest_s > self._max_age_s

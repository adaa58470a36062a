"""Redis's clock as a worker sees it, for deadlines that are in Redis's time.

This module knows no Redis: whoever asks it says what it answered, and when.
"""

import time


def monotonic_ms() -> float:
    """Return this process's monotonic time, ms."""
    return time.monotonic() * 1000


class ServerClock:
    """Redis's clock seen from here: its distance to the monotonic clock, within the round trip."""

    DRIFT = 1e-4
    """What two clocks may lose on each other: old readings get worse."""

    def __init__(self) -> None:
        self._offset_ms = 0.0
        self._error_ms = float("inf")
        self._set_ms = 0.0

    def set(self, redis_ms: int, sent_ms: float, received_ms: float) -> None:
        """Take a reading, if it is better than the last, or if the server's clock was set."""
        offset_ms = redis_ms - (sent_ms + received_ms) / 2
        error_ms = (received_ms - sent_ms) / 2 + 1.0  # the reading is in whole milliseconds
        old_error_ms = self._error_ms + (received_ms - self._set_ms) * self.DRIFT
        if error_ms <= old_error_ms or abs(offset_ms - self._offset_ms) > error_ms + old_error_ms:
            self._offset_ms, self._error_ms, self._set_ms = offset_ms, error_ms, received_ms

    @property
    def is_set(self) -> bool:
        """Whether there has been a reading."""
        return self._error_ms < float("inf")

    def now_ms(self) -> float:
        """Redis's time now."""
        assert self.is_set, "no step has been made yet"
        return monotonic_ms() + self._offset_ms

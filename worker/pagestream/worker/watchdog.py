"""Ends a worker that is up and gets nothing done, so that something can start it again.

Two things are never right for long: the loop of the queue process does not turn, since a call does
not return; or it turns, Redis answers it, and work that is this worker's to do is left undone. Both
fail the health check first, and end the process a little later. An outage of Redis is neither, nor
are a long step (the supervisor judges those), a model that loads, a drain, or an idle queue.

A native call that keeps the interpreter's lock stops this thread, too: then nobody answers the
health check, which fails it as well. This module knows no jobs; what is undone it is told.
"""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .health import Health

logger = logging.getLogger(__name__)

EXIT_AFTER_S = 5.0
"""Between the failed health check and the end: whoever asks sees why."""
TICK_S = 5.0
TICKS = 12
"""Looks before a stall is one, at the least."""

JOIN_S = 1.0
"""It may be asking Redis, which may take longer: then it is left to end by itself."""

Undone = Callable[[], tuple[str, object]]
"""Says what the worker should get on with now, or nothing; and a mark that changes once it did."""


class Watchdog:
    """Watches one worker while it serves, from a thread of its own; a context manager.

    It adds up its own ticks instead of asking a clock: a process that was stopped, or a host that
    slept, has not ticked, and is not stalled when it wakes.
    """

    def __init__(
        self,
        health: Health,
        undone: Undone,
        answers: Callable[[], bool],
        *,
        limit_s: float,
        end: Callable[[], object],
    ) -> None:
        """Prepare; entering it starts the thread.

        Args:
            health: counts the loop's calls to Redis, and is told of a stall.
            undone: what waits for this worker; asked while the loop turns.
            answers: whether Redis answers, as this thread sees it; asked once the loop is late.
            limit_s: a stall is one after so long.
            end: ends the process.
        """
        self._health = health
        self._undone = undone
        self._answers = answers
        self._limit_s = limit_s
        self._end = end
        self.tick_s = min(TICK_S, limit_s / TICKS)
        """How often to look."""
        self._calls = health.calls
        self._stuck_s = self._undone_s = self._stalled_s = 0.0
        self._left_undone: tuple[str, object] = ("", None)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def tick(self, elapsed_s: float) -> None:
        """Look; fail the health check while there is a stall, and end the process if it stays.

        Args:
            elapsed_s: since the last tick; more than two count as two.
        """
        elapsed_s = min(elapsed_s, 2 * self.tick_s)
        why = self._look(elapsed_s)
        if self._stop.is_set():
            return
        was, self._health.stalled = self._health.stalled, why
        if not why:
            self._stalled_s = 0.0
            if was:
                logger.warning("the worker gets on again")
            return
        if not was:
            logger.error("the worker is stalled: %s\n%s", why, stacks())
        self._stalled_s += elapsed_s
        if self._stalled_s > EXIT_AFTER_S:
            logger.error("the worker is stalled and ends: %s", why)
            self._end()

    def _look(self, elapsed_s: float) -> str:
        """Return why the worker is stalled, or nothing."""
        calls, self._calls = self._calls, self._health.calls
        since_turn_s = self._stuck_s + elapsed_s
        if calls == self._calls:
            self._stuck_s = since_turn_s
            if self._stuck_s > self._limit_s:
                if not self._answers():
                    return ""
                return f"no call to Redis has ended for {self._stuck_s:.0f} s, and Redis answers"
        else:
            self._stuck_s = 0.0
            left = ("", None) if self._health.not_ready() else self._undone()
            is_same = bool(left[0]) and left == self._left_undone
            self._undone_s = self._undone_s + since_turn_s if is_same else 0.0
            self._left_undone = left
        if self._undone_s > self._limit_s:
            return f"{self._left_undone[0]}, for {self._undone_s:.0f} s"
        return ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        last_s = time.monotonic()
        while not self._stop.wait(self.tick_s):
            now_s = time.monotonic()
            self.tick(now_s - last_s)
            last_s = now_s


def stacks() -> str:
    """Return where every thread of this process is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame)).rstrip()}"
        for ident, frame in sys._current_frames().items()
    )

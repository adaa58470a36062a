"""Keeps an engine up: kills one that hangs, starts another for one that died, gives up in time.

This module knows how an engine is, not what it runs: no jobs, no Redis.
"""

import logging
import time

from ..messages import ToEngine
from ..process import Died, EngineProcess

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
RESTART_WINDOW_S = 600.0
KILL_S = 10.0
"""A killed engine that has not ended by then never will."""


class Supervisor:
    """One worker's engine, over all the processes it may be in turn.

    Invariant: once `lost` says why, there is no engine and will be none.
    """

    def __init__(self, engine: EngineProcess, step_stall_s: float) -> None:
        """The engine process is up and has said `ready`.

        Args:
            engine: the process.
            step_stall_s: an engine that has requests and says nothing for so long hangs.
        """
        self.is_up = True
        self.lost = ""
        """Why the worker has to end, once the engine is given up."""
        self.heard_s = time.monotonic()
        """When the engine last said something, or was idle."""
        self._engine = engine
        self._step_stall_s = step_stall_s
        self._is_killed = False
        self._deaths_s: list[float] = []

    def send(self, message: ToEngine) -> None:
        """Send a message to the process that lives now; without one, do nothing."""
        if self.is_up:
            self._engine.send(message)

    def heard(self) -> None:
        """The engine said something; or it begins to have something to say."""
        self.heard_s = time.monotonic()

    def check(self) -> None:
        """Look at an engine that has requests: kill it if it hangs; give it up if it stays."""
        silent_s = time.monotonic() - self.heard_s
        if not self.is_up or silent_s <= self._step_stall_s:
            return
        if not self._is_killed:
            logger.error("the engine has said nothing for %.0f s: killing it", silent_s)
            self._is_killed = True
            self._engine.kill()
        elif silent_s > self._step_stall_s + KILL_S:
            # A device driver that does not return: only a new process, or host, will help.
            self.give_up("the engine hangs and cannot be killed")

    def died(self, died: Died) -> str:
        """The process has ended: start another, unless that has been done too often.

        Returns:
            The engine's last words.
        """
        now_s = time.monotonic()
        self.is_up = self._is_killed = False
        self._deaths_s = [at for at in self._deaths_s if now_s - at < RESTART_WINDOW_S] + [now_s]
        often = f"the engine died {len(self._deaths_s)} times in {RESTART_WINDOW_S:.0f} s"
        logger.error("the engine process ended (status %d); %s", died.exit_code, often)
        self._engine.stop()
        if len(self._deaths_s) > MAX_RESTARTS:
            self.lost = often
        else:
            self._engine.start()
        return died.message or f"the engine process ended with status {died.exit_code}"

    def came_up(self) -> None:
        """Another process is ready."""
        if self._deaths_s:
            logger.info("a new engine is ready %.2f s later", time.monotonic() - self._deaths_s[-1])
        self.is_up = True

    def give_up(self, why: str) -> None:
        """Have no engine from here on."""
        self.is_up, self.lost = False, why

    def excuse(self) -> None:
        """The deaths so far were a job's fault, not the engine's."""
        self._deaths_s.clear()

"""The room for new jobs: how much may be claimed now, and which running job may make way.

This module knows no Redis and no engine process: the step's script claims, and moves the victim.
"""

from collections.abc import Mapping
from typing import NamedTuple

from .calls import Victim, Waiting
from .credit import Credit
from .eviction import aged_slots, choose_victim
from .reply import Job

STEPS_TO_REPORT = 2
"""Steps of the engine after which its reports show what it was told to stop."""


class Offer(NamedTuple):
    """What the next write may claim; fields as `StepCall` has them."""

    slots: int = 0
    tokens: int = 0
    aged_slots: int = 0
    victim: Victim | None = None


class Room:
    """What the engine can take beside the jobs that it has, and at whose cost."""

    def __init__(self, credit: Credit) -> None:
        self.weights: Mapping[str, float] = {}
        """Of tenants, as an operator set them."""
        self._credit = credit
        self._victim: Victim | None = None
        self._evict_from_step = 0

    def offer(self, staying: list[Job], *, is_open: bool) -> Offer:
        """Return what may be claimed beside the jobs that stay; a victim is offered once.

        Args:
            staying: the jobs held after the next write.
            is_open: whether the worker takes any job at all.
        """
        victim, self._victim = self._victim, None
        if not is_open or any(job.is_suspect for job in staying):
            return Offer()
        if victim is not None and not any(job.id == victim.job_id for job in staying):
            victim = None
        aged = aged_slots(staying, self._credit.max_running)
        return Offer(*self._credit.of(staying), aged, victim)

    def look_for_victim(self, waiting: Waiting, running: list[Job]) -> bool:
        """Choose a job to offer for the one that waits, where the rules want it: whether one is."""
        slots, tokens = self._credit.of(running)
        # Before it is tokenized a prompt counts for its longest: there may be room after all. It
        # takes a while until the engine's reports show the room that a victim made. And a suspect
        # is alone on purpose.
        untold = slots and any(job.request is None for job in running)
        is_early = untold or self._credit.engine_step < self._evict_from_step
        if is_early or any(job.is_suspect for job in running):
            return False
        self._victim = choose_victim(
            running,
            waiting,
            self.weights,
            free_tokens=tokens,
            block_tokens=self._credit.block_tokens,
        )
        return self._victim is not None

    def victim_made_too_little(self) -> None:
        """A victim left and nothing was claimed: look for the next once reports show its room."""
        self._evict_from_step = self._credit.engine_step + STEPS_TO_REPORT

"""How many tokens are launched at once: fewer after memory ran out in a step, more again later.

The cache is allocated at the start and the largest step has been run then, so memory runs out only
where something else takes it, or in fragments. Knows no device and no plans.
"""

import logging
import time

logger = logging.getLogger(__name__)

LAUNCHES_TO_RAISE = 64
"""Launches that fit before twice as many tokens are tried: a try that fails costs about two."""

LOG_EVERY_S = 10.0


class StepLimit:
    """The most tokens of one launch, between one and what a step may hold."""

    def __init__(self, max_step_tokens: int) -> None:
        self.tokens = max_step_tokens
        self.times_lowered = 0
        """Since the start."""
        self._max_step_tokens = max_step_tokens
        self._fitted = 0
        self._logged_s: float | None = None

    def lower(self, num_tokens: int, reason: str) -> None:
        """A launch of so many tokens, two or more, did not fit: the next may have half of them."""
        self.tokens = num_tokens // 2
        self.times_lowered += 1
        self._fitted = 0
        now_s = time.monotonic()
        if self._logged_s is None or now_s - self._logged_s > LOG_EVERY_S:
            self._logged_s = now_s
            logger.warning(
                "no memory for %d tokens at once; steps are computed in parts: %s",
                *(num_tokens, reason),
            )

    def fitted(self) -> None:
        """A launch fitted: after a while, try more."""
        if self.tokens == self._max_step_tokens:
            return
        self._fitted += 1
        if self._fitted == LAUNCHES_TO_RAISE:
            self._fitted = 0
            self.tokens = min(2 * self.tokens, self._max_step_tokens)

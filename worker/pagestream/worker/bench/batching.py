"""Three ways to form a batch of requests, as rules of when to hand them to the engine.

    static       a batch of exactly so many (or the last ones); the next when all of it has ended
    dynamic      a batch of whoever has arrived, as soon as the engine is idle
    continuous   everybody at once: the engine admits them at any step

When everything has arrived before the start, dynamic is static. Requests that end before their
batch does leave their seats empty, and cost nothing: where a batch is one padded tensor they would
still be computed, so what these two rules show is the least that continuous batching gains.
Knows no engine: numbers in, a number out.
"""

from collections.abc import Callable
from typing import NamedTuple


class Moment(NamedTuple):
    """What a rule decides by."""

    waiting: int
    """Requests that have arrived and were not handed over."""
    running: int
    """Requests that were handed over and have not ended."""
    more_to_come: bool
    """Some have not arrived yet."""
    batch_size: int


def static(now: Moment) -> int:
    """Full batches only, except the last."""
    if now.running or (now.more_to_come and now.waiting < now.batch_size):
        return 0
    return min(now.waiting, now.batch_size)


def dynamic(now: Moment) -> int:
    """Whoever is there once the engine is idle."""
    return 0 if now.running else min(now.waiting, now.batch_size)


def continuous(now: Moment) -> int:
    """Everybody, always."""
    return now.waiting


Rule = Callable[[Moment], int]
RULES: dict[str, Rule] = {"static": static, "dynamic": dynamic, "continuous": continuous}

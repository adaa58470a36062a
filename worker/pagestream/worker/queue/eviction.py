"""Which running job goes back for one that waits, on a worker that is full.

Two reasons, and in neither may the same two jobs change places again and again:

- *Lane.* A job of a better lane takes the place of one of a worse lane. Age lifts no job here: one
  that waited long gets its turn at the claim, and then keeps its slot to its end.
- *Share.* Of jobs of one lane or a worse one, a tenant that holds more than its share (the slots in
  use, divided by weight among those who use or want them) gives one to a tenant that holds less.
  The giver must be left with its share at least and the taker get no more than its own, so that
  the reverse is never due: each move brings the shares nearer.

Within these, whoever was claimed least often goes first, and then whoever has least to compute
again. This module decides only; the step script moves the jobs, if by then they still are the same.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from pagestream.producer.keys import LANES

from .calls import Victim, Waiting

AGED_SHARE = 8
"""One slot of so many (at least one) is for jobs that overtake better lanes by their age."""


class Running(Protocol):
    """What counts of a running job."""

    id: str
    epoch: int
    lane: str
    tenant: str
    is_aged: bool

    @property
    def context_tokens(self) -> int:
        """What it holds, and what has to be computed again if it goes."""
        ...


def aged_slots(jobs: Iterable[Running], max_running: int) -> int:
    """Return how many more jobs may be claimed by their age before those of better lanes."""
    return max(0, max(1, max_running // AGED_SHARE) - sum(job.is_aged for job in jobs))


def choose_victim(
    jobs: Sequence[Running],
    waiting: Waiting,
    weights: Mapping[str, float],
    *,
    free_tokens: int,
    block_tokens: int,
) -> Victim | None:
    """Return the job that should make room for the one that waits, if one should.

    Args:
        jobs: what runs; none of it is ending or going back.
        waiting: the best job that waits and does not fit.
        weights: of tenants; `*` is that of tenants which are not named.
        free_tokens: room in the KV cache.
        block_tokens: what the room is counted in.
    """

    def room(job: Running) -> int:
        return -(-job.context_tokens // block_tokens) * block_tokens

    def least_lost(job: Running) -> tuple[int, int, str]:
        return (job.epoch, job.context_tokens, job.id)

    rank = LANES.index(waiting.lane)
    worse = [job for job in jobs if LANES.index(job.lane) > rank and not job.is_aged]
    # Several may have to go, one a step, until the better job fits; in vain if it never would.
    if worse and free_tokens + sum(map(room, worse)) >= waiting.tokens:
        lowest = max(LANES.index(job.lane) for job in worse)
        victim = min((job for job in worse if LANES.index(job.lane) == lowest), key=least_lost)
    else:
        givers = _above_share(jobs, waiting.tenant, weights)
        able = [
            job
            for job in jobs
            if job.tenant in givers
            and LANES.index(job.lane) >= rank
            and not job.is_aged
            and free_tokens + room(job) >= waiting.tokens
        ]
        if not able:
            return None
        victim = min(able, key=lambda job: (-givers[job.tenant], *least_lost(job)))
    return Victim(victim.id, victim.epoch, waiting.lane, waiting.tenant, room(victim))


def _above_share(
    jobs: Iterable[Running], taker: str, weights: Mapping[str, float]
) -> dict[str, float]:
    """Return tenants that can give a slot to `taker`, and how many shares each holds."""
    held = Counter(job.tenant for job in jobs)
    slots = held.total()
    weight = {tenant: weights.get(tenant, weights.get("*", 1.0)) for tenant in {*held, taker}}
    unit = slots / sum(weight.values())
    if held[taker] + 1 > unit * weight[taker]:
        return {}
    return {
        tenant: count / (unit * weight[tenant])
        for tenant, count in held.items()
        if tenant != taker and count - 1 >= unit * weight[tenant]
    }

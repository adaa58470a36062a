"""What `Live` returns: queues, lanes, tenants, workers, and where one job's time went.

This module knows no connection.
"""

import msgspec

from ..protocol import Timings, Usage
from ..snapshot import WorkerSnapshot


class LaneLive(msgspec.Struct, frozen=True, kw_only=True):
    """One priority class of a queue."""

    lane: str
    waiting: int
    """Jobs that no worker holds: the lag."""
    running: int
    oldest_ms: int
    """How long the one that waits longest has waited, since it was accepted; 0 without one."""


class TenantLive(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant that has jobs."""

    tenant: str
    waiting: int
    running: int
    served_tokens: float
    """Tokens computed for it by its weight: who has least is next."""


class WorkerLive(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of a queue."""

    name: str
    is_alive: bool
    jobs: int
    """Jobs it holds."""
    snapshot: WorkerSnapshot | None = None
    """What it last said of itself; None of a worker that is dead, or has just begun."""


class QueueLive(msgspec.Struct, frozen=True, kw_only=True):
    """A queue at one moment."""

    name: str
    at_ms: int
    """Redis's time."""
    lanes: list[LaneLive]
    tenants: list[TenantLive]
    """Those with jobs, of the first `TENANTS_MAX`."""
    suspects: int
    """Jobs that wait to be run alone."""
    dead_letters: int
    workers: list[WorkerLive]

    @property
    def waiting(self) -> int:
        """Jobs that no worker holds."""
        return sum(lane.waiting for lane in self.lanes)

    @property
    def running(self) -> int:
        """Jobs that workers hold."""
        return sum(lane.running for lane in self.lanes)


class JobClaim(msgspec.Struct, frozen=True, kw_only=True):
    """One time a worker took a job."""

    epoch: int
    worker: str
    offset: int
    """Output tokens there were before."""


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """A job from its acceptance to its last token; times in Redis's milliseconds since 1970."""

    id: str
    at_ms: int
    """Redis's time of this reading."""
    state: str
    lane: str
    tenant: str
    worker: str
    """Who holds it, or held it last."""
    crashes: int
    queued_ms: int
    claimed_ms: int | None
    """The last claim."""
    first_token_ms: int | None
    finished_ms: int | None
    reason: str
    error: str
    message: str
    claims: list[JobClaim]
    output_tokens: int
    usage: Usage
    """Zeros before the end, as are the timings."""
    timings: Timings

    def phases(self, now_ms: int) -> list[tuple[str, int, int]]:
        """Return (`queue`, `prefill` or `decode`, begin, end) in order; an open one ends `now_ms`.

        A job that was taken over shows its last claim; the time before that counts as queue.
        """
        until = self.finished_ms or now_ms
        if self.claimed_ms is None:
            return [("queue", self.queued_ms, until)]
        first_ms = self.first_token_ms
        # Of an earlier claim: this one resumed behind that token.
        prefilled_ms = max(first_ms, self.claimed_ms) if first_ms is not None else until
        phases = [
            ("queue", self.queued_ms, self.claimed_ms),
            ("prefill", self.claimed_ms, prefilled_ms),
            ("decode", prefilled_ms, until),
        ]
        return phases if first_ms is not None else phases[:2]

"""How much may be claimed now: free rows and free KV tokens, less what is on its way to the engine.

This module knows no Redis and decides nothing: the claim script takes what fits.
"""

from collections.abc import Iterable

from ..messages import Load, Ready
from .reply import Job


class Credit:
    """What the engine can take, from what it last reported."""

    def __init__(self, ready: Ready) -> None:
        self.ready = ready
        """What the engine process that came up last said of itself; others had more, or less."""
        self.load: Load | None = None
        """Its last report; None until there is one."""

    def renew(self, ready: Ready) -> None:
        """Another engine process has come up."""
        self.ready, self.load = ready, None

    @property
    def max_running(self) -> int:
        """Requests that may run at once."""
        return self.ready.max_running

    @property
    def block_tokens(self) -> int:
        """Tokens in a KV block."""
        return self.ready.block_tokens

    @property
    def engine_step(self) -> int:
        """The engine's steps so far; 0 before its first report."""
        return self.load.step if self.load is not None else 0

    def of(self, jobs: Iterable[Job]) -> tuple[int, int]:
        """Return (requests, prompt tokens) that may be claimed beside `jobs`."""
        held = list(jobs)
        on_its_way_tokens = sum(job.context_tokens for job in held if not job.is_answered)
        tokens = self._free_tokens(held) - on_its_way_tokens
        return max(0, self.max_running - len(held)), max(0, tokens)

    def fits(self, job: Job, jobs: Iterable[Job]) -> bool:
        """Whether a prepared job fits beside those the engine has been asked to run."""
        if job.took_a_place:
            return True
        sent = [other for other in jobs if other.is_sent]
        unanswered_tokens = sum(other.context_tokens for other in sent if not other.is_answered)
        return not sent or self._free_tokens(sent) - unanswered_tokens >= job.context_tokens

    def _free_tokens(self, jobs: list[Job]) -> int:
        # An engine that was idle when it last reported says nothing of aborts since then.
        if self.load is None or not any(job.is_answered for job in jobs):
            return (self.ready.num_blocks - 1) * self.block_tokens  # block 0 is nobody's
        return self.load.free_blocks * self.block_tokens

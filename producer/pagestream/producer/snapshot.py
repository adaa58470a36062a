"""What a worker says of itself once a second, for whoever looks: `pagestream top`, a dashboard.

Written with the heartbeat as JSON, kept as long as one. Fields are only ever added: readers ignore
those they do not know. This module knows no connection and no engine.
"""

from typing import Literal

import msgspec

SlowState = Literal["preparing", "waiting", "prefill", "decode"]


class SlowJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that a worker has held, or that has waited, for long; nothing of its text."""

    id: str
    lane: str
    tenant: str
    state: SlowState
    """`preparing`: its prompt is being tokenized. `waiting`: in the engine, without KV blocks."""
    age_ms: float
    """Since it was accepted."""
    prompt_tokens: int
    output_tokens: int


class KvCache(msgspec.Struct, frozen=True, kw_only=True):
    """The blocks of a worker's KV cache. What is neither used nor cached is free."""

    total_blocks: int
    used_blocks: int
    """Held by requests."""
    cached_blocks: int = 0
    """Held by nobody, with a prefix that the next request may share; given out when needed."""
    block_tokens: int
    block_map: str = ""
    """One letter a cell, in the blocks' order: `u` used by one request, `s` shared by several, `c`
    cached, `.` free. Empty while the worker has run nothing."""
    blocks_per_cell: int = 1
    """Of a large cache a cell shows every n-th block."""

    @property
    def usage(self) -> float:
        """Share of the blocks that requests hold, 0 to 1."""
        return self.used_blocks / self.total_blocks if self.total_blocks else 0.0


class WorkerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A worker at one moment; counters count from its start."""

    at_ms: int
    """Redis's time."""
    uptime_s: float
    device: str
    running: int
    """Requests in the running batch."""
    waiting: int
    """Jobs it holds beside those: being tokenized, or in the engine without KV blocks."""
    slots: int
    """Requests that may run at once."""
    kv: KvCache
    prefill_tokens_per_s: float = 0.0
    """Prompt tokens computed, over the last second or so."""
    decode_tokens_per_s: float = 0.0
    """Output tokens, likewise."""
    steps_per_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    finished: dict[str, int] = {}
    """Reason -> jobs it ended."""
    refuses: str = ""
    """Why it takes no jobs now; empty while it does."""
    slowest: list[SlowJob] = []
    """The oldest of its jobs, oldest first."""

    @property
    def occupancy(self) -> float:
        """Share of the batch's slots that are taken, 0 to 1."""
        return self.running / self.slots if self.slots else 0.0

    @property
    def prefix_hit_rate(self) -> float:
        """Share of the tokens looked up that were found in the prefix cache, 0 to 1."""
        return (
            self.prefix_hit_tokens / self.prefix_query_tokens if self.prefix_query_tokens else 0.0
        )

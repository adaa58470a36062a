"""What the queue process and the engine process say to each other.

Length-prefixed msgpack frames on a socketpair: a 4-byte big-endian length, then one tagged struct.
Parent to engine: `Add`, `Abort`, `Look`. Back: `Ready`, `Step`, `View`, `Fatal`.
This module knows no sockets' owners, no Redis and no torch.
"""

import time
from typing import Literal

import msgspec


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters with every default filled in: what the engine needs and no more."""

    temperature: float = 0.0
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    """The model's end tokens (unless they are to be ignored) and the request's own."""


class Add(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Run a request. `output_ids` are tokens it already has, when it is resumed."""

    request_id: str
    prompt_ids: list[int]
    sampling: Sampling
    output_ids: list[int] = []
    cache_salt: str = ""
    """Requests share cached prefixes only under the same salt."""


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Stop these requests and free their blocks; nothing more is said of them."""

    request_ids: list[str]


class Look(msgspec.Struct, frozen=True, tag=True):
    """Answer with a `View`, between two steps."""


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The model is loaded, the cache is allocated, every kernel is compiled."""

    max_model_tokens: int
    max_running: int
    num_blocks: int
    block_tokens: int
    vocab_size: int
    device: str
    weight_bytes: int
    kv_bytes: int


class Output(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """New tokens of one request, in order. `finish` is None while it runs.

    Nothing in it refers back to it, so no garbage collection visits it: each step makes many.
    """

    request_id: str
    token_ids: list[int]
    finish: Literal["stop", "length", "error"] | None = None
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache, so far."""
    message: str = ""
    """What went wrong, when `finish` is `error`."""


class Load(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """How full the engine is after a step."""

    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    """Blocks that can be allocated now, evictable cached ones included."""
    used_slots: int = 0
    """Tokens held in allocated blocks."""
    allocated_slots: int = 0
    """Token slots of the blocks that requests hold; 1 - used/allocated is the waste."""
    used_slot_steps: int = 0
    """Sum of `used_slots` over the steps since the start, for the average waste."""
    allocated_slot_steps: int = 0
    preemptions: int = 0
    """Since the start."""
    prefix_hit_tokens: int = 0
    """Since the start."""
    step: int = 0
    """Steps since the start."""
    prefix_query_tokens: int = 0
    """Tokens looked up in the prefix cache since the start; `prefix_hit_tokens` were found."""
    prefill_tokens: int = 0
    """Prompt tokens computed since the start, those of recomputed prompts included."""
    out_of_memory: int = 0
    """Times since the start that memory was too little for a step, which then ran in parts."""


class Step(msgspec.Struct, frozen=True, tag=True):
    """What one step gave."""

    outputs: list[Output]
    load: Load
    made_s: float = msgspec.field(default_factory=time.monotonic)
    """When it had ended, on the monotonic clock that a host's processes share."""


class RequestView(msgspec.Struct, frozen=True, array_like=True):
    """One request as the scheduler has it."""

    request_id: str
    state: Literal["waiting", "prefill", "decode"]
    tokens: int
    """Prompt and output so far."""
    computed_tokens: int
    blocks: int
    cached_tokens: int
    """Found in the prefix cache at its admission."""


class View(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What the scheduler holds, for people to look at; made when a `Look` asks for it."""

    step: int
    requests: list[RequestView]
    """Running ones first, in the scheduler's order."""
    idle_blocks: int
    """Blocks that nobody uses and the prefix cache knows."""
    block_map: str
    """One letter a cell, in the blocks' order: `u` used by one request, `s` shared by several, `c`
    cached for a prefix, `.` free. Of a large pool a cell shows every n-th block."""
    blocks_per_cell: int


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot go on; it exits after sending this."""

    message: str
    request_id: str = ""
    """The request for which there was no memory, if that is why."""


ToEngine = Add | Abort | Look
FromEngine = Ready | Step | View | Fatal

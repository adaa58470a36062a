"""The engine's settings: one frozen struct, each field with its unit and its reason.

The command line and the environment are read elsewhere; rooms below get plain values from here.
"""

from typing import Literal

import msgspec

BLOCK_TOKENS = 16
"""Tokens of a KV block: page sizes from 16 to 128 measured within 3 %, and 16 wastes least."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the engine needs to start."""

    model: str
    """A Hugging Face directory or hub id."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto`: the checkpoint's on a GPU, float32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    """`dummy`: random weights from a config.json alone, for benchmarks."""
    max_model_tokens: int | None = None
    """Prompt and output together; None takes the model's own context."""
    max_running: int = 1024
    """Requests that run at once: rows of the device tables."""
    max_step_tokens: int = 8192
    """Token budget of a step, decodes and prompt chunks together; see `step_budget_tokens`."""
    max_mixed_tokens: int | None = None
    """Token budget of a step in which requests decode; None: that of any step. Fewer tokens keep
    the decodes' latency even while prompts are computed, and take more steps for the prompts."""
    num_blocks: int | None = None
    """KV blocks; None sizes the cache from free device memory."""
    gpu_memory_utilization: float = 0.92
    """Share of the device's memory for weights, activations and cache together."""
    prefix_cache: bool = True
    deterministic: bool = False
    """A request's bits do not depend on what else is in the batch: attention splits contexts by
    their own length alone, and matrix products never split their sums. A CPU always works so."""

    @property
    def step_budget_tokens(self) -> int:
        """What a step may hold: never too little for every running request to decode."""
        return max(self.max_step_tokens, self.max_running)

    @property
    def mixed_budget_tokens(self) -> int:
        """The same of a step in which requests decode."""
        if self.max_mixed_tokens is None:
            return self.step_budget_tokens
        return min(max(self.max_mixed_tokens, self.max_running), self.step_budget_tokens)

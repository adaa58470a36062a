"""CUDA graphs of whole steps: batch layout, model, head and sampler in one replay.

Steps are padded up to the next captured shape: a number of tokens, with prefills among them or
without, and a bound on the context (attention's grid depends on it). Graphs share one memory pool,
largest first. Knows no plans: a step is a function of its shape.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .batch import StepShape

SHORT_CONTEXT_TOKENS = 4096
"""Contexts up to this many tokens get graphs of their own, with a smaller attention grid."""

MIXED_TOKENS = (*range(64, 513, 64), *range(640, 1025, 128), *range(1280, 2049, 256))
"""Sizes of captured steps that hold prefills."""

LARGE_TOKENS = (3072, 4096, 6144, 8192, 12288, 16384)
"""More such sizes, and the largest step's own, for models so small that a layer of so many tokens
takes the device no longer than `LAUNCHED_PRODUCTS` do. For others launching one kernel after the
other keeps up with the device."""

LAUNCHED_PRODUCTS = 1 << 37
"""Multiplications that take an H200 0.4 ms, in which the host launches a layer's kernels."""

MIXED_PREFILLS = 32
"""Prefills of a step of up to `MIXED_TOKENS`, at most; larger ones hold one per 128 tokens."""

MIXED_SEQS = 256
"""Sequences of such a step; where more can run there is a second graph, for as many as that. Each
sequence is a row of the LM head, dear enough not to be computed for nobody."""


LONG_STEP = 32
"""Of the buckets for longer contexts: few graphs, for steps that are long anyway."""


def decode_buckets(max_running: int, step: int = 8) -> list[int]:
    """Numbers of sequences to capture, ending in the most: by `step` to 256, then in larger steps.

    Padding costs at most 7 rows where a row is dear; from 256 on a row costs little, and by 32 and
    by 64 keeps the graphs few: each one takes some 30 ms of the start.
    """
    fine = {1, 2, 4, 8, 16, 24, *range(32, 257, step)}
    coarse = {*range(256, 513, 4 * step), *range(512, max_running + 8 * step, 8 * step)}
    return [*sorted(size for size in fine | coarse if size < max_running), max_running]


def mixed_buckets(max_step_tokens: int, layer_products: int) -> list[int]:
    """Numbers of tokens to capture with prefills among them, by a token's products in a layer."""
    sizes = [tokens for tokens in MIXED_TOKENS if tokens <= max_step_tokens]
    most = min(max_step_tokens, LAUNCHED_PRODUCTS // layer_products)
    large = {tokens for tokens in (*LARGE_TOKENS, max_step_tokens) if tokens <= most}
    return [*sizes, *sorted(tokens for tokens in large if tokens > MIXED_TOKENS[-1])]


class StepGraphs:
    """Captured steps by their shape."""

    def __init__(
        self, max_running: int, max_model_tokens: int, max_step_tokens: int, layer_products: int
    ) -> None:
        self._max_running = max_running
        self._mixed = mixed_buckets(max_step_tokens, layer_products)
        short = min(SHORT_CONTEXT_TOKENS, max_model_tokens)
        # Bound on the context -> numbers of sequences; the short bound first.
        self._decodes = {short: decode_buckets(max_running)}
        self._short_bound = short
        if max_model_tokens > short:
            self._decodes[max_model_tokens] = decode_buckets(max_running, LONG_STEP)
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        """Where steps are captured; nothing runs on it."""
        self._graphs: dict[StepShape, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def shapes(self) -> Iterator[StepShape]:
        """Shapes in the order to capture them: largest first, so that memory is reused."""
        for tokens in reversed(self._mixed):
            for seqs in reversed(self._mixed_seqs(tokens)):
                yield self._mixed_shape(tokens, seqs)
        for bound, sizes in reversed(self._decodes.items()):
            for seqs in reversed(sizes):
                yield _decode_shape(seqs, bound)

    def fit(self, shape: StepShape) -> StepShape | None:
        """The captured shape that holds a step of `shape`; None if no captured one does."""
        if not shape.max_prefills:
            bound = next(bound for bound in self._decodes if bound >= shape.max_kv_len)
            sizes = self._decodes[bound]
            return _decode_shape(sizes[bisect_left(sizes, shape.num_seqs)], bound)
        tokens = next((size for size in self._mixed if size >= shape.num_tokens), None)
        if tokens is None or shape.max_kv_len > self._short_bound:
            return None
        seqs = next(size for size in self._mixed_seqs(tokens) if size >= shape.num_seqs)
        captured = self._mixed_shape(tokens, seqs)
        return captured if shape.max_prefills <= captured.max_prefills else None

    def capture(self, shape: StepShape, step: Callable[[StepShape], Tensor]) -> None:
        """Capture `step` for a shape whose numbers have been staged, and which has run once.

        torch's own context would wait for the device and empty its caches each time; here the
        device replays one graph while the host captures the next.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool)
            token_ids = step(shape)
            graph.capture_end()
        graph.replay()  # the first replay also sends the graph to the device
        self._graphs[shape] = (graph, token_ids)

    def replay(self, shape: StepShape) -> Tensor:
        """Run a staged step of a captured shape; its ids `[seqs]` are valid until the next step."""
        graph, token_ids = self._graphs[shape]
        graph.replay()
        return token_ids

    def _mixed_seqs(self, tokens: int) -> list[int]:
        most = min(tokens, self._max_running)
        return sorted({min(MIXED_SEQS, most), most})

    def _mixed_shape(self, tokens: int, seqs: int) -> StepShape:
        prefills = max(MIXED_PREFILLS, tokens // 128)
        return StepShape(seqs, tokens, True, min(seqs, prefills), self._short_bound)


def _decode_shape(seqs: int, bound: int) -> StepShape:
    return StepShape(seqs, seqs, True, 0, bound)

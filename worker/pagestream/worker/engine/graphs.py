"""CUDA graphs of whole decode steps: batch layout, model, head and sampler in one replay.

A graph is captured for a number of sequences (steps are padded up to the next one) and a bound on
the context (attention's grid depends on it). Graphs share one memory pool, largest first.
Knows no plans: a step is a function of its shape.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .batch import StepShape

SHORT_CONTEXT_TOKENS = 4096
"""Contexts up to this many tokens get graphs of their own, with a smaller attention grid."""


def decode_buckets(max_running: int) -> list[int]:
    """Numbers of sequences to capture: 1, 2, 4, by 8 to 256, by 16 beyond, ending in the most.

    Padding costs at most 7 rows where a row is dear, and 15 where it is not.
    """
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, max_running + 16, 16)]
    return [size for size in sizes if size < max_running] + [max_running]


class DecodeGraphs:
    """Captured decode steps by (sequences, context bound)."""

    def __init__(self, max_running: int, max_model_tokens: int) -> None:
        self._buckets = decode_buckets(max_running)
        self._bounds = sorted({min(SHORT_CONTEXT_TOKENS, max_model_tokens), max_model_tokens})
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def missing(self) -> Iterator[int]:
        """Batch buckets in the order to capture them: largest first, so that memory is reused."""
        yield from reversed(self._buckets)

    def bucket(self, num_seqs: int) -> int:
        """The captured number of sequences that holds `num_seqs`."""
        return next(size for size in self._buckets if size >= num_seqs)

    def capture(self, shape: StepShape, step: Callable[[StepShape], Tensor]) -> None:
        """Capture `step` for the shape's number of sequences, once for each context bound."""
        for bound in reversed(self._bounds):
            bounded = replace(shape, max_kv_len=bound)
            step(bounded)  # compile and let libraries set themselves up outside the capture
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                token_ids = step(bounded)
            self._graphs[shape.num_seqs, bound] = (graph, token_ids)

    def replay(self, shape: StepShape) -> Tensor:
        """Run a staged step; the ids `[seqs]` stay valid until the same graph runs again."""
        bound = next(bound for bound in self._bounds if bound >= shape.max_kv_len)
        graph, token_ids = self._graphs[shape.num_seqs, bound]
        graph.replay()
        return token_ids

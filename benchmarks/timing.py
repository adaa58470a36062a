"""Times launches on a GPU: in graphs, over inputs that the L2 cache does not hold.

What the scripts that measure kernels share; it knows no op.
"""

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

L2_BYTES = 64 << 20
REPEATS = 7
LAUNCHES = 32
"""Of a graph, as of the layers of a model: it begins once for all of them."""
LAUNCHES_BYTES = 4 << 30
"""Fewer launches, if those read more than this."""

Launch = Callable[[], object]


def randn(*shape: int) -> Tensor:
    """bf16 on the GPU."""
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")


def ints(values: Any) -> Tensor:
    """int32 on the GPU."""
    return torch.as_tensor(values, dtype=torch.int32, device="cuda")


def time_us(make: Callable[[], Launch], inputs_bytes: int) -> float:
    """Median time of one launch, in a graph that walks over copies of the inputs.

    A replay that is not timed goes before: what Python and the driver take to start the timed one
    passes while the GPU is busy.
    """
    copies = [make() for _ in range(max(1, min(64, 2 * L2_BYTES // max(inputs_bytes, 1) + 1)))]
    for launch in copies:  # compiles, and lets cuBLAS make its workspace
        launch()
    torch.cuda.synchronize()
    count = max(len(copies), 4, min(LAUNCHES, LAUNCHES_BYTES // max(inputs_bytes, 1)))
    launches = list(itertools.islice(itertools.cycle(copies), count))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(launches))
    return statistics.median(times)


def copy_bytes_per_us() -> float:
    """What a large device copy reaches, reads and writes together."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    times_us = []
    for _ in range(REPEATS):  # not in a graph, where copies are slower
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times_us.append(start.elapsed_time(end) * 1e3)
    return 2 * source.numel() / statistics.median(times_us)


def flops_per_us() -> float:
    """What cuBLAS reaches on a large square bf16 product."""
    a, b = randn(8192, 8192), randn(8192, 8192)
    return 2 * 8192**3 / time_us(lambda: lambda: a @ b, 2 * L2_BYTES)

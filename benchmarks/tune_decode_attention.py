"""Which splitting of decode attention is fastest, for even and for ragged batches.

    python benchmarks/tune_decode_attention.py --heads 32 --kv-heads 8 --head-dim 128

What it finds goes into `_FASTEST` of kernels/kv_splits.py, with a line in NOTES.md, once whole
steps say the same (`decode_steps.py`: there other kernels run before and behind). Each candidate
runs in a CUDA graph, over enough copies of the cache to miss the L2 cache; sequences come longest
first, as the scheduler gives them, and there is room for contexts of 4,096 tokens, as in the graphs
of steps.
"""

import argparse
import itertools
import random
import time
from collections.abc import Iterator

import torch
from kernels import HEAD_DIM, decode_launch, paged
from timing import ints, randn, time_us

from pagestream.kernels import Splitting

EVEN = (
    *((1, 512), (1, 2048), (1, 32768), (2, 16384), (4, 512), (4, 8192), (8, 512), (8, 2048)),
    *((8, 8192), (16, 1024), (16, 4096), (32, 512), (32, 1024), (64, 512), (80, 512), (256, 576)),
)
RAGGED = (
    *((8, 100, 4000), (12, 2000, 6000), (28, 100, 4000), (40, 100, 4000), (64, 1000, 2000)),
    *((128, 600, 1900), (256, 100, 1100)),
)
PARTS = (264, 396, 528, 792)
MIN_TOKENS = (128, 256, 512, 1024, 2048)
KERNELS = ((64, 4, 2), (64, 4, 3), (64, 4, 4), (32, 4, 4), (128, 4, 2))
WIDE_KERNELS = ((32, 4, 3), (32, 4, 4), (64, 4, 2), (64, 4, 3))
"""Of heads of more than 128: tile, warps and stages."""
SHOWN = 6


def batches() -> Iterator[tuple[str, list[int]]]:
    """Names and context lengths."""
    for seqs, kv_len in EVEN:
        yield f"{seqs} x {kv_len}", [kv_len] * seqs
    rng = random.Random(0)
    for seqs, least, most in RAGGED:
        lengths = sorted((rng.randint(least, most) for _ in range(seqs)), reverse=True)
        yield f"{seqs} x {least} to {most}", lengths
    yield "1 x 30000, 15 x 500", [30_000] + [500] * 15


def candidates(lengths: list[int], kv_heads: int, head_dim: int) -> Iterator[Splitting]:
    """Every splitting worth a try: those that cut the batch alike count once."""
    seen: set[tuple[int, ...]] = set()
    kernels = KERNELS if head_dim <= 128 else WIDE_KERNELS
    kinds = itertools.product(PARTS, MIN_TOKENS, kernels, (False, True))
    for programs, min_tokens, kernel, merges_apart in kinds:
        tile, warps, stages = kernel
        splitting = Splitting(
            *(min_tokens, programs), tile=tile, warps=warps, stages=stages,
            merges_apart=merges_apart,
        )  # fmt: skip
        splitting = splitting.fitted(len(lengths), kv_heads)
        least = max(min_tokens, -(-sum(lengths) // splitting.parts))
        pieces = (*(-(-length // least) for length in lengths), *kernel, merges_apart)
        if pieces not in seen:
            seen.add(pieces)
            yield splitting


def measure(
    lengths: list[int], heads: int, kv_heads: int, head_dim: int, splitting: Splitting
) -> float:
    """Microseconds of one launch."""
    read_bytes = sum(lengths) * kv_heads * head_dim * 4

    def make():  # noqa: ANN202 (a launch on its own copy of the cache)
        cache = paged(len(lengths), max(lengths), kv_heads, head_dim)
        q, rows = randn(len(lengths), heads, head_dim), ints(range(len(lengths)))
        return decode_launch(q, cache, rows, ints(lengths), splitting)

    return time_us(make, read_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=HEAD_DIM)
    parser.add_argument("--seconds", type=float, default=600, help="begin no batch after so long")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this measures a GPU, and there is none")
    until_s = time.monotonic() + arguments.seconds
    kv_heads, head_dim = arguments.kv_heads, arguments.head_dim
    shape = arguments.heads, kv_heads, head_dim
    for name, lengths in batches():
        if time.monotonic() > until_s:
            break
        shipped = Splitting.fastest(len(lengths), kv_heads, head_dim)
        shipped_us = measure(lengths, *shape, shipped)
        results = sorted(
            (measure(lengths, *shape, splitting), splitting)
            for splitting in candidates(lengths, kv_heads, head_dim)
        )
        read_bytes = sum(lengths) * kv_heads * head_dim * 4
        print(
            f"{name}: {read_bytes / 1e6:.0f} MB; as shipped {shipped_us:.1f} µs "
            f"{read_bytes / shipped_us / 1e6:.2f} TB/s, at best "
            f"{read_bytes / results[0][0] / 1e6:.2f}",
            flush=True,
        )
        for us, splitting in results[:SHOWN]:
            print(f"  {us:8.1f} µs  {tuple(splitting)}")


if __name__ == "__main__":
    main()

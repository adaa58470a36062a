"""Which splitting of decode attention serves a number of sequences best, whatever their lengths.

    python benchmarks/tune_decode_attention.py --heads 32 --kv-heads 8 --head-dim 128

Who captures a step knows how many sequences it has and not how long they will be, so a splitting is
judged over batches of all kinds: by its time beside the fastest of each batch, in the mean and at
worst. What it finds goes into the tables of kernels/kv_splits.py, with a line in NOTES.md, once
whole steps say the same (`decode_steps.py`: there other kernels run before and behind). Each
candidate runs in a CUDA graph, over enough copies of the cache to miss the L2 cache, with room for
contexts of 4,096 tokens, as in the graphs of steps.
"""

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Iterator

import torch
from kernels import HEAD_DIM, decode_launch, paged
from timing import ints, randn, time_us

from pagestream.kernels import Splitting

SEQS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128, 256)
LENGTHS = ((512, 512), (1500, 1500), (4000, 4000), (1000, 2000), (100, 4000), (300, 700))
LONG = 8000
"""Of one sequence among short ones."""
MOST_BYTES = 600_000_000
"""Of keys and values in a batch: beyond, all splittings read much the same."""
KERNELS = {
    64: ((128, 4, 3, 264), (64, 4, 4, 528), (64, 4, 3, 660)),
    128: ((128, 4, 3, 132), (64, 4, 4, 264), (64, 4, 3, 396), (32, 4, 3, 396)),
    256: ((64, 8, 3, 132), (32, 4, 4, 264)),
}
"""By the most dimensions: tile, warps, stages, and how many programs an H200 runs at once so."""
WAVES = (1, 2, 3)
MIN_TOKENS = (128, 256, 512)
SHOWN = 6


def batches(seqs: int) -> Iterator[tuple[str, list[int]]]:
    """Names and context lengths."""
    rng = random.Random(seqs)
    for least, most in LENGTHS:
        yield f"{least} to {most}", [rng.randint(least, most) for _ in range(seqs)]
    yield f"one of {LONG}", [LONG, *(rng.randint(200, 800) for _ in range(seqs - 1))]


def candidates(seqs: int, kv_heads: int, head_dim: int) -> Iterator[Splitting]:
    """Every splitting worth a try."""
    kernels = next(kernels for most, kernels in KERNELS.items() if head_dim <= most)
    for kernel, waves, min_tokens, merges_apart in itertools.product(
        kernels, WAVES, MIN_TOKENS, (False, True)
    ):
        tile, warps, stages, at_once = kernel
        splitting = Splitting(
            *(min_tokens, waves * at_once), tile=tile, warps=warps, stages=stages,
            merges_apart=merges_apart,
        )  # fmt: skip
        yield splitting.fitted(seqs, kv_heads)


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


def ratios(
    seqs: int, heads: int, kv_heads: int, head_dim: int
) -> dict[Splitting, dict[str, float]]:
    """The time of each splitting in each batch, beside the fastest there."""
    shipped = Splitting.fastest(seqs, kv_heads, head_dim)
    found: dict[Splitting, dict[str, float]] = {shipped: {}}
    found |= {splitting: {} for splitting in candidates(seqs, kv_heads, head_dim)}
    for name, lengths in batches(seqs):
        if sum(lengths) * kv_heads * head_dim * 4 > MOST_BYTES:
            continue
        us = {one: measure(lengths, heads, kv_heads, head_dim, one) for one in found}
        for splitting, own_us in us.items():
            found[splitting][name] = own_us / min(us.values())
    return found


def said(splitting: Splitting, own: dict[str, float]) -> str:
    """A splitting's mean, and its worst batch."""
    worst = max(own, key=own.__getitem__)
    return (
        f"  {statistics.mean(own.values()):.3f}, at worst {own[worst]:.2f} ({worst}): "
        f"{tuple(splitting)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=HEAD_DIM)
    parser.add_argument("--seqs", type=int, nargs="+", default=SEQS)
    parser.add_argument("--seconds", type=float, default=600, help="begin nothing after so long")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this measures a GPU, and there is none")
    until_s = time.monotonic() + arguments.seconds
    shape = arguments.heads, arguments.kv_heads, arguments.head_dim
    for seqs in arguments.seqs:
        if time.monotonic() > until_s:
            break
        found = {splitting: own for splitting, own in ratios(seqs, *shape).items() if own}
        if not found:
            continue
        shipped, *_ = found
        print(f"{seqs} sequences; as shipped", said(shipped, found[shipped]), sep="\n")
        best = sorted(found, key=lambda splitting: statistics.mean(found[splitting].values()))
        print(*(said(one, found[one]) for one in best[:SHOWN]), sep="\n", flush=True)


if __name__ == "__main__":
    main()

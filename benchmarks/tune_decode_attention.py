"""Which splitting of decode attention is fastest, for even and for ragged batches.

    python benchmarks/tune_decode_attention.py --heads 32 --kv-heads 8

What it finds goes into `_SPLITTINGS` of kernels/decode_attention.py, with a line in NOTES.md. Each
candidate runs in a CUDA graph, over enough copies of the cache to miss the L2 cache; sequences come
longest first, as the scheduler gives them.
"""

import argparse
import itertools
import random
from collections.abc import Iterator

import torch
from kernels import HEAD_DIM, ints, paged, randn, time_us

from pagestream.kernels import Splitting, decode_attention

BATCHES: dict[str, list[int]] = {
    f"{seqs} x {kv_len}": [kv_len] * seqs
    for seqs, kv_len in (
        (1, 512),
        (1, 2048),
        (1, 32768),
        (8, 512),
        (8, 8192),
        (32, 512),
        (256, 576),
    )
}
RAGGED = ((24, 1000, 2000), (64, 1000, 2000), (128, 600, 1900), (256, 100, 1100))


def batches() -> Iterator[tuple[str, list[int]]]:
    """Names and context lengths."""
    yield from BATCHES.items()
    rng = random.Random(0)
    for seqs, least, most in RAGGED:
        lengths = sorted((rng.randint(least, most) for _ in range(seqs)), reverse=True)
        yield f"{seqs} x {least} to {most}", lengths


def candidates() -> Iterator[Splitting]:
    """Every splitting worth a try."""
    splits = ((128, 32), (256, 16), (512, 16), (1024, 16), (2048, 16))
    kernels = ((64, 4, 3), (64, 4, 5), (128, 8, 3))
    for (min_tokens, most), (tile, warps, stages) in itertools.product(splits, kernels):
        yield Splitting(min_tokens, most, tile, warps, stages)


def measure(lengths: list[int], heads: int, kv_heads: int, splitting: Splitting) -> float:
    """Microseconds of one launch."""
    read_bytes = sum(lengths) * kv_heads * HEAD_DIM * 4

    def make():  # noqa: ANN202 (a launch on its own copy of the cache)
        cache = paged(len(lengths), max(lengths), kv_heads)
        q, rows = randn(len(lengths), heads, HEAD_DIM), ints(range(len(lengths)))
        kv_lens, most = ints(lengths), max(*lengths, 4096)
        return lambda: decode_attention(
            q, *cache, rows, kv_lens, 0.09, max_kv_len=most, splitting=splitting
        )

    return time_us(make, read_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this measures a GPU, and there is none")
    for name, lengths in batches():
        results = sorted(
            (measure(lengths, arguments.heads, arguments.kv_heads, splitting), splitting)
            for splitting in candidates()
        )
        read_bytes = sum(lengths) * arguments.kv_heads * HEAD_DIM * 4
        print(f"{name}: {read_bytes / 1e6:.0f} MB, {read_bytes / results[0][0] / 1e6:.2f} TB/s")
        for us, splitting in results[:5]:
            print(f"  {us:8.1f} µs  {tuple(splitting)}")


if __name__ == "__main__":
    main()

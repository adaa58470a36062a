"""The workloads that figures are measured on: lists of (prompt token ids, output tokens)."""

import random
from collections.abc import Callable

Workload = list[tuple[list[int], int]]


def nano(vocab: int = 10_000, n: int = 256, seed: int = 0) -> Workload:
    """256 requests, lengths in and out uniform in [100, 1024]: 142,827 tokens in, 133,966 out.

    Source: nano-vllm's bench.
    """
    rng = random.Random(seed)
    prompts = [[rng.randint(0, vocab) for _ in range(rng.randint(100, 1024))] for _ in range(n)]
    outputs = [rng.randint(100, 1024) for _ in range(n)]
    return list(zip(prompts, outputs, strict=True))


def share(n: int = 1000, seed: int = 1, vocab: int = 10_000) -> Workload:
    """1,000 requests, lognormal lengths near ShareGPT's means: 206,722 tokens in, 192,965 out."""
    rng = random.Random(seed)

    def draw(mu: float, sigma: float) -> int:
        return max(4, min(1024, int(rng.lognormvariate(mu, sigma))))

    return [
        ([rng.randint(0, vocab) for _ in range(draw(4.85, 1.1))], draw(4.85, 0.95))
        for _ in range(n)
    ]


def small(vocab: int = 4_000, n: int = 64, seed: int = 2) -> Workload:
    """64 requests, lengths in and out uniform in [16, 128]: for the demo model on a CPU."""
    rng = random.Random(seed)
    prompts = [[rng.randint(10, vocab) for _ in range(rng.randint(16, 128))] for _ in range(n)]
    outputs = [rng.randint(16, 128) for _ in range(n)]
    return list(zip(prompts, outputs, strict=True))


WORKLOADS: dict[str, Callable[[], Workload]] = {"nano": nano, "share": share, "small": small}

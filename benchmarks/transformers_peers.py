"""The same workload on transformers: `generate()` in static batches, and its continuous batching.

A peer of `through_redis.py`: same requests, same lengths, greedy, end tokens ignored. A static
batch runs until its longest output; only the tokens that were asked for count.

    python benchmarks/transformers_peers.py --workload small
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from workloads import WORKLOADS, Workload

from pagestream.worker.models.hub import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="small")
    parser.add_argument("--requests", type=int, help="the first so many only")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    requests = WORKLOADS[arguments.workload]()
    requests = requests[: arguments.requests]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(resolve(arguments.model), dtype=dtype)
    model = model.to(device).eval()
    tokens = sum(count for _, count in requests)
    figures = {
        f"static_{size}": tokens / best(static, model, requests, size, arguments.repeats)
        for size in arguments.batch_sizes
    }
    figures["continuous"] = tokens / best(continuous, model, requests, 0, arguments.repeats)
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))


def best(
    run: Callable[[Any, Workload, int], None],
    model: Any,
    requests: Workload,
    size: int,
    repeats: int,
) -> float:
    """Seconds of the fastest of `repeats` runs after one that warms up."""
    run(model, requests[:2], size)
    seconds: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        run(model, requests, size)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@torch.inference_mode()
def static(model: Any, requests: Workload, size: int) -> None:
    """Left-padded batches of `size`, each as long as its longest output."""
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        longest = max(len(prompt) for prompt, _ in batch)
        ids = [[0] * (longest - len(prompt)) + prompt for prompt, _ in batch]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in batch]
        model.generate(
            torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            do_sample=False,
            max_new_tokens=max(count for _, count in batch),
            eos_token_id=None,
            pad_token_id=0,
        )


def continuous(model: Any, requests: Workload, size: int) -> None:
    """Transformers' own continuous batching, each request with its own length."""
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    with model.continuous_batching_context_manager(generation_config=config) as manager:
        for prompt, count in requests:
            manager.add_request(prompt, max_new_tokens=count, eos_token_id=-1)
        for _ in requests:
            result = manager.get_result(timeout=600)
            assert result is not None, "continuous batching stopped early"
            assert result.error is None, result.error


if __name__ == "__main__":
    main()

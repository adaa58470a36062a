"""Milliseconds of a decode step of the engine alone, for even and for ragged batches.

    python benchmarks/decode_steps.py --model benchmarks/models/qwen3-0.6b

`pagestream bench latency` says the same of even batches, with its own process and its spread; this
is for comparing two trees: run each with its own PYTHONPATH, one after the other.
"""

import argparse
import random
import time

import torch

from pagestream.worker.config import EngineConfig
from pagestream.worker.engine.engine import Engine, build_engine
from pagestream.worker.messages import Add, Sampling

EVEN = (
    *((1, 512), (1, 2048), (1, 32000), (4, 512), (4, 8192), (8, 512), (8, 2048), (8, 8192)),
    *((16, 1024), (16, 4096), (32, 512), (32, 1024), (64, 512), (128, 600), (256, 576)),
)
RAGGED = (
    *((24, 1000, 2000), (48, 1000, 2000), (64, 1000, 2000), (128, 600, 1900), (256, 100, 1100)),
)
WARM_STEPS = 5
STEPS = 40


def batches() -> dict[str, list[int]]:
    """Names and prompt lengths."""
    rng = random.Random(0)
    even = {f"{seqs} x {length}": [length] * seqs for seqs, length in EVEN}
    ragged = {
        f"{seqs} x {least} to {most}": [rng.randint(least, most) for _ in range(seqs)]
        for seqs, least, most in RAGGED
    }
    return even | ragged


def step_ms(engine: Engine, lengths: list[int]) -> float:
    """The mean of some steps in which every sequence decodes."""
    rng = random.Random(0)
    sampling = Sampling(max_tokens=STEPS + 3 * WARM_STEPS, temperature=0)
    for number, length in enumerate(lengths):
        ids = [rng.randrange(engine.ready().vocab_size) for _ in range(length)]
        engine.add(Add(request_id=str(number), prompt_ids=ids, sampling=sampling))
    full = 0
    while full < WARM_STEPS:
        full += len(engine.step().outputs) == len(lengths)
    torch.cuda.synchronize()
    begin_s = time.perf_counter()
    for _ in range(STEPS):
        engine.step()
    torch.cuda.synchronize()
    ms = (time.perf_counter() - begin_s) / STEPS * 1000
    while engine.has_work:
        engine.step()
    return ms


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this measures a GPU, and there is none")
    made = batches()
    engine = build_engine(
        EngineConfig(
            model=arguments.model,
            load_format="dummy",
            max_running=max(map(len, made.values())),
            max_model_tokens=33_000,
            prefix_cache=False,
        )
    )
    for name, lengths in made.items():
        print(f"{name:20} {step_ms(engine, lengths):7.3f} ms", flush=True)


if __name__ == "__main__":
    main()

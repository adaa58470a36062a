"""What the queue adds to the time to first token of an idle worker.

    python benchmarks/idle_latency.py --model benchmarks/models/qwen3-0.6b --load-format dummy

The same prompts, one at a time with a pause after each, first on the engine alone in a process of
its own, then through Redis: client, queue process and engine process on this host. What is added is
the difference of the two medians. A pause lets every process go to sleep, as an idle worker's do;
`--pause-ms 0` sends the next prompt at once. `--step-ms` puts an engine that only takes its time in
the model's place: then nothing is run alone.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from rich.console import Console
from timed_engine import MODEL, running_worker

from pagestream.producer import AsyncClient, SamplingParams
from pagestream.producer.embedded import EmbeddedRedis
from pagestream.worker.bench.datasets import Workload, fit_to_vocabulary, random_lengths
from pagestream.worker.bench.serve import QUEUE, started

OUTPUT_TOKENS = 4
WARM_UPS = 5
"""Requests at the beginning that do not count."""


def alone(flags: Mapping[str, Any], workload: Workload, pause_s: float) -> list[float]:
    """Milliseconds to each first token of an engine in this process."""
    from pagestream.worker.engine.engine import build_engine
    from pagestream.worker.messages import Add, Sampling
    from pagestream.worker.settings import read_settings

    engine = build_engine(read_settings(**flags).engine_config())
    firsts_ms = []
    for number, (ids, tokens) in enumerate(fit_to_vocabulary(workload, engine.ready().vocab_size)):
        begin_s = time.perf_counter()
        sampling = Sampling(temperature=0, max_tokens=tokens)
        engine.add(Add(request_id=str(number), prompt_ids=ids, sampling=sampling))
        while not engine.step().outputs:
            pass
        firsts_ms.append((time.perf_counter() - begin_s) * 1000)
        while engine.has_work:
            engine.step()
        time.sleep(pause_s)
    return firsts_ms


async def queued(url: str, queue: str, workload: Workload, pause_s: float) -> list[float]:
    """Milliseconds from each submission to its first token here."""
    firsts_ms = []
    async with AsyncClient(url, queue=queue) as client:
        for ids, tokens in workload:
            sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=tokens)
            begin_s, first_s = time.perf_counter(), None
            job = await client.submit(prompt_ids=ids, sampling=sampling)
            async for chunk in job.stream():
                if chunk.ids:
                    first_s = first_s or time.perf_counter()
            assert first_s is not None, "a job ended without a token"
            firsts_ms.append((first_s - begin_s) * 1000)
            await asyncio.sleep(pause_s)
    return firsts_ms


def show(name: str, firsts_ms: list[float]) -> float:
    """Print the spread of what counts; returns the median."""
    cuts = statistics.quantiles(firsts_ms[WARM_UPS:], n=20)
    print(f"{name:14} p5 {cuts[0]:7.2f}   p50 {cuts[9]:7.2f}   p95 {cuts[18]:7.2f} ms", flush=True)
    return cuts[9]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--load-format", default=None)
    parser.add_argument("--max-model-len", type=int, default=None)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--pause-ms", type=float, default=50)
    parser.add_argument("--step-ms", type=float, default=None)
    arguments = parser.parse_args()
    pause_s = arguments.pause_ms / 1000
    flags = {
        name: value
        for name in ("model", "load_format", "max_model_len")
        if (value := getattr(arguments, name)) is not None
    } | {"enable_prefix_caching": False}
    workload = random_lengths(
        WARM_UPS + arguments.requests, arguments.input_len, OUTPUT_TOKENS, 0, seed=0
    )
    if arguments.step_ms is not None:
        with EmbeddedRedis() as server, running_worker(server.url, 8, arguments.step_ms):
            show("through Redis", asyncio.run(queued(server.url, MODEL, workload, pause_s)))
        return
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        engine_ms = show("engine alone", process.submit(alone, flags, workload, pause_s).result())
    with started(flags, Console(stderr=True)) as (service, _):
        samples = fit_to_vocabulary(workload, service.model.vocab_size)
        assert service.workers, "they were started with the Redis that can be asked"
        first_ms = asyncio.run(queued(service.workers.url, QUEUE, samples, pause_s))
        queue_ms = show("through Redis", first_ms)
    print(f"added          {queue_ms - engine_ms:.2f} ms at the median")


if __name__ == "__main__":
    main()

"""What the queue adds to the time to first token of an idle worker.

    python benchmarks/idle_latency.py --model benchmarks/models/qwen3-0.6b --load-format dummy

The same prompts, one at a time with a pause after each: on an engine in the process that asks; on
one in a process of its own, as a worker has it, asked over its socket; and through Redis, with
client, queue process and engine process on this host. What each adds is a difference of medians. A
pause lets every process go to sleep, as an idle worker's do; `--pause-ms 0` sends the next prompt
at once. `--step-ms` puts an engine that only takes its time in the model's place: then nothing is
run alone.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from rich.console import Console
from timed_engine import MODEL, running_worker

from pagestream.producer import AsyncClient, SamplingParams
from pagestream.producer.embedded import EmbeddedRedis
from pagestream.worker.bench.datasets import Workload, fit_to_vocabulary, random_lengths
from pagestream.worker.bench.serve import QUEUE, started
from pagestream.worker.building import build_real_engine
from pagestream.worker.messages import Add, Ready, Sampling, Step
from pagestream.worker.process import EngineProcess
from pagestream.worker.queue.inbox import Inbox
from pagestream.worker.settings import read_settings

OUTPUT_TOKENS = 4
WARM_UPS = 5
"""Requests at the beginning that do not count."""


def asks(workload: Workload) -> list[Add]:
    """What the engine is asked for."""
    return [
        Add(
            request_id=str(number),
            prompt_ids=ids,
            sampling=Sampling(temperature=0, max_tokens=tokens),
        )
        for number, (ids, tokens) in enumerate(workload)
    ]


def here(flags: Mapping[str, Any], workload: Workload, pause_s: float) -> list[float]:
    """Milliseconds to each first token of an engine in this process."""
    engine = build_real_engine(read_settings(**flags).engine_config())
    firsts_ms = []
    for add in asks(fit_to_vocabulary(workload, engine.ready().vocab_size)):
        begin_s = time.perf_counter()
        engine.add(add)
        while not engine.step().outputs:
            pass
        firsts_ms.append((time.perf_counter() - begin_s) * 1000)
        while engine.has_work:
            engine.step()
        time.sleep(pause_s)
    return firsts_ms


def over_its_socket(flags: Mapping[str, Any], workload: Workload, pause_s: float) -> list[float]:
    """Milliseconds to each first token of an engine in a process of its own."""
    inbox = Inbox()
    build = partial(build_real_engine, read_settings(**flags).engine_config())
    engine = EngineProcess(build, inbox.put)
    inbox.listen_to(engine)
    engine.start()
    firsts_ms = []
    try:
        ready = next(said(inbox))
        assert isinstance(ready, Ready), ready
        for add in asks(fit_to_vocabulary(workload, ready.vocab_size)):
            begin_s, first_s = time.perf_counter(), None
            engine.send(add)
            for event in said(inbox):
                assert isinstance(event, Step), event
                first_s = first_s or (time.perf_counter() if event.outputs else None)
                if any(output.finish for output in event.outputs):
                    break
            assert first_s is not None, "a request ended without a token"
            firsts_ms.append((first_s - begin_s) * 1000)
            time.sleep(pause_s)
    finally:
        inbox.close()
        engine.stop()
    return firsts_ms


def said(inbox: Inbox) -> Iterator[Any]:
    """What the engine says, one after the other."""
    while True:
        yield from inbox.take(timeout_s=60)


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
        here_firsts_ms = process.submit(here, flags, workload, pause_s).result()
    apart_firsts_ms = over_its_socket(flags, workload, pause_s)
    with started(flags, Console(stderr=True)) as (service, _):
        samples = fit_to_vocabulary(workload, service.model.vocab_size)
        assert service.workers, "they were started with the Redis that can be asked"
        queued_firsts_ms = asyncio.run(queued(service.workers.url, QUEUE, samples, pause_s))
    here_ms = show("engine here", here_firsts_ms)
    process_ms = show("engine apart", apart_firsts_ms) - here_ms
    added_ms = show("through Redis", queued_firsts_ms) - here_ms
    print(
        f"added          {added_ms:.2f} ms at the median: {process_ms:.2f} by the engine's own "
        f"process, {added_ms - process_ms:.2f} by the queue"
    )


if __name__ == "__main__":
    main()

"""Where a step's time goes on the GPU: every kernel's share, and how much of the time any one ran.

    python benchmarks/profile_steps.py --model benchmarks/models/qwen3-0.6b --batch-sizes 1 64 256
    python benchmarks/profile_steps.py --model benchmarks/models/llama-3.1-8b --workload nano

`busy` is the union of the kernels' intervals over the wall time from the first one's begin to the
last one's end, so gaps between kernels and waits for the host both count against it. The profiler
itself makes steps slower; `pagestream bench latency` says how long they take without it. `host` is
what the engine's Python takes of the same steps, all but the wait for the tokens, and `loop` what a
loop of nothing else takes beside each: a core that others share makes both longer. All that comes
first: calls of CUDA's may take longer in a process in which a profiler has run.
"""

import argparse
import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from pagestream.worker.bench.datasets import WORKLOADS, Workload, fit_to_vocabulary, shift_of
from pagestream.worker.config import EngineConfig
from pagestream.worker.engine.engine import Engine, build_engine
from pagestream.worker.messages import Add, Sampling

WARM_STEPS = 8
STEPS = 10
MOST_STEPS = 2 * (WARM_STEPS + 2 * STEPS)
"""Of a sequence; the first ones decode while the last ones' prompts are read."""
LOOP_ADDITIONS = 3000
"""Some 30 µs of a core that nobody else uses."""
SHOWN = 16
WORKLOAD_PIECES = ((4, 8), (100, 30), (400, 30), (800, 30))
"""(first step, steps): among the prefills, with everybody running, half-way, near the end."""


class Interval(NamedTuple):
    """One kernel or copy on the GPU."""

    begin_us: float
    end_us: float
    name: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--context", type=int, default=512, help="tokens of each sequence")
    parser.add_argument(
        "--workload", choices=sorted(WORKLOADS), help="profile pieces of this instead"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this profiles a GPU, and there is none")
    if arguments.workload:
        profile_workload(arguments.model, WORKLOADS[arguments.workload]())
        return
    most = max(arguments.batch_sizes)
    engine = build_engine(
        EngineConfig(
            model=arguments.model,
            load_format="dummy",
            max_running=most,
            max_model_tokens=arguments.context + MOST_STEPS,
            prefix_cache=False,
        )
    )
    for measure in (show_host, show_trace):
        for batch in arguments.batch_sizes:
            print(f"\n{batch} sequences, {arguments.context} tokens each")
            all_decode(engine, batch, arguments.context)
            measure(engine, STEPS)
            run_out(engine)


def profile_workload(model: str, workload: Workload) -> None:
    """Pieces of a workload whose requests all come at once: its prefills, and later on."""
    longest = max(len(ids) + tokens for ids, tokens in workload)
    engine = build_engine(EngineConfig(model=model, load_format="dummy", max_model_tokens=longest))
    vocab_size = engine.ready().vocab_size
    for place, measure in enumerate((show_host, show_trace)):
        requests = [
            Add(request_id=f"{place}-{n}", prompt_ids=ids, sampling=Sampling(max_tokens=tokens))
            for n, (ids, tokens) in enumerate(
                fit_to_vocabulary(workload, vocab_size, shift_of(place))
            )
        ]
        for request in requests:
            engine.add(request)
        step = 0
        for first, count in WORKLOAD_PIECES:
            for _ in range(step, first):
                engine.step()
            print(f"\nsteps {first} to {first + count} of the workload")
            measure(engine, count)
            step = first + count
        engine.abort([request.request_id for request in requests])
        run_out(engine)


def all_decode(engine: Engine, batch: int, context: int) -> None:
    """Add so many requests, and step until each has decoded for a while."""
    rng = random.Random(batch)
    sampling = Sampling(max_tokens=MOST_STEPS)
    for n in range(batch):
        ids = [rng.randrange(engine.ready().vocab_size) for _ in range(context)]
        engine.add(Add(request_id=f"{batch}-{n}", prompt_ids=ids, sampling=sampling))
    decoding = 0
    while decoding < WARM_STEPS:
        outputs = engine.step().outputs
        decoding += len(outputs) == batch


def run_out(engine: Engine) -> None:
    """Step until nothing is left to do."""
    while engine.has_work:
        engine.step()


def show_host(engine: Engine, steps: int) -> None:
    """Print what Python takes of each of the engine's next steps."""
    waited_s = 0.0
    wait = torch.cuda.Event.synchronize

    def timed_wait(event: torch.cuda.Event) -> None:
        nonlocal waited_s
        waited_s += seconds(partial(wait, event))

    hosts_us: list[float] = []
    loops_us: list[float] = []
    with mock.patch.object(torch.cuda.Event, "synchronize", timed_wait):
        for _ in range(steps):
            waited_s = 0.0
            hosts_us.append((seconds(engine.step) - waited_s) * 1e6)
            loops_us.append(seconds(partial(sum, range(LOOP_ADDITIONS))) * 1e6)
    for name, times_us in (("host", hosts_us), ("loop", loops_us)):
        cuts = statistics.quantiles(times_us, n=20, method="inclusive")
        print(f"{name} p5 {cuts[0]:.0f}, p50 {cuts[9]:.0f}, p95 {cuts[18]:.0f} µs a step")


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin_s = time.perf_counter()
    call()
    return time.perf_counter() - begin_s


def traced(engine: Engine, steps: int) -> list[Interval]:
    """What the GPU did in the engine's next steps."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            engine.step()
        torch.cuda.synchronize()
    return sorted(
        Interval(event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events() or ()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )


def busy_us(intervals: list[Interval]) -> float:
    """The length of the union of intervals sorted by their begin."""
    reached = list(itertools.accumulate((one.end_us for one in intervals), max))
    begins = [max(one.begin_us, end) for one, end in zip(intervals[1:], reached, strict=False)]
    later = (max(0.0, one.end_us - at) for one, at in zip(intervals[1:], begins, strict=True))
    return intervals[0].end_us - intervals[0].begin_us + sum(later)


def show_trace(engine: Engine, steps: int) -> None:
    """Print the table of the engine's next steps."""
    intervals = traced(engine, steps)
    wall_us = max(one.end_us for one in intervals) - intervals[0].begin_us
    print(f"wall {wall_us / steps:.0f} µs a step, busy {busy_us(intervals) / wall_us:.1%}")
    spent: dict[str, list[float]] = defaultdict(list)
    for one in intervals:
        spent[one.name].append(one.end_us - one.begin_us)
    print(f"{'µs a step':>10}{'launches':>10}{'µs each':>9}  kernel")
    for name, times in sorted(spent.items(), key=lambda item: -sum(item[1]))[:SHOWN]:
        each = sum(times) / len(times)
        print(f"{sum(times) / steps:10.1f}{len(times) / steps:10.1f}{each:9.2f}  {name[:60]}")


if __name__ == "__main__":
    main()

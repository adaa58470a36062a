"""What counting costs a step: the meter's calls for a batch of 256, and what is made once a second.

The calls are those of the queue process's loop, which runs beside the engine: `meter` is their time
for one step, in µs and as a share of a decode step of --step-ms. `snapshot` and `view` come once a
second, `scrape` when somebody asks, on a thread of its own.

    python benchmarks/metrics_cost.py
    python benchmarks/metrics_cost.py --rows 64 --step-ms 5
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from pagestream.worker.engine.blocks import BlockPool
from pagestream.worker.engine.request import Request
from pagestream.worker.engine.scheduler import Scheduler
from pagestream.worker.messages import Load, Ready, Sampling
from pagestream.worker.metrics import WorkerCollector
from pagestream.worker.queue.calls import Claim, StepCall, StepReply
from pagestream.worker.queue.meter import Meter
from pagestream.worker.queue.reply import Job
from pagestream.worker.queue.snapshots import Snapshots

BLOCKS = 34_000  # an 8B model's cache on a GPU of 141 GB
PROMPT_TOKENS = 512


def ready(rows: int) -> Ready:
    return Ready(
        max_model_tokens=8192,
        max_running=rows,
        num_blocks=BLOCKS,
        block_tokens=16,
        vocab_size=128_000,
        device="none",
        weight_bytes=0,
        kv_bytes=0,
    )


def jobs_of(rows: int) -> list[Job]:
    made: list[Job] = []
    for number in range(rows):
        claim = Claim(f"job-{number}", 1, 0, "normal", "default", b"x" * 900, 0, None, False)
        job = Job(claim, number, 0.0, 100)
        job.last_token_s = job.first_token_s = 0.0
        made.append(job)
    return made


def median_us(call: Callable[[], object], repeats: int) -> float:
    took: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter_ns()
        call()
        took.append((time.perf_counter_ns() - began) / 1000)
    return statistics.median(took)


def one_step(meter: Meter, jobs: list[Job], call: StepCall, reply: StepReply) -> Callable[[], None]:
    load, clock = Load(step=1, running=len(jobs)), [0.0]

    def step() -> None:
        clock[0] += 0.01
        now_s = clock[0]
        meter.heard(load, now_s)
        for job in jobs:
            meter.takes(job, 1, now_s)
            job.last_token_s = now_s
        meter.wrote(call, reply)

    return step


def full_scheduler(rows: int) -> Scheduler:
    scheduler = Scheduler(
        BlockPool(BLOCKS, 16), max_running=rows, max_step_tokens=rows * PROMPT_TOKENS
    )
    for number in range(rows):
        prompt = [number * 7 + index for index in range(PROMPT_TOKENS)]
        scheduler.add(Request(f"job-{number}#1", prompt, Sampling(max_tokens=64)))
    plan = scheduler.schedule()
    scheduler.commit(plan, [1] * len(plan))
    return scheduler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--step-ms", type=float, default=11.3, help="the floor of an 8B model")
    parser.add_argument("--repeats", type=int, default=2000)
    given = parser.parse_args()
    meter, jobs = Meter(), jobs_of(given.rows)
    meter.held = given.rows
    reply = StepReply("applied", 0, "k" * given.rows, "", [], [], "0-0", None)
    step_us = median_us(one_step(meter, jobs, StepCall(), reply), given.repeats)
    scheduler = full_scheduler(given.rows)
    snapshots = Snapshots(ready(given.rows), meter, str)
    snapshots.view = scheduler.view(1)
    registry = CollectorRegistry()
    registry.register(WorkerCollector(meter, ready(given.rows), "m", "w", str))
    figures = {
        "rows": given.rows,
        "meter_us_a_step": round(step_us, 1),
        "meter_share_of_step": round(step_us / 1000 / given.step_ms, 5),
        "snapshot_us": round(median_us(lambda: snapshots.take(jobs, 0), 200), 1),
        "view_us": round(median_us(lambda: scheduler.view(1), 200), 1),
        "scrape_us": round(median_us(lambda: generate_latest(registry), 200), 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

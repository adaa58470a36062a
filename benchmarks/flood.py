"""How long one tenant's jobs wait while another's ten thousand do, with every slot full.

Tenant B sends a job a second, first alone, then beside a flood of tenant A. Prints one JSON line:
B's queue wait (accepted to claimed; p50, p95, max) in both, the mean step of the full worker, and
whether p95 keeps to twice its idle value and a step. A server and a worker are started for it, with
the demo model, or with an engine that only takes its time where the cores are few or shared.

    python benchmarks/flood.py --seconds 60
    python benchmarks/flood.py --step-ms 20 --slots 64
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import redis
from timed_engine import MODEL, running_worker

from pagestream.producer import AsyncClient, AsyncJob
from pagestream.producer.embedded import EmbeddedRedis
from pagestream.producer.keys import Keys

B_TOKENS = 8


async def steps_done(server: redis.Redis, keys: Keys) -> tuple[int, int]:
    """Engine steps and running requests, as the worker's heartbeat says."""
    for worker in server.hkeys(keys.model):
        if beat := server.get(keys.heartbeat(worker.decode())):
            counters = json.loads(beat)
            return counters.get("step", 0), counters.get("running", 0)
    return 0, 0


async def one_a_second(client: AsyncClient, seconds: int) -> list[float]:
    """B's queue waits in ms."""

    async def wait_of(job: AsyncJob) -> float:
        return (await job.result()).timings.queue_ms

    waits: list[asyncio.Task[float]] = []
    began = time.monotonic()
    for number in range(seconds):
        await asyncio.sleep(max(0.0, began + number - time.monotonic()))
        job = await client.submit(f"def b_{number}(", max_tokens=B_TOKENS, ignore_eos=True)
        waits.append(asyncio.create_task(wait_of(job)))
    return list(await asyncio.gather(*waits))


async def flood(client: AsyncClient, jobs: int, tokens: int) -> None:
    """A's jobs, all at once."""
    specs = [
        {"prompt": f"def a_{number}(", "max_tokens": tokens, "ignore_eos": True}
        for number in range(jobs)
    ]
    refused = [one for one in await client.submit_many(specs) if not isinstance(one, AsyncJob)]
    assert not refused, refused[0]


def summary(waits: list[float]) -> dict[str, float]:
    """p50, p95 and max in ms."""
    waits = sorted(waits)
    at = [waits[min(len(waits) - 1, round(share * len(waits)))] for share in (0.5, 0.95)]
    return {"p50": at[0], "p95": at[1], "max": waits[-1]}


async def measure(url: str, args: argparse.Namespace) -> dict[str, object]:
    """Run both parts against the worker that serves."""
    keys, server = Keys(MODEL), redis.Redis.from_url(url, protocol=2)
    async with (
        AsyncClient(url, model=MODEL, tenant="a") as a,
        AsyncClient(url, model=MODEL, tenant="b") as b,
    ):
        while not await b.models():
            await asyncio.sleep(0.2)
            b._models_until = 0.0
        await one_a_second(b, 3)  # warm
        idle = await one_a_second(b, args.seconds)
        await flood(a, args.jobs, args.tokens)
        await asyncio.sleep(3)
        (step, running), at = await steps_done(server, keys), time.monotonic()
        flooded = await one_a_second(b, args.seconds)
        (last, still), elapsed = await steps_done(server, keys), time.monotonic() - at
        waiting = sum(server.xlen(keys.jobs(lane, "a")) for lane in ("high", "normal", "low"))
        assert waiting > args.slots, "the flood was over too soon: give it more --jobs"
    server.close()
    step_ms = elapsed * 1000 / max(1, last - step)
    allowed = 2 * summary(idle)["p95"] + step_ms
    return {
        "idle_ms": summary(idle),
        "flooded_ms": summary(flooded),
        "step_ms": round(step_ms, 2),
        "allowed_p95_ms": round(allowed, 2),
        "kept": summary(flooded)["p95"] <= allowed,
        "running": [running, still],
        "a_waiting_at_the_end": waiting,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=128, help="output tokens of A's jobs")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--step-ms", type=float, help="an engine without a model; left out, the demo model"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the workers, too
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedRedis(Path(directory)) as server,
        running_worker(server.url, args.slots, args.step_ms),
    ):
        print(json.dumps(asyncio.run(measure(server.url, args))))


if __name__ == "__main__":
    main()

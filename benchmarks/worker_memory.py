"""A worker's memory over time: both of its processes, and its Redis, once a minute.

    python benchmarks/worker_memory.py --minutes 60

One worker on the demo model, `--at-once` requests at a time: chats, texts and token ids, greedy
and sampled, with stop strings, with shared prefixes; some are cancelled, expire or are not read.
What the last third of the time added to the middle third is printed at the end.
"""

import argparse
import asyncio
import random
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import redis
from timed_engine import MODEL, running_worker

from pagestream.producer import AsyncClient, JobFailed
from pagestream.producer.embedded import EmbeddedRedis
from pagestream.worker.chaos.processes import engine_pid

SLOTS = 256
RETENTION_MS = 20_000
WORDS = (__doc__ or "").split()


class Figures(NamedTuple):
    """What is held; bytes, but for the last three."""

    queue_process: int
    engine_process: int
    redis: int
    threads: int
    files: int
    jobs: int


def status(pid: int, name: str) -> int:
    """Return a number of `/proc/<pid>/status`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


def look(worker: int, server: redis.Redis, jobs: int) -> Figures:
    """Look at everything once."""
    engine = engine_pid(worker)
    assert engine is not None, "the worker has no engine"
    pids = (worker, engine)
    return Figures(
        queue_process=status(worker, "VmRSS") * 1024,
        engine_process=status(engine, "VmRSS") * 1024,
        redis=server.info("memory")["used_memory"],
        threads=sum(status(pid, "Threads") for pid in pids),
        files=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
        jobs=jobs,
    )


async def live(client: AsyncClient, rng: random.Random) -> None:
    """One request's life."""
    text = " ".join(rng.choices(WORDS, k=rng.randrange(1, 60)))
    if rng.random() < 0.3:
        text = f"{' '.join(WORDS)} {text}"  # a prefix that others share
    kind = rng.choice(("text", "chat", "ids"))
    prompt = {
        "text": {"prompt": text},
        "chat": {"messages": [{"role": "user", "content": text}]},
        "ids": {"prompt_ids": [rng.randrange(4_000) for _ in range(rng.randrange(1, 200))]},
    }[kind]
    fate = rng.choice(("read",) * 7 + ("cancelled", "expired", "unread"))
    job = await client.submit(
        **prompt,
        max_tokens=rng.randrange(1, 80),
        temperature=rng.choice((0.0, 1.0)),
        stop=rng.choice(([], ["the", "."])),
        lane=rng.choice(("high", "normal", "low")),
        retention_ms=RETENTION_MS,
        deadline_ms=1 if fate == "expired" else None,
    )
    try:
        if fate == "cancelled":
            await asyncio.sleep(rng.uniform(0, 0.3))
            await job.cancel()
        if fate != "unread":
            await job.result()
    except JobFailed:
        assert fate in ("cancelled", "expired"), f"job {job.id} was to end well"


async def run(url: str, worker: int, minutes: float, at_once: int) -> list[Figures]:
    """Send requests until the time is over; look once a minute."""
    rng, done, seen = random.Random(0), 0, list[Figures]()
    end_s = time.monotonic() + 60 * minutes

    async def go_on(client: AsyncClient) -> None:
        nonlocal done
        while time.monotonic() < end_s:
            await live(client, rng)
            done += 1
            await asyncio.sleep(rng.uniform(0, 0.4))

    async def watch() -> None:
        with redis.Redis.from_url(url) as server:
            while time.monotonic() < end_s:
                await asyncio.sleep(60)
                seen.append(one := look(worker, server, done))
                print(
                    f"{len(seen):>4} min  {one.jobs:>8,} jobs  queue process "
                    f"{one.queue_process / 1e6:6.1f} MB  engine "
                    f"{one.engine_process / 1e6:7.1f} MB  "
                    f"Redis {one.redis / 1e6:5.2f} MB  {one.threads} threads  {one.files} files",
                    flush=True,
                )

    async with AsyncClient(url, queue=MODEL) as client:
        while not await client.models():
            await asyncio.sleep(0.5)
        await asyncio.gather(watch(), *(go_on(client) for _ in range(at_once)))
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--at-once", type=int, default=8)
    arguments = parser.parse_args()
    with EmbeddedRedis() as server, running_worker(server.url, SLOTS, None) as worker:
        seen = asyncio.run(run(server.url, worker, arguments.minutes, arguments.at_once))
    third = len(seen) // 3
    for name in Figures._fields[:-1]:
        middle, last = (
            statistics.fmean(getattr(one, name) for one in part)
            for part in (seen[third : 2 * third], seen[2 * third :])
        )
        print(f"{name:15} {100 * (last / middle - 1):+.2f} % from the middle third to the last")


if __name__ == "__main__":
    main()

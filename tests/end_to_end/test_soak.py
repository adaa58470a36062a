"""Thousands of jobs of every fate come and go, and the server is as it was before.

`make soak` runs it and prints the figures; PAGESTREAM_SOAK_JOBS says how many jobs.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis_server import RedisServer
from stub_engine import StubOptions
from worker_harness import Worker

from pagestream.producer import AsyncClient, JobFailed, JobLost, JobNotFound
from pagestream.producer.admin import Admin
from pagestream.producer.keys import Keys

JOBS = int(os.environ.get("PAGESTREAM_SOAK_JOBS", "10000"))
WARM_UP_JOBS = 500
AT_ONCE = 200
TENANTS = 50
RETENTION_MS = 2_000
QUEUE = "soak"


class Figures:
    """What the server holds."""

    def __init__(self, server: redis.Redis) -> None:
        self.keys = server.dbsize()
        self.memory_bytes = server.info("memory")["used_memory"]

    def __str__(self) -> str:
        return f"{self.keys:>6} keys {self.memory_bytes / 1e6:>7.2f} MB"


async def live(client: AsyncClient, index: int, rng: random.Random) -> None:
    """One job's life: most are read to their end, some are not."""
    fate = rng.choice(["read"] * 6 + ["cancelled", "deleted", "expired", "refused", "unread"])
    tokens = rng.randrange(1, 40)
    job = await client.submit(
        prompt_ids=[rng.randrange(200), index % 200],
        max_tokens=tokens,
        ignore_eos=True,
        lane=rng.choice(["high", "normal", "low"]),
        retention_ms=RETENTION_MS,
        mirror=rng.random() < 0.2,
        **({"deadline_ms": 1} if fate == "expired" else {}),
        **({"stop": "x"} if fate == "refused" else {}),  # the worker has no tokenizer
    )
    try:
        if fate == "cancelled":
            await job.cancel()
        elif fate == "deleted":
            await job.delete()
        if fate != "unread":
            await job.result()
    except (JobFailed, JobLost, JobNotFound):
        assert fate not in ("read", "unread"), f"job {job.id} was to end well"


async def run_jobs(url: str, count: int, seed: int, peak: Callable[[], None]) -> None:
    rng = random.Random(seed)
    clients = [AsyncClient(url, queue=QUEUE, tenant=f"t{index}") for index in range(TENANTS)]
    try:
        for start in range(0, count, AT_ONCE):
            async with asyncio.TaskGroup() as tasks:
                for index in range(start, min(start + AT_ONCE, count)):
                    tasks.create_task(live(clients[index % TENANTS], index, rng))
            peak()
    finally:
        for client in clients:
            await client.aclose()


def settled(server: redis.Redis, keys: int) -> Figures:
    """Wait until what is to expire has expired."""
    deadline = time.monotonic() + 60
    while (found := Figures(server)).keys > keys and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_memory_and_keys_return_to_the_baseline(
    own_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    redis_server = own_server()
    server = redis.Redis.from_url(redis_server.url)
    worker = Worker(redis_server.url, Keys(QUEUE), tmp_path, StubOptions()).start()
    figures: list[Figures] = []
    try:
        asyncio.run(run_jobs(redis_server.url, WARM_UP_JOBS, 0, lambda: None))
        time.sleep(RETENTION_MS / 1000)
        # What stays: the worker's own keys, one entry a tenant, and the usage of the day.
        before = settled(server, 13)
        began_s = time.monotonic()
        asyncio.run(run_jobs(redis_server.url, JOBS, 1, lambda: figures.append(Figures(server))))
        took_s = time.monotonic() - began_s
        after = settled(server, before.keys)
        peak = max(figures, key=lambda one: one.memory_bytes)
        most = max(figures, key=lambda one: one.keys)
        print(f"\n{JOBS:,} jobs in {took_s:.0f} s, retention {RETENTION_MS} ms")
        for name, one in (("before", before), ("peak", peak), ("most", most), ("after", after)):
            print(f"  {name:<7}{one}")
        assert after.keys <= before.keys, server.keys("*")
        assert after.memory_bytes < before.memory_bytes * 1.05 + 100_000
        assert peak.memory_bytes > after.memory_bytes, "the jobs were never there"
        with Admin(redis_server.url) as admin:
            status = admin.status(QUEUE)
        assert sum(status.unfinished.values()) == 0
        assert status.running == 0
    finally:
        assert worker.end() == 0
        server.close()

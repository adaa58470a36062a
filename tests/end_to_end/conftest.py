"""Real workers for the tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from worker_process import Worker


@pytest.fixture
def start_worker(
    redis_url: str, redis_client: Redis, queue_name: str, tmp_path: Path
) -> Iterator[Callable[..., Worker]]:
    """Start workers on the test's queue; all of them are gone when the test ends."""
    workers: list[Worker] = []

    def start(*flags: str) -> Worker:
        log = tmp_path / f"worker{len(workers)}.log"
        worker = Worker(redis_url, queue_name, log, list(flags))
        workers.append(worker)
        worker.wait_until_ready(redis_client, queue_name, len(workers))
        return worker

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.wait(30)

"""Real workers for the tests: the `pagestream worker` command in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from pagestream.producer.keys import Keys

READY_S = 90


class Worker:
    """A worker process with the demo model on one queue."""

    def __init__(self, url: str, queue: str, log: Path, flags: list[str]) -> None:
        command = [sys.executable, "-m", "pagestream.producer.cli", "worker", "--model", "demo"]
        command += ["--served-model-name", queue, "--redis-url", url, "--device", "cpu", *flags]
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"},
            )

    def wait_until_ready(self, client: Redis, queue: str, workers: int) -> None:
        deadline = time.monotonic() + READY_S
        while client.hlen(Keys(queue).model) < workers:
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)

    def engine_pid(self) -> int:
        """The engine process: the child that runs Python's spawned main."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for pid in map(int, children.split()):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError(f"no engine among the children {children!r}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


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

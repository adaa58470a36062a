"""A real worker with the demo model: the `pagestream worker` command in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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

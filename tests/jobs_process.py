"""A real jobs process for tests; it may be killed and started again."""

import os
import signal
import subprocess
import sys
from pathlib import Path


class JobsProcess:
    """`pagestream jobs`; a context manager."""

    def __init__(self, redis_url: str, folder: Path, *flags: str, **variables: str) -> None:
        self._command = [sys.executable, "-m", "pagestream.producer.cli", "jobs"]
        self._command += ["--redis-url", redis_url, *flags]
        self._variables = os.environ | variables
        self._log = folder / "jobs.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "JobsProcess":
        """Start it; it works once it is up."""
        assert self.process is None, "it runs"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._variables, stdout=log, stderr=log
            )
        return self

    def end(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        assert self.process is not None, "it does not run"
        self.process.send_signal(signum)
        code = self.process.wait(20)
        self.process = None
        return code

    def __enter__(self) -> "JobsProcess":
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.end()

    @property
    def log(self) -> str:
        return self._log.read_text()

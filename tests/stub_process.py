"""A worker with the stub engine as a process of its own: its log, its signals, its exit status."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 30.0

# `pagestream worker` with the stub in place of the engine.
_MAIN = """
import json, sys
from functools import partial
from stub_engine import StubOptions, build_stub
from pagestream.producer.errors import PagestreamError
from pagestream.producer.logs import log_to_stderr
from pagestream.worker.service import run_worker
from pagestream.worker.settings import read_settings

{plant}

if __name__ == "__main__":
    log_to_stderr()
    flags, options = (json.loads(text) for text in sys.argv[1:])
    try:
        settings = read_settings(**flags)
    except PagestreamError as error:
        sys.stderr.write(f"error: {error}\\n")
        sys.exit(78)
    sys.exit(run_worker(settings, partial(build_stub, StubOptions(**options))))
"""


class Process:
    """One worker; `plant` is code that runs in its queue process before it starts."""

    def __init__(
        self, folder: Path, flags: dict[str, Any], options: dict[str, Any], plant: str = ""
    ) -> None:
        script = folder / "worker_main.py"
        script.write_text(_MAIN.replace("{plant}", plant))
        rooms = [str(ROOT / room) for room in ("producer", "kernels", "worker", "tests")]
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script), json.dumps(flags), json.dumps(options)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(rooms)},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []

    def wait_log(self, pattern: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line with {pattern!r} in\n{''.join(self.log)}")

    def wait(self) -> int:
        """Exit status; the log is whole then."""
        assert self.process.stderr is not None
        if not self.process.stderr.closed:
            # Not communicate(): it forgets what an iteration has read ahead.
            with self.process.stderr as rest:
                self.log += list(rest)
        return self.process.wait(TIMEOUT_S)

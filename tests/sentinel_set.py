"""A master, a replica and a sentinel on loopback ports, for tests of a failover."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from loopback import free_port
from redis_server import _DIE_WITH_PARENT, server_binary

START_TIMEOUT_S = 20.0


class Node:
    """One server process; `sentinel` makes it watch instead of serve."""

    def __init__(self, folder: Path, lines: list[str], *, sentinel: bool = False) -> None:
        self.port = free_port()
        folder.mkdir()
        config = folder / "server.conf"
        config.write_text(
            "\n".join([f"port {self.port}", "bind 127.0.0.1", f"dir {folder}", *lines])
        )
        mode = ["--sentinel"] if sentinel else []
        command = [server_binary(), str(config), *mode, "--logfile", str(folder / "log")]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _DIE_WITH_PARENT, *command], stdin=subprocess.DEVNULL
        )
        self.client = redis.Redis("127.0.0.1", self.port, protocol=2, socket_timeout=5)

    def wait(self, is_so) -> None:
        """Ask until `is_so(client)`."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(redis.RedisError):
                if is_so(self.client):
                    return
            assert time.monotonic() < deadline, "the sentinel set is not as expected"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.client.close()


class SentinelSet:
    """`url` leads to the master, whichever it is; `fail_over` kills it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="ps-sentinel-"))
        data = ["appendonly yes", 'save ""', "maxmemory-policy noeviction"]
        self.master = Node(self.path / "a", data)
        self.master.wait(lambda client: client.ping())
        follow = f"replicaof 127.0.0.1 {self.master.port}"
        self.replica = Node(self.path / "b", [*data, follow, "repl-diskless-sync-delay 0"])
        self.replica.wait(lambda client: client.info("replication")["master_link_status"] == "up")
        self.sentinel = Node(
            self.path / "s",
            [
                f"sentinel monitor main 127.0.0.1 {self.master.port} 1",
                "sentinel down-after-milliseconds main 500",
                "sentinel failover-timeout main 2000",
            ],
            sentinel=True,
        )
        self.sentinel.wait(lambda client: client.sentinel_slaves("main"))
        self.url = f"redis+sentinel://127.0.0.1:{self.sentinel.port}/main"

    def fall_behind(self) -> None:
        """Cut the replica off from its master: what is written from here on it will not have."""
        self.replica.client.config_set("masterauth", "nobody's")
        self.replica.client.execute_command("CLIENT", "KILL", "TYPE", "master")
        self.replica.wait(lambda client: client.info("replication")["master_link_status"] == "down")

    def fail_over(self) -> None:
        """Kill the master and wait until the replica takes its place."""
        self.master.kill()
        self.replica.wait(lambda client: client.info("replication")["role"] == "master")

    def switch(self) -> None:
        """Promote the replica while the master lives: it follows, and its connections stay open."""
        self.sentinel.client.execute_command("SENTINEL", "FAILOVER", "main")
        self.replica.wait(lambda client: client.info("replication")["role"] == "master")
        self.master.wait(lambda client: client.info("replication")["role"] == "slave")

    def remove(self) -> None:
        for node in (self.sentinel, self.replica, self.master):
            node.kill()
        shutil.rmtree(self.path, ignore_errors=True)


@pytest.fixture
def sentinels() -> Iterator[SentinelSet]:
    """A set of its own for one test."""
    made = SentinelSet()
    yield made
    made.remove()

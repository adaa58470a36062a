"""Fixtures of the client's tests: a stub worker, connections, dead letters, a terminal."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from stub_worker import StubWorker
from typer.testing import CliRunner
from wire_tools import PAYLOAD, Worker, row

from pagestream.producer.cli import build


@pytest.fixture
def worker(redis_url, queue_name):
    with StubWorker(redis_url, queue_name) as stub:
        yield stub


@pytest.fixture
def reader_ids(redis_client):
    """A function: ids of the connections that wait for replies now."""

    def ids() -> list[str]:
        clients = redis_client.client_list()
        return [one["id"] for one in clients if one["name"] == "pagestream-client-reader"]

    return ids


@pytest.fixture
def bury(wire):
    """`bury(job_id)`: a job that killed its only worker three times."""

    def make(job_id: str, *tokens: int, payload: bytes = PAYLOAD, **options) -> None:
        wire.submit(job_id, payload, **options)
        worker = Worker(wire, f"w-{job_id}")
        claim = worker.claim_one()
        if tokens:
            worker.step(rows=[row(claim, 0, *tokens)])
        for known in range(3):
            worker.lease.crashed([(job_id, 1, known)], "Traceback\nRuntimeError: boom")
        worker.lease.leave()

    return make


@pytest.fixture
def terminal() -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], Callable[[str], None]]]]:
    """`terminal(*command)`: a process on a terminal, and a way to wait for words on its screen."""
    running: list[tuple[subprocess.Popen[bytes], int]] = []

    def start(*command: str) -> tuple[subprocess.Popen[bytes], Callable[[str], None]]:
        ours, theirs = pty.openpty()
        environment = {**os.environ, "COLUMNS": "120", "LINES": "40", "TERM": "xterm"}
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        running.append((process, ours))

        def wait_for(words: str) -> None:
            seen, deadline_s = "", time.monotonic() + 30
            while words not in seen:
                ready, _, _ = select.select([ours], [], [], deadline_s - time.monotonic())
                assert ready, f"{words!r} does not come: {seen[-500:]!r}"
                seen += os.read(ours, 1 << 16).decode("utf-8", "replace")

        return process, wait_for

    yield start
    for process, ours in running:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.fixture
def command(redis_url, queue_name, monkeypatch):
    """`command("ls")`: its exit code and what it printed, on the test's queue."""
    monkeypatch.setenv("PAGESTREAM_REDIS_URL", redis_url)
    monkeypatch.setenv("PAGESTREAM_QUEUE", queue_name)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(build(list(arguments)), arguments)
        return done.exit_code, done.output

    return run

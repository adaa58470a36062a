"""What breaks again and again leaves nothing open behind it."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from stub_engine import StubOptions
from waiting import until
from worker_harness import Client, Worker

SELF = Path("/proc/self/fd")
DEATHS = 3
"""As many as a worker takes in ten minutes."""


def held() -> tuple[int, int]:
    return len(list(SELF.iterdir())), threading.active_count()


@pytest.mark.skipif(not SELF.exists(), reason="open files are counted in /proc")
def test_deaths_of_engines_and_cut_lines_leave_no_file_and_no_thread(
    start: Callable[..., Worker], client: Client, tmp_path: Path
) -> None:
    crashes = tmp_path / "crashes"
    crashes.write_text(str(DEATHS))
    start(replace(StubOptions(), crash_file=crashes, crash_at_step=20))

    def run(name: str) -> None:
        client.submit(name, prompt_ids=[1], sampling={"max_tokens": 15, "ignore_eos": True})
        assert len(client.result(name).ids) == 15

    run("first")
    before = held()
    for number in range(20):
        client.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        run(f"j{number}")  # engines die in the first ones
    assert crashes.read_text() == "0"
    until(  # a connection more or less is no leak
        lambda: all(now - then < DEATHS for now, then in zip(held(), before, strict=True)),
        f"a return to {before} files and threads",
    )

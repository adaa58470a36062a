"""`pagestream up` on a machine: Redis, a worker and a gateway; one Ctrl-C ends all of them."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from loopback import free_port

READY_S = 90.0
END_S = 60.0


class Up:
    """One `pagestream up`, as the leader of its process group: what a terminal's Ctrl-C reaches."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._log = folder / "up.log"
        command = ["up", "--data", str(folder / "data"), "--port", str(self.port)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pagestream.producer.cli", *command, "--device", "cpu"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"},
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_until_it_serves(self) -> None:
        self._until(lambda: "serves 'demo'" in self.log, READY_S)

    def descendants(self) -> set[int]:
        """Every process it has started, and those that they have."""
        found: set[int] = set()
        left = [self.process.pid]
        while left:
            tasks = Path(f"/proc/{left.pop()}/task")
            for children in tasks.glob("*/children"):
                left += (pids := [int(pid) for pid in children.read_text().split()])
                found |= set(pids)
        return found

    def wait_until_gone(self, pids: set[int]) -> None:
        self._until(lambda: not any(_runs(pid) for pid in pids), END_S)

    def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path)
    yield made
    left = made.descendants()
    made.process.kill()
    made.process.wait()
    made.wait_until_gone(left)


def test_its_curl_line_works_and_one_ctrl_c_ends_all(up: Up) -> None:
    up.wait_until_it_serves()
    url = f"http://127.0.0.1:{up.port}"
    assert f"OpenAI's API is at {url}/v1, a dashboard at {url}/dashboard" in up.log
    (line,) = [line for line in up.log.splitlines() if line.startswith("  curl ")]
    words = shlex.split(line)
    body = json.loads(words[words.index("-d") + 1])
    assert (words[2], body["model"]) == (f"{url}/v1/completions", "demo")
    with httpx2.Client(timeout=60) as http:
        answer = http.post(words[2], json=body)
        assert answer.status_code == 200
        assert answer.text.endswith("data: [DONE]\n\n")
        assert http.get(f"{url}/dashboard").status_code == 200

    started = up.descendants()
    assert len(started) >= 5, "a guard, its server, an engine, a gateway, a jobs process"
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions"}
    content = json.dumps({**line, "body": {**body, "stream": False}}).encode()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
        up._until(lambda: client.batches.retrieve(batch.id).status == "completed", 30)
    seen: list[str] = []

    def read_on() -> None:
        long = {**body, "max_tokens": 200, "ignore_eos": True}
        with httpx2.Client(timeout=60) as http, http.stream("POST", words[2], json=long) as answer:
            seen.extend(answer.iter_lines())

    reader = threading.Thread(target=read_on)
    reader.start()
    up._until(lambda: bool(seen), 30)
    os.killpg(up.process.pid, signal.SIGINT)
    assert up.process.wait(END_S) == 0, up.log
    reader.join(30)
    assert "data: [DONE]" in seen, "the answer that was being read went on to its end"
    up.wait_until_gone(started)
    assert "Traceback" not in up.log


def test_nothing_outlives_it_however_it_ends(up: Up) -> None:
    up.wait_until_it_serves()
    started = up.descendants()
    up.process.kill()
    up.process.wait(END_S)
    up.wait_until_gone(started)

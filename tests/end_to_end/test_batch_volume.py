"""A batch of OpenAI's largest size on the demo model, through kills of all who work on it.

`make batch` runs it and prints the figures; PAGESTREAM_BATCH_LINES says how many lines.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from demo_prompts import load_demo_prompts
from gateway_process import GatewayProcess
from jobs_process import JobsProcess
from redis import Redis
from redis_server import RedisServer
from worker_process import Worker

LINES = int(os.environ.get("PAGESTREAM_BATCH_LINES", "50000"))
KILLS = 5
"""Of each of the two."""
TOKENS = 8
QUEUE = "demo"
AT_MOST_S = 3_000

PROMPTS = load_demo_prompts()


def requests() -> Iterator[bytes]:
    for number in range(LINES):
        body = {
            "model": QUEUE,
            "prompt": PROMPTS[number % len(PROMPTS)].prompt_ids,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        line = {"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": body}
        yield json.dumps(line).encode() + b"\n"


def resident_bytes(pid: int) -> int:
    """Peak of a process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [one for one in status.splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


class Stage:
    """The processes, and what was seen of them."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.server = server
        self.redis = Redis.from_url(server.url)
        self.folder = folder
        self.workers = 0
        self.jobs = JobsProcess(server.url, folder)
        self.peaks: dict[str, int] = {}

    def start_worker(self) -> None:
        log = self.folder / f"worker-{self.workers}.log"
        self.worker = Worker(self.server.url, QUEUE, log, ["--max-num-seqs", "64"])
        self.workers += 1

    def kill_worker(self) -> None:
        self.worker.process.send_signal(signal.SIGKILL)
        self.worker.process.wait(20)
        self.start_worker()

    def kill_jobs(self) -> None:
        self.look()
        self.jobs.end(signal.SIGKILL)
        self.jobs.start()

    def look(self) -> None:
        """Note how much memory is in use."""
        used = {"server": self.redis.info("memory")["used_memory"]}
        if self.jobs.process is not None:
            used["jobs process"] = resident_bytes(self.jobs.process.pid)
        for name, count in used.items():
            self.peaks[name] = max(self.peaks.get(name, 0), count)


@pytest.mark.slow
@pytest.mark.timeout(AT_MOST_S + 120)
def test_every_line_is_answered_once(
    own_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    stage = Stage(own_server(), tmp_path)
    stage.start_worker()
    stage.worker.wait_until_ready(stage.redis, QUEUE, 1)
    try:
        with (
            GatewayProcess(stage.server.url, tmp_path) as gateway,
            stage.jobs,
            openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=300) as client,
        ):
            output = run(stage, client)
    finally:
        stage.worker.stop()
        stage.redis.close()
    assert [line["custom_id"] for line in output] == [f"{number}" for number in range(LINES)]
    for number, line in enumerate(output):
        (choice,) = line["response"]["body"]["choices"]
        expected = PROMPTS[number % len(PROMPTS)].expected_ids[:TOKENS]
        assert choice["token_ids"] == expected, f"line {number}"


def run(stage: Stage, client: openai.OpenAI) -> list[dict]:
    """Run the batch, kill what works on it on the way, and return the lines of its output."""
    content = b"".join(requests())
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    began_s = time.monotonic()
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    kills = [stage.kill_worker, stage.kill_jobs] * KILLS
    thresholds = [LINES * place // (len(kills) + 1) for place in range(1, len(kills) + 1)]
    killed = 0
    while batch.status in ("validating", "in_progress", "finalizing"):
        assert time.monotonic() - began_s < AT_MOST_S, batch
        if killed < len(kills) and batch.request_counts.completed >= thresholds[killed]:
            kills[killed]()
            killed += 1
            print(f"{time.monotonic() - began_s:7.1f} s  {killed} kills, {batch.request_counts}")
        stage.look()
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    took_s = time.monotonic() - began_s
    assert (batch.status, batch.output_file_id is not None) == ("completed", True), batch
    assert killed == len(kills), "the batch was over before all were killed"
    output = client.files.content(batch.output_file_id).text.splitlines()
    print(f"{LINES:,} lines of {len(content) / 1e6:.1f} MB in {took_s:.0f} s, {killed} kills")
    print(f"  {LINES * TOKENS / took_s:,.0f} output tokens/s")
    for name, count in stage.peaks.items():
        print(f"  {name}: {count / 1e6:,.0f} MB at most")
    return [json.loads(line) for line in output]

"""A workload through Redis: a real server, a worker, and a producer that reads every token.

Three processes beside the server's, as in service: the worker's two, and this script again as the
producer. The clock runs from the first submit to the last terminal entry read.

    python benchmarks/through_redis.py --model benchmarks/models/qwen3-0.6b --load-format dummy
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from workloads import WORKLOADS, Workload

from pagestream.producer import AsyncClient, AsyncJob, Chunk, SamplingParams
from pagestream.producer.connection import connect
from pagestream.producer.embedded import EmbeddedRedis
from pagestream.producer.keys import Keys

QUEUE = "bench"
READY_S = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="nano")
    parser.add_argument("--requests", type=int, help="the first so many only")
    parser.add_argument("--output-tokens", type=int, help="at most so many a request")
    parser.add_argument("--repeats", type=int, default=1, help="the fastest of so many runs")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--client", metavar="URL", help=argparse.SUPPRESS)
    arguments, worker_flags = parser.parse_known_args()
    if arguments.client:
        runs = [
            asyncio.run(drive(arguments.client, workload(arguments)))
            for _ in range(arguments.repeats)
        ]
        print(json.dumps(min(runs, key=lambda figures: figures["wall_s"])))
        return
    figures = serve(arguments, worker_flags)
    for name, value in figures.items():
        print(f"{name:28} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def workload(arguments: argparse.Namespace) -> Workload:
    """The chosen requests, cut as asked."""
    requests = WORKLOADS[arguments.workload]()[: arguments.requests]
    most = arguments.output_tokens
    return [(prompt, min(count, most or count)) for prompt, count in requests]


def serve(arguments: argparse.Namespace, worker_flags: list[str]) -> dict[str, Any]:
    """Start server and worker, run the producer, and add what the worker says of itself."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis() as server:
        log = Path(folder) / "worker.log"
        command = [sys.executable, "-m", "pagestream.producer.cli", "worker", *worker_flags]
        command += ["--model", arguments.model, "--served-model-name", QUEUE]
        with log.open("wb") as file:
            worker = subprocess.Popen([*command, "--redis-url", server.url], stderr=file)
        try:
            began = time.monotonic()
            wait_until_ready(worker, server.url, log)
            ready_s = time.monotonic() - began
            producer = [sys.executable, __file__, *sys.argv[1:], "--client", server.url]
            answer = subprocess.run(producer, check=True, capture_output=True, text=True)
            figures = json.loads(answer.stdout) | {"worker_ready_s": round(ready_s, 1)}
            return figures | load_figures(server.url)
        finally:
            worker.terminate()
            worker.wait(60)


def wait_until_ready(worker: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the worker has registered."""
    deadline = time.monotonic() + READY_S
    with connect(url, client_name=QUEUE) as redis:
        while not redis.hlen(Keys(QUEUE).model):
            if worker.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the worker did not come up:\n{log.read_text()[-4000:]}")
            time.sleep(0.05)


def load_figures(url: str) -> dict[str, Any]:
    """KV waste over all steps, and preemptions, from the worker's last heartbeat."""
    keys = Keys(QUEUE)
    with connect(url, client_name=QUEUE) as redis:
        (worker,) = redis.hkeys(keys.model)
        time.sleep(1.5)  # one more beat, so that it counts the last step
        load = json.loads(redis.get(keys.heartbeat(worker.decode())))
    waste = 1 - load["used_slot_steps"] / max(1, load["allocated_slot_steps"])
    return {"kv_waste": f"{waste:.2%}", "preemptions": load["preemptions"], "steps": load["step"]}


async def drive(url: str, requests: Workload) -> dict[str, Any]:
    """Submit everything, read everything, and measure."""
    async with AsyncClient(url, model=QUEUE) as client:
        warm = await client.submit(prompt_ids=[1, 2, 3], max_tokens=4, ignore_eos=True)
        await warm.result()
        began = time.perf_counter()
        submitted = await client.submit_many(
            {
                "prompt_ids": prompt,
                "sampling": SamplingParams(temperature=0, ignore_eos=True, max_tokens=count),
            }
            for prompt, count in requests
        )
        jobs = [job for job in submitted if isinstance(job, AsyncJob)]
        assert len(jobs) == len(requests), f"{len(requests) - len(jobs)} requests were refused"
        submit_s = time.perf_counter() - began
        read = await asyncio.gather(*(read_all(job, began) for job in jobs))
        wall_s = time.perf_counter() - began
    for (_, count), (_, chunks) in zip(requests, read, strict=True):
        ids = [token_id for chunk in chunks for token_id in chunk.ids]
        assert len(ids) == count, f"{len(ids)} of {count} tokens were read"
    tokens = sum(count for _, count in requests)
    entry_sizes = [len(chunk.ids) for _, chunks in read for chunk in chunks if chunk.ids]
    first_s = sorted(first for first, _ in read)
    return {
        "requests": len(requests),
        "output_tokens": tokens,
        "wall_s": round(wall_s, 3),
        "output_tokens_per_s": round(tokens / wall_s, 1),
        "submit_s": round(submit_s, 3),
        "first_token_s_p50": round(statistics.median(first_s), 3),
        "first_token_s_max": round(first_s[-1], 3),
        "tokens_an_entry_median": statistics.median(entry_sizes),
        "tokens_an_entry_mean": round(statistics.mean(entry_sizes), 2),
    }


async def read_all(job: AsyncJob, began: float) -> tuple[float, list[Chunk]]:
    """(seconds to the first token, every chunk)."""
    chunks: list[Chunk] = []
    first_s = 0.0
    async for chunk in job.stream():
        if chunk.ids and not first_s:
            first_s = time.perf_counter() - began
        chunks.append(chunk)
    return first_s, chunks


if __name__ == "__main__":
    main()

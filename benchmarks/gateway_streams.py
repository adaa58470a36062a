"""What one gateway process costs: many concurrent server-sent streams of a stub worker.

    python benchmarks/gateway_streams.py --streams 500 --rate 20

A stub worker publishes one token a job a step, `--rate` steps a second, through the real lease; its
text is the time at which it was handed to Redis. A client process reads every stream over HTTP, or
with `--direct` through the producer's own client, and says how late each token was: the difference
of the two is what the gateway adds. CPU seconds are the gateway process's.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from pagestream.producer import AsyncClient, AsyncJob, SamplingParams
from pagestream.producer.connection import connect
from pagestream.producer.embedded import EmbeddedRedis
from pagestream.producer.keys import Keys
from pagestream.producer.protocol import ModelInfo, Timings, Usage
from pagestream.worker.queue.calls import End, Row, StepCall
from pagestream.worker.queue.lease import Lease

QUEUE = "bench"
PORT = 8765
SLOTS = 4_096
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def work(url: str, streams: int, tokens: int, rate: float) -> None:
    """Main function of the stub worker: begin when every job is here, publish, end them all."""
    info = ModelInfo(
        name=QUEUE, context_tokens=100_000, vocab_size=1_000, has_tokenizer=True,
        has_chat_template=True, max_running=SLOTS, kv_tokens=10**9,
    )  # fmt: skip
    lease = Lease(connect(url, client_name="stub"), Keys(QUEUE), "stub")
    lease.register(info)
    jobs: list[tuple[str, int]] = []
    bell_id = "0-0"
    while len(jobs) < streams:
        call = StepCall(slots=SLOTS - len(jobs), tokens=10**9)
        reply = lease.wait_and_step(call, bell_id, 100)
        jobs += [(claim.job_id, claim.epoch) for claim in reply.claims]
        bell_id = reply.bell_id
    begin_s = time.monotonic()
    for step in range(tokens):
        time.sleep(max(0.0, begin_s + step / rate - time.monotonic()))
        text = f"{time.monotonic():.6f} "
        rows = [Row(job, epoch, step + 1, 0, step, (7,), text) for job, epoch in jobs]
        lease.step(StepCall(rows=rows))
    usage = Usage(prompt_tokens=1, completion_tokens=tokens)
    ends = [End(job, epoch, tokens + 1, 0, "length", "", usage, Timings()) for job, epoch in jobs]
    lease.step(StepCall(ends=ends))
    lease.leave()


async def over_http(tokens: int, delays: list[float]) -> int:
    """Read one stream as a client of OpenAI's would; returns its tokens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    body = json.dumps({"model": QUEUE, "prompt": "x", "max_tokens": tokens, "stream": True})
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    seen = 0
    while True:
        line = await reader.readline()
        assert line, "the gateway closed a stream"
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            writer.close()
            return seen
        for stamp in json.loads(line[6:])["choices"][0]["text"].split():
            seen += 1
            delays.append(time.monotonic() - float(stamp))


async def by_client(client: AsyncClient, tokens: int, delays: list[float]) -> int:
    """Read one stream with the producer's client."""
    seen = 0
    job: AsyncJob = await client.submit("x", sampling=SamplingParams(max_tokens=tokens))
    async for chunk in job.stream():
        for stamp in chunk.text.split():
            seen += 1
            delays.append(time.monotonic() - float(stamp))
    return seen


async def _read(url: str, streams: int, tokens: int, direct: bool) -> tuple[int, list[float]]:
    delays: list[float] = []
    async with AsyncClient(url, queue=QUEUE) as client:
        reading = [
            by_client(client, tokens, delays) if direct else over_http(tokens, delays)
            for _ in range(streams)
        ]
        return sum(await asyncio.gather(*reading)), delays


def read(url: str, streams: int, tokens: int, direct: bool) -> tuple[int, list[float]]:
    """Main function of the client process: (tokens, seconds from Redis to here of each)."""
    return asyncio.run(_read(url, streams, tokens, direct))


def cpu_s(pid: int) -> float:
    """CPU seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def peak_mib(pid: int) -> float:
    """Most memory a process has held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def wait_for(gateway: "subprocess.Popen[bytes]") -> None:
    """Wait until the gateway answers."""

    async def answers() -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", PORT)
            except OSError:
                assert gateway.poll() is None, "the gateway did not start"
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return

    asyncio.run(answers())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--rate", type=float, default=20.0, help="tokens a second of each")
    parser.add_argument("--tokens", type=int, default=200, help="of each stream")
    parser.add_argument("--direct", action="store_true", help="without the gateway")
    given = parser.parse_args()
    spawn: Any = multiprocessing.get_context("spawn")
    with EmbeddedRedis() as redis, ProcessPoolExecutor(2, mp_context=spawn) as processes:
        gateway = subprocess.Popen(
            [sys.executable, "-m", "pagestream.producer.cli", "gateway",
             "--redis-url", redis.url, "--port", str(PORT)],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(gateway)
            worker = processes.submit(work, redis.url, given.streams, given.tokens, given.rate)
            with connect(redis.url, client_name="bench") as probe:
                while not probe.exists(Keys(QUEUE).model):
                    time.sleep(0.05)
            before_s, begin_s = cpu_s(gateway.pid), time.monotonic()
            tokens, delays = processes.submit(
                read, redis.url, given.streams, given.tokens, given.direct
            ).result()
            wall_s = time.monotonic() - begin_s
            used_s, memory_mib = cpu_s(gateway.pid) - before_s, peak_mib(gateway.pid)
            worker.result()
        finally:
            gateway.terminate()
            gateway.wait()
    cuts_ms = [cut * 1000 for cut in statistics.quantiles(delays, n=100)]
    expected = given.streams * given.tokens
    print(
        f"{given.streams} streams: {tokens} of {expected} tokens in {wall_s:.1f} s, "
        f"delay p50 {cuts_ms[49]:.1f} ms, p99 {cuts_ms[98]:.1f} ms"
    )
    if not given.direct:
        print(f"gateway: {tokens / used_s:,.0f} tokens a CPU second, {memory_mib:.0f} MiB at most")


if __name__ == "__main__":
    main()

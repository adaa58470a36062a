"""What it would bring if jobs that share a prefix kept to one worker.

Jobs of `--groups` that share a long prefix, group sizes even or skewed, go to two workers with
the demo model in two ways, round by round: *shared*, one queue and whoever has room claims; and
*apart*, a queue a worker and each group always on the same one, which is affinity at its best and
balance at its worst: any scheme with stealing lies between. Prints a JSON line a round: the share
of prompt tokens found in the caches, output tokens a second, CPU milliseconds an output token
(which other programs on the machine change less), and the queue wait (p50, p95 in ms) of arrivals
at `--rate`.

    python benchmarks/affinity.py --groups 16 --blocks 1024          # every prefix fits each worker
    python benchmarks/affinity.py --groups 32 --blocks 320           # they fit both together
    python benchmarks/affinity.py --groups 32 --blocks 320 --skew 1.2
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path

from pagestream.producer import AsyncClient, AsyncJob, Result
from pagestream.producer.embedded import EmbeddedRedis
from pagestream.worker.service import run_worker
from pagestream.worker.settings import read_settings


def work(url: str, queue: str, slots: int, blocks: int) -> None:
    """Serve until SIGTERM; a process of its own."""
    settings = read_settings(
        redis_url=url, served_model_name=queue, max_num_seqs=slots, num_blocks=blocks, grace=0
    )
    sys.exit(run_worker(settings))


@contextmanager
def running_worker(*arguments: object) -> Iterator[int]:
    """A worker in a process of its own, until the block ends; yields its pid."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    assert process.pid is not None, "it was started"
    try:
        yield process.pid
    finally:
        process.terminate()
        process.join(30)


def cpu_ms(pid: int) -> float:
    """CPU time of a process and its children so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(cpu_ms(int(child)) for child in children)


def groups_of(args: argparse.Namespace, rng: random.Random) -> list[int]:
    """Each job's group; with a skew the group of rank r has 1/r^skew of the jobs."""
    weights = [1 / (rank + 1) ** args.skew for rank in range(args.groups)]
    return rng.choices(range(args.groups), weights, k=args.jobs)


def prompts_of(args: argparse.Namespace, seed: int) -> list[tuple[int, list[int]]]:
    """(group, prompt) of each job: the group's prefix, then 16 ids of its own."""
    rng = random.Random(seed)
    prefixes = [[rng.randrange(256) for _ in range(args.prefix)] for _ in range(args.groups)]
    return [
        (group, prefixes[group] + [rng.randrange(256) for _ in range(16)])
        for group in groups_of(args, rng)
    ]


async def send(
    clients: list[AsyncClient], args: argparse.Namespace, seed: int, rate: float | None
) -> tuple[list[Result], float]:
    """Send every job, at a rate or at once; return results and the seconds it took."""
    rng = random.Random(seed + 1)
    began = at = time.monotonic()
    results: list[asyncio.Task[Result]] = []

    async def result(job: AsyncJob) -> Result:
        return await job.result()

    for group, prompt in prompts_of(args, seed):
        if rate is not None:
            at += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, at - time.monotonic()))
        client = clients[zlib.crc32(b"%d" % group) % len(clients)]
        job = await client.submit(prompt_ids=prompt, max_tokens=args.tokens, ignore_eos=True)
        results.append(asyncio.create_task(result(job)))
    return list(await asyncio.gather(*results)), time.monotonic() - began


def hits(results: list[Result]) -> float:
    """Share of prompt tokens found in a prefix cache."""
    return sum(one.usage.cached_tokens for one in results) / sum(
        one.usage.prompt_tokens for one in results
    )


async def measure(
    url: str, ways: dict[str, list[str]], pids: dict[str, list[int]], args: argparse.Namespace
) -> None:
    """Warm the caches of each way, then print its figures, turn by turn."""
    async with AsyncExitStack() as stack:
        clients = {
            way: [await stack.enter_async_context(AsyncClient(url, queue=one)) for one in queues]
            for way, queues in ways.items()
        }
        for way in ways:
            await send(clients[way], args, 0, None)
        for number in range(args.rounds):
            for way in ways:
                cpu = sum(map(cpu_ms, pids[way]))
                full, seconds = await send(clients[way], args, 0, None)
                cpu = sum(map(cpu_ms, pids[way])) - cpu
                paced, _ = await send(clients[way], args, 0, args.rate)
                tokens = sum(len(one.ids) for one in full)
                waits = sorted(one.timings.queue_ms for one in paced)
                line = {
                    "way": way,
                    "round": number,
                    "hits": round(hits(full), 3),
                    "tokens_per_s": round(tokens / seconds, 1),
                    "cpu_ms_per_token": round(cpu / tokens, 3),
                    "wait_p50_ms": waits[len(waits) // 2],
                    "wait_p95_ms": waits[int(len(waits) * 0.95)],
                }
                print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=96)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--skew", type=float, default=0.0)
    parser.add_argument("--prefix", type=int, default=256, help="shared tokens")
    parser.add_argument("--tokens", type=int, default=16, help="output tokens")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=1024, help="KV blocks of 16 tokens a worker")
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the workers, too
    ways = {"shared": ["one"], "apart": ["left", "right"]}
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(EmbeddedRedis(Path(directory)))
        pids = {
            way: [
                stack.enter_context(running_worker(server.url, queue, args.slots, args.blocks))
                for queue in (queues * 2)[:2]
            ]
            for way, queues in ways.items()
        }
        asyncio.run(measure(server.url, ways, pids, args))


if __name__ == "__main__":
    main()

"""How many entries a second one asyncio process reads from many reply streams at once.

A writer process appends one entry to each stream per step, in one script call as a worker does, at
full speed or at `--steps-per-s`. The reader takes them through `Reader`, one task a stream. Prints
one JSON line: entries/s, the reader's CPU share, and the delay from append to `take` (p50, p99; one
clock).

    python benchmarks/reader.py --streams 256 --steps 400
"""

import argparse
import asyncio
import json
import multiprocessing
import time

import redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.connection import UnixDomainSocketConnection

from pagestream.producer.embedded import EmbeddedRedis
from pagestream.producer.reader import BLOCK_MS, Feed, Reader

APPEND = """
local stamp = ARGV[2]
for i, key in ipairs(KEYS) do
  redis.call('XADD', key, 'NOMKSTREAM', '1-' .. ARGV[1], 'choice', '0', 'start', ARGV[1] - 1,
    'ids', '12345', 'text', stamp)
end
"""


def write(path: str, keys: list[str], steps: int, steps_per_s: float) -> None:
    """Append `steps` entries to each stream; the text of each is the time it was written."""
    with redis.Redis(unix_socket_path=path, protocol=2) as client:
        append = client.register_script(APPEND)
        begin = time.monotonic()
        for step in range(1, steps + 1):
            if steps_per_s:
                time.sleep(max(0.0, begin + step / steps_per_s - time.monotonic()))
            append(keys=keys, args=[step, repr(time.monotonic())])


async def consume(feed: Feed, steps: int, delays: list[float]) -> None:
    """Read one stream to its end."""
    seen = 0
    while seen < steps:
        for entry in await feed.take():
            if entry.event == "tokens":
                seen += 1
                delays.append(time.monotonic() - float(entry.text))


async def read(path: str, keys: list[str], steps: int, steps_per_s: float) -> dict[str, float]:
    """Run writer and reader; return the figures."""
    client = AsyncRedis(unix_socket_path=path, protocol=2)
    for key in keys:
        await client.xadd(key, {"event": "queued"}, id="0-1")

    async def unblock(client_id: int) -> None:
        await client.execute_command("CLIENT", "UNBLOCK", client_id)

    def connection() -> UnixDomainSocketConnection:
        return UnixDomainSocketConnection(path=path, protocol=2, socket_timeout=BLOCK_MS / 1000 + 5)

    reader = Reader(connection, unblock)
    delays: list[float] = []
    feeds = [reader.open(key) for key in keys]
    tasks = [asyncio.create_task(consume(feed, steps, delays)) for feed in feeds]
    writer = multiprocessing.get_context("spawn").Process(
        target=write, args=(path, keys, steps, steps_per_s)
    )
    writer.start()
    while not delays:
        await asyncio.sleep(0.01)
    begin, cpu, before = time.monotonic(), time.process_time(), len(delays)
    await asyncio.gather(*tasks)
    wall, used = time.monotonic() - begin, time.process_time() - cpu
    writer.join()
    connections = reader.connections
    await reader.aclose()
    await client.aclose()
    delays.sort()
    return {
        "streams": len(keys),
        "connections": connections,
        "entries_per_s": round((len(delays) - before) / wall),
        "cpu_share": round(used / wall, 2),
        "us_cpu_per_entry": round(used / (len(delays) - before) * 1e6, 1),
        "delay_p50_ms": round(delays[len(delays) // 2] * 1000, 2),
        "delay_p99_ms": round(delays[int(len(delays) * 0.99)] * 1000, 2),
    }


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--steps-per-s", type=float, default=0.0, help="0: as fast as Redis takes them"
    )
    arguments = parser.parse_args()
    keys = [f"{{ps:bench}}:out:{number}" for number in range(arguments.streams)]
    with EmbeddedRedis() as server:
        path = server.url.removeprefix("unix://").split("?")[0]
        figures = asyncio.run(read(path, keys, arguments.steps, arguments.steps_per_s))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

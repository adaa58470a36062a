"""One step's write: 256 rows through the fenced script, beside an unfenced pipeline.

    PYTHONPATH=producer:worker python benchmarks/wire_step.py unix:///path/to/socket

Prints wall and client CPU milliseconds a step (median of `--steps`, after a warm-up), for the
server given: use one with AOF everysec. Every key it makes is deleted.
"""

import argparse
import statistics
import time
import uuid
from collections.abc import Callable

from pagestream.producer.connection import connect
from pagestream.producer.keys import Keys
from pagestream.producer.lua import Script
from pagestream.producer.protocol import ModelInfo
from pagestream.worker.queue.lease import Lease, Row, StepCall

PAYLOAD_BYTES = 1_500
ALL_TOKENS = 10**9


def measure(step: Callable[[int], None], steps: int) -> tuple[float, float]:
    """Return the median wall and CPU milliseconds of `step(i)`."""
    walls, cpus = [], []
    for number in range(steps + 50):
        wall, cpu = time.perf_counter(), time.process_time()
        step(number)
        cpus.append((time.process_time() - cpu) * 1000)
        walls.append((time.perf_counter() - wall) * 1000)
    return statistics.median(walls[50:]), statistics.median(cpus[50:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    keys = Keys(f"bench-{uuid.uuid4().hex[:8]}")
    client = connect(args.url, client_name="wire-step")
    try:
        submit = Script("submit")
        for number in range(args.rows):
            job_id = f"job-{number:04d}-{uuid.uuid4().hex[:16]}"
            submit(client, keys.bell, job_id, b"x" * PAYLOAD_BYTES, "{}")
        info = ModelInfo(
            name="bench",
            context_tokens=4096,
            vocab_size=1,
            has_tokenizer=True,
            has_chat_template=False,
            max_running=args.rows,
            kv_tokens=10**6,
        )
        lease = Lease(client, keys, "bench", heartbeat_ttl_ms=60_000)
        lease.register(info)
        began = time.perf_counter()
        claims = lease.step(StepCall(slots=args.rows, tokens=ALL_TOKENS)).claims
        print(f"claim {len(claims)} jobs: {(time.perf_counter() - began) * 1000:.2f} ms")

        def fenced(number: int) -> None:
            rows = [
                Row(claim.job_id, claim.epoch, number + 1, 0, number, [31_000 + number], " token")
                for claim in claims
            ]
            assert lease.step(StepCall(rows=rows)).row_codes == "k" * len(rows)

        def unfenced(number: int) -> None:
            pipeline = client.pipeline(transaction=False)
            for claim in claims:
                fields = {"choice": 0, "start": number, "ids": 31_000 + number, "text": " token"}
                pipeline.xadd(keys.out(f"{claim.job_id}-plain"), fields)
            pipeline.execute()

        for name, step in (("one fenced script", fenced), ("pipeline, no fence", unfenced)):
            wall_ms, cpu_ms = measure(step, args.steps)
            print(f"{name:20} {args.rows} rows: {wall_ms:.2f} ms wall, {cpu_ms:.2f} ms client CPU")
    finally:
        for key in client.scan_iter(match=f"{keys.prefix}*", count=1000):
            client.delete(key)
        client.srem("ps:queues", keys.queue)
        client.close()


if __name__ == "__main__":
    main()

"""Faults of clients: producers and readers that die, floods, and cancels at every moment.

This module does what clients do; whether a reply is right is `checker`'s.
"""

import asyncio
import sys
import time
from contextlib import suppress
from random import Random

import msgspec

from pagestream.producer.client import AsyncClient

from .clients import read_chunk
from .load import LoadJob
from .processes import Process
from .stage import Stage
from .table import Row

PRODUCED_JOBS = 12
OVERLOAD = 10
WATCHED_TOKENS = 32
"""The least a job has to say for a reader to die in the middle of it."""

_CLIENT = (sys.executable, "-m", "pagestream.worker.chaos.clients")


def _client(stage: Stage, what: str, *more: str) -> Process:
    """Start a client process, which talks through its standard input and output."""
    command = (*_CLIENT, what, stage.client_url, stage.queue, *more)
    return Process(command, stage.folder / "clients.log", piped=True)


async def kill_producer(stage: Stage, row: Row, random: Random) -> bool:
    """SIGKILL of a producer between two jobs or in the middle of one; its successor takes over."""
    jobs = [stage.load.new_job() for _ in range(PRODUCED_JOBS)]
    producer = _client(stage, "submit")
    accepted: set[str] = set()
    try:
        for job in jobs:
            producer.send(msgspec.json.encode(job.spec).decode())
        for _ in range(random.randrange(1, PRODUCED_JOBS)):
            accepted.add((await asyncio.to_thread(producer.readline)).strip())
        await asyncio.sleep(random.uniform(0, 0.003))
    finally:
        producer.kill()
    # What was accepted needs nobody; the rest is submitted again, accepted unseen or not.
    await asyncio.gather(
        *(stage.load.follow(job) if job.id in accepted else stage.load.run_job(job) for job in jobs)
    )
    return bool(accepted)


async def kill_reader(stage: Stage, row: Row, random: Random) -> bool:
    """SIGKILL of a reader in the middle; another goes on behind the last chunk it has kept."""
    job = stage.load.new_job(tokens_min=WATCHED_TOKENS)
    running = stage.load.run_job(job)
    await stage.load.wait_for(lambda: job.accepted_s is not None, 30)
    # A copy of the job: what these readers got is checked by itself.
    watched = LoadJob(f"{job.id}-watched", job.answer, accepted_s=job.accepted_s)
    die_at = random.randrange(1, 8)
    while not watched.ended:
        kept = [watched.cursor] if watched.cursor else []
        reader = _client(stage, "read", job.id, *kept)
        try:
            while line := await asyncio.to_thread(reader.readline):
                watched.take(read_chunk(line))
                if len(watched.entries) == die_at:
                    break
        finally:
            reader.kill()
    watched.left_s = time.monotonic()
    stage.load.jobs[watched.id] = watched
    watched.faults = job.faults
    await running
    return len(watched.entries) > die_at


async def overload(stage: Stage, row: Row, random: Random) -> bool:
    """Ten times as many jobs as usual, on a queue that does not take so many."""
    before = stage.load.refused
    jobs = [stage.load.new_job() for _ in range(OVERLOAD * stage.options.in_flight)]
    client = AsyncClient(
        stage.client_url, queue=stage.queue, queue_limit=2 * stage.options.in_flight
    )
    try:
        await asyncio.gather(*(stage.load.run_job(job, client) for job in jobs))
    finally:
        await client.aclose()
    return stage.load.refused > before


async def cancel_races(stage: Stage, row: Row, random: Random) -> bool:
    """Cancels: before the claim, about the claim, in the middle, at the last token, after it."""
    jobs = [stage.load.new_job(tokens_min=16) for _ in range(8)]
    for job in jobs:
        last = len(job.answer.ids)
        job.cancel_at = random.choice((0, 1, last // 2, last - 1, last))
    jobs[0].cancel_at, jobs[1].cancel_at = 0, len(jobs[1].answer.ids) - 1
    tasks = [stage.load.run_job(job) for job in jobs]
    claimed = stage.load.new_job()
    tasks.append(stage.load.run_job(claimed))
    await _cancel_at_claim(stage, claimed)
    await asyncio.gather(*tasks)
    return True


async def _cancel_at_claim(stage: Stage, job: LoadJob) -> None:
    """Cancel when the reply says that a worker has begun: the prompt is being computed."""
    await stage.load.wait_for(lambda: job.accepted_s is not None, 30)
    job.may_be_cancelled = True
    await stage.redis.xread({stage.keys.out(job.id): "0-1"}, count=1, block=5000)
    with suppress(Exception):
        await stage.client.job(job.id).cancel()

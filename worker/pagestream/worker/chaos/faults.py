"""The faults: each is done to a stage that is under load, and says whether it met anything.

A fault that stops streams counts only if one of them was in the middle of its tokens; it then waits
until each of them has gone on. What is random in a fault comes from the generator it is given.
This module does things to processes, connections and keys; whether a reply is right is `checker`'s.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from random import Random
from typing import NamedTuple

from redis.exceptions import RedisError

from .load import LoadJob, Wait
from .processes import engine_pid
from .stage import Stage, Worker
from .table import Row

IN_FLIGHT_S = 0.05
"""What had been sent when a fault struck has arrived after so long."""
LOOK_S = 0.01
"""How often to look for what a fault waits for."""


class Broken(Exception):
    """A fault led to what must not be; the message says what."""


class Fault(NamedTuple):
    """A fault and what it takes."""

    name: str
    inject: Callable[[Stage, Row, Random], Awaitable[bool]]
    """Returns whether it counts."""
    own_server: bool = False
    """It harms the server, so it is only for one that the run has started."""
    proxied: bool = False
    """It is done to connections, which TLS does not let through the proxy."""
    forgets: tuple[str, ...] = ()
    """The `fsync` settings under which Redis may forget jobs it accepted."""


# ---- helpers


async def _stopped(
    stage: Stage, row: Row, jobs: Iterable[LoadJob], began_s: float, *, look: bool = True
) -> list[Wait]:
    """Start a clock for each job whose stream has just been stopped."""
    waits: list[Wait] = []
    for job in jobs:
        tokens = max(job.tokens, await stage.published(job)) if look else job.tokens
        if not job.ended and tokens < len(job.answer.ids):
            waits.append(Wait(began_s, tokens, row.recoveries_s.append))
            job.waits.append(waits[-1])
    return waits


async def _all_go_on(stage: Stage, waits: list[Wait]) -> None:
    """Wait until every stopped stream has gone on."""

    def nobody_waits() -> bool:
        still = {id(wait) for job in stage.load.running.values() for wait in job.waits}
        return not any(id(wait) in still for wait in waits)

    patience_s = stage.options.patience_s
    if not await stage.load.wait_for(nobody_waits, patience_s):
        held = [job for job in stage.load.running.values() if job.waits]
        names = ", ".join(f"{job.id} at token {job.tokens}" for job in held)
        for job in held:
            job.waits.clear()
        raise Broken(f"after {patience_s:.0f} s these have not gone on: {names}\n{stage.logs()}")


async def _busy_worker(stage: Stage, random: Random) -> tuple[Worker, list[LoadJob]] | None:
    """Choose a worker in the middle of jobs, while another one is there to take over."""
    await stage.until(lambda: stage.up >= 2, "two workers to be up")
    deadline = time.monotonic() + stage.options.patience_s
    while time.monotonic() < deadline:
        worker = random.choice([one for one in stage.workers if one.is_up])
        if jobs := await stage.decoding_on(worker):
            return worker, jobs
        await asyncio.sleep(LOOK_S)
    return None


async def _decoding(stage: Stage) -> list[LoadJob]:
    """Return the jobs in the middle of their tokens, once there are some."""

    def found() -> list[LoadJob]:
        return [job for job in stage.load.running.values() if job.is_decoding]

    await stage.load.wait_for(lambda: bool(found()), stage.options.patience_s)
    return found()


# ---- processes


async def kill_worker(stage: Stage, row: Row, random: Random) -> bool:
    """SIGKILL of a worker in the middle of jobs; another starts in its place."""
    return await _kill_worker(stage, row, random, skew_s=0)


async def skew_clock(stage: Stage, row: Row, random: Random) -> bool:
    """The same, and the one that starts is on a host whose clock is an hour off."""
    return await _kill_worker(stage, row, random, skew_s=random.choice((-3600, 3600)))


async def _kill_worker(stage: Stage, row: Row, random: Random, *, skew_s: int) -> bool:
    if (found := await _busy_worker(stage, random)) is None:
        return False
    worker, jobs = found
    began_s = time.monotonic()
    await stage.kill_worker(worker, skew_s=skew_s)
    waits = await _stopped(stage, row, jobs, began_s)
    await _all_go_on(stage, waits)
    return bool(waits)


async def kill_engine(stage: Stage, row: Row, random: Random) -> bool:
    """SIGKILL of a worker's engine process; the worker lives, starts another and goes on."""
    if (found := await _busy_worker(stage, random)) is None:
        return False
    worker, _ = found
    if (pid := await asyncio.to_thread(engine_pid, worker.process.pid)) is None:
        return False
    if not (jobs := await stage.decoding_on(worker)):  # to find the engine took a while
        return False
    began_s = time.monotonic()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    # What it had computed by then is still published.
    await asyncio.sleep(IN_FLIGHT_S)
    waits = await _stopped(stage, row, jobs, began_s)
    await _all_go_on(stage, waits)
    return bool(waits)


async def pause_worker(stage: Stage, row: Row, random: Random) -> bool:
    """SIGSTOP of a worker for longer than its heartbeat lives, then SIGCONT: a zombie."""
    if (found := await _busy_worker(stage, random)) is None:
        return False
    worker, jobs = found
    ttl_s = stage.options.heartbeat_ttl_s
    began_s = time.monotonic()
    worker.process.send_signal(signal.SIGSTOP)
    try:
        waits = await _stopped(stage, row, jobs, began_s)
        await asyncio.sleep(ttl_s + random.uniform(0.6, 1.5))
    finally:
        worker.process.send_signal(signal.SIGCONT)
    await _all_go_on(stage, waits)
    return bool(waits)


# ---- the server


async def kill_redis(stage: Stage, row: Row, random: Random) -> bool:
    """SIGKILL of Redis and a restart on its append-only file."""
    assert stage.server is not None, "only an own server is killed"
    if not (jobs := await _decoding(stage)):
        return False
    began_s = time.monotonic()
    stage.server.kill()
    await asyncio.sleep(IN_FLIGHT_S)
    waits = await _stopped(stage, row, jobs, began_s, look=False)
    await asyncio.sleep(random.uniform(0.0, 0.5))
    stage.server.start()
    await stage.server_answers()
    await _all_go_on(stage, waits)
    return bool(waits)


async def roll_back_redis(stage: Stage, row: Row, random: Random) -> bool:
    """Redis comes back with an old append-only file: it forgot what it had acknowledged.

    Among that are tokens of a stream that goes on: the copy has its beginning, its worker the rest.
    """
    assert stage.server is not None, "only an own server is rolled back"
    await _decoding(stage)
    held = [job for worker in stage.workers for job in await stage.decoding_on(worker)]
    stage.server.keep_copy()
    left = [(len(job.answer.ids) - await stage.published(job), job) for job in held]
    if not left:
        return False
    most, longest = max(left, key=lambda one: one[0])
    goes_on_to = len(longest.answer.ids) - most + random.randint(1, max(1, most // 2))
    if not await _reaches(stage, longest, goes_on_to):
        return False
    jobs = await _decoding(stage)
    began_s = time.monotonic()
    stage.server.roll_back()
    await asyncio.sleep(IN_FLIGHT_S)
    waits = await _stopped(stage, row, jobs, began_s, look=False)
    stage.server.start()
    await stage.server_answers()
    await _all_go_on(stage, waits)
    return bool(waits)


async def _reaches(stage: Stage, job: LoadJob, tokens: int) -> bool:
    """Wait until Redis has so many tokens of a job; False if it ends with them, or before."""
    until_s = time.monotonic() + stage.options.patience_s
    while (published := await stage.published(job)) < tokens:
        if job.ended or time.monotonic() > until_s:
            return False
        await asyncio.sleep(LOOK_S)
    return published < len(job.answer.ids)


async def pause_redis(stage: Stage, row: Row, random: Random) -> bool:
    """SIGSTOP of Redis for some seconds, heartbeats' lives included."""
    assert stage.server is not None, "only an own server is paused"
    if not (jobs := await _decoding(stage)):
        return False
    began_s = time.monotonic()
    stage.server.pause()
    await asyncio.sleep(IN_FLIGHT_S)
    waits = await _stopped(stage, row, jobs, began_s, look=False)
    await asyncio.sleep(stage.options.heartbeat_ttl_s + random.uniform(0.2, 1.0))
    stage.server.resume()
    await _all_go_on(stage, waits)
    return bool(waits)


async def fill_memory(stage: Stage, row: Row, random: Random) -> bool:
    """`maxmemory` is reached for a while: no new jobs, those that run go on."""
    await stage.redis.config_set("maxmemory", 1)
    try:
        await asyncio.sleep(random.uniform(0.5, 1.5))
    finally:
        await stage.redis.config_set("maxmemory", 0)
    return True


async def flush_all(stage: Stage, row: Row, random: Random) -> bool:
    """FLUSHALL: everything is forgotten; jobs are submitted again."""
    if not (jobs := await _decoding(stage)):
        return False
    began_s = time.monotonic()
    await stage.redis.flushall()
    # They begin anew, under the same ids.
    waits = await _stopped(stage, row, jobs, began_s, look=False)
    await _all_go_on(stage, waits)
    return bool(waits)


async def flush_scripts(stage: Stage, row: Row, random: Random) -> bool:
    """SCRIPT FLUSH: nobody's script is known any more."""
    await stage.redis.script_flush()
    return bool(await _decoding(stage))


async def delete_group(stage: Stage, row: Row, random: Random) -> bool:
    """The consumer group of a job stream is destroyed."""
    streams = [key async for key in stage.redis.scan_iter(match=f"{stage.keys.prefix}jobs:*")]
    with suppress(RedisError):  # a stream without jobs is not there any more
        return bool(streams and await stage.redis.xgroup_destroy(random.choice(streams), "workers"))
    return False


async def delete_reply(stage: Stage, row: Row, random: Random) -> bool:
    """The reply of a running job is deleted, which cancels it."""
    if not (jobs := await _decoding(stage)):
        return False
    job = random.choice(jobs)
    job.is_deleted = True
    await stage.redis.delete(stage.keys.out(job.id))
    return True


async def write_nonsense(stage: Stage, row: Row, random: Random) -> bool:
    """Entries that nobody accepted are written straight into the job stream."""
    stream, written = stage.keys.jobs("normal"), False
    for fields in (
        {"id": "nobody"},
        {"id": ""},
        {"what": "ever"},
        {"id": random.randbytes(64), "tokens_max": b"\xff"},
        {b"\x00": b""},
    ):
        with suppress(RedisError):
            written |= bool(await stage.redis.xadd(stream, fields, nomkstream=True))
    return written


# ---- the network


async def cut_connections(stage: Stage, row: Row, random: Random) -> bool:
    """Every connection is cut, each after a random number of bytes."""
    return await _cut(stage, row, lambda proxy: proxy.cut(random.choice((64, 4096, 65536))))


async def drop_answers(stage: Stage, row: Row, random: Random) -> bool:
    """Redis does what it is asked, and its answer is lost with the connection."""
    return await _cut(stage, row, lambda proxy: proxy.drop_answers())


async def _cut(stage: Stage, row: Row, cut: Callable[..., int]) -> bool:
    jobs, began_s = await _decoding(stage), time.monotonic()
    for proxy in (stage.client_proxy, *(worker.proxy for worker in stage.workers)):
        cut(proxy)
    waits = await _stopped(stage, row, jobs, began_s, look=False)
    await _all_go_on(stage, waits)
    return bool(waits)


async def delay_network(stage: Stage, row: Row, random: Random) -> bool:
    """Every message takes up to 200 ms."""
    proxies = (stage.client_proxy, *(worker.proxy for worker in stage.workers))
    for proxy in proxies:
        proxy.delay(random.uniform(0.02, 0.1))
    await asyncio.sleep(random.uniform(1.0, 3.0))
    for proxy in proxies:
        proxy.heal()
    return True


async def part_network(stage: Stage, row: Row, random: Random) -> bool:
    """A worker's network carries nothing for longer than its heartbeat lives, then everything."""
    if (found := await _busy_worker(stage, random)) is None:
        return False
    worker, jobs = found
    began_s = time.monotonic()
    worker.proxy.silence()
    try:
        waits = await _stopped(stage, row, jobs, began_s)
        await asyncio.sleep(stage.options.heartbeat_ttl_s + random.uniform(0.6, 1.5))
    finally:
        worker.proxy.heal()
    await _all_go_on(stage, waits)
    return bool(waits)


async def half_open(stage: Stage, row: Row, random: Random) -> bool:
    """A worker's open connections lead nowhere any more, and nobody tells it."""
    if (found := await _busy_worker(stage, random)) is None:
        return False
    worker, jobs = found
    began_s = time.monotonic()
    worker.proxy.forget_links()
    waits = await _stopped(stage, row, jobs, began_s)
    await _all_go_on(stage, waits)
    return bool(waits)

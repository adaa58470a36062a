"""A run: a seeded plan of faults, done one after the other under load, and the audit at the end.

This module knows which faults there are and what they may cost; how each is done is theirs.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random

from pagestream.producer.errors import InvalidRequest

from . import client_faults, faults
from .audit import Audit, left_over
from .faults import Broken, Fault
from .poison import poison
from .stage import Options, Stage
from .table import Report, Row

_ANY = ("everysec", "always")

FAULTS = (
    Fault("worker killed", faults.kill_worker),
    Fault("engine killed", faults.kill_engine),
    Fault("worker paused", faults.pause_worker),
    Fault("clock skewed", faults.skew_clock),
    Fault("poison job", poison),
    Fault("producer killed", client_faults.kill_producer),
    Fault("reader killed", client_faults.kill_reader),
    Fault("overload", client_faults.overload),
    Fault("cancel races", client_faults.cancel_races),
    Fault("connections cut", faults.cut_connections, proxied=True),
    Fault("answers lost", faults.drop_answers, proxied=True),
    Fault("network slow", faults.delay_network, proxied=True),
    Fault("network parted", faults.part_network, proxied=True),
    Fault("half-open", faults.half_open, proxied=True),
    Fault("redis killed", faults.kill_redis, own_server=True, forgets=("everysec",)),
    Fault("redis rolled back", faults.roll_back_redis, own_server=True, forgets=_ANY),
    Fault("redis paused", faults.pause_redis, own_server=True),
    Fault("memory full", faults.fill_memory, own_server=True),
    Fault("everything flushed", faults.flush_all, own_server=True, forgets=_ANY),
    Fault("scripts flushed", faults.flush_scripts, own_server=True),
    Fault("group deleted", faults.delete_group, own_server=True),
    Fault("reply deleted", faults.delete_reply, own_server=True),
    Fault("malformed entries", faults.write_nonsense, own_server=True),
)
"""Every fault; the ones marked harm the server or need to see through its connections."""

PAUSE_S = 0.5
"""Between two faults, at most; and between two tries of one that met nothing."""


def choose(names: Sequence[str], options: Options) -> list[Fault]:
    """Return the faults of these names, or all that may be done to the server.

    Raises:
        InvalidRequest: there is no such fault, or it would harm a server that is not ours.
    """
    known = {fault.name: fault for fault in FAULTS}
    foreign = options.redis_url is not None
    tls = foreign and (options.redis_url or "").startswith("rediss://")
    allowed = [
        one for one in FAULTS if not (one.own_server and foreign) and not (one.proxied and tls)
    ]
    for name in names:
        if name not in known:
            raise InvalidRequest(f"no fault is called {name!r}; there are: {', '.join(known)}")
        if known[name] not in allowed:
            raise InvalidRequest(
                f"{name!r} is not done to a server that this command has not started; "
                "leave --redis-url out, or choose of: " + ", ".join(one.name for one in allowed)
            )
    return [known[name] for name in names] or allowed


def plan(chosen: Sequence[Fault], seed: int) -> Iterator[tuple[Fault, Random]]:
    """Give faults for ever, every one once a round, each with its own generator."""
    random = Random(seed)
    while True:
        for fault in random.sample(chosen, len(chosen)):
            yield fault, Random(random.random())


async def run(
    options: Options,
    chosen: Sequence[Fault],
    *,
    seconds: float,
    rounds: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Do faults under load until the time is over, or so many rounds are done; audit every job.

    Args:
        options: the stage.
        chosen: the faults, from `choose`.
        seconds: no fault begins after so many.
        rounds: at most so many of each fault.
        say: told what happens, in lines.

    Raises:
        QueueUnavailable: the server or the workers do not start.
    """
    rows = {fault.name: Row(fault.name) for fault in chosen}
    problems: list[str] = []
    async with Stage(options) as stage:
        say(f"queue {stage.queue}, {stage.up} workers, seed {options.seed}")
        forgets = any(options.fsync in fault.forgets for fault in chosen)
        audit = Audit(stage, rows, problems, forgets=forgets)
        stage.load.start()
        until_s = time.monotonic() + seconds
        steps = 0 if rounds is None else rounds * len(chosen)
        for done, (fault, random) in enumerate(plan(chosen, options.seed)):
            if time.monotonic() > until_s or (rounds is not None and done >= steps):
                break
            await _inject(stage, fault, rows[fault.name], random, problems, say)
            stage.load.check_alive()
            await audit.look_at_settled()
            await stage.shorten_log()
            await asyncio.sleep(random.uniform(0, PAUSE_S))
        await stage.load.stop(2 * options.patience_s)
        total = await audit.finish()
        problems += await left_over(stage)
        return Report(options.seed, list(rows.values()), total, problems, _notes(stage))


async def _inject(
    stage: Stage,
    fault: Fault,
    row: Row,
    random: Random,
    problems: list[str],
    say: Callable[[str], None],
) -> None:
    began_s = time.monotonic()
    there = dict(stage.load.running)
    known = set(stage.load.jobs)
    counts = False
    try:
        while not (counts := await fault.inject(stage, row, random)):
            if time.monotonic() - began_s > stage.options.patience_s:
                break
            await asyncio.sleep(random.uniform(0, PAUSE_S))
    except Broken as broken:
        problems.append(f"{fault.name}: {broken}")
        counts = True
    if counts:
        row.times += 1
        there |= {name: job for name, job in stage.load.jobs.items() if name not in known}
        for job in there.values():
            job.faults.add(fault.name)
    say(f"{fault.name}{'' if counts else ' (met nothing)'}: {time.monotonic() - began_s:.1f} s")


def _notes(stage: Stage) -> list[str]:
    load = stage.load
    notes = [f"{load.refused:,} submissions were refused with a hint and came again"]
    if load.forgotten:
        notes.append(f"{load.forgotten:,} jobs were forgotten by Redis and submitted again")
    return notes + stage.unexpected_exits

"""The audit: every job of a load against its answer, once no more is to come.

This module knows no faults but by their names.
"""

from collections.abc import Mapping

from pagestream.producer.errors import JobCancelled
from pagestream.producer.protocol import Entry, decode_entry

from .checker import check
from .load import LoadJob
from .stage import Stage
from .table import Row


async def audit(
    stage: Stage, rows: Mapping[str, Row], problems: list[str], *, forgets: bool
) -> Row:
    """Compare what readers got and what Redis holds with the answers, for every accepted job.

    Args:
        stage: where they ran; its load has stopped.
        rows: by fault; each is given its share.
        problems: what is wrong is added here, in sentences.
        forgets: Redis may have forgotten jobs that it accepted.
    """
    total = Row("all jobs")
    for row in rows.values():  # what a fault has audited itself
        total.tally.add(row.tally)
    for job in stage.load.jobs.values():
        if job.accepted_s is None or job.is_deleted:  # nobody can say what was in the latter
            continue
        early = "cancelled" if job.may_be_cancelled else None
        tally = check(job.answer, job.entries, early=early)
        entries = await stored(stage, job)
        if entries is not None:
            again = check(job.answer, entries, early=early)
            tally.lost += again.lost
            tally.repeated += again.repeated
            tally.wrong += again.wrong
            tally.terminals = again.terminals
        elif not forgets and not job.id.endswith("-watched"):
            problems.append(f"{job.id} is gone from Redis")
        if job.forgotten and not forgets:
            problems.append(f"{job.id} was accepted, and forgotten {job.forgotten} times")
        if job.error is not None and not (
            job.may_be_cancelled and isinstance(job.error, JobCancelled)
        ):
            problems.append(f"{job.id} ended in an error: {job.error}")
        total.tally.add(tally)
        if not tally.clean:
            problems.append(f"{job.id} ({', '.join(sorted(job.faults)) or 'no fault'}): {tally}")
        for name in job.faults:
            rows[name].tally.add(tally)
    total.times = sum(row.times for row in rows.values())
    total.recoveries_s = [wait for row in rows.values() for wait in row.recoveries_s]
    return total


async def stored(stage: Stage, job: LoadJob) -> list[Entry] | None:
    """Return a reply as Redis holds it, if it does."""
    raw = await stage.redis.xrange(stage.keys.out(job.id))
    return [decode_entry(entry_id, fields) for entry_id, fields in raw] or None


async def left_over(stage: Stage) -> list[str]:
    """Return whatever says that somebody believes a job to be unfinished."""
    found: list[str] = []
    for pattern in ("jobs:*", "running:*"):
        async for key in stage.redis.scan_iter(match=f"{stage.keys.prefix}{pattern}", count=1000):
            name = key.decode()
            found.append(f"{name.removeprefix(stage.keys.prefix)} is left over")
    return found

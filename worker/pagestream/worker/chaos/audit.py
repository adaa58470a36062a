"""The audit: every job of a load against its answer, once no more is to come.

This module knows no faults but by their names.
"""

import time
from collections import defaultdict
from collections.abc import Mapping

from redis.exceptions import RedisError

from pagestream.producer.errors import JobCancelled
from pagestream.producer.protocol import Entry, decode_entry

from .checker import Tally, check
from .load import LoadJob
from .stage import Stage
from .table import Row

SETTLED_S = 60.0
"""How long after its reader has left a job is audited: whoever writes late has done so by then."""


class Audit:
    """Compares what readers got and what Redis holds with the answers, for every accepted job.

    A job that was audited is forgotten: neither memory nor the replies' retention ends a long run.
    """

    def __init__(
        self, stage: Stage, rows: Mapping[str, Row], problems: list[str], *, forgets: bool
    ) -> None:
        """Audit nothing yet.

        Args:
            stage: where the jobs run.
            rows: by fault; each is given its share.
            problems: what is wrong is added here, in sentences.
            forgets: Redis may have forgotten jobs that it accepted.
        """
        self._stage = stage
        self._rows = rows
        self._problems = problems
        self._forgets = forgets
        self._total = Row("all jobs")
        self._by_fault: defaultdict[str, Tally] = defaultdict(Tally)

    async def look_at_settled(self) -> None:
        """Audit the jobs that have ended long ago; none while a fault is being done."""
        before_s = time.monotonic() - SETTLED_S
        jobs = self._stage.load.jobs
        settled = [one for one in jobs.values() if one.left_s is not None and one.left_s < before_s]
        for job in settled:
            try:
                await self._audit(job)
            except (RedisError, OSError):
                return  # not yet back from a fault: the next look is soon
            del jobs[job.id]

    async def finish(self) -> Row:
        """Audit the rest, when the load has stopped; returns the row of all jobs."""
        for job in self._stage.load.jobs.values():
            await self._audit(job)
        for row in self._rows.values():
            self._total.tally.add(row.tally)  # what a fault has audited itself
            row.tally.add(self._by_fault[row.fault])
        self._total.times = sum(row.times for row in self._rows.values())
        self._total.recoveries_s = [
            wait for row in self._rows.values() for wait in row.recoveries_s
        ]
        return self._total

    async def _audit(self, job: LoadJob) -> None:
        if job.accepted_s is None or job.is_deleted:  # nobody can say what was in the latter
            return
        early = "cancelled" if job.may_be_cancelled else None
        tally = check(job.answer, job.entries, early=early)
        entries = await stored(self._stage, job)
        if entries is not None:
            again = check(job.answer, entries, early=early)
            tally.lost += again.lost
            tally.repeated += again.repeated
            tally.wrong += again.wrong
            tally.terminals = again.terminals
        elif not self._forgets and not job.id.endswith("-watched"):
            self._problems.append(f"{job.id} is gone from Redis")
        if job.forgotten and not self._forgets:
            self._problems.append(f"{job.id} was accepted, and forgotten {job.forgotten} times")
        if job.error is not None and not (
            job.may_be_cancelled and isinstance(job.error, JobCancelled)
        ):
            self._problems.append(f"{job.id} ended in an error: {job.error}")
        self._total.tally.add(tally)
        if not tally.clean:
            faults = ", ".join(sorted(job.faults)) or "no fault"
            self._problems.append(f"{job.id} ({faults}): {tally}")
        for name in job.faults:
            self._by_fault[name].add(tally)


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

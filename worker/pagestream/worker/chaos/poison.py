"""The fault of a job that kills every engine it is given to, among jobs that are fine.

It has a queue and a worker of its own: elsewhere in a run no job is condemned for the deaths it was
there at. This module knows what must become of such a job, not how it is found.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from random import Random

from pagestream.producer.errors import JobFailed

from .answers import Answer, Answers
from .audit import Audit, left_over, stored
from .checker import check
from .faults import Broken
from .load import LoadJob
from .poisoned import LIFE_TOKENS
from .stage import Options, Stage
from .table import Row

CRASHES = 3
"""The cap, as a worker has it by default."""
NEIGHBOURS = 6
JOB = "poison"


async def poison(stage: Stage, row: Row, random: Random) -> bool:
    """A job kills its engine each time: it alone is condemned, after as many deaths as the cap."""
    problems: list[str] = []
    seed = random.randrange(10**6)
    deaths = stage.folder / f"deaths-{seed}"
    deaths.touch()
    async with Stage(_options(stage, seed, deaths)) as own:
        own.load.start()
        await own.load.wait_for(
            lambda: any(job.is_decoding for job in own.load.running.values()),
            own.options.patience_s,
        )
        job = LoadJob(JOB, _long_answer(random))
        # Each death costs it the start of an engine, a back-off, and the turns of other suspects.
        _, pending = await asyncio.wait([own.load.run_job(job)], timeout=2 * own.options.patience_s)
        await own.load.stop(2 * own.options.patience_s)
        if pending:
            raise Broken(f"the job has not ended\n{own.logs()}")
        await _check_condemned(own, job, row, problems)
        if (died := deaths.stat().st_size) != CRASHES:
            problems.append(f"it killed {died} engines; the cap is {CRASHES}")
        total = await Audit(own, {}, problems, forgets=False).finish()
        row.tally.add(total.tally)
        problems += await left_over(own) + own.unexpected_exits
    if problems:
        raise Broken("; ".join(problems))
    return True


def _long_answer(random: Random) -> Answer:
    """Choose an answer that the job does not come to the end of in its lives."""
    answers = Answers()
    while True:
        answer = answers.pick(random)
        if len(answer.ids) > CRASHES * LIFE_TOKENS:
            return answer


def _options(stage: Stage, seed: int, deaths: Path) -> Options:
    return replace(
        stage.options,
        seed=seed,
        redis_url=stage.url,
        workers=1,
        in_flight=NEIGHBOURS,
        inside=("-m", "pagestream.worker.chaos.poisoned", JOB, str(deaths)),
        max_crashes=CRASHES,
    )


async def _check_condemned(own: Stage, job: LoadJob, row: Row, problems: list[str]) -> None:
    """Check that it is dead, after the cap's deaths, that it has one end, and that it is alone."""
    entries = await stored(own, job) or []
    tally = check(job.answer, entries, early="error")
    row.tally.add(tally)
    if not tally.clean:
        problems.append(f"the job's reply: {tally}")
    if tally.tokens != job.tokens:
        problems.append(f"its reply has {tally.tokens} tokens, and its reader {job.tokens}")
    if not isinstance(job.error, JobFailed) or job.error.code != "crashed":
        problems.append(f"the job's reader was told {job.error!r}")
    letters = [
        (fields[b"id"].decode(), int(fields[b"crashes"]))
        for _, fields in await own.redis.xrange(own.keys.dead)
    ]
    if letters != [(JOB, CRASHES)]:
        problems.append(f"dead letters: {letters}")

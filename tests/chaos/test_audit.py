"""The audit looks at every job once, some time after its end, and remembers no more of it."""

import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from pagestream.producer.connection import connect_async
from pagestream.producer.job import Chunk
from pagestream.producer.keys import Keys
from pagestream.worker.chaos.answers import Answer
from pagestream.worker.chaos.audit import SETTLED_S, Audit
from pagestream.worker.chaos.load import LoadJob
from pagestream.worker.chaos.table import Row

ANSWER = Answer([1, 2], 3, True, [10, 11, 12], "abc", "length")


@pytest.fixture
async def stage(redis_url: str, keys: Keys) -> AsyncIterator[Any]:
    """What the audit asks of a stage: its load's jobs, and its server."""
    redis = connect_async(redis_url, client_name="audit")
    yield SimpleNamespace(load=SimpleNamespace(jobs={}), redis=redis, keys=keys)
    await redis.aclose()


async def ended(
    stage: Any, name: str, *, ago_s: float, read: str = "abc", held: str = "abc"
) -> Any:
    """A job that has ended so long ago, by what its reader got of the answer and Redis holds."""
    job = LoadJob(name, ANSWER, accepted_s=time.monotonic())
    for place in ("abc".index(one) for one in read):
        chunk = Chunk(id=f"1-{place + 1}", text="abc"[place], ids=(10 + place,), index=place)
        job.take(chunk)
    job.take(Chunk(id="1-4", finish_reason="length"))
    job.left_s = time.monotonic() - ago_s
    out = stage.keys.out(name)
    for place in ("abc".index(one) for one in held):
        fields = {"choice": 0, "start": place, "ids": 10 + place, "text": "abc"[place]}
        await stage.redis.xadd(out, fields, id=f"1-{place + 1}")
    if held:
        await stage.redis.xadd(out, {"event": "end", "reason": "length"}, id="1-4")
    stage.load.jobs[name] = job
    return job


async def test_what_has_ended_long_ago_is_audited_once_and_forgotten(stage: Any) -> None:
    row, problems = Row("worker killed"), list[str]()
    audit = Audit(stage, {row.fault: row}, problems, forgets=False)
    old = await ended(stage, "old", ago_s=SETTLED_S + 1)
    old.faults.add(row.fault)
    await ended(stage, "new", ago_s=0)
    running = LoadJob("running", ANSWER, accepted_s=time.monotonic())
    stage.load.jobs["running"] = running
    await audit.look_at_settled()
    assert set(stage.load.jobs) == {"new", "running"}
    await stage.redis.delete(stage.keys.out("old"))  # its retention is over
    await audit.look_at_settled()
    del stage.load.jobs["running"]
    total = await audit.finish()
    assert (total.tally.jobs, total.tally.tokens, total.tally.terminals) == (2, 6, 2)
    assert (row.tally.jobs, row.tally.clean) == (1, True)
    assert not problems


@pytest.mark.parametrize(
    ("name", "read", "held", "problem"),
    [
        ("short", "ab", "abc", "lost=1"),
        ("twice", "aabc", "abc", "repeated=1"),
        ("torn", "abc", "ac", "lost=1"),
        ("gone", "abc", "", "gone is gone from Redis"),
        ("x-watched", "ac", "", "lost=1"),
    ],
)
async def test_what_is_wrong_is_told_whenever_it_is_looked_at(
    stage: Any, name: str, read: str, held: str, problem: str
) -> None:
    for ago_s in (0, SETTLED_S + 1):
        problems: list[str] = []
        audit = Audit(stage, {}, problems, forgets=False)
        await ended(stage, name, ago_s=ago_s, read=read, held=held)
        await audit.look_at_settled()
        assert bool(problems) == (ago_s > 0)
        await audit.finish()
        assert len(problems) == 1
        assert problem in problems[0]
        await stage.redis.delete(stage.keys.out(name))
        stage.load.jobs.clear()


async def test_a_server_that_does_not_answer_is_asked_again(stage: Any, redis_url: str) -> None:
    audit = Audit(stage, {}, [], forgets=False)
    await ended(stage, "old", ago_s=SETTLED_S + 1)
    there, stage.redis = stage.redis, connect_async(f"{redis_url}-not", client_name="audit")
    await audit.look_at_settled()
    assert set(stage.load.jobs) == {"old"}
    await stage.redis.aclose()
    stage.redis = there
    await audit.look_at_settled()
    assert not stage.load.jobs

"""Poison: who kills the engine is found, alone, and those who only stood by lose nothing."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from stub_engine import StubOptions, expected_ids
from wire_tools import ALL_TOKENS, Wire, end, row
from wire_tools import Worker as WireWorker
from worker_harness import Client, Worker

from pagestream.worker.messages import Sampling
from pagestream.worker.queue.calls import Return
from pagestream.worker.queue.reply import PROBATION_TOKENS

DEADLY = 77
SLOW = StubOptions(step_s=0.004, deadly_token=DEADLY)


def pass_back_off(wire: Wire) -> None:
    for job_id in wire.redis.zrange(wire.keys.suspects, 0, -1):
        wire.redis.zadd(wire.keys.suspects, {job_id: 0})


def kill_holding(wire: Wire, survivor: WireWorker, slots: int) -> list[str]:
    """A worker claims, and dies; returns what it held."""
    worker = WireWorker(wire)
    held = [claim.job_id for claim in worker.claim(slots)]
    worker.die()
    survivor.lease.reap(())
    return held


# ---- on the wire


def test_a_job_that_ran_at_two_deaths_runs_alone(wire):
    survivor = WireWorker(wire)
    for name in ("a", "b", "c"):
        wire.submit(name)
    for _ in range(2):
        assert kill_holding(wire, survivor, 3) == ["a", "b", "c"]
    assert survivor.claim(10) == [], "they wait out their back-off"
    pass_back_off(wire)
    wire.submit("later")
    claims = survivor.claim(10)
    assert [(claim.job_id, claim.crashes) for claim in claims] == [("a", 2)]
    assert survivor.claim(10) == [], "it is busy, and emptied for the next suspect"
    other = WireWorker(wire)
    assert [claim.job_id for claim in other.claim(10)] == ["b"]


def test_who_has_said_least_has_its_turn_first(wire):
    survivor = WireWorker(wire)
    for name in ("a", "b", "c"):
        wire.submit(name)
    for death in range(2):
        worker = WireWorker(wire)
        claims = {claim.job_id: claim for claim in worker.claim(3)}
        rows = [row(claims["a"], 5 * death, *range(5)), row(claims["c"], 9 * death, *range(9))]
        worker.step(rows=rows)
        worker.die()
        survivor.lease.reap(())
    assert wire.redis.zrange(wire.keys.suspects, 0, -1) == [b"b", b"a", b"c"]


def test_the_back_off_doubles_with_each_crash(wire, redis_client, keys):
    wire.submit("job")
    survivor = WireWorker(wire)
    waits = []
    for crash in range(5):
        WireWorker(wire, f"w-{crash}", crash_cap=10).claim_one()
        wire.stop_heart(f"w-{crash}")
        before = survivor.step().now_ms
        WireWorker(wire, f"r-{crash}", crash_cap=10).lease.reap(())
        due = redis_client.zscore(keys.suspects, "job")
        waits.append(round((due - before) / 1000) if due else 0)
        pass_back_off(wire)
    assert waits == [0, 1, 2, 4, 8]


def test_company_is_never_condemned(wire):
    survivor = WireWorker(wire)
    for name in ("a", "b"):
        wire.submit(name)
    running = [(name, 1, crashes) for crashes in range(1) for name in ("a", "b")]
    worker = WireWorker(wire, crash_cap=1)
    worker.claim(2)
    outcomes = worker.lease.crashed(running)
    assert [outcome.outcome for outcome in outcomes] == ["kept", "kept"]
    worker.die()
    survivor.lease.reap(())
    assert wire.dead_letters() == []


def test_alone_at_the_cap_is_a_dead_letter_and_frees_the_others(wire, keys, redis_client):
    survivor = WireWorker(wire)
    wire.submit("poison", b"payload", retention_ms=60_000)
    wire.submit("fine")
    for _ in range(2):
        kill_holding(wire, survivor, 2)
    pass_back_off(wire)
    assert wire.redis.zadd(keys.suspects, {"fine": 1}) == 0
    worker = WireWorker(wire, "w-last")
    claim = worker.claim(10)[0]
    assert claim.job_id == "poison"
    worker.step(rows=[row(claim, 0, 7)])
    (crash,) = worker.lease.crashed([("poison", claim.epoch, 2)], "Traceback: boom")
    assert (crash.crashes, crash.outcome) == (3, "dead")
    last = wire.reply("poison")[-1]
    assert (last.id, last.reason, last.error) == (f"{claim.epoch + 1}-2", "error", "crashed")
    assert "3 times" in last.message
    (letter,) = wire.dead_letters()
    assert (letter[b"id"], letter[b"payload"], letter[b"crashes"]) == (b"poison", b"payload", b"3")
    assert (letter[b"worker"], letter[b"error"]) == (b"w-last", b"Traceback: boom")
    assert 0 < redis_client.pttl(keys.job("poison")) <= 60_000
    assert [(c.job_id, c.crashes) for c in worker.claim(10)] == [("fine", 1)], "suspected no more"


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "worker"])
def test_a_cancelled_job_at_the_cap_is_cancelled(wire, engine):
    """Whoever cancelled it reads `cancelled`, not the failure that came in between."""
    survivor = WireWorker(wire)
    for name in ("poison", "fine"):
        wire.submit(name)
    for _ in range(2):
        kill_holding(wire, survivor, 2)
    pass_back_off(wire)
    worker = WireWorker(wire, "w-last")
    claim = worker.claim(10)[0]
    assert wire.cancel(claim.job_id) == "cancelling"
    if engine:
        (crash,) = worker.lease.crashed([(claim.job_id, claim.epoch, 2)], "Traceback: boom")
        assert crash.outcome == "dead", "the worker lets go of it"
    else:
        worker.die()
        survivor.lease.reap(())
    assert wire.reply(claim.job_id)[-1].reason == "cancelled"
    assert wire.dead_letters() == []
    assert [one.crashes for one in survivor.claim(10)] == [1], "the other is suspected no more"


def test_the_last_error_of_the_engine_outlives_the_worker(wire):
    survivor = WireWorker(wire)
    wire.submit("poison")
    worker = WireWorker(wire, "w-1", crash_cap=2)
    worker.claim_one()
    worker.lease.crashed([("poison", 1, 0)], "x" * 9000 + "RuntimeError: boom")
    worker.die()
    WireWorker(wire, crash_cap=2).lease.reap(())
    (letter,) = wire.dead_letters()
    assert letter[b"error"].endswith(
        b"RuntimeError: boom\nthen worker w-1 died: its heartbeat ended"
    )
    assert len(letter[b"error"]) <= 4000
    assert survivor.claim() == []


def test_a_cleared_suspect_runs_beside_others(wire):
    survivor = WireWorker(wire)
    for name in ("a", "b"):
        wire.submit(name)
    for _ in range(2):
        kill_holding(wire, survivor, 2)
    for name in ("a", "b"):
        pass_back_off(wire)
        (claim,) = survivor.claim(10)
        assert claim.job_id == name
        survivor.step(returns=[Return(name, claim.epoch, None, True)])
    assert [(c.job_id, c.crashes) for c in survivor.claim(10)] == [("a", 1), ("b", 1)]


def test_one_busy_worker_empties_itself_for_a_suspect(wire, redis_client, keys):
    survivor = WireWorker(wire)
    wire.submit("suspect")
    for _ in range(2):
        kill_holding(wire, survivor, 1)
    pass_back_off(wire)
    redis_client.zadd(keys.suspects, {"suspect": 10**14})  # not yet
    for index in range(4):
        wire.submit(f"j{index}")
    busy, other = WireWorker(wire), WireWorker(wire)
    first, second = busy.claim_one(), other.claim_one()
    pass_back_off(wire)
    assert busy.claim() == []
    assert [claim.job_id for claim in other.claim()] == ["j2"], "the others go on"
    busy.step(ends=[end(first, 0)])
    assert [claim.job_id for claim in busy.claim(5)] == ["suspect"]
    assert second.job_id == "j1"


def test_a_suspect_may_be_cancelled_deleted_and_expire(wire, redis_client, keys):
    survivor = WireWorker(wire)
    for name in ("cancelled", "deleted", "late"):
        wire.submit(name, deadline_ms=60_000)
    for _ in range(2):
        kill_holding(wire, survivor, 3)
    assert wire.cancel("cancelled") == "cancelled"
    assert wire.delete("deleted") == "deleted"
    wire.pass_deadline("late", "deadline_ms")
    pass_back_off(wire)
    assert survivor.claim(10, ALL_TOKENS) == []
    assert wire.reply("late")[-1].reason == "expired"
    assert not redis_client.exists(keys.suspects)


def test_a_suspect_survives_its_group(wire, redis_client, keys):
    survivor = WireWorker(wire)
    wire.submit("suspect")
    for _ in range(2):
        kill_holding(wire, survivor, 1)
    redis_client.xgroup_destroy(keys.jobs("normal"), "workers")
    wire.submit("other")
    assert [claim.job_id for claim in survivor.claim(5)] == ["other"]
    pass_back_off(wire)
    assert [claim.job_id for claim in WireWorker(wire).claim(5)] == ["suspect"]


# ---- in a worker, with engines that die


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture
def start(start: Callable[..., Worker]) -> Callable[..., Worker]:
    def make(options: StubOptions = SLOW, **more: Any) -> Worker:
        return start(options, **more)

    return make


def test_poison_is_found_and_its_neighbours_finish(
    start: Callable[..., Worker], client: Client
) -> None:
    """It is met twice in company, then alone: three deaths, one dead letter, nobody else hurt."""
    wanted = {}
    for index in range(6):
        prompt, tokens = [index + 1], 150
        client.submit(f"j{index}", prompt_ids=prompt, sampling={"max_tokens": tokens})
        wanted[f"j{index}"] = expected_ids(prompt, Sampling(max_tokens=tokens))
    client.submit("poison", prompt_ids=[DEADLY], sampling={"max_tokens": 50})
    worker = start()
    for job_id, ids in wanted.items():
        assert client.result(job_id).ids == ids
        assert int(client.redis.hget(client.keys.job(job_id), "crashes") or 0) < 2
    end_entry = client.result("poison").end
    assert (end_entry.reason, end_entry.error) == ("error", "crashed")
    letters = [fields for _, fields in client.redis.xrange(client.keys.dead)]
    assert [letter[b"id"] for letter in letters] == [b"poison"]
    assert letters[0][b"crashes"] == b"3"
    assert b"RuntimeError: device-side assert triggered" in letters[0][b"error"]
    assert b"Traceback" in letters[0][b"error"]
    assert not client.redis.exists(client.keys.suspects)
    client.submit("after", prompt_ids=[5], sampling={"max_tokens": 3})
    assert len(client.result("after").ids) == 3
    assert worker.end() == 0, "the job was bad, not the engine"


def test_an_innocent_suspect_is_cleared_by_running_alone(
    start: Callable[..., Worker], client: Client, wire: Wire
) -> None:
    survivor = WireWorker(wire)
    tokens = PROBATION_TOKENS + 100
    for name in ("a", "b"):
        client.submit(name, prompt_ids=[1], sampling={"max_tokens": tokens})
    for _ in range(2):
        kill_holding(wire, survivor, 2)
    survivor.lease.leave()
    pass_back_off(wire)
    start()
    for name in ("a", "b"):
        reply = client.result(name)
        assert len(reply.ids) == tokens
        starts = [entry.epoch for entry in reply.entries if entry.event == "start"]
        assert starts == [1, 2, 3, 4], "twice with those who died, alone, and beside the other"
        alone = [e for e in reply.entries if e.epoch == 3 and e.event == "tokens"]
        assert sum(len(entry.ids) for entry in alone) >= PROBATION_TOKENS
    assert wire.dead_letters() == []


def test_two_reapers_of_one_dead_worker_count_one_crash(wire):
    reapers = [WireWorker(wire) for _ in range(2)]
    names = [f"j{number}" for number in range(20)]
    for name in names:
        wire.submit(name)
    worker = WireWorker(wire)
    worker.claim(20)
    worker.die()
    together = threading.Barrier(len(reapers))

    def reap(reaper: WireWorker) -> int:
        together.wait()
        return sum(reaper.lease.reap(()).put_back for _ in range(3))

    with ThreadPoolExecutor(len(reapers)) as threads:
        assert sum(threads.map(reap, reapers)) == len(names)
    assert {wire.record(name)["crashes"] for name in names} == {"1"}
    claims = [claim for reaper in reapers for claim in reaper.claim(20)]
    assert sorted(claim.job_id for claim in claims) == sorted(names)

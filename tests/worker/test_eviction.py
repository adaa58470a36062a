"""Who goes back for whom: the rule, the script that does it, and a worker that is full."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_engine import StubOptions, expected_ids
from wire_tools import ALL_TOKENS, end, row
from wire_tools import Worker as WireWorker
from worker_harness import Client, Worker

from pagestream.producer.keys import LANES
from pagestream.worker.messages import Sampling
from pagestream.worker.queue.calls import Victim, Waiting
from pagestream.worker.queue.eviction import aged_slots, choose_victim

# ---- the rule


@dataclass
class Running:
    id: str
    lane: str = "normal"
    tenant: str = "a"
    epoch: int = 1
    is_aged: bool = False
    context_tokens: int = 16


def choose(jobs, waiting, weights=None, free_tokens=ALL_TOKENS):
    return choose_victim(jobs, waiting, weights or {}, free_tokens=free_tokens, block_tokens=16)


def victim_id(*args, **kwargs) -> str | None:
    victim = choose(*args, **kwargs)
    return victim and victim.job_id


def test_a_better_lane_takes_the_worst_ones_place():
    jobs = [Running("normal"), Running("low", "low"), Running("high", "high")]
    assert choose(jobs, Waiting("high", "b", 10)) == Victim("low", 1, "high", "b", 16)
    assert victim_id(jobs[::2], Waiting("high", "a", 10)) == "normal"
    assert victim_id(jobs[2:], Waiting("high", "a", 10)) is None
    assert victim_id(jobs[:1], Waiting("low", "a", 10)) is None


def test_what_was_claimed_by_age_keeps_its_slot():
    jobs = [Running("old", "low", is_aged=True)]
    assert victim_id(jobs, Waiting("high", "a", 10)) is None
    assert aged_slots(jobs, 16) == 1
    assert aged_slots(jobs, 8) == aged_slots(jobs, 1) == 0


def test_whoever_was_claimed_least_goes_first_and_then_whoever_loses_least():
    jobs = [
        Running("twice", "low", epoch=2, context_tokens=1),
        Running("long", "low", context_tokens=90),
        Running("short", "low", context_tokens=20),
    ]
    assert choose(jobs, Waiting("high", "a", 10)) == Victim("short", 1, "high", "a", 32)


def test_nobody_goes_in_vain():
    jobs = [Running("l1", "low", context_tokens=32), Running("l2", "low", context_tokens=32)]
    assert victim_id(jobs, Waiting("high", "a", 65), free_tokens=0) is None
    assert victim_id(jobs, Waiting("high", "a", 64), free_tokens=0) == "l1"


def test_a_tenant_above_its_share_gives_to_one_below():
    jobs = [Running(f"a{i}") for i in range(4)]
    assert victim_id(jobs, Waiting("normal", "b", 10)) == "a0"
    jobs[0].tenant = "b"
    assert victim_id(jobs, Waiting("normal", "b", 10)) == "a1"
    jobs[1].tenant = "b"
    assert victim_id(jobs, Waiting("normal", "b", 10)) is None


def test_shares_go_by_weight():
    jobs = [Running(f"a{i}") for i in range(6)] + [Running(f"b{i}", tenant="b") for i in range(2)]
    assert victim_id(jobs, Waiting("normal", "b", 10)) == "a0"
    assert victim_id(jobs, Waiting("normal", "b", 10), {"a": 3}) is None
    assert victim_id(jobs, Waiting("normal", "b", 10), {"*": 9, "b": 3}) is None
    assert victim_id(jobs, Waiting("normal", "b", 10), {"*": 3, "b": 3}) == "a0"


def test_a_share_is_not_taken_from_a_better_lane():
    jobs = [Running(f"a{i}", "high") for i in range(4)]
    assert victim_id(jobs, Waiting("normal", "b", 10)) is None


@st.composite
def worlds(draw):
    tenants = ["a", "b", "c", "d"]
    jobs = [
        Running(
            f"j{i}",
            draw(st.sampled_from(LANES)),
            draw(st.sampled_from(tenants)),
            draw(st.integers(1, 3)),
            draw(st.booleans()) and draw(st.booleans()),
            draw(st.integers(1, 200)),
        )
        for i in range(draw(st.integers(1, 12)))
    ]
    weights = {t: draw(st.sampled_from([0.5, 1.0, 2.0, 5.0])) for t in [*tenants, "*"]}
    queue = [Waiting(draw(st.sampled_from(LANES)), draw(st.sampled_from(tenants)), 1)]
    return jobs, weights, queue + [Waiting(lane, t, 1) for lane in LANES for t in tenants]


@settings(deadline=None, derandomize=True, max_examples=300)
@given(worlds())
def test_exchanges_come_to_an_end(world):
    """Every tenant and lane always wants more, victims wait again: still nobody thrashes."""
    jobs, weights, queue = world
    queue = list(queue)
    exchanges = 0
    moved = True
    while moved:
        moved = False
        for place, waiting in enumerate(queue):
            victim = choose(jobs, waiting, weights)
            if victim is None:
                continue
            (gone,) = [job for job in jobs if job.id == victim.job_id]
            assert not gone.is_aged
            assert LANES.index(gone.lane) >= LANES.index(waiting.lane)
            assert gone.lane != waiting.lane or gone.tenant != waiting.tenant
            jobs.remove(gone)
            jobs.append(Running(f"n{exchanges}", waiting.lane, waiting.tenant, gone.epoch + 1))
            queue[place] = Waiting(gone.lane, gone.tenant, 1)
            exchanges += 1
            moved = True
    # Each slot rises through the lanes at most, and moves between tenants until shares are even.
    assert exchanges <= len(jobs) * (len(LANES) + 4)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(worlds())
def test_the_reverse_of_an_exchange_is_never_due(world):
    jobs, weights, queue = world
    waiting = queue[0]
    victim = choose(jobs, waiting, weights)
    if victim is None:
        return
    (gone,) = [job for job in jobs if job.id == victim.job_id]
    after = [job for job in jobs if job is not gone]
    after.append(Running("new", waiting.lane, waiting.tenant))
    back = choose(after, Waiting(gone.lane, gone.tenant, 1), weights)
    assert back is None or back.job_id != "new"


# ---- the script


def full(wire, count: int, lane: str = "low", tenant: str = "default") -> tuple:
    for number in range(count):
        wire.submit(f"{lane}-{number}", lane=lane, tenant=tenant)
    worker = WireWorker(wire)
    return worker, {claim.job_id: claim for claim in worker.claim(count)}


def test_the_victim_goes_back_with_its_progress_and_the_better_job_runs(wire):
    worker, claims = full(wire, 2)
    wire.submit("urgent", lane="high")
    assert worker.step().waiting == ("high", "default", 10)
    reply = worker.step(
        rows=[row(claims["low-0"], 0, 5, 6)], victim=Victim("low-0", 1, "high", "default", 16)
    )
    assert reply.victim_left
    assert [claim.job_id for claim in reply.claims] == ["urgent"]
    assert wire.state("low-0") == "queued"
    assert wire.record("low-0")["crashes"] == "0"
    assert [entry.ids for entry in wire.reply("low-0") if entry.ids] == [(5, 6)]
    assert reply.waiting == ("low", "default", 10)
    again = WireWorker(wire).claim_one()
    assert (again.job_id, again.epoch, again.crashes) == ("low-0", 2, 0)
    assert worker.step(rows=[row(claims["low-0"], 2, 7)]).row_codes == "f"


@pytest.mark.parametrize("waiting", [("normal", "default"), ("high", "other")])
def test_the_room_is_for_whom_it_was_made_only(wire, waiting):
    worker, _ = full(wire, 1)
    wire.submit("urgent", lane="high")
    reply = worker.step(victim=Victim("low-0", 1, *waiting, 16))
    assert not reply.victim_left
    assert reply.claims == []
    assert wire.state("low-0") == "running"


def test_one_waiting_job_moves_one_victim_of_many_workers(wire):
    workers = [full(wire, 1, tenant=f"t{number}")[0] for number in range(1)]
    wire.submit("low-x", lane="low")
    workers.append(WireWorker(wire))
    workers[1].claim_one()
    wire.submit("urgent", lane="high")
    left = [
        worker.step(victim=Victim(job_id, 1, "high", "default", 16)).victim_left
        for worker, job_id in zip(workers, ("low-0", "low-x"), strict=True)
    ]
    assert left == [True, False]
    assert wire.state("low-x") == "running"


def test_room_in_slots_needs_no_victim(wire):
    worker, _ = full(wire, 1)
    wire.submit("urgent", lane="high")
    victim = Victim("low-0", 1, "high", "default", 16)
    reply = worker.step(slots=1, tokens=ALL_TOKENS, victim=victim)
    assert [claim.job_id for claim in reply.claims] == ["urgent"]
    assert not reply.victim_left


def test_a_job_that_needs_the_room_of_several_waits_for_it(wire):
    worker, _ = full(wire, 2)
    wire.submit("urgent", lane="high", tokens_max=30)
    reply = worker.step(victim=Victim("low-0", 1, "high", "default", 16))
    assert reply.victim_left
    assert reply.claims == []
    assert reply.waiting == ("high", "default", 30), "nothing overtakes it, the victim neither"
    reply = worker.step(slots=1, tokens=16, victim=Victim("low-1", 1, "high", "default", 16))
    assert [claim.job_id for claim in reply.claims] == ["urgent"]


def test_a_lost_answer_tells_of_the_exchange(wire):
    worker, _ = full(wire, 1)
    wire.submit("urgent", lane="high")
    victim = Victim("low-0", 1, "high", "default", 16)
    worker.step(victim=victim)
    worker.lease._step -= 1
    reply = worker.step(victim=victim)
    assert reply.status == "already"
    assert reply.victim_left
    assert [claim.job_id for claim in reply.claims] == ["urgent"]


def test_a_cancelled_victim_ends(wire):
    worker, _ = full(wire, 1)
    wire.cancel("low-0")
    wire.submit("urgent", lane="high")
    reply = worker.step(victim=Victim("low-0", 1, "high", "default", 16))
    assert [claim.job_id for claim in reply.claims] == ["urgent"]
    assert wire.state("low-0") == "cancelled"
    assert wire.reply("low-0")[-1].reason == "cancelled"


def test_age_overtakes_better_lanes_in_the_slots_kept_for_it_only(wire):
    for number in range(3):
        wire.submit(f"low-{number}", lane="low", tenant=f"t{number}")
        wire.age(f"low-{number}", 61_000)
    for number in range(3):
        wire.submit(f"high-{number}", lane="high")
    worker = WireWorker(wire)
    claims = worker.step(slots=6, tokens=ALL_TOKENS, aged_slots=1).claims
    assert [(claim.job_id, claim.is_aged) for claim in claims] == [
        ("low-0", True),
        *[(f"high-{number}", False) for number in range(3)],
        ("low-1", False),
        ("low-2", False),
    ]


# ---- fairness by what was computed


def test_a_prompt_is_charged_for_what_it_took(wire, keys, redis_client):
    wire.submit("job", tenant="t", tokens_max=400)
    worker = WireWorker(wire)
    claim = worker.claim_one()
    assert redis_client.zscore(keys.served, "t") == 0, "not before it is known"
    worker.step(rows=[row(claim, 0, 5)], prefills=[("job", 1, 90)])
    assert redis_client.zscore(keys.served, "t") == 91
    worker.step(prefills=[("job", 7, 0)])
    assert redis_client.zscore(keys.served, "t") == 91, "of another claim"


def test_who_comes_before_a_prompt_is_known_does_not_pay_for_its_bound(wire):
    """A claim says the most a prompt may take. To start level with that was to wait for seconds."""
    for number in range(40):
        wire.submit(f"a-{number}", tenant="a", tokens_max=1_000)
    worker = WireWorker(wire)
    claims = worker.claim(20)
    wire.submit("b", tenant="b", tokens_max=10)
    worker.step(prefills=[(claim.job_id, 1, 5) for claim in claims])
    assert [claim.job_id for claim in worker.claim(1)] == ["b"]


def test_served_tokens_count_by_weight(wire, keys, redis_client):
    redis_client.hset(keys.limits, mapping={"big:weight": 4, "*:weight": 2, "odd:weight": "x"})
    for tenant in ("big", "small", "odd"):
        for number in range(40):
            wire.submit(f"{tenant}-{number}", tenant=tenant, tokens_max=10)
    claims = WireWorker(wire).claim(70)
    counts = Counter(claim.tenant for claim in claims)
    # A weight that is none is as none set: 4 : 2 : 1.
    assert counts["big"] == pytest.approx(40, abs=1)
    assert counts["small"] == pytest.approx(20, abs=1)
    assert WireWorker(wire).lease.reap(()).weights == {"big": 4.0, "*": 2.0}


def test_one_that_comes_while_nobody_waits_starts_level_with_who_runs(wire, keys, redis_client):
    wire.submit("a-0", tenant="a", tokens_max=10)
    worker = WireWorker(wire)
    worker.step(rows=[row(worker.claim_one(), 0, *range(500))])
    wire.submit("b-0", tenant="b")
    assert redis_client.zscore(keys.served, "b") == 500, "a owes nothing for having been alone"
    wire.submit("a-1", tenant="a")
    assert redis_client.zscore(keys.ready("normal"), "a") == 500


def test_an_idle_queue_begins_anew(wire, keys, redis_client):
    wire.submit("a-0", tenant="a", tokens_max=900)
    worker = WireWorker(wire)
    claim = worker.claim_one()
    worker.step(ends=[end(claim, 0)])
    wire.submit("b-0", tenant="b")
    assert redis_client.zrange(keys.served, 0, -1, withscores=True) == [(b"b", 0.0)]


# ---- a worker


SLOW = StubOptions(step_s=0.03, max_running=4, max_model_tokens=4_096)
LONG = {"max_tokens": 300, "ignore_eos": True}


def published(client: Client, job_id: str, pipeline: redis.client.Pipeline) -> None:
    pipeline.xrevrange(client.keys.out(job_id), count=1)


def offset_of(entries: list) -> int:
    return int(entries[0][0].split(b"-")[1])


@pytest.mark.parametrize("shortage", ["slots", "blocks"])
def test_a_high_job_starts_within_three_steps_on_a_full_worker(
    start: Callable[..., Worker], client: Client, shortage: str
) -> None:
    # 30 blocks hold four prompts of seven, and not a fifth.
    options = SLOW if shortage == "slots" else replace(SLOW, max_running=64, num_blocks=31)
    start(replace(options, max_model_tokens=400))
    prompt_tokens = 4 if shortage == "slots" else 100
    for number in range(5):
        client.submit(
            f"low-{number}",
            prompt_ids=[number] * prompt_tokens,
            sampling={"max_tokens": 40, "ignore_eos": True},
            options={"lane": "low", "tokens_max": prompt_tokens},
        )
        if number == 0:
            client.wait_tokens("low-0", 2)
    # Each was claimed once; the first has come furthest, so it is not the one that goes.
    client.wait_tokens("low-3", 3)
    assert client.state("low-4") == "queued"
    with client.redis.pipeline(transaction=True) as pipeline:
        published(client, "low-0", pipeline)
        (before,) = pipeline.execute()
    client.submit(
        "urgent",
        prompt_ids=[7] * prompt_tokens,
        sampling={"max_tokens": 2},
        options={"lane": "high", "tokens_max": prompt_tokens},
    )
    while True:
        with client.redis.pipeline(transaction=True) as pipeline:
            published(client, "urgent", pipeline)
            published(client, "low-0", pipeline)
            urgent, now = pipeline.execute()
        if offset_of(urgent) >= 1 and urgent[0][0] != b"0-1":
            break
    assert offset_of(now) - offset_of(before) <= 3
    client.result("urgent")
    epochs: list[int] = []
    for number in range(5):
        reply = client.result(f"low-{number}")
        assert reply.ids == expected_ids([number] * prompt_tokens, Sampling(max_tokens=40))
        epochs.append(reply.end.epoch)
        assert client.redis.hget(client.keys.job(f"low-{number}"), "crashes") == b"0"
    assert sorted(epochs) == [1, 1, 1, 1, 2]
    assert epochs[0] == 1


def test_as_many_go_as_it_takes_and_no_more(start: Callable[..., Worker], client: Client) -> None:
    # Four prompts of seven blocks leave two of 30; the next one needs 13.
    start(replace(SLOW, max_running=64, num_blocks=31, max_model_tokens=400))
    for number in range(4):
        client.submit(
            f"low-{number}",
            prompt_ids=[number] * 100,
            sampling={"max_tokens": 11, "ignore_eos": True},
            options={"lane": "low", "tokens_max": 100},
        )
    client.wait_tokens("low-3", 1)
    client.submit(
        "urgent",
        prompt_ids=[7] * 200,
        sampling={"max_tokens": 2, "ignore_eos": True},
        options={"lane": "high", "tokens_max": 200},
    )
    assert client.result("urgent").end.epoch == 1
    epochs = [client.result(f"low-{number}").end.epoch for number in range(4)]
    assert sorted(epochs) == [1, 1, 2, 2]


def test_a_tenant_with_every_slot_gives_one_up(
    start: Callable[..., Worker], client: Client
) -> None:
    start(SLOW)
    for number in range(12):
        client.submit(
            f"a-{number}", prompt_ids=[number], sampling=LONG, options={"tenant": "flood"}
        )
    client.wait_tokens("a-3", 2)
    client.submit("b", prompt_ids=[9], sampling={"max_tokens": 3, "ignore_eos": True})
    assert len(client.result("b").ids) == 3
    states = Counter(client.state(f"a-{number}") for number in range(12))
    assert states["done"] == 0, "it waited for nobody's end"
    for number in range(12):
        client.cancel(f"a-{number}")
        assert client.result(f"a-{number}").end.reason == "cancelled"


def test_two_workers_share_one_account_of_weighted_tokens(
    start: Callable[..., Worker], client: Client
) -> None:
    client.redis.hset(client.keys.limits, "heavy:weight", 2)
    sampling = {"max_tokens": 10, "ignore_eos": True}
    for number in range(90):
        for tenant in ("heavy", "light"):
            options = {"tenant": tenant, "tokens_max": 3}
            prompt = [number, len(tenant), 7]
            client.submit(
                f"{tenant}-{number}", prompt_ids=prompt, sampling=sampling, options=options
            )
    for _ in range(2):
        start(replace(SLOW, step_s=0.01, max_running=3))
    client.result("heavy-59")
    done = Counter(
        tenant
        for number in range(90)
        for tenant in ("heavy", "light")
        if client.state(f"{tenant}-{number}") == "done"
    )
    assert done["heavy"] / done["light"] == pytest.approx(2, rel=0.25)
    for number in range(90):
        client.cancel(f"heavy-{number}")
        client.cancel(f"light-{number}")

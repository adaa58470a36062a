"""What a step claims: credit, order, lanes and ageing, tenants, the shelf, and what it drops."""

import json
import threading
from collections import Counter

import pytest
from wire_tools import ALL_TOKENS, Worker, end, row

from pagestream.producer.connection import connect
from pagestream.worker.queue.calls import StepCall


def names(claims) -> list[str]:
    return [claim.job_id for claim in claims]


# ---- the claim


def test_a_claim_has_all_there_is_to_know(wire):
    wire.submit("job", b"\x00\xffpayload", lane="low", tenant="t", deadline_ms=9000, mirror=True)
    worker = Worker(wire)
    claim = worker.claim_one()
    record = wire.record("job")
    assert claim == (
        "job",
        1,
        0,
        "low",
        "t",
        b"\x00\xffpayload",
        int(record["queued_ms"]),
        int(record["queued_ms"]) + 9000,
        True,
        False,
        "",
        "",
    )
    assert (record["state"], record["owner"], record["epoch"]) == ("running", worker.name, "1")
    start = wire.reply("job")[-1]
    assert (start.id, start.event, start.worker) == ("1-0", "start", worker.name)


def test_jobs_are_claimed_in_order_of_submission(wire):
    submitted = [f"job-{number}" for number in range(20)]
    for job_id in submitted:
        wire.submit(job_id)
    worker = Worker(wire)
    assert names(worker.claim(7)) + names(worker.claim(100)) == submitted
    assert worker.claim(100) == []


# ---- credit


def test_no_slot_no_claim(wire):
    wire.submit("job")
    worker = Worker(wire)
    assert worker.claim(slots=0) == []
    assert wire.state("job") == "queued"
    assert wire.pending(worker.name) == 0


def test_tokens_bound_the_claims(wire):
    for number in range(4):
        wire.submit(f"job-{number}", tokens_max=40)
    worker = Worker(wire)
    assert names(worker.claim(slots=10, tokens=100)) == ["job-0", "job-1"]
    assert wire.state("job-2") == "queued"
    assert wire.ids("job-2") == ["0-1"], "what does not fit is not touched"
    assert names(worker.claim(slots=10, tokens=80)) == ["job-2", "job-3"]


def test_nothing_overtakes_a_job_that_does_not_fit(wire):
    wire.submit("big", tokens_max=500)
    wire.submit("small", tokens_max=1)
    wire.submit("low", tokens_max=1, lane="low")
    worker = Worker(wire)
    reply = worker.step(slots=10, tokens=499)
    assert reply.claims == []
    assert reply.waiting[:2] == ("normal", "default")
    assert names(worker.claim(slots=10, tokens=502)) == ["big", "small", "low"]


def test_a_bound_beyond_the_context_counts_as_the_context(wire):
    # MODEL has a context of 1,000 tokens: an empty worker must be able to take any job.
    wire.submit("job", tokens_max=10**9)
    worker = Worker(wire)
    assert worker.claim(tokens=999) == []
    assert names(worker.claim(tokens=1000)) == ["job"]


def test_a_full_worker_hears_who_waits(wire):
    worker = Worker(wire)
    assert worker.step().waiting is None
    wire.submit("a", lane="low", tenant="t")
    assert worker.step().waiting[:2] == ("low", "t")
    wire.submit("b", lane="high")
    assert worker.step().waiting[:2] == ("high", "default")
    assert worker.step(slots=2, tokens=ALL_TOKENS).waiting is None


# ---- lanes and ageing


def test_lanes_in_order_of_urgency(wire):
    for lane in ("low", "normal", "high"):
        for number in range(2):
            wire.submit(f"{lane}-{number}", lane=lane)
    expected = ["high-0", "high-1", "normal-0", "normal-1", "low-0", "low-1"]
    assert names(Worker(wire).claim(10)) == expected


@pytest.mark.parametrize(
    ("waited_ms", "first"),
    [(0, "high"), (29_000, "high"), (59_000, "high"), (61_000, "low")],
)
def test_a_low_job_counts_as_high_after_two_ages(wire, waited_ms, first):
    wire.submit("low", lane="low")
    wire.age("low", waited_ms)
    wire.submit("high", lane="high")
    assert names(Worker(wire).claim(1)) == [first]


def test_an_aged_normal_job_goes_before_a_younger_high_one(wire):
    wire.submit("normal")
    wire.age("normal", 31_000)
    wire.submit("high", lane="high")
    assert names(Worker(wire).claim(2)) == ["normal", "high"]


def test_age_does_not_lift_above_an_older_job(wire):
    wire.submit("high", lane="high")
    wire.age("high", 600_000)
    wire.submit("low", lane="low")
    wire.age("low", 500_000)
    assert names(Worker(wire).claim(2)) == ["high", "low"]


# ---- tenants


def test_a_flood_of_one_tenant_does_not_starve_another(wire):
    for number in range(20):
        wire.submit(f"a-{number}", tenant="a", tokens_max=10)
    worker = Worker(wire)
    worker.claim(4)
    wire.submit("b-0", tenant="b", tokens_max=10)
    wire.submit("b-1", tenant="b", tokens_max=10)
    claimed = names(worker.claim(4))
    assert {"b-0", "b-1"} < set(claimed), "b starts level with a, and they take turns"
    assert len([name for name in claimed if name.startswith("a")]) == 2


def test_published_tokens_are_charged(wire, keys, redis_client):
    for tenant in ("a", "b"):
        for number in range(3):
            wire.submit(f"{tenant}-{number}", tenant=tenant, tokens_max=10)
    worker = Worker(wire)
    (first,) = worker.claim(1)
    worker.step(rows=[row(first, 0, *range(50))])
    assert redis_client.zscore(keys.served, first.tenant) == 50
    assert redis_client.zscore(keys.ready("normal"), first.tenant) == 50
    others = [claim.tenant for claim in worker.claim(3)]
    assert others == ["b" if first.tenant == "a" else "a"] * 3, "they owe 50 to 0"


def test_a_tenant_that_comes_back_is_owed_nothing_for_its_absence(wire, keys, redis_client):
    for number in range(10):
        wire.submit(f"a-{number}", tenant="a", tokens_max=100)
    worker = Worker(wire)
    worker.step(prefills=[(claim.job_id, 1, 100) for claim in worker.claim(5)])
    wire.submit("b", tenant="b")
    assert redis_client.zscore(keys.ready("normal"), "b") == 500


def test_a_tenant_whose_jobs_have_all_ended_starts_level_with_who_runs(wire, keys, redis_client):
    wire.submit("a", tenant="a")
    wire.submit("b", tenant="b")
    wire.submit("c", tenant="c")
    worker = Worker(wire)
    claims = {claim.job_id: claim for claim in worker.claim(3)}
    worker.step(
        ends=[end(claims["a"], 0), end(claims["c"], 0)],
        prefills=[("a", 1, 10), ("b", 1, 500), ("c", 1, 20)],
    )
    wire.submit("c-1", tenant="c")
    assert redis_client.zscore(keys.ready("normal"), "c") == 500
    left = dict(redis_client.zrange(keys.served, 0, -1, withscores=True))
    assert left == {b"b": 500, b"c": 500}, "a has no job and less than whoever runs"


def test_everything_begins_anew_where_nobody_has_a_job(wire, keys, redis_client):
    worker = Worker(wire)
    for tenant in ("a", "b"):
        wire.submit(tenant, tenant=tenant)
        claim = worker.claim_one()
        worker.step(ends=[end(claim, 0)], prefills=[(tenant, 1, 100)])
    redis_client.zadd(keys.served, {"a": 70, "c": 90})
    wire.submit("b-1", tenant="b")
    assert redis_client.zrange(keys.served, 0, -1, withscores=True) == [(b"b", 0)]


def test_a_tenant_cannot_wash_off_what_it_was_served_by_leaving(wire, keys, redis_client):
    for number in range(3):
        wire.submit(f"b-{number}", tenant="b", tokens_max=10)
    wire.submit("a-0", tenant="a", tokens_max=1000)
    worker = Worker(wire)
    claims = {claim.job_id: claim for claim in worker.claim(2)}
    worker.step(ends=[end(claims["a-0"], 0)], prefills=[("a-0", 1, 1000), ("b-0", 1, 10)])
    wire.submit("a-1", tenant="a")
    assert redis_client.zscore(keys.ready("normal"), "a") == 1000
    assert [claim.tenant for claim in worker.claim(3)] == ["b", "b", "a"]


def test_tenants_without_jobs_are_forgotten(wire, keys, redis_client):
    wire.submit("job", tenant="t149")
    redis_client.zadd(keys.served, {f"t{number}": number for number in range(150)})
    redis_client.zadd(keys.ready("normal"), {"t149": 149})
    worker = Worker(wire)
    worker.lease.reap(())
    left = {name.decode() for name in redis_client.zrange(keys.served, 0, -1)}
    assert "t149" in left
    assert len(left) == 50


# ---- the shelf


def test_a_job_handed_back_comes_before_younger_ones(wire):
    for number in range(4):
        wire.submit(f"job-{number}")
    worker, other = Worker(wire), Worker(wire)
    worker.claim(3)
    worker.step(returns=[("job-2", 1), ("job-0", 1)])
    assert wire.pending("returned") == 2
    assert names(other.claim(10)) == ["job-0", "job-2", "job-3"]
    assert wire.pending("returned") == 0
    assert wire.pending(other.name) == 3


def test_hand_back_keeps_progress_and_counts_no_crash(wire):
    wire.submit("job")
    worker, other = Worker(wire), Worker(wire)
    claim = worker.claim_one()
    worker.step(rows=[row(claim, 0, 5, 6)], returns=[("job", claim.epoch)])
    assert wire.state("job") == "queued"
    again = other.claim_one()
    assert (again.epoch, again.crashes) == (2, 0)
    tokens = [entry for entry in other.lease.replay("job") if entry.event == "tokens"]
    assert [entry.ids for entry in tokens] == [(5, 6)]
    assert other.step(rows=[row(again, 2, 7)]).row_codes == "k"
    assert other.step(ends=[end(again, 3)]).end_codes == "k"
    assert wire.ids("job") == ["0-1", "1-0", "1-2", "2-0", "2-3", "2-4"]


def test_a_better_known_length_counts_from_then_on(wire):
    wire.submit("job", tokens_max=10)
    worker = Worker(wire)
    worker.claim_one()
    worker.step(returns=[("job", 1, 70)])
    assert worker.claim(tokens=69) == []
    assert names(worker.claim(tokens=70)) == ["job"]


def test_hand_back_and_claim_in_one_step(wire):
    wire.submit("low", lane="low")
    worker = Worker(wire)
    worker.claim_one()
    wire.submit("high", lane="high")
    reply = worker.step(returns=[("low", 1)], slots=1, tokens=ALL_TOKENS)
    assert names(reply.claims) == ["high"], "the victim's slot goes to the better job"
    assert reply.waiting[:2] == ("low", "default")


# ---- what cannot be claimed


def test_a_job_that_waited_too_long_is_never_run(wire):
    wire.submit("late", queue_timeout_ms=60_000)
    wire.submit("next", queue_timeout_ms=60_000)
    wire.pass_deadline("late", "queue_deadline_ms")
    assert names(Worker(wire).claim(10)) == ["next"]
    last = wire.reply("late")[-1]
    assert (last.id, last.reason, last.error) == ("1-1", "expired", "expired")
    assert wire.state("late") == "expired"
    assert wire.lane_entries() == 1


def test_a_full_worker_still_expires_what_waited_too_long(wire):
    wire.submit("late", queue_timeout_ms=60_000)
    wire.pass_deadline("late", "queue_deadline_ms")
    assert Worker(wire).step().waiting is None
    assert wire.state("late") == "expired"


def test_a_queue_timeout_is_for_the_first_claim_only(wire):
    wire.submit("job", queue_timeout_ms=60_000)
    worker = Worker(wire)
    worker.claim_one()
    worker.step(returns=[("job", 1)])
    wire.pass_deadline("job", "queue_deadline_ms")
    assert worker.claim_one().epoch == 2


def test_a_deadline_holds_for_a_job_handed_back(wire):
    wire.submit("job", deadline_ms=60_000)
    worker = Worker(wire)
    claim = worker.claim_one()
    worker.step(rows=[row(claim, 0, 5)], returns=[("job", 1)])
    wire.pass_deadline("job", "deadline_ms")
    assert worker.claim(10) == []
    assert wire.reply("job")[-1].reason == "expired"
    assert wire.ids("job")[-1] == "2-2"


def test_entries_nobody_submitted_are_buried(wire, keys, redis_client):
    wire.submit("good")
    stream = keys.jobs("normal")
    redis_client.xadd(stream, {"junk": b"\xff\x00"})
    redis_client.xadd(stream, {"id": "unknown"})
    redis_client.set(keys.job("string"), "not a hash")
    redis_client.xadd(stream, {"id": "string"})
    redis_client.hset(keys.job("half"), "state", "queued")
    redis_client.xadd(stream, {"id": "half"})
    redis_client.xadd(stream, {"id": "good"})
    wire.submit("last")
    assert names(Worker(wire).claim(10)) == ["good", "last"]
    assert wire.lane_entries() == 2
    letters = wire.dead_letters()
    assert [letter[b"reason"] for letter in letters] == [b"malformed"] * 4
    assert json.loads(letters[1][b"entry"]) == ["id", "unknown"]


def test_of_a_huge_entry_that_nobody_submitted_little_is_kept(wire, keys, redis_client):
    wire.submit("first")
    for fields in ({"id": b"x" * 10**8}, {b"\0" * 10**6: b""}, dict.fromkeys(range(10**5), "x")):
        redis_client.xadd(keys.jobs("normal"), fields)
    wire.submit("last")
    assert names(Worker(wire).claim(10)) == ["first", "last"]
    entries = [letter[b"entry"] for letter in wire.dead_letters()]
    assert [json.loads(entry)[0][:2] for entry in entries] == ["id", "\0\0", "0"]
    assert max(map(len, entries)) < 10_000


def test_a_thousand_useless_entries_do_not_hide_the_job_behind_them(wire, keys, redis_client):
    wire.submit("first")
    pipeline = redis_client.pipeline()
    for _ in range(600):
        pipeline.xadd(keys.jobs("normal"), {"id": "unknown"})
    pipeline.execute()
    wire.submit("last")
    worker = Worker(wire)
    claimed = []
    bell_id = "0-0"
    for _ in range(3):
        call = StepCall(slots=10, tokens=ALL_TOKENS)
        reply = worker.lease.wait_and_step(call, bell_id, 1)
        assert reply.bell_id != bell_id, "the bell says that there is more"
        claimed += names(reply.claims)
        bell_id = reply.bell_id
    assert claimed == ["first", "last"]
    assert not worker.is_rung(bell_id, 1)


def test_a_key_of_another_type_harms_nobody(wire, keys, redis_client):
    redis_client.set(keys.jobs("normal", "odd"), "a string")
    redis_client.zadd(keys.ready("normal"), {"odd": 0})
    wire.submit("job")
    assert names(Worker(wire).claim(10)) == ["job"]


def test_a_reply_deleted_in_the_queue_cancels_the_job(wire, keys, redis_client):
    wire.submit("job")
    redis_client.delete(keys.out("job"))
    worker = Worker(wire)
    assert worker.claim(10) == []
    assert wire.state("job") == "cancelled"
    assert wire.reply("job") == []
    assert wire.lane_entries() == 0
    assert worker.lease.reap(()).lost == ()


def test_a_reply_ahead_of_its_record_is_passed(wire, keys, redis_client):
    wire.submit("job")
    redis_client.xadd(keys.out("job"), {"event": "start", "worker": "w"}, id="7-0")
    claim = Worker(wire).claim_one()
    assert claim.epoch == 8
    assert wire.ids("job")[-1] == "8-0"


def test_a_deleted_group_is_made_again_and_nothing_runs_twice(wire, keys, redis_client):
    for number in range(4):
        wire.submit(f"job-{number}")
    first, second = Worker(wire), Worker(wire)
    running = first.claim(2)
    redis_client.xgroup_destroy(keys.jobs("normal"), "workers")
    assert names(second.claim(10)) == ["job-2", "job-3"]
    assert wire.pending(first.name) == 2, "the pending list is made again from the records"
    assert first.step(rows=[row(running[0], 0, 5)]).row_codes == "k"
    ends = [end(running[0], 1), end(running[1], 0)]
    assert first.step(ends=ends).end_codes == "kk"
    assert wire.lane_entries() == 2


# ---- many at once


def test_two_workers_racing_claim_each_job_once(wire, redis_url):
    jobs = {f"job-{number}" for number in range(500)}
    for job_id in jobs:
        wire.submit(job_id)
    claimed: dict[int, list[str]] = {0: [], 1: []}
    barrier = threading.Barrier(2)

    def work(index: int) -> None:
        with connect(redis_url, client_name=f"race-{index}") as client:
            worker = Worker(type(wire)(client, wire.keys))
            barrier.wait()
            while claims := worker.claim(slots=7):
                claimed[index] += names(claims)
                worker.step(ends=[end(claim, 0) for claim in claims])

    threads = [threading.Thread(target=work, args=(index,)) for index in claimed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(Counter(claimed[0] + claimed[1]).values()) == {1}
    assert set(claimed[0] + claimed[1]) == jobs
    assert claimed[0], "a race needs two"
    assert claimed[1], "a race needs two"
    assert wire.lane_entries() == 0
    assert {wire.state(job_id) for job_id in jobs} == {"done"}

"""What a step publishes and what it refuses: fencing, duplicates, gone replies, one end a job."""

import json

import pytest
from wire_tools import Worker, end, row

from pagestream.producer.errors import InvalidRequest, WorkerReplaced
from pagestream.worker.queue.lease import Lease, Row, StepCall


@pytest.fixture
def worker(wire) -> Worker:
    return Worker(wire)


@pytest.fixture
def claim(wire, worker):
    wire.submit("job")
    return worker.claim_one()


# ---- publishing


def test_rows_are_published_in_order_and_readable(wire, worker, claim):
    codes = worker.step(
        rows=[row(claim, 0, 5, text="a"), row(claim, 1, 6, 7, text="ü\x00 "), row(claim, 3, 8)]
    ).row_codes
    assert codes == "kkk"
    tokens = [entry for entry in wire.reply("job") if entry.event == "tokens"]
    assert [entry.id for entry in tokens] == ["1-1", "1-3", "1-4"]
    assert [entry.start for entry in tokens] == [0, 1, 3]
    assert [entry.ids for entry in tokens] == [(5,), (6, 7), (8,)]
    assert [entry.text for entry in tokens] == ["a", "ü\x00 ", "x"]


def test_choices_share_one_stream(wire, worker, claim):
    rows = [Row("job", 1, 1, 0, 0, [5], "a"), Row("job", 1, 2, 1, 0, [6], "b")]
    worker.step(rows=rows)
    assert [(entry.id, entry.choice) for entry in wire.reply("job")[2:]] == [("1-1", 0), ("1-2", 1)]


def test_the_terminal_entry_says_everything(wire, worker, claim, keys, redis_client):
    code = worker.step(
        rows=[row(claim, 0, 5)], ends=[end(claim, 1, "length", text="tail")]
    ).end_codes
    assert code == "k"
    last = wire.reply("job")[-1]
    assert (last.id, last.event, last.reason, last.text) == ("1-2", "end", "length", "tail")
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 1)
    assert last.timings.total_ms == 1.5
    assert (last.error, last.message) == ("", "")
    record = wire.record("job")
    assert (record["state"], record["reason"], record["owner"]) == ("done", "length", "")
    assert int(record["finished_ms"]) >= int(record["claimed_ms"])


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("stop", "done"),
        ("length", "done"),
        ("cancelled", "cancelled"),
        ("expired", "expired"),
        ("error", "failed"),
    ],
)
def test_each_reason_has_its_state(wire, worker, claim, reason, state):
    worker.step(ends=[end(claim, 0, reason, error="bad", message="why")])
    assert wire.state("job") == state
    last = wire.reply("job")[-1]
    assert (last.reason, last.error, last.message) == (reason, "bad", "why")


def test_finishing_leaves_no_lane_entry_and_sets_the_retention(wire, keys, redis_client):
    wire.submit("job", retention_ms=60_000)
    worker = Worker(wire)
    claim = worker.claim_one()
    worker.step(ends=[end(claim, 0)])
    assert not redis_client.exists(keys.jobs("normal"), keys.ready("normal"))
    assert not redis_client.exists(keys.running(worker.name))
    for key in (keys.job("job"), keys.out("job")):
        assert 50_000 < redis_client.pttl(key) <= 60_000


# ---- refusing


def test_a_duplicate_is_refused(wire, worker, claim):
    assert (
        worker.step(rows=[row(claim, 0, 5), row(claim, 0, 6), row(claim, 1, 7)]).row_codes == "kdk"
    )
    assert wire.ids("job") == ["0-1", "1-0", "1-1", "1-2"]


def test_the_owner_of_an_earlier_epoch_is_fenced(wire, worker, claim):
    successor = Worker(wire)
    worker.die()
    assert successor.lease.reap(()).put_back == 1
    again = successor.claim_one()
    assert again.epoch == 2
    # The first worker wakes, and its step key is gone with it.
    assert worker.step(rows=[row(claim, 0, 5)], ends=[end(claim, 1)]).status == "rollback"
    (tail,) = worker.lease.resync([("job", 1)])
    assert not tail.owned
    reply = worker.step(rows=[row(claim, 0, 5)], ends=[end(claim, 1)], returns=[("job", 1)])
    assert (reply.row_codes, reply.end_codes) == ("f", "f")
    assert wire.ids("job") == ["0-1", "1-0", "2-0"]
    assert wire.state("job") == "running"
    assert wire.record("job")["owner"] == successor.name


def test_another_workers_job_is_fenced_at_the_same_epoch(wire, worker, claim):
    other = Worker(wire)
    reply = other.step(rows=[row(claim, 0, 5)], ends=[end(claim, 1)], returns=[("job", 1)])
    assert (reply.row_codes, reply.end_codes) == ("f", "f")
    assert wire.state("job") == "running"
    assert worker.step(rows=[row(claim, 0, 5)]).row_codes == "k"


def test_the_same_worker_is_fenced_at_its_own_earlier_epoch(wire, worker, claim):
    worker.step(returns=[("job", 1)])
    again = worker.claim_one()
    assert worker.step(rows=[row(claim, 0, 5), row(again, 0, 6)]).row_codes == "fk"
    assert wire.ids("job") == ["0-1", "1-0", "2-0", "2-1"]


def test_one_fenced_row_harms_no_other(wire):
    wire.submit("a")
    wire.submit("b")
    worker, other = Worker(wire), Worker(wire)
    mine, theirs = worker.claim_one(), other.claim_one()
    reply = worker.step(rows=[row(theirs, 0, 5), row(mine, 0, 5)])
    assert reply.row_codes == "fk"


def test_a_job_ends_once(wire, worker, claim):
    reply = worker.step(ends=[end(claim, 0), end(claim, 5, "error")])
    assert reply.end_codes == "kf"
    assert worker.step(rows=[row(claim, 0, 5)], ends=[end(claim, 1, "error")]).end_codes == "f"
    assert [entry.event for entry in wire.reply("job")] == ["queued", "start", "end"]
    assert wire.state("job") == "done"


def test_an_end_with_a_stale_offset_still_ends_the_job(wire, worker, claim):
    worker.step(rows=[row(claim, 0, 5, 6, 7)])
    assert worker.step(ends=[end(claim, 1)]).end_codes == "k"
    assert wire.ids("job")[-1] == "1-4"
    assert wire.state("job") == "done"


def test_a_deleted_reply_cancels_and_is_not_resurrected(wire, worker, claim, keys, redis_client):
    worker.step(rows=[row(claim, 0, 5)])
    redis_client.delete(keys.out("job"))
    assert worker.step(rows=[row(claim, 1, 6)]).row_codes == "g"
    assert not redis_client.exists(keys.out("job"))
    assert wire.state("job") == "cancelled"
    assert wire.lane_entries() == 0
    assert worker.step(rows=[row(claim, 2, 7)], ends=[end(claim, 3)]).end_codes == "f"
    assert not redis_client.exists(keys.out("job"))


def test_an_end_into_a_deleted_reply_closes_the_job(wire, worker, claim, keys, redis_client):
    redis_client.delete(keys.out("job"))
    assert worker.step(ends=[end(claim, 0)]).end_codes == "g"
    assert wire.state("job") == "done"
    assert not redis_client.exists(keys.out("job"))
    assert wire.lane_entries() == 0


def test_a_reply_of_another_type_harms_nobody(wire, worker, claim, keys, redis_client):
    redis_client.delete(keys.out("job"))
    redis_client.set(keys.out("job"), "a string")
    wire.submit("other")
    other = worker.claim_one()
    assert worker.step(rows=[row(claim, 0, 5), row(other, 0, 5)]).row_codes == "gk"


def test_a_record_deleted_by_hand_frees_its_worker(wire, worker, claim, keys, redis_client):
    redis_client.delete(keys.job("job"))
    assert worker.step(ends=[end(claim, 0)]).end_codes == "g"
    assert worker.lease.reap(()).lost == ()


def test_the_record_decides_where_the_index_is_lost(wire, worker, claim, keys, redis_client):
    redis_client.delete(keys.running(worker.name))
    assert worker.step(rows=[row(claim, 0, 5)]).row_codes == "k"
    assert redis_client.hget(keys.running(worker.name), "job") == b"1 0 default"


# ---- mirrors


def test_the_mirror_says_the_same_as_the_stream(wire, keys, redis_client):
    wire.submit("job", mirror=True)
    wire.submit("quiet")
    subscriber = redis_client.pubsub(ignore_subscribe_messages=True)
    with subscriber:
        subscriber.subscribe(keys.tokens("job"), keys.tokens("quiet"))
        subscriber.get_message(timeout=5)
        subscriber.get_message(timeout=5)
        worker = Worker(wire)
        claim, quiet = worker.claim(2)
        worker.step(rows=[row(claim, 0, 5, 6, text="né"), row(quiet, 0, 1)])
        worker.step(ends=[end(claim, 2, text="!"), end(quiet, 1)])
        frames = []
        while message := subscriber.get_message(timeout=0.2):
            assert message["channel"] == keys.tokens("job").encode()
            frames.append(json.loads(message["data"]))
    stream = [
        {"id": entry_id.decode()}
        | {name.decode(): value.decode() for name, value in fields.items()}
        for entry_id, fields in redis_client.xrange(keys.out("job"))
    ]
    assert frames == stream[1:], "everything but the queued entry"
    assert frames[1]["text"] == "né"


def test_the_mirror_hears_an_end_that_no_worker_wrote(wire, keys, redis_client):
    wire.submit("job", mirror=True)
    with redis_client.pubsub(ignore_subscribe_messages=True) as subscriber:
        subscriber.subscribe(keys.tokens("job"))
        subscriber.get_message(timeout=5)
        wire.cancel("job")
        message = subscriber.get_message(timeout=5)
    assert json.loads(message["data"])["reason"] == "cancelled"


# ---- the step key


def test_a_step_sent_twice_is_applied_once(wire, worker, claim):
    call = StepCall(rows=[row(claim, 0, 5)])
    assert worker.lease.step(call).status == "applied"
    worker.lease._step -= 1  # as if the answer had been lost
    reply = worker.lease.step(call)
    assert (reply.status, reply.row_codes) == ("already", "k")
    assert wire.ids("job") == ["0-1", "1-0", "1-1"]
    assert worker.step(rows=[row(claim, 1, 6)]).status == "applied"


def test_claims_of_a_lost_answer_come_again(wire, worker):
    for number in range(3):
        wire.submit(f"job-{number}", b"payload")
    worker.claim(1)
    call = StepCall(slots=2, tokens=100)
    first = worker.lease.step(call)
    worker.lease._step -= 1
    second = worker.lease.step(call)
    assert second.status == "already"
    assert {claim.job_id for claim in second.claims} == {"job-0", "job-1", "job-2"}
    assert [claim for claim in second.claims if claim.job_id != "job-0"] == first.claims
    assert wire.record("job-1")["epoch"] == "1", "recovered, not claimed again"


def test_codes_of_a_lost_answer_are_told_again(wire, worker, keys, redis_client):
    for number in range(4):
        wire.submit(f"job-{number}")
    other = Worker(wire)
    claims = [*worker.claim(3), other.claim_one()]
    redis_client.delete(keys.job("job-2"))
    rows = [row(claim, 0, 5) for claim in claims]
    call = StepCall(rows=rows, ends=[end(claims[0], 1), end(claims[2], 1), end(claims[3], 1)])
    worker.lease.step(call)
    worker.lease._step -= 1
    reply = worker.lease.step(call)
    assert (reply.status, reply.row_codes, reply.end_codes) == ("already", "kkgf", "kgf")


def test_control_messages_of_a_lost_answer_come_again(wire, worker, claim):
    wire.cancel("job")
    call = StepCall()
    assert len(worker.lease.step(call).controls) == 1
    worker.lease._step -= 1
    worker.lease._control_id = "0-0"
    assert len(worker.lease.step(call).controls) == 1


def test_another_step_than_the_unanswered_one_is_a_mistake(wire, worker):
    held, worker.lease._held = worker.lease._held, object()
    call = StepCall()
    with pytest.raises(AttributeError):
        worker.lease.step(call)
    with pytest.raises(AssertionError, match="resend"):
        worker.lease.step(StepCall())
    worker.lease._held = held
    assert worker.lease.step(call).status == "applied"


def test_a_process_that_takes_the_name_fences_the_one_before(wire, worker, claim):
    worker.die()
    new = Worker(wire, worker.name)
    assert wire.record("job")["crashes"] == "1"
    assert new.claim_one().epoch == 2
    assert worker.step(rows=[row(claim, 0, 5)]).status == "rollback"
    with pytest.raises(WorkerReplaced, match=worker.name):
        worker.lease.resync([("job", 1)])
    assert wire.ids("job") == ["0-1", "1-0", "2-0"]
    worker.lease.leave()
    assert new.step().status == "applied", "the old one's leave says nothing"


# ---- rollback


class OldState:
    """Everything the queue's keys hold, to be put back later: what an old AOF would load."""

    def __init__(self, wire) -> None:
        self.redis, self.pattern = wire.redis, f"{wire.keys.prefix}*"
        self.dumps = {key: self.redis.dump(key) for key in self.redis.scan_iter(self.pattern)}

    def put_back(self) -> None:
        for key in list(self.redis.scan_iter(self.pattern)):
            self.redis.delete(key)
        for key, dump in self.dumps.items():
            self.redis.restore(key, 0, dump)


def test_forgotten_tokens_are_published_again(wire, worker, claim):
    worker.step(rows=[row(claim, 0, 5, 6)])
    old = OldState(wire)
    worker.step(rows=[row(claim, 2, 7)])
    worker.step(rows=[row(claim, 3, 8)])
    old.put_back()
    reply = worker.step(rows=[row(claim, 4, 9)], ends=[end(claim, 5)], slots=5, tokens=100)
    assert reply.status == "rollback"
    assert (reply.row_codes, reply.claims) == ("", [])
    assert wire.ids("job") == ["0-1", "1-0", "1-2"], "nothing was written into the gap"
    (tail,) = worker.lease.resync([("job", 1)])
    assert (tail.owned, tail.offset, tail.last_id, tail.state) == (True, 2, "1-2", "running")
    rows = [row(claim, 2, 7, 8), row(claim, 4, 9)]
    assert worker.step(rows=rows, ends=[end(claim, 5)]).row_codes == "kk"
    assert wire.ids("job") == ["0-1", "1-0", "1-2", "1-4", "1-5", "1-6"]


def test_a_forgotten_claim_is_dropped(wire, worker):
    wire.submit("job")
    old = OldState(wire)
    claim = worker.claim_one()
    worker.step(rows=[row(claim, 0, 5)])
    old.put_back()
    assert worker.step(rows=[row(claim, 1, 6)]).status == "rollback"
    (tail,) = worker.lease.resync([("job", 1)])
    assert (tail.owned, tail.state, tail.offset) == (False, "queued", 0)
    other = Worker(wire)
    again = other.claim_one()
    assert again.epoch == claim.epoch, "two workers have held the same epoch"
    assert worker.step(rows=[row(claim, 1, 6)]).row_codes == "f", "the owner decides"
    assert other.step(rows=[row(again, 0, 5)]).row_codes == "k"


def test_a_forgotten_end_gives_the_job_back(wire, worker, claim):
    old = OldState(wire)
    worker.step(rows=[row(claim, 0, 5)], ends=[end(claim, 1)])
    old.put_back()
    assert worker.step().status == "rollback"
    assert worker.lease.resync([]) == []
    assert worker.lease.reap(()).lost == (("job", 1),)
    worker.step()
    assert wire.state("job") == "queued"
    again = worker.claim_one()
    assert (again.epoch, again.crashes) == (2, 0)


def test_everything_forgotten(wire, worker, claim, redis_client, keys):
    for key in list(redis_client.scan_iter(f"{keys.prefix}*")):
        redis_client.delete(key)
    assert worker.step(rows=[row(claim, 0, 5)]).status == "rollback"
    (tail,) = worker.lease.resync([("job", 1)])
    assert (tail.owned, tail.state, tail.last_id, tail.offset) == (False, "", "0-0", 0)
    assert redis_client.exists(keys.heartbeat(worker.name))
    assert redis_client.hexists(keys.model, worker.name)
    wire.submit("job")
    assert worker.claim_one().epoch == 1, "the queue works again, the job under its own id"


def test_a_resync_may_be_sent_twice(wire, worker, claim):
    old = OldState(wire)
    worker.step(rows=[row(claim, 0, 5)])
    old.put_back()
    worker.step()
    assert worker.lease.resync([("job", 1)]) == worker.lease.resync([("job", 1)])
    assert worker.step(rows=[row(claim, 0, 5)]).row_codes == "k"


def test_lease_names_are_checked(wire, redis_client, keys):
    with pytest.raises(InvalidRequest, match="worker"):
        Lease(redis_client, keys, "a}b")

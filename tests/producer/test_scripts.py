"""submit, cancel and delete, and how scripts are loaded. Claims are in tests/worker."""

import asyncio
import hashlib
import json
import subprocess
import sys

import pytest
import redis
import redis.asyncio
from redis.exceptions import ResponseError
from wire_tools import Wire, Worker, end, row

from pagestream.producer.lua import PARTS, Script


def test_submit_writes_record_reply_lane_and_bell(wire, keys, redis_client):
    status, now_ms, retry_after_ms, state = wire.submit_raw("job", b"payload", "{}")
    assert (status, retry_after_ms, state) == (b"accepted", 0, b"queued")
    record = wire.record("job")
    assert record["payload"] == "payload"
    assert record["hash"] == hashlib.sha1(b"payload").hexdigest()
    assert record["state"] == "queued"
    assert (record["epoch"], record["crashes"], record["owner"]) == ("0", "0", "")
    assert (record["lane"], record["tenant"]) == ("normal", "default")
    assert int(record["queued_ms"]) == now_ms
    assert record["tokens_max"] == str(len(b"payload") + 64), "a bound where none is given"
    assert "deadline_ms" not in record
    assert [(entry.id, entry.event) for entry in wire.reply("job")] == [("0-1", "queued")]
    assert redis_client.xrange(keys.jobs("normal")) == [
        (record["entry"].encode(), {b"id": b"job", b"tokens_max": b"71"})
    ]
    assert redis_client.zrange(keys.ready("normal"), 0, -1) == [b"default"]
    assert redis_client.xlen(keys.bell) == 1
    assert redis_client.ttl(keys.job("job")) == redis_client.ttl(keys.out("job")) == -1


def test_submit_takes_every_option(wire, keys, redis_client):
    wire.submit(
        "job",
        lane="high",
        tenant="t.1",
        tokens_max=7,
        retention_ms=5000,
        queue_timeout_ms=100,
        deadline_ms=2000,
        mirror=True,
    )
    record = wire.record("job")
    assert record["queue_deadline_ms"] == str(int(record["queued_ms"]) + 100)
    assert record["deadline_ms"] == str(int(record["queued_ms"]) + 2000)
    expected = {"lane": "high", "tenant": "t.1", "retention_ms": "5000", "mirror": "1"}
    assert {name: record[name] for name in expected} == expected
    assert redis_client.xlen(keys.jobs("high", "t.1")) == 1


def test_a_null_option_is_one_left_out(wire):
    assert wire.submit("job", queue_timeout_ms=None, deadline_ms=None, lane=None) == "accepted"
    assert "deadline_ms" not in wire.record("job")


def test_the_same_submit_attaches_and_another_conflicts(wire):
    assert wire.submit("job", b"one") == "accepted"
    assert wire.submit("job", b"one") == "attached"
    assert wire.submit("job", b"two") == "conflict"
    assert wire.record("job")["payload"] == "one"
    assert wire.lane_entries() == 1
    assert wire.ids("job") == ["0-1"]


def test_submit_attaches_to_a_finished_job(wire):
    wire.submit("job")
    worker = Worker(wire)
    worker.step(ends=[end(worker.claim_one(), 0)])
    status, _, _, state = wire.submit_raw("job", b"{}", "{}")
    assert (status, state) == (b"attached", b"done")
    assert wire.lane_entries() == 0, "nothing runs twice"


def test_a_full_queue_refuses_with_a_hint(wire):
    for number in range(3):
        assert wire.submit(f"job-{number}", queue_limit=3) == "accepted"
    options = json.dumps({"queue_limit": 3})
    status, _, retry_after_ms, _ = wire.submit_raw("more", b"{}", options)
    assert status == b"full"
    assert 100 <= retry_after_ms <= 30_000
    assert wire.record("more") == {}
    assert wire.ids("more") == []


def test_the_bound_counts_unfinished_jobs_of_the_tenant_in_every_lane(wire):
    wire.submit("a", lane="high", queue_limit=2)
    wire.submit("b", lane="low", queue_limit=2)
    assert wire.submit("c", queue_limit=2) == "full"
    assert wire.submit("d", queue_limit=2, tenant="other") == "accepted"
    worker = Worker(wire)
    claim = worker.claim_one()
    assert wire.submit("c", queue_limit=2) == "full", "a running job is unfinished"
    worker.step(ends=[end(claim, 0)])
    assert wire.submit("c", queue_limit=2) == "accepted"


def test_the_retry_hint_follows_how_fast_jobs_finish(wire, keys, redis_client):
    redis_client.hset(keys.pace, mapping={"per_s": 4})
    wire.submit("a", queue_limit=1)
    assert wire.submit_raw("b", b"{}", json.dumps({"queue_limit": 1}))[2] == 250
    redis_client.hset(keys.pace, mapping={"per_s": 10_000})
    assert wire.submit_raw("b", b"{}", json.dumps({"queue_limit": 1}))[2] == 100
    redis_client.hset(keys.pace, mapping={"per_s": 0.0001})
    assert wire.submit_raw("b", b"{}", json.dumps({"queue_limit": 1}))[2] == 30_000


def test_finished_jobs_set_the_pace(wire, keys, redis_client):
    worker = Worker(wire)
    now_ms = int(worker.step().now_ms)
    # A window of two seconds in which 19 jobs have finished.
    redis_client.hset(keys.pace, mapping={"since_ms": now_ms - 2000, "count": 19})
    wire.submit("job")
    worker.step(ends=[end(worker.claim_one(), 0)])
    assert 8 < float(redis_client.hget(keys.pace, "per_s")) <= 10


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("job",), "submit takes"),
        (("", b"{}", "{}"), "id"),
        (("no spaces", b"{}", "{}"), "id"),
        (("a" * 129, b"{}", "{}"), "id"),
        (("}x", b"{}", "{}"), "id"),
        (("job", b"", "{}"), "payload"),
        (("job", b"{}", "not json"), "options"),
        (("job", b"{}", "7"), "options"),
        (("job", b"{}", '{"lane": "urgent"}'), "lane"),
        (("job", b"{}", '{"tenant": "a:b"}'), "tenant"),
        (("job", b"{}", '{"tenant": 7}'), "tenant"),
        (("job", b"{}", '{"tokens_max": -1}'), "tokens_max"),
        (("job", b"{}", '{"deadline_ms": "soon"}'), "deadline_ms"),
        (("job", b"{}", '{"retention_ms": 1e99}'), "retention_ms"),
    ],
)
def test_submit_refuses_what_no_worker_could_find(wire, redis_client, keys, args, word):
    with pytest.raises(ResponseError, match=f"INVALID {word}"):
        wire.submit_raw(*args)
    assert list(redis_client.scan_iter(match=f"{keys.prefix}*")) == []


def test_submit_refuses_a_huge_payload(wire):
    with pytest.raises(ResponseError, match="INVALID payload has 16777217 bytes"):
        wire.submit_raw("job", b"x" * (16 * 1024 * 1024 + 1), "{}")


def test_scripts_refuse_a_foreign_key(redis_client):
    with pytest.raises(ResponseError, match="INVALID KEYS"):
        Script("submit")(redis_client, "bell", "job", b"{}", "{}")


def test_a_reply_left_by_a_lost_record_does_not_stop_a_new_submit(wire, keys, redis_client):
    redis_client.xadd(keys.out("job"), {"event": "start", "worker": "w"}, id="4-0")
    assert wire.submit("job") == "accepted"
    assert wire.ids("job") == ["0-1"]


def test_a_full_server_refuses_submit_but_lets_workers_finish(own_server, keys):
    with redis.Redis.from_url(own_server().url, protocol=2) as client:
        wire = Wire(client, keys)
        wire.submit("a")
        wire.submit("b")
        worker = Worker(wire)
        claim = worker.claim_one()
        client.config_set("maxmemory", 1)
        # Redis 6 has no error class of its own for this inside a script.
        for tenant in ("default", "another"):
            with pytest.raises(ResponseError, match="used memory"):
                wire.submit("c", tenant=tenant)
        assert wire.record("c") == {}, "refused means not written at all"
        assert (wire.lane_entries(), wire.lane_entries("another")) == (2, 0)
        assert not client.exists(keys.jobs("normal", "another"))
        assert worker.step(rows=[row(claim, 0, 5)]).row_codes == "k"
        assert worker.step(ends=[end(claim, 1)], slots=1, tokens=100).end_codes == "k"
        assert wire.state("a") == "done"
        assert wire.state("b") == "running"
        client.config_set("maxmemory", 0)
        assert wire.submit("c") == "accepted"


# ---- cancel


def test_cancel_a_queued_job(wire, keys, redis_client):
    wire.submit("job", retention_ms=60_000)
    assert wire.cancel("job") == "cancelled"
    last = wire.reply("job")[-1]
    assert (last.id, last.event, last.reason) == ("1-1", "end", "cancelled")
    assert wire.state("job") == "cancelled"
    assert wire.lane_entries() == 0
    assert 0 < redis_client.pttl(keys.job("job")) <= 60_000
    assert 0 < redis_client.pttl(keys.out("job")) <= 60_000
    assert wire.cancel("job") == "finished"
    assert Worker(wire).claim() == []


def test_cancel_a_running_job_tells_its_worker(wire):
    wire.submit("job")
    worker = Worker(wire)
    claim = worker.claim_one()
    assert wire.cancel("job") == "cancelling"
    assert wire.cancel("job") == "cancelling", "twice is once"
    (control,) = worker.step().controls
    assert (control.kind, control.job_id) == ("cancel", "job")
    assert worker.step().controls == [], "said once"
    worker.step(rows=[row(claim, 0, 5)], ends=[end(claim, 1, "cancelled")])
    assert wire.state("job") == "cancelled"
    assert wire.ids("job")[-1] == "1-2"


def test_cancel_a_finished_or_unknown_job(wire):
    assert wire.cancel("job") == "unknown"
    wire.submit("job")
    worker = Worker(wire)
    worker.step(ends=[end(worker.claim_one(), 0)])
    assert wire.cancel("job") == "finished"
    assert wire.state("job") == "done"


def test_cancel_a_job_handed_back(wire):
    wire.submit("job")
    worker = Worker(wire)
    claim = worker.claim_one()
    worker.step(rows=[row(claim, 0, 5, 6)], returns=[("job", 1)])
    assert wire.cancel("job") == "cancelled"
    assert wire.ids("job") == ["0-1", "1-0", "1-2", "2-3"]
    assert wire.lane_entries() == 0


def test_a_cancelled_job_is_not_queued_again(wire):
    wire.submit("a")
    wire.submit("b")
    worker, reaper = Worker(wire), Worker(wire)
    first, second = worker.claim(2)
    wire.cancel("a")
    wire.cancel("b")
    worker.step(returns=[(first.job_id, first.epoch)])
    assert wire.state("a") == "cancelled"
    worker.die()
    reaper.lease.reap(())
    assert wire.state(second.job_id) == "cancelled"
    assert wire.ids("b") == ["0-1", "1-0", "2-1"]
    assert wire.lane_entries() == 0


# ---- delete


def test_delete_removes_a_queued_job(wire, keys, redis_client):
    wire.submit("job")
    assert wire.delete("job") == "deleted"
    assert wire.delete("job") == "unknown"
    left = {key for key in redis_client.scan_iter(match=f"{keys.prefix}*")}
    assert left <= {keys.bell.encode(), keys.served.encode()}
    assert Worker(wire).claim() == []


def test_delete_stops_a_running_job(wire):
    wire.submit("job")
    worker = Worker(wire)
    claim = worker.claim_one()
    assert wire.delete("job") == "deleted"
    reply = worker.step(rows=[row(claim, 0, 5)], ends=[end(claim, 1)])
    assert (reply.row_codes, reply.end_codes) == ("g", "g")
    assert [(c.kind, c.job_id) for c in reply.controls] == [("cancel", "job")]
    assert wire.record("job") == {}
    assert wire.reply("job") == [], "not resurrected"
    assert worker.lease.reap(()).lost == ()


def test_delete_removes_a_finished_job_and_its_dead_letter(wire, keys, redis_client):
    wire.submit("done")
    wire.submit("poison")
    worker = Worker(wire)
    claims = {claim.job_id: claim for claim in worker.claim(2)}
    worker.step(ends=[end(claims["done"], 0)])
    worker.die()
    Worker(wire, crash_cap=1).lease.reap(())
    assert len(wire.dead_letters()) == 1
    assert wire.delete("done") == "deleted"
    assert wire.delete("poison") == "deleted"
    assert wire.dead_letters() == []
    assert not redis_client.exists(keys.job("done"), keys.out("done"), keys.job("poison"))


# ---- loading


def test_a_forgotten_script_is_loaded_again(wire, redis_client):
    wire.submit("a")
    redis_client.script_flush()
    assert wire.submit("b") == "accepted"
    worker = Worker(wire)
    redis_client.script_flush()
    assert len(worker.claim(2)) == 2


def test_scripts_run_on_an_asyncio_connection(wire, keys, redis_url):
    async def submit() -> list:
        client = redis.asyncio.Redis.from_url(redis_url, protocol=2)
        async with client:
            await client.script_flush()
            return await Script("submit").run(client, keys.bell, "job", b"{}", "{}")

    assert asyncio.run(submit())[0] == b"accepted"
    assert wire.state("job") == "queued"


def test_every_script_compiles_and_is_printed_whole(redis_client):
    for name in PARTS:
        script = Script(name)
        assert redis_client.script_load(script.text) == script.sha
    printed = subprocess.run(
        [sys.executable, "-m", "pagestream.producer.lua", "submit"],
        env={"PYTHONPATH": "producer"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout == Script("submit").text


def test_every_script_stays_in_the_language_of_redis_6_2():
    newer = (
        "XAUTOCLAIM",
        "XACKDEL",
        "XDELEX",
        "SPUBLISH",
        "EXPIRETIME",
        "'NX'",
        "'GT'",
        "SINTERCARD",
    )
    for name in PARTS:
        text = Script(name).text
        assert not [word for word in newer if word in text]
        assert "FUNCTION" not in text

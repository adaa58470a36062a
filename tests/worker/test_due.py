"""Deadlines and abandoned readers: what ends a job without its worker's doing, and when."""

import asyncio
import json
import time

import pytest
from wire_tools import Worker, end, row

from pagestream.producer import AsyncClient, InvalidRequest, JobCancelled, JobExpired
from pagestream.producer.lua import Script


def renew(wire, *ids: str) -> int:
    return Script("renew")(wire.redis, wire.keys.bell, *ids)


def due(wire) -> dict[str, float]:
    return {
        name.decode(): at for name, at in wire.redis.zrange(wire.keys.due, 0, -1, withscores=True)
    }


def pass_due(wire, job_id: str, which: str) -> None:
    """Let a time that is set for the job be past."""
    wire.pass_deadline(job_id, which)
    wire.redis.zadd(wire.keys.due, {job_id: 1})


# ---- deadlines


def test_jobs_without_times_cost_nothing(wire):
    wire.submit("job")
    assert due(wire) == {}
    assert renew(wire, "job", "unknown") == 0


def test_the_earliest_time_counts(wire):
    wire.submit("job", queue_timeout_ms=9_000, deadline_ms=5_000, reader_timeout_ms=7_000)
    queued_ms = int(wire.record("job")["queued_ms"])
    assert due(wire) == {"job": queued_ms + 5_000}


def test_a_job_deep_in_the_queue_expires_in_time(wire):
    for number in range(5):
        wire.submit(f"ahead-{number}")
    wire.submit("late", queue_timeout_ms=60_000)
    pass_due(wire, "late", "queue_deadline_ms")
    worker = Worker(wire)
    worker.lease.reap(())
    last = wire.reply("late")[-1]
    assert (last.reason, last.error) == ("expired", "expired")
    assert wire.state("late") == "expired"
    assert due(wire) == {}
    assert [claim.job_id for claim in worker.claim(9)] == [f"ahead-{number}" for number in range(5)]


def test_a_job_that_began_in_time_keeps_its_place(wire):
    wire.submit("job", queue_timeout_ms=60_000, deadline_ms=90_000)
    worker = Worker(wire)
    claim = worker.claim_one()
    pass_due(wire, "job", "queue_deadline_ms")
    worker.lease.reap(["job"])
    assert wire.state("job") == "running"
    assert due(wire) == {"job": float(wire.record("job")["deadline_ms"])}
    worker.step(ends=[end(claim, 0)])
    assert due(wire) == {}


def test_a_deadline_during_reclaim_ends_the_job_with_what_it_has(wire):
    wire.submit("job", deadline_ms=60_000)
    dead, other = Worker(wire), Worker(wire)
    claim = dead.claim_one()
    dead.step(rows=[row(claim, 0, 5, 6)])
    dead.die()
    pass_due(wire, "job", "deadline_ms")
    other.lease.reap(())
    assert wire.state("job") == "expired"
    tokens = [token for entry in wire.reply("job") for token in entry.ids]
    assert tokens == [5, 6]
    assert wire.ids("job")[-1] == "2-3"
    assert other.claim(9) == []
    assert dead.step(rows=[row(claim, 2, 7)]).row_codes in ("f", "")


def test_a_running_job_that_is_due_is_left_to_its_worker(wire):
    wire.submit("job", deadline_ms=60_000)
    worker, other = Worker(wire), Worker(wire)
    worker.claim_one()
    pass_due(wire, "job", "deadline_ms")
    now_ms = other.step().now_ms
    other.lease.reap(())
    assert wire.state("job") == "running"
    assert due(wire)["job"] >= now_ms + 5_000, "and not looked at in every reap"


def test_what_is_gone_is_not_due(wire, redis_client, keys):
    wire.submit("deleted", deadline_ms=60_000)
    wire.delete("deleted")
    assert due(wire) == {}
    redis_client.zadd(keys.due, {"unknown": 1})
    Worker(wire).lease.reap(())
    assert due(wire) == {}


# ---- readers


def test_a_queued_job_that_nobody_reads_is_cancelled(wire):
    wire.submit("job", reader_timeout_ms=5_000)
    worker = Worker(wire)
    worker.lease.reap(())
    assert wire.state("job") == "queued"
    pass_due(wire, "job", "reader_due_ms")
    worker.lease.reap(())
    last = wire.reply("job")[-1]
    assert (last.reason, last.error) == ("cancelled", "abandoned")
    assert last.message == "nobody read it for 5000 ms"
    assert wire.lane_entries() == 0
    assert due(wire) == {}


def test_the_worker_of_a_running_job_is_told_once(wire):
    wire.submit("job", reader_timeout_ms=5_000, deadline_ms=90_000)
    worker, other = Worker(wire), Worker(wire)
    claim = worker.claim_one()
    pass_due(wire, "job", "reader_due_ms")
    for _ in range(3):
        other.lease.reap(())
    controls = worker.step().controls
    assert [(control.kind, control.job_id) for control in controls] == [("cancel", "job")]
    assert renew(wire, "job") == 0, "too late"
    worker.step(rows=[row(claim, 0, 5)], ends=[end(claim, 1, "cancelled")])
    last = wire.reply("job")[-1]
    assert (last.reason, last.error) == ("cancelled", "abandoned")
    assert due(wire) == {}


def test_an_abandoned_job_whose_worker_dies_is_cancelled_by_the_next(wire):
    wire.submit("job", reader_timeout_ms=5_000)
    dead, other = Worker(wire), Worker(wire)
    dead.claim_one()
    pass_due(wire, "job", "reader_due_ms")
    other.lease.reap(())
    dead.die()
    other.lease.reap(())
    assert wire.reply("job")[-1].error == "abandoned"
    assert other.claim(9) == []


def test_reading_renews(wire):
    for name in ("one", "two"):
        wire.submit(name, reader_timeout_ms=5_000)
        pass_due(wire, name, "reader_due_ms")
    assert renew(wire, "one", "two", "unknown") == 2
    now_ms = Worker(wire).step().now_ms
    assert min(due(wire).values()) > now_ms + 4_000
    Worker(wire).lease.reap(())
    assert wire.state("one") == wire.state("two") == "queued"


def test_a_finished_job_is_not_renewed(wire):
    wire.submit("job", reader_timeout_ms=5_000)
    worker = Worker(wire)
    worker.step(ends=[end(worker.claim_one(), 0)])
    assert renew(wire, "job") == 0
    assert due(wire) == {}


# ---- clients


async def _until(done) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.01)


async def test_an_open_stream_counts_as_reading_and_a_closed_one_does_not(
    redis_url, queue_name, wire
):
    async with AsyncClient(redis_url, queue=queue_name) as client:
        job = await client.submit("p", id="job", reader_timeout_ms=1_000)
        first = float(wire.record("job")["reader_due_ms"])
        stream = job.stream()
        waits = asyncio.create_task(stream.take())
        # Three renewals: they go on without a token.
        for _ in range(3):
            before = float(wire.record("job")["reader_due_ms"])
            await _until(lambda before=before: float(wire.record("job")["reader_due_ms"]) > before)
        waits.cancel()
        await stream.aclose()
        worker = Worker(wire)
        await _until(lambda: worker.lease.reap(()).put_back or wire.state("job") == "cancelled")
        ended = int(wire.record("job")["finished_ms"])
        assert ended >= float(wire.record("job")["reader_due_ms"]) > first
        with pytest.raises(JobCancelled, match="nobody read it for 1000 ms"):
            await job.result()


async def test_any_process_may_be_the_reader(redis_url, queue_name, wire):
    wire.submit("job", reader_timeout_ms=60_000)
    pass_due(wire, "job", "reader_due_ms")
    async with AsyncClient(redis_url, queue=queue_name) as client:
        result = asyncio.create_task(client.job("job").result())
        await _until(lambda: due(wire)["job"] > 1)
        worker = Worker(wire)
        worker.step(ends=[end(worker.claim_one(), 0)])
        assert (await result).finish_reason == "stop"
        assert len(client._store._presence._readers) == 0


async def test_one_call_renews_all_of_a_clients_readers(redis_url, queue_name, wire, redis_client):
    async with AsyncClient(redis_url, queue=queue_name) as client:
        jobs = [await client.submit("p", reader_timeout_ms=60_000) for _ in range(50)]
        plain = await client.submit("p")
        sha = Script("renew").sha
        redis_client.config_resetstat()
        readers = [asyncio.create_task(job.stream().take()) for job in (*jobs, plain)]
        worker = Worker(wire)
        for claim in worker.claim(51):
            worker.step(rows=[row(claim, place, 5) for place in range(20)])
        await asyncio.gather(*readers)
        await client.models()
        assert redis_client.script_exists(sha) == [True]
        assert set(due(wire)) == {job.id for job in jobs}
        assert len(client._store._presence._readers) == 0, "streams nobody holds are closed"


@pytest.mark.parametrize("value", [0, 999, -1, 1.5, "1s"])
async def test_a_timeout_readers_cannot_keep_is_refused(redis_url, queue_name, value):
    async with AsyncClient(redis_url, queue=queue_name) as client:
        with pytest.raises(InvalidRequest, match="reader_timeout_ms"):
            await client.submit("p", reader_timeout_ms=value)


# ---- clocks


@pytest.mark.parametrize("skew_s", [-3_600, 3_600])
async def test_the_clocks_of_clients_and_workers_do_not_matter(
    redis_url, queue_name, wire, monkeypatch, skew_s
):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + skew_s)
    async with AsyncClient(redis_url, queue=queue_name) as client:
        keeps = await client.submit("p", id="keeps", deadline_ms=60_000, queue_timeout_ms=60_000)
        late = await client.submit("p", id="late", deadline_ms=60_000)
        wire.pass_deadline("late", "deadline_ms")
        worker = Worker(wire)
        worker.lease.reap(())
        claims = worker.claim(9)
        assert [claim.job_id for claim in claims] == ["keeps"]
        left_ms = claims[0].deadline_ms - worker.lease.now_ms()
        assert 50_000 < left_ms <= 60_000
        worker.step(ends=[end(claims[0], 0)])
        assert (await keeps.result()).finish_reason == "stop"
        with pytest.raises(JobExpired):
            await late.result()


def test_a_wait_in_options_is_a_duration(wire):
    for name in ("reader_timeout_ms", "deadline_ms"):
        with pytest.raises(Exception, match=name):
            wire.submit_raw("job", b"{}", json.dumps({name: -1}))

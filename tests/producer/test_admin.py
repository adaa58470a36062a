"""The operator's view of a queue, and the commands that show it."""

import asyncio
import json

import pytest
from wire_tools import PAYLOAD, Worker, end, row

from pagestream.producer import AsyncClient, JobFailed
from pagestream.producer.admin import Admin
from pagestream.producer.errors import InvalidRequest, JobNotFound, QueueUnavailable, WorkerNotFound


@pytest.fixture
def admin(redis_url):
    with Admin(redis_url) as made:
        yield made


# ---- dead letters


def test_a_letter_holds_the_job_the_reason_and_the_last_error(admin, bury, queue_name):
    bury("poison", tenant="a", lane="low")
    letter = admin.letter(queue_name, "poison")
    assert (letter.reason, letter.crashes, letter.worker) == ("crashed", 3, "w-poison")
    assert (letter.lane, letter.tenant, letter.payload) == ("low", "a", PAYLOAD)
    assert letter.error == "Traceback\nRuntimeError: boom"
    assert letter.request() == {"v": 1, "prompt": "hello"}
    assert admin.letter(queue_name, letter.letter) == letter
    with pytest.raises(JobNotFound, match="'other'"):
        admin.letter(queue_name, "other")


def test_many_letters_come_in_order(admin, redis_client, keys, queue_name):
    for index in range(1_500):
        redis_client.xadd(keys.dead, {"id": f"j{index}", "reason": "crashed", "message": ""})
    assert [one.id for one in admin.letters(queue_name)] == [f"j{index}" for index in range(1_500)]


def test_a_retried_jobs_readers_go_on_where_they_stopped(admin, bury, wire, redis_url, queue_name):
    bury("poison", 5, 6)
    assert [entry.event for entry in wire.reply("poison")][-1] == "end"

    async def read(after):
        async with AsyncClient(redis_url, queue=queue_name) as client:
            return [chunk async for chunk in client.job("poison").stream(after)]

    async def read_until_it_fails():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            chunks = client.job("poison").stream()
            with pytest.raises(JobFailed):
                async for _ in chunks:
                    pass
            return chunks.cursor

    cursor = asyncio.run(read_until_it_fails())
    admin.retry(queue_name, admin.letter(queue_name, "poison"))
    assert list(admin.letters(queue_name)) == []
    assert wire.state("poison") == "queued"
    worker = Worker(wire)
    claim = worker.claim_one()
    assert (claim.payload, claim.crashes) == (PAYLOAD, 2)
    assert claim.epoch > int(cursor.split("-")[0])
    worker.step(rows=[row(claim, 2, 7)], ends=[end(claim, 3)])
    ids = [token for chunk in asyncio.run(read(None)) for token in chunk.ids]
    assert ids == [5, 6, 7]
    assert [chunk.ids for chunk in asyncio.run(read(cursor))] == [(7,), ()]
    assert [entry.event for entry in wire.reply("poison")].count("end") == 1
    assert wire.state("poison") == "done"


def test_a_retried_job_that_kills_again_is_dead_again(admin, bury, wire, queue_name):
    bury("poison")
    admin.retry(queue_name, admin.letter(queue_name, "poison"))
    worker = Worker(wire)
    claim = worker.claim_one()
    (crash,) = worker.lease.crashed([("poison", claim.epoch, 2)], "again")
    assert crash.outcome == "dead"
    assert [one.error for one in admin.letters(queue_name)] == ["again"]


def test_a_letter_outlives_the_record_and_can_be_retried(
    admin, bury, wire, redis_client, keys, queue_name
):
    bury("poison", 5, 6, lane="high", tenant="a", mirror=True, retention_ms=5_000)
    assert 0 < redis_client.pttl(keys.job("poison")) <= 5_000
    redis_client.delete(keys.job("poison"), keys.out("poison"))
    admin.retry(queue_name, admin.letter(queue_name, "poison"))
    (claim,) = Worker(wire).claim()
    assert (claim.lane, claim.tenant, claim.payload, claim.mirror) == ("high", "a", PAYLOAD, True)
    assert claim.epoch == 3
    assert [entry.event for entry in wire.reply("poison")] == ["queued", "start"]
    assert wire.submit("poison", PAYLOAD) == "attached"
    assert wire.record("poison")["retention_ms"] == "5000"
    assert redis_client.pttl(keys.job("poison")) == -1


def test_what_cannot_be_retried_says_why(admin, bury, wire, redis_client, keys, queue_name):
    bury("poison")
    letter = admin.letter(queue_name, "poison")
    redis_client.delete(keys.job("poison"))
    wire.submit("poison", b"another")
    with pytest.raises(InvalidRequest, match="another job has the id"):
        admin.retry(queue_name, letter)
    redis_client.xadd(keys.jobs("normal"), {"junk": "x"})
    Worker(wire).claim(5)
    (malformed,) = [one for one in admin.letters(queue_name) if one.reason == "malformed"]
    with pytest.raises(InvalidRequest, match="never was a job"):
        admin.retry(queue_name, malformed)
    admin.purge(queue_name, letter)
    admin.purge(queue_name, malformed)
    assert wire.record("poison")["payload"] == "another", "the other job was left alone"
    with pytest.raises(JobNotFound, match="any more"):
        admin.retry(queue_name, letter)


def test_purging_leaves_nothing(admin, bury, redis_client, keys, queue_name):
    bury("poison", 5)
    admin.purge(queue_name, admin.letter(queue_name, "poison"))
    assert not redis_client.exists(keys.job("poison"), keys.out("poison"))
    assert redis_client.xlen(keys.dead) == 0


# ---- the rest


def test_a_worker_is_told_to_drain(admin, wire, queue_name):
    worker = Worker(wire, "w-1")
    admin.drain(queue_name, "w-1")
    admin.drain(queue_name, "w-1", at_once=True)
    assert [control.kind for control in worker.step().controls] == ["drain", "stop"]
    with pytest.raises(WorkerNotFound, match="'w-2'"):
        admin.drain(queue_name, "w-2")


def test_a_queue_and_its_workers(admin, wire, keys, queue_name):
    for index in range(3):
        wire.submit(f"j{index}", lane="high" if index else "normal", tenant=f"t{index}")
    worker = Worker(wire, "w-1")
    worker.step(slots=1, tokens=100)
    worker.lease._beat_due_ms = 0
    worker.step(info='{"step": 7}')
    status = admin.status(queue_name)
    assert status.unfinished == {"high": 2, "normal": 1, "low": 0}
    assert (status.running, status.suspects, status.dead) == (1, 0, 0)
    (shown,) = status.workers
    assert (shown.name, shown.is_alive, shown.jobs, shown.counters) == ("w-1", True, 1, {"step": 7})
    worker.die()
    assert [one.is_alive for one in admin.status(queue_name).workers] == [False]


def test_a_finished_job_shows_how_long_it_is_kept(admin, wire, queue_name):
    wire.submit("job", retention_ms=60_000)
    assert admin.job(queue_name, "job").kept_ms is None
    worker = Worker(wire)
    claim = worker.claim_one()
    worker.step(rows=[row(claim, 0, 5)], ends=[end(claim, 1)])
    job = admin.job(queue_name, "job")
    assert 50_000 < job.kept_ms <= 60_000
    assert (job.record["state"], job.entries) == ("done", 4)
    assert job.bytes > 100
    assert "payload" not in job.record
    assert admin.delete(queue_name, "job")
    assert not admin.delete(queue_name, "job")
    with pytest.raises(JobNotFound):
        admin.job(queue_name, "job")


def test_no_server_is_unavailable_and_its_password_stays_secret():
    with (
        Admin("redis://user:secret@127.0.0.1:1") as admin,
        pytest.raises(QueueUnavailable) as caught,
    ):
        admin.queues()
    assert "127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)


# ---- the commands


def test_dead_letters_by_command(command, bury, wire):
    for name in ("one", "two", "three"):
        bury(name)
    code, said = command("dead", "list")
    assert code == 0
    assert "RuntimeError: boom" in said
    assert [name in said for name in ("one", "two", "three", "w-two")] == [True] * 4
    listed = json.loads(command("dead", "list", "--json")[1])
    assert [one["id"] for one in listed] == ["one", "two", "three"]
    assert listed[0]["request"] == {"v": 1, "prompt": "hello"}
    code, said = command("dead", "show", "two")
    assert (code, "Traceback" in said, '"prompt":"hello"' in said) == (0, True, True)
    assert command("dead", "retry", "one") == (0, "one: queued again\n")
    assert wire.state("one") == "queued"
    assert command("dead", "purge", "two") == (0, "two: removed\n")
    assert command("dead", "retry", "--all") == (0, "three: queued again\n")
    assert command("dead", "list") == (0, "")
    assert command("dead", "show", "two")[0] == 1
    assert command("dead", "purge")[0] == 2


def test_the_other_commands(command, wire, queue_name):
    wire.submit("job")
    Worker(wire, "w-1")
    code, said = command("info")
    assert (code, queue_name in said, "w-1" in said) == (0, True, True)
    (found,) = json.loads(command("info", "--json")[1])
    assert (found["name"], found["unfinished"]["normal"]) == (queue_name, 1)
    code, said = command("show", "job")
    assert (code, "until it has finished" in said) == (0, True)
    assert json.loads(command("show", "job", "--json")[1])["record"]["state"] == "queued"
    assert command("drain", "w-1") == (0, "worker w-1 was told\n")
    assert command("drain", "w-9")[0] == 1
    assert command("delete", "job") == (0, "deleted\n")


def test_the_only_queue_is_taken(command, own_server, monkeypatch):
    server = own_server()
    monkeypatch.setenv("PAGESTREAM_REDIS_URL", server.url)
    monkeypatch.delenv("PAGESTREAM_QUEUE")
    code, said = command("dead", "list")
    assert code == 2
    assert "--queue" in said

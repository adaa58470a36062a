"""Users with the rights of their roles, on a real server: all they need, and nothing beside it."""

import asyncio
import hashlib
from pathlib import Path

import pytest
import redis
from acl_users import SHA256, connected, denied, server_with, url
from stub_engine import StubOptions, expected_ids
from typer.testing import CliRunner
from wire_tools import Wire
from wire_tools import Worker as WireWorker
from worker_harness import Worker

from pagestream.producer import AsyncClient, InvalidRequest, JobCancelled, QueueUnavailable
from pagestream.producer.acl import ROLES, commands_of, rule
from pagestream.producer.admin import Admin
from pagestream.producer.cli import build
from pagestream.producer.keys import Keys
from pagestream.producer.live import Live
from pagestream.producer.lua import PARTS, Script
from pagestream.worker.messages import Sampling

QUEUE = "acl/queue-1.0"
KEYS = Keys(QUEUE)
USERS = [
    rule("worker", QUEUE, user="worker", password_sha256=SHA256),
    rule("admin", QUEUE, user="admin", password_sha256=SHA256),
    rule("producer", QUEUE, user="any", password_sha256=SHA256),
    rule("producer", QUEUE, user="acme", password_sha256=SHA256, tenant="acme"),
    rule("observer", QUEUE, user="observer", password_sha256=SHA256),
    rule("reader", QUEUE, user="acme-reader", password_sha256=SHA256, tenant="acme"),
]


@pytest.fixture
def server(own_server, tmp_path):
    return server_with(own_server, tmp_path, USERS)


def test_each_role_can_do_its_part(server, tmp_path):
    """Everything a tenant, a reader, a worker and an operator do, each as its own user."""
    (tmp_path / "config.json").write_text("{}")
    options = StubOptions(step_s=0.005)
    worker = Worker(url(server, "worker"), KEYS, tmp_path, options, flags={"name": "w-1"}).start()

    async def produce():
        async with (
            AsyncClient(
                url(server, "acme"), queue=QUEUE, tenant="acme", durability="strict"
            ) as acme,
            AsyncClient(url(server, "acme-reader"), queue=QUEUE) as reader,
        ):
            sampling = {"max_tokens": 100, "ignore_eos": True}
            job = await acme.submit(prompt_ids=[1], lane="high", mirror=True, **sampling)
            assert job.id.startswith("acme.")
            wanted = tuple(expected_ids([1], Sampling(max_tokens=100)))
            mirrored = [chunk async for chunk in job.subscribe()]
            assert tuple(token for chunk in mirrored for token in chunk.ids) == wanted
            assert (await job.result()).ids == wanted
            assert (await reader.job(job.id).result()).ids == wanted
            many = await acme.submit_many([{"prompt_ids": [i], **sampling} for i in range(2, 5)])
            long = await acme.submit(prompt_ids=[9], max_tokens=500, ignore_eos=True)
            async for _ in long.stream():
                await long.cancel()
                break
            with pytest.raises(JobCancelled):
                await long.result()
            assert [len((await one.result()).ids) for one in many] == [100] * 3
            assert (await job.status()).state == "done"
            assert await job.delete()

    try:
        asyncio.run(produce())
        with Admin(url(server, "admin")) as admin:
            assert admin.queues() == [QUEUE]
            assert [one.name for one in admin.status(QUEUE).workers] == ["w-1"]
            admin.drain(QUEUE, "w-1")
        assert worker.wait() == 0
    finally:
        worker.ask_to_stop()
        worker.end()


def test_a_producer_of_a_tenant_ends_a_queued_job_that_names_a_webhook(server):
    async def cancel() -> str:
        async with AsyncClient(url(server, "acme"), queue=QUEUE, tenant="acme") as client:
            job = await client.submit("x", webhook="https://example.com/")
            return await job.cancel()

    assert asyncio.run(cancel()) == "cancelled"
    with connected(server, "worker") as client:
        assert client.xlen(KEYS.hooks) == 1


def test_a_worker_recovers_and_an_operator_retries(server):
    with connected(server, "any") as any_producer, connected(server, "worker") as worker_client:
        producer, wire = Wire(any_producer, KEYS), Wire(worker_client, KEYS)
        assert producer.submit("job") == "accepted"
        dead = WireWorker(wire, "w-dead")
        dead.claim_one()
        wire.stop_heart("w-dead")
        worker = WireWorker(wire, "w-2")
        assert worker.lease.reap(()).put_back == 1
        (claim,) = worker.claim()
        for crashes in (1, 2):
            worker.lease.crashed([("job", claim.epoch, crashes)])
        worker.lease.resync([("job", claim.epoch)])
        with Admin(url(server, "admin")) as admin:
            letter = admin.letter(QUEUE, "job")
            admin.retry(QUEUE, letter)
            assert admin.job(QUEUE, "job").record["state"] == "queued"
        (claim,) = worker.claim()
        worker.lease.crashed([("job", claim.epoch, 2)])
        with Admin(url(server, "admin")) as admin:
            admin.purge(QUEUE, admin.letter(QUEUE, "job"))
            assert not admin.delete(QUEUE, "job")
        worker.lease.leave()


def test_a_tenant_reaches_no_other_tenants_jobs(server):
    with connected(server, "any") as other, connected(server, "acme") as acme:
        Wire(other, KEYS).submit("rival.1", tenant="rival")
        for command in (
            ("XRANGE", KEYS.out("rival.1"), "-", "+"),
            ("XREAD", "STREAMS", KEYS.out("rival.1"), "0"),
            ("HMGET", KEYS.job("rival.1"), "payload"),
            ("XADD", KEYS.out("rival.1"), "*", "event", "end"),
            ("DEL", KEYS.out("rival.1")),
            ("SUBSCRIBE", KEYS.tokens("rival.1")),
            ("XRANGE", KEYS.jobs("normal", "rival"), "-", "+"),
        ):
            denied(acme, *command)
        for script, argument in (("cancel", "rival.1"), ("delete", "rival.1")):
            assert Script(script)(acme, KEYS.bell, argument) == b"unknown"
        with pytest.raises(redis.ResponseError, match=r"ACL|permission"):
            Wire(acme, KEYS).submit("acme.1", tenant="rival")
        assert Wire(other, KEYS).state("rival.1") == "queued"
        Wire(acme, KEYS).submit("acme.1", tenant="acme")

    async def submit_as_another():
        async with AsyncClient(url(server, "acme"), queue=QUEUE, tenant="rival") as client:
            with pytest.raises(QueueUnavailable, match="refuses"):
                await client.submit("hi")

    asyncio.run(submit_as_another())


def test_a_tenant_keeps_to_the_limits_it_cannot_set(server):
    with connected(server, "acme") as acme, connected(server, "admin") as admin:
        admin.hset(KEYS.limits, "acme:queue_limit", 1)
        assert Wire(acme, KEYS).submit("acme.1", tenant="acme") == "accepted"
        assert Wire(acme, KEYS).submit("acme.2", tenant="acme") == "full"
        denied(acme, "HSET", KEYS.limits, "acme:queue_limit", "9")
        admin.hset(KEYS.limits, "acme:jobs_per_s", 0.001)
        admin.hdel(KEYS.limits, "acme:queue_limit")
        assert Wire(acme, KEYS).submit("acme.3", tenant="acme") == "accepted"
        assert Wire(acme, KEYS).submit("acme.4", tenant="acme") == "limited"
        denied(acme, "DEL", KEYS.rate("rival"))


def test_a_producer_is_no_worker_and_no_operator(server):
    with connected(server, "any") as producer, connected(server, "worker") as worker_client:
        WireWorker(Wire(worker_client, KEYS), "w-1")
        Wire(producer, KEYS).submit("job")
        for command in (
            ("SET", KEYS.step("w-1"), "x"),
            ("DEL", KEYS.step("w-1")),
            ("DEL", KEYS.heartbeat("w-1")),
            ("DEL", KEYS.model),
            ("DEL", "ps:queues"),
        ):
            denied(producer, *command)
        impostor = WireWorker.__new__(WireWorker)
        with pytest.raises(redis.ResponseError, match=r"ACL|permission"):
            WireWorker.__init__(impostor, Wire(producer, KEYS), "w-2")


@pytest.mark.parametrize("user", ["worker", "admin", "any", "acme", "acme-reader", "observer"])
def test_nobody_reaches_the_server_itself(server, user):
    with connected(server, user) as client:
        for command in (
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("KEYS", "*"),
            ("EVAL", "return 1", "0"),
            ("CLIENT", "KILL", "TYPE", "normal"),
            ("SCRIPT", "FLUSH"),
            ("ACL", "LIST"),
            ("SHUTDOWN",),
        ):
            denied(client, *command)
        denied(client, "XRANGE", Keys("other").out("x"), "-", "+")
        with pytest.raises(redis.ResponseError):
            Script("submit")(client, Keys("other").bell, "id", b"{}", "{}")


@pytest.mark.parametrize("user", ["observer", "admin", "worker"])
def test_who_may_look_sees_everything(server, user):
    with connected(server, "any") as producer, connected(server, "worker") as worker_client:
        wire = Wire(producer, KEYS)
        wire.submit("job")
        wire.submit("waits")
        WireWorker(Wire(worker_client, KEYS), "w-1").claim_one()
        with Live(url(server, user)) as live:
            queue = live.queue(QUEUE)
            assert (queue.waiting, queue.running, queue.workers[0].jobs) == (1, 1, 1)
            assert user == "worker" or QUEUE in live.queues()
            assert live.timeline(QUEUE, "job").state == "running"
    with connected(server, "observer") as client:
        for command in (("DEL", KEYS.out("job")), ("SET", KEYS.live("w-1"), "x")):
            denied(client, *command)


def test_a_reader_only_reads(server):
    with connected(server, "any") as producer, connected(server, "acme-reader") as reader:
        Wire(producer, KEYS).submit("acme.1", tenant="acme")
        assert len(Wire(reader, KEYS).reply("acme.1")) == 1
        for command in (("DEL", KEYS.out("acme.1")), ("XADD", KEYS.out("acme.1"), "*", "a", "b")):
            denied(reader, *command)


def test_every_command_of_a_script_is_found():
    assert commands_of("submit") >= {"hset", "xadd", "xgroup|create", "time", "zadd", "exists"}
    assert commands_of("step") >= {"xreadgroup", "xclaim", "xinfo|groups", "hincrby", "xtrim"}
    for script in PARTS:
        assert "|" not in {command[-1] for command in commands_of(script)}


def test_redis_6_knows_no_read_only_keys(own_server, tmp_path):
    lines = [rule(role, QUEUE, user=role, password_sha256=SHA256, redis_6=True) for role in ROLES]
    assert not [line for line in lines if "%R" in line or "waitaof" in line]
    path: Path = tmp_path / "users.acl"
    path.write_text("\n".join(lines))
    with connected(own_server("--aclfile", str(path)), "producer") as client:
        assert Wire(client, KEYS).submit("job") == "accepted"


def test_the_command_prints_a_line_and_says_the_password_once():
    arguments = ["acl", "producer", "--queue", QUEUE, "--tenant", "acme", "--user", "u1"]
    done = CliRunner().invoke(build(arguments), arguments)
    assert done.exit_code == 0
    password = done.stderr.strip().removeprefix("password of u1: ")
    sha256 = hashlib.sha256(password.encode()).hexdigest()
    wanted = rule("producer", QUEUE, user="u1", password_sha256=sha256, tenant="acme")
    assert done.stdout == wanted + "\n"
    for wrong in (
        ["acl", "king", "--queue", "q"],
        ["acl", "worker", "--queue", "q", "--tenant", "t"],
    ):
        assert CliRunner().invoke(build(wrong), wrong).exit_code == 2
    with pytest.raises(InvalidRequest, match="character"):
        rule("reader", QUEUE, user="a b", password_sha256=SHA256)

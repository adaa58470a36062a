"""Prompts that are submitted later, once or again and again, by a real jobs process."""

import json
import signal

import pytest
import redis
from jobs_process import JobsProcess
from typer.testing import CliRunner
from waiting import until

from pagestream.producer import AsyncClient, Client, InvalidRequest, JobConflict, NotDurable
from pagestream.producer.cli import build
from pagestream.producer.jobs.cron import next_ms
from pagestream.producer.keys import Around, Keys


@pytest.fixture
def client(redis_url, queue, jobs_process):
    with Client(redis_url, model=queue) as one:
        yield one


@pytest.fixture
def server_client(redis_url):
    with redis.Redis.from_url(redis_url) as one:
        yield one
        for key in one.scan_iter(Around.schedule("*")):
            one.zrem(Around.DUE, "prompt:" + key.decode().rpartition(":")[2])
            one.delete(key)


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(build(list(words)), list(words))
    assert done.exit_code == code, done.output
    return done.stdout


def test_a_prompt_is_submitted_when_it_is_due_with_all_its_options(client, server_client):
    options = {"max_tokens": 3, "temperature": 0, "lane": "low", "tenant": "acme"}
    expected = client.submit("hello", id="now", **options).result()
    job_id = client.schedule("hello", delay_ms=300, id="later", **options)
    assert job_id == "later"
    assert not server_client.exists(Keys(client.queue).job("later")), "it is not due yet"
    until(lambda: server_client.exists(Keys(client.queue).job("later")), "the submit")
    result = client.job("later").result()
    assert len(result.ids) == len(expected.ids)
    status = client.job("later").status()
    assert (status.lane, status.tenant) == ("low", "acme")
    until(lambda: not server_client.exists(Around.schedule("later")), "the schedule's end")
    assert server_client.zscore(Around.DUE, "prompt:later") is None


def test_a_schedule_is_idempotent_and_can_be_taken_back(client, server_client):
    ids = {client.schedule("a", delay_ms=60_000, id="twice") for _ in range(2)}
    assert ids == {"twice"}
    with pytest.raises(JobConflict, match="twice"):
        client.schedule("b", delay_ms=60_000, id="twice")
    assert server_client.pttl(Around.schedule("twice")) > 60_000
    assert client.unschedule("twice")
    assert not client.unschedule("twice")
    assert not server_client.exists(Around.schedule("twice"))
    assert server_client.zscore(Around.DUE, "prompt:twice") is None


async def test_what_could_never_run_is_refused_at_once(redis_url, queue):
    async with AsyncClient(redis_url, model=queue) as client:
        for wrong in ({"temperature": 9}, {"id": "x" * 101}, {"webhook": "no"}):
            with pytest.raises(InvalidRequest):
                await client.schedule("a", delay_ms=1, **wrong)
        for delay_ms in (-1, 1.5, 10**12):
            with pytest.raises(InvalidRequest, match="delay_ms"):
                await client.schedule("a", delay_ms=delay_ms)
        ids = await client.schedule(prompt_ids=(i for i in range(3)), delay_ms=60_000)
        assert await client.unschedule(ids)
    async with AsyncClient(redis_url, model=queue, durability="strict") as client:
        with pytest.raises(NotDurable):
            await client.schedule("a", delay_ms=1)


def test_what_recurs_runs_once_for_all_that_was_missed(
    redis_url, queue, server_client, client, jobs_process
):
    run(
        *("schedule", "add", "--model", queue, "--cron", "0 7 * * *", "--id", "daily"),
        *("--redis-url", redis_url, "--max-tokens", "2", "good morning"),
    )
    (listed,) = json.loads(run("schedule", "list", "--json", "--redis-url", redis_url))
    first_ms = listed["next_ms"]
    assert first_ms % 86_400_000 == 7 * 3_600_000
    missed_ms = first_ms - 10 * 86_400_000  # as if nobody had been up for ten days
    server_client.hset(Around.schedule("daily"), "next_ms", missed_ms)
    server_client.zadd(Around.DUE, {"prompt:daily": missed_ms})
    job = client.job(f"daily.{missed_ms}")
    until(lambda: server_client.exists(Keys(queue).job(job.id)), "the occurrence")
    assert len(job.result().ids) == 2
    until(
        lambda: int(server_client.hget(Around.schedule("daily"), "next_ms")) >= first_ms, "the next"
    )
    assert len(list(server_client.scan_iter(Keys(queue).job("daily.*")))) == 1
    until(lambda: server_client.zscore(Around.DUE, "prompt:daily") >= first_ms - 2_000, "the wait")
    assert server_client.ttl(Around.schedule("daily")) == -1
    assert "good morning" in run("schedule", "list", "--redis-url", redis_url)
    run("schedule", "cancel", "daily", "--redis-url", redis_url)
    run("schedule", "cancel", "daily", "--redis-url", redis_url, code=1)


def test_a_full_queue_is_tried_again(redis_url, server_client, jobs_process):
    with Client(redis_url, queue="crowded", queue_limit=1) as client:
        first = client.submit("a", id="first")
        client.schedule("b", delay_ms=0, id="second")
        until(
            lambda: (server_client.zscore(Around.DUE, "prompt:second") or 0) > 0, "the second try"
        )
        first.cancel()
        until(lambda: server_client.exists(Keys("crowded").job("second")), "the submit")
        client.job("second").delete()
        first.delete()


def test_a_killed_process_forgets_no_schedule(own_server, tmp_path):
    server = own_server()
    with (
        Client(server.url, queue="q") as client,
        redis.Redis.from_url(server.url) as one,
        JobsProcess(server.url, tmp_path) as jobs,
    ):
        until(lambda: one.zcard(Around.DUE) > 0, "the process's start")
        jobs.end(signal.SIGKILL)
        ids = [client.schedule("x", delay_ms=0) for _ in range(5)]
        jobs.start()
        for job_id in ids:
            until(lambda job_id=job_id: one.exists(Keys("q").job(job_id)), "the submit")


def test_the_command_says_what_is_wrong(redis_url):
    base = ("schedule", "add", "x", "--model", "m", "--redis-url", redis_url)
    run(*base, code=2)
    run(*base, "--cron", "* * *", code=2)
    run(*base, "--cron", "0 0 31 2 *", code=2)
    run(*base, "--cron", "* * * * *", "--delay-ms", "5", code=2)


def test_cron_is_in_utc():
    assert next_ms("30 6 * * *", 0) == (6 * 60 + 30) * 60_000
    assert next_ms("30 6 * * *", (6 * 60 + 30) * 60_000) == (30 * 60 + 30) * 60_000
    assert next_ms("0 0 * * mon", 0) == 4 * 86_400_000  # 1970 began on a Thursday

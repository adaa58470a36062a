"""Webhooks, from a job's end to a receiver and OpenAI's own client, through a real jobs process."""

import asyncio
import json

import httpx2
import openai
import pytest
import redis
from gateway_process import GatewayProcess
from jobs_process import JobsProcess
from openai.types.webhooks import BatchCompletedWebhookEvent, ResponseIncompleteWebhookEvent
from typer.testing import CliRunner
from waiting import until
from webhook_receiver import SECRET
from wire_tools import Wire, Worker, end

from pagestream.producer import Client, InvalidRequest
from pagestream.producer.cli import build
from pagestream.producer.hooks.addresses import Allowed, NotAllowed
from pagestream.producer.hooks.sender import FIRST_RETRY_MS, RETRY_MS_MAX, retry_ms
from pagestream.producer.hooks.signing import read_secrets, signed_headers
from pagestream.producer.hooks.urls import check_url
from pagestream.producer.keys import Around, Keys
from pagestream.producer.lua import Script

OPENAI = openai.OpenAI(api_key="none", webhook_secret=SECRET)


def events(hooked) -> list[dict]:
    return [json.loads(one.body) for one in hooked.requests]


def run(*words: str) -> str:
    done = CliRunner().invoke(build(list(words)), list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


# ---- the end of a job, in the scripts


def test_every_kind_of_end_is_told_once_and_others_cost_nothing(wire, keys, redis_client):
    hook = "https://example.com/hook"
    for job in ("done", "failed", "queued", "late", "dead"):
        wire.submit(job, webhook=hook, queue_timeout_ms=60_000, tenant="acme")
    wire.submit("quiet", tenant="acme")
    worker = Worker(wire)
    claims = {claim.job_id: claim for claim in worker.claim(slots=2)}
    assert {"done", "failed"} <= claims.keys()
    worker.step(
        ends=[end(claims["done"], 0), end(claims["failed"], 0, "error", error="e", message="m")]
    )
    wire.cancel("queued")
    wire.pass_deadline("late", "queue_deadline_ms")
    redis_client.zadd(keys.due, {"late": 0})
    worker.lease.reap(())
    for claim in worker.claim(slots=2):
        if claim.job_id == "quiet":
            worker.step(ends=[end(claim, 0)])
        else:
            for crashes in range(3):
                worker.lease.crashed([("dead", claim.epoch, crashes)])
    ends = [fields for _, fields in redis_client.xrange(keys.hooks)]
    told = {one[b"id"].decode(): one[b"state"].decode() for one in ends}
    assert told == {
        "done": "done",
        "failed": "failed",
        "queued": "cancelled",
        "late": "expired",
        "dead": "dead",
    }
    assert len(ends) == 5
    assert {one[b"webhook"] for one in ends} == {hook.encode()}
    assert json.loads(ends[0][b"usage"])["prompt_tokens"] == 3
    assert 0 < redis_client.pttl(keys.hooks) <= 3 * 24 * 3_600_000


def test_a_retried_dead_letter_remembers_its_webhook(wire, keys, redis_client):
    wire.submit("job", webhook="https://example.com/")
    worker = Worker(wire)
    claim = worker.claim_one()
    for crashes in range(3):
        worker.lease.crashed([("job", claim.epoch, crashes)])
    redis_client.delete(keys.job("job"))  # its retention has passed
    ((letter, _),) = redis_client.xrange(keys.dead)
    assert Script("retry")(redis_client, keys.bell, letter) == b"retried"
    assert wire.record("job")["webhook"] == "https://example.com/"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "https://",
        "example.com/hook",
        "https://user:secret@example.com/",
        "https://example.com:99999/",
        "https://exa mple.com/",
        "https://example.com/" + "x" * 2048,
        7,
    ],
)
def test_what_is_no_webhook_is_refused_before_it_is_sent(redis_url, url):
    with pytest.raises(InvalidRequest, match="webhook"):
        check_url(url)
    with Client(redis_url, queue="any") as client, pytest.raises(InvalidRequest, match="webhook"):
        client.submit("hello", webhook=url)


# ---- the way to the receiver


def test_a_webhook_is_signed_for_openais_client_and_tells_no_text(
    redis_url, queue, jobs_process, hooked
):
    with Client(redis_url, model=queue, tenant="acme") as client:
        job = client.submit("a secret prompt", max_tokens=3, webhook=f"{hooked.url}/h?x=1")
        text = job.result().text
    until(lambda: hooked.requests, "the webhook")
    (request,) = hooked.requests
    assert request.path == "/h?x=1"
    assert request.headers["host"] == hooked.url.removeprefix("http://")
    event = OPENAI.webhooks.unwrap(request.body, request.headers)
    assert event.id == request.headers["webhook-id"]
    told = json.loads(request.body)
    assert told["type"] == "job.completed"
    assert told["data"] == {
        "id": job.id,
        "queue": queue,
        "state": "done",
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 0},
    }
    assert b"secret" not in request.body
    assert text.split("·")[0].encode() not in request.body
    with pytest.raises(openai.InvalidWebhookSignatureError):
        OPENAI.webhooks.unwrap(request.body + b" ", request.headers)


def test_what_fails_is_sent_again_and_keeps_its_id(redis_url, queue, jobs_process, hooked):
    hooked.answers = [(302, {"location": f"{hooked.url}/elsewhere"})]
    with redis.Redis.from_url(redis_url) as client, Client(redis_url, model=queue) as producer:
        producer.submit("x", webhook=f"{hooked.url}/again").result()
        until(lambda: len(hooked.requests) == 2, "the second try")
        until(lambda: not client.keys(Around.hook("*")), "the end of the webhook")
    assert {one.path for one in hooked.requests} == {"/again"}, "a redirect was followed"
    assert len({one.headers["webhook-id"] for one in hooked.requests}) == 1
    assert len({one.body for one in hooked.requests}) == 1


def test_retry_after_is_heard(redis_url, queue, jobs_process, hooked):
    hooked.answers = [(503, {"retry-after": "1800"})]
    with (
        redis.Redis.from_url(redis_url) as client,
        Client(redis_url, model=queue) as producer,
    ):
        producer.submit("x", webhook=hooked.url).result()
        until(lambda: hooked.requests, "the first try")
        event_id = hooked.requests[0].headers["webhook-id"]
        entry = f"hook:{event_id}"
        seconds, _ = client.time()
        until(lambda: client.zscore(Around.DUE, entry) > (seconds + 1_000) * 1000, "the wait")
        assert client.hget(Around.hook(event_id), "error") == b"answered 503"
        client.delete(Around.hook(event_id))
        client.zadd(Around.DUE, {entry: 0})
        until(lambda: client.zscore(Around.DUE, entry) is None, "the end of the entry")


def test_what_is_given_up_is_listed_retried_and_purged(redis_url, queue, jobs_process, hooked):
    hooked.answers = [(410, {})] * 2
    url = ("--redis-url", redis_url)
    with redis.Redis.from_url(redis_url) as client, Client(redis_url, model=queue) as producer:
        first = producer.submit("x", webhook=hooked.url)
        second = producer.submit("y", webhook=hooked.url)
        until(lambda: client.zcard(Around.DEAD_HOOKS) == 2, "two dead webhooks")
        listed = json.loads(run("hooks", "list", "--json", *url))
        assert {one["event"]["data"]["id"] for one in listed} == {first.id, second.id}
        assert {one["error"] for one in listed} == {"answered 410"}
        assert queue in run("hooks", "list", *url)
        assert json.loads(run("hooks", "show", first.id, *url))["url"] == hooked.url
        run("hooks", "retry", first.id, *url)
        until(lambda: len(hooked.requests) == 3, "the retry")
        until(lambda: client.zcard(Around.DEAD_HOOKS) == 1, "the retried one's delivery")
        assert client.ttl(Around.DEAD_HOOKS) > 0
        run("hooks", "purge", "--all", *url)
        assert not client.keys(Around.hook("*"))
        assert not client.exists(Around.DEAD_HOOKS)


def test_neither_an_unsigned_webhook_nor_one_to_the_inside_is_sent(
    own_server, queue, hooked, tmp_path
):
    own = own_server()
    keys = Keys("q")
    for variables in ({}, {"PAGESTREAM_WEBHOOK_SECRET": SECRET}):
        with (
            redis.Redis.from_url(own.url) as client,
            JobsProcess(own.url, tmp_path, **variables) as jobs,
        ):
            client.sadd("ps:queues", "q")
            wire = Wire(client, keys)
            wire.submit("job", webhook=hooked.url)
            wire.cancel("job")
            until(lambda: client.zcard(Around.DEAD_HOOKS) == 1, "the dead webhook")
            why = json.loads(run("hooks", "list", "--json", "--redis-url", own.url))[0]["error"]
            assert ("127.0.0.1" if variables else "PAGESTREAM_WEBHOOK_SECRET") in why
            assert variables or "no PAGESTREAM_WEBHOOK_SECRET is set" in jobs.log
            run("hooks", "purge", "--all", "--redis-url", own.url)
            wire.delete("job")
    assert hooked.requests == []


def test_the_gateway_takes_webhooks_for_answers_responses_and_batches(
    redis_url, queue, jobs_process, hooked, tmp_path
):
    with GatewayProcess(redis_url, tmp_path) as gateway:
        api = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
        asked = {"model": queue, "max_tokens": 2}
        told = api.completions.create(
            prompt="a", extra_headers={"X-Webhook": f"{hooked.url}/header"}, **asked
        )
        chat = {"messages": [{"role": "user", "content": "b"}], **asked}
        line = {
            "custom_id": "1",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": chat | {"webhook": f"{hooked.url}/line"},
        }
        response = api.responses.create(
            model=queue, input="c", background=True, extra_body={"webhook": f"{hooked.url}/body"}
        )
        file = api.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = api.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_body={"webhook": f"{hooked.url}/batch"},
        )
        until(lambda: len(hooked.requests) == 4, "four webhooks")
        by_path = {one.path: one for one in hooked.requests}
        header = json.loads(by_path["/header"].body)
        assert (header["type"], header["data"]["id"]) == ("job.completed", told.id)
        assert json.loads(by_path["/line"].body)["type"] == "job.completed"
        unwrapped = {
            path: OPENAI.webhooks.unwrap(one.body, one.headers) for path, one in by_path.items()
        }
        assert isinstance(unwrapped["/body"], ResponseIncompleteWebhookEvent)
        assert unwrapped["/body"].data.id == response.id
        assert isinstance(unwrapped["/batch"], BatchCompletedWebhookEvent)
        assert unwrapped["/batch"].data.id == batch.id
        assert api.batches.retrieve(batch.id).status == "completed"
        refused = httpx2.post(
            f"{gateway.url}/v1/completions", json=asked | {"prompt": "a", "webhook": "file:///etc"}
        )
        assert refused.status_code == 400
        assert "webhook" in refused.json()["error"]["message"]
        api.close()


# ---- the parts


def test_all_secrets_sign_while_they_are_changed():
    keys = read_secrets(f"{SECRET}, whsec_{'b3RoZXIx' * 4}")
    headers = signed_headers(keys, "evt_1", 1, b"{}")
    assert headers["webhook-signature"].count("v1,") == 2
    for wrong in ("secret", "whsec_", "whsec_c2hvcnQ=", f"{SECRET},"):
        with pytest.raises(InvalidRequest, match="secret") as raised:
            read_secrets(wrong)
        assert "c2hvcnQ" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.7", "192.168.1.1", "172.16.3.4", "169.254.169.254", "0.0.0.0"),
        *("::1", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("224.0.0.1", "100.64.0.1", "::"),
    ],
)
def test_the_inside_is_refused(address):
    with pytest.raises(NotAllowed, match="PAGESTREAM_WEBHOOK_ALLOW"):
        asyncio.run(Allowed("*.example.com, 198.51.100.0/24").address(address, 80))


def test_what_an_operator_names_is_allowed():
    async def allowed(text: str, host: str) -> str:
        return await Allowed(text).address(host, 80)

    assert asyncio.run(allowed("127.0.0.0/8", "127.0.0.1")) == "127.0.0.1"
    assert asyncio.run(allowed("10.0.0.7", "10.0.0.7")) == "10.0.0.7"
    assert asyncio.run(allowed("LOCAL*", "localhost")) in ("127.0.0.1", "::1")
    assert asyncio.run(allowed("", "8.8.8.8")) == "8.8.8.8"
    with pytest.raises(InvalidRequest, match="host bits"):
        Allowed("10.0.0.7/8")


def test_pauses_double_up_to_an_hour_and_differ():
    for attempts, pause_ms in ((1, FIRST_RETRY_MS), (2, 2 * FIRST_RETRY_MS), (40, RETRY_MS_MAX)):
        pauses = {retry_ms(attempts) for _ in range(50)}
        assert all(0.75 * pause_ms <= one <= 1.25 * pause_ms for one in pauses)
        assert len(pauses) > 1

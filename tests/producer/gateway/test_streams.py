"""Streams over HTTP: their ids, taking them up elsewhere, silence, and clients that hang up."""

import httpx2
import openai
import pytest
from gateway_process import GatewayProcess, events_of
from stub_engine import StubOptions
from stub_worker import answer
from tiny_tokenizer import save_byte_level
from waiting import until
from worker_harness import Worker

from pagestream.producer import Client as ProducerClient
from pagestream.producer import JobCancelled
from pagestream.producer.admin import Admin

CHAT = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "seed": 4}


def text_of(events) -> str:
    choices = [data["choices"][0] for _, data in events if data and data["choices"]]
    return "".join(one["delta"].get("content") or "" for one in choices)


def test_a_broken_stream_goes_on_at_the_other_gateway(gateways, http, worker, queue_name):
    told = http.post("/v1/chat/completions", json={"model": queue_name, "max_tokens": 9, **CHAT})
    events = [(data and data["event_id"], data) for _, data in events_of(told.text)]
    assert text_of(events) == answer(4, 9)[1]
    assert events[-1] == (None, None)
    job_id = events[0][1]["id"]
    ids = [event_id for event_id, _ in events if event_id]
    assert len(ids) > 3
    for ways in ({"params": {"from": ids[2]}}, {"headers": {"Last-Event-ID": ids[2]}}):
        rest = httpx2.get(f"{gateways[1].url}/v1/streams/{job_id}", **ways)
        known = [event for event in events if event[0] and ids.index(event[0]) <= 2]
        assert text_of(known) + text_of(events_of(rest.text)) == answer(4, 9)[1]
    whole = events_of(httpx2.get(f"{gateways[1].url}/v1/streams/{job_id}").text)
    assert text_of(whole) == answer(4, 9)[1]
    assert whole[-2][1]["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("chatcmpl-none", 404, "there is no 'chatcmpl-none' here"),
        ("%F0%9F%92%A5", 404, "there is no"),
        ("{id}?from=yesterday", 400, "from: 'yesterday' is not an event's id"),
    ],
)
def test_what_cannot_be_taken_up(http, worker, queue_name, path, status, said):
    told = http.post("/v1/completions", json={"model": queue_name, "prompt": "x", "max_tokens": 1})
    answered = http.get(f"/v1/streams/{path.format(id=told.json()['id'])}")
    assert answered.status_code == status
    assert said in answered.json()["error"]["message"]


def test_headers_do_not_wait_for_ever(http, worker, queue_name):
    """With the first token still to come the stream begins with nothing."""
    body = {"model": queue_name, "prompt": "hold", "max_tokens": 2, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as told:
        assert told.status_code == 200
        parts = told.iter_text()
        assert next(parts) == "\n\n"
        worker.released.set()
        assert "[DONE]" in "".join(parts)


@pytest.fixture
def slow_worker(redis_url, redis_client, keys, tmp_path):
    """A whole worker, whose engine takes its time: what cancels is its reaper."""
    options = StubOptions(step_s=0.02, max_model_tokens=4_000)
    model = save_byte_level(tmp_path)
    worker = Worker(redis_url, keys, model, options, flags={"heartbeat_ttl": 0.6}).start()
    until(lambda: redis_client.exists(keys.model))
    yield worker
    worker.end()


def ended_as(redis_client, keys, job_id: str) -> str:
    """Wait for a job's end and return its state."""

    def state() -> str:
        return redis_client.hget(keys.job(job_id), "state").decode()

    until(lambda: state() not in ("queued", "running"))
    return state()


def hung_up_on(http, queue_name, tokens, **headers) -> str:
    """Begin a stream, hang up after its first event, and return the job's id."""
    body = {"model": queue_name, "prompt": "x", "max_tokens": tokens, "ignore_eos": True}
    body |= {"stream": True}
    with http.stream("POST", "/v1/completions", json=body, headers=headers) as told:
        for part in told.iter_text():
            if "data: " in part:
                return events_of(part)[0][1]["id"]
    raise AssertionError("the stream said nothing")


def test_a_job_whose_client_hung_up_is_cancelled(http, slow_worker, queue_name, redis_client, keys):
    job_id = hung_up_on(http, queue_name, 3_000)
    assert ended_as(redis_client, keys, job_id) == "cancelled"


def test_a_job_may_be_kept(http, slow_worker, queue_name, redis_client, keys):
    job_id = hung_up_on(http, queue_name, 100, **{"X-On-Disconnect": "keep"})
    assert ended_as(redis_client, keys, job_id) == "done"


def test_a_client_that_does_not_wait_for_the_whole_answer(
    http, slow_worker, queue_name, redis_client, keys
):
    body = {"model": queue_name, "prompt": "x", "max_tokens": 3_000, "ignore_eos": True}
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/v1/completions", json=body, timeout=0.5)
    (job,) = redis_client.keys(keys.job("*").replace("{", "\\{"))
    assert ended_as(redis_client, keys, job.decode().rpartition(":")[2]) == "cancelled"


def test_an_idempotency_key_asks_once(gateways, worker, queue_name):
    body = {"model": queue_name, "prompt": "x", "max_tokens": 3}
    headers = {"Idempotency-Key": "order-17"}
    told = [
        httpx2.post(f"{gateway.url}/v1/completions", json=body, headers=headers).json()
        for gateway in (*gateways, *gateways)
    ]
    assert all(one == told[0] for one in told)
    other = httpx2.post(
        f"{gateways[0].url}/v1/completions", json={**body, "max_tokens": 4}, headers=headers
    )
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "job_conflict"


def test_an_answer_that_stays_the_same_is_not_asked_for_again(gateways, worker, queue_name):
    """OpenAI's client would, by the status."""
    with openai.OpenAI(base_url=f"{gateways[0].url}/v1", api_key="none", timeout=20) as client:
        ask = {"model": queue_name, "prompt": "x", "extra_headers": {"Idempotency-Key": "one"}}
        client.completions.create(**ask, max_tokens=1)
        with pytest.raises(openai.ConflictError) as conflict:
            client.completions.create(**ask, max_tokens=2)
    assert conflict.value.response.headers["x-should-retry"] == "false"
    assert conflict.value.request.headers["x-stainless-retry-count"] == "0"


def test_what_headers_say_of_the_job(http, worker, queue_name, redis_client, keys):
    headers = {"X-Priority": "low", "X-Deadline-Ms": "60000"}
    told = http.post(
        "/v1/completions",
        json={"model": queue_name, "prompt": "x", "max_tokens": 1},
        headers=headers,
    )
    record = redis_client.hgetall(keys.job(told.json()["id"]))
    assert record[b"lane"] == b"low"
    assert int(record[b"deadline_ms"]) > int(record[b"queued_ms"])
    assert int(record[b"reader_timeout_ms"]) == 1_000


def test_probes(http, gateways):
    assert http.get("/health").status_code == 200
    assert http.get("/ready").json() == {"ok": True}
    assert http.get("/nowhere").json()["error"]["type"] == "not_found_error"


def test_without_redis_it_is_not_ready(own_server, tmp_path):
    server = own_server()
    with GatewayProcess(server.url, tmp_path) as gateway:
        assert httpx2.get(f"{gateway.url}/ready").status_code == 200
        server.kill()
        told = httpx2.get(f"{gateway.url}/ready", timeout=20)
        assert told.status_code == 503
        assert told.headers["retry-after"] == "1"
        assert httpx2.get(f"{gateway.url}/health").status_code == 200


def test_behind_the_last_event_there_is_only_the_end(gateways, http, worker, queue_name):
    """A browser asks so by itself, when the connection closes behind the end."""
    told = http.post("/v1/chat/completions", json={"model": queue_name, "max_tokens": 2, **CHAT})
    events = events_of(told.text)
    job_id, last = events[0][1]["id"], events[-2][1]["event_id"]
    rest = httpx2.get(f"{gateways[1].url}/v1/streams/{job_id}", params={"from": last}, timeout=10)
    assert events_of(rest.text) == [(None, None)]


def test_a_stream_that_is_broken_off_before_its_first_token_has_a_status(
    http, worker, queue_name, redis_url
):
    body = {"model": queue_name, "prompt": "hold", "stream": True}
    headers = {"Idempotency-Key": "held", "X-On-Disconnect": "keep"}
    with http.stream("POST", "/v1/completions", json=body, headers=headers) as told:
        assert next(told.iter_text()) == "\n\n"
        with ProducerClient(redis_url, queue=queue_name) as producer:
            (job_id,) = ids_of(redis_url, queue_name)
            assert producer.job(job_id).cancel() == "cancelling"
            with pytest.raises(JobCancelled):
                producer.job(job_id).result(timeout_ms=20_000)
    again = http.post("/v1/completions", json=body, headers=headers)
    assert again.status_code == 409
    assert again.json()["error"]["code"] == "cancelled"


def ids_of(redis_url, queue_name) -> list[str]:
    with Admin(redis_url) as admin:
        return [job.id for job in admin.unfinished(queue_name, 10)]


def test_a_response_is_not_taken_up_as_a_completion(http, worker, queue_name):
    ask = {"model": queue_name, "input": "x", "max_output_tokens": 1}
    told = http.post("/v1/responses", json=ask).json()
    refused = http.get(f"/v1/streams/{told['id']}")
    assert refused.status_code == 400
    assert f"/v1/responses/{told['id']}?stream=true" in refused.json()["error"]["message"]

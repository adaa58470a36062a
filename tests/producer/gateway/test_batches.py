"""Files and batches: OpenAI's own client, a real gateway, and a real jobs process that may die."""

import json
import signal
import threading
from collections import Counter

import openai
import pytest
from jobs_process import JobsProcess
from stub_worker import StubWorker, answer
from waiting import until

ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture
def jobs(redis_url, tmp_path):
    with JobsProcess(redis_url, tmp_path) as process:
        yield process


pytestmark = pytest.mark.usefixtures("nothing_around")


def completion(model: str, custom_id: str, **body: object) -> dict:
    body = {"model": model, "prompt": "Once", "max_tokens": 4, "seed": 7, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def upload(client: openai.OpenAI, lines: list) -> str:
    content = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    return client.files.create(file=("in.jsonl", content.encode()), purpose="batch").id


def begin(client: openai.OpenAI, lines: list, endpoint: str = "/v1/completions", **more):
    file_id = upload(client, lines)
    return client.batches.create(
        input_file_id=file_id, endpoint=endpoint, completion_window="24h", **more
    )


def wait_for(client: openai.OpenAI, batch_id: str, is_there=lambda batch: batch.status in ENDED):
    until(lambda: is_there(client.batches.retrieve(batch_id)), f"{batch_id} as wanted", 30)
    return client.batches.retrieve(batch_id)


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_a_batch_from_file_to_files(client, queue_name, jobs):
    lines = [completion(queue_name, f"line {n}", seed=n) for n in range(300)]
    lines[7]["body"]["prompt"] = "fail"
    lines[8]["body"]["temperature"] = 9
    batch = begin(client, lines, metadata={"for": "the test"})
    assert (batch.status, batch.object, batch.metadata) == (
        *("validating", "batch"),
        {"for": "the test"},
    )
    batch = wait_for(client, batch.id)
    assert batch.status == "completed"
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (300, 298, 2)
    assert batch.in_progress_at <= batch.finalizing_at <= batch.completed_at <= batch.expires_at

    output = lines_of(client, batch.output_file_id)
    assert [one["custom_id"] for one in output] == [
        f"line {n}" for n in range(300) if n not in (7, 8)
    ]
    for one in output:
        body = one["response"]["body"]
        seed = int(one["custom_id"].split()[1])
        assert one["response"]["status_code"] == 200
        assert one["error"] is None
        assert body["choices"][0]["text"] == answer(seed, 4)[1]
        assert body["usage"]["completion_tokens"] == 4
    assert len({one["id"] for one in output}) == 298

    failed, refused = lines_of(client, batch.error_file_id)
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("line 7", 500)
    assert failed["response"]["body"]["error"]["code"] == "stub_failure"
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("line 8", 400)
    assert "temperature" in refused["response"]["body"]["error"]["message"]


@pytest.mark.parametrize(
    ("endpoint", "body", "said"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Hi"}]},
            lambda body: body["choices"][0]["message"]["content"],
        ),
        ("/v1/responses", {"input": "Hi"}, lambda body: body["output"][0]["content"][0]["text"]),
    ],
)
def test_each_endpoint_has_batches(client, queue_name, jobs, endpoint, body, said):
    line = {"custom_id": "one", "method": "POST", "url": endpoint}
    batch = begin(client, [{**line, "body": {"model": queue_name, "seed": 3, **body}}], endpoint)
    batch = wait_for(client, batch.id)
    (one,) = lines_of(client, batch.output_file_id)
    assert said(one["response"]["body"]) == answer(3)[1]


def test_a_batch_goes_behind_all_other_work(client, queue_name, jobs, redis_client, keys):
    batch = wait_for(client, begin(client, [completion(queue_name, "one")]).id)
    (one,) = lines_of(client, batch.output_file_id)
    record = keys.job(one["response"]["body"]["id"])
    assert redis_client.hmget(record, "lane", "retention_ms") == [b"low", b"120000"]


@pytest.mark.parametrize(
    ("lines", "code", "said"),
    [
        (["{"], "invalid_line", "is no request"),
        ([""], "empty_file", "no line"),
        ([completion("m", "a"), completion("m", "a")], "invalid_line", "is line 1's, too"),
        ([completion("m", "")], "invalid_line", "custom_id is empty"),
        ([{**completion("m", "a"), "url": "/v1/embeddings"}], "invalid_line", "the batch is for"),
        ([{**completion("m", "a"), "method": "GET"}], "invalid_line", "every line is a POST"),
        ([completion("m", "a", stream=True)], "invalid_line", "has no streams"),
        ([{**completion("m", "a"), "body": {}}], "invalid_line", "body.model is missing"),
    ],
)
def test_a_file_that_is_no_batch(client, jobs, lines, code, said):
    batch = wait_for(client, begin(client, lines).id)
    assert batch.status == "failed"
    assert batch.output_file_id is None
    assert batch.errors.data[0].code == code
    assert said in batch.errors.data[0].message


def test_a_file_with_too_many_lines(client, jobs):
    line = json.dumps(completion("m", "X"))
    batch = begin(client, [line.replace("X", str(n)) for n in range(50_001)])
    batch = wait_for(client, batch.id)
    assert (batch.status, batch.errors.data[0].line) == ("failed", 50_001)
    assert "50,000" in batch.errors.data[0].message


def test_killed_processes_lose_nothing_and_do_nothing_twice(
    client, worker, redis_url, queue_name, redis_client, tmp_path
):
    """Five jobs processes are killed in the middle; every line is answered once."""
    steps = worker.steps_allowed = threading.Semaphore(0)

    def has_answered(count: int) -> bool:
        steps.release()
        return client.batches.retrieve(batch.id).request_counts.completed >= count

    with JobsProcess(redis_url, tmp_path, "--batch-in-flight", "20") as jobs:
        batch = begin(client, [completion(queue_name, f"{n}", seed=n) for n in range(240)])
        for kill in range(1, 6):
            until(lambda count=30 * kill: has_answered(count))
            jobs.end(signal.SIGKILL)
            assert client.batches.retrieve(batch.id).status == "in_progress"
            jobs.start()
            # What the killed one held is taken as soon as its lease is over: make that now.
            redis_client.zadd("{ps}:due", {f"batch:{batch.id}": 0}, xx=True)
        steps.release(10_000)
        batch = wait_for(client, batch.id)
    output = lines_of(client, batch.output_file_id)
    assert Counter(one["custom_id"] for one in output) == {f"{n}": 1 for n in range(240)}
    assert all(
        one["response"]["body"]["choices"][0]["text"] == answer(int(one["custom_id"]), 4)[1]
        for one in output
    )


def test_a_lease_ends_by_itself(client, redis_url, queue_name, worker, tmp_path):
    with JobsProcess(redis_url, tmp_path) as jobs:
        batch = begin(client, [completion(queue_name, "hold", prompt="hold")])
        assert worker.claimed.wait(20)
        jobs.end(signal.SIGKILL)
        worker.released.set()
        jobs.start()
        assert wait_for(client, batch.id).request_counts.completed == 1


def test_cancelling_keeps_what_is_done_and_frees_what_runs(
    client, worker, queue_name, jobs, redis_client, keys
):
    lines = [completion(queue_name, f"{n}") for n in range(5)]
    batch = begin(client, [*lines, completion(queue_name, "held", prompt="hold")])
    wait_for(client, batch.id, lambda one: one.request_counts.completed == 5)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = wait_for(client, batch.id)
    assert (batch.status, batch.request_counts.completed) == ("cancelled", 5)
    records = [redis_client.hget(key, "state") for key in redis_client.scan_iter(keys.job("*"))]
    assert Counter(records) == {b"done": 5, b"cancelled": 1}
    assert len(lines_of(client, batch.output_file_id)) == 5
    with pytest.raises(openai.BadRequestError, match="nothing is left to cancel"):
        client.batches.cancel(batch.id)


def test_a_batch_out_of_time_says_which_lines_were_not_answered(
    client, worker, queue_name, jobs, redis_client
):
    lines = [completion(queue_name, "done"), completion(queue_name, "held", prompt="hold")]
    batch = begin(client, lines)
    wait_for(client, batch.id, lambda one: one.request_counts.completed == 1)
    key = f"{{ps}}:batch:{batch.id}"
    about = json.loads(redis_client.hget(key, "about"))
    redis_client.hset(key, "about", json.dumps({**about, "expires_ms": about["created_ms"]}))
    batch = wait_for(client, batch.id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == (
        *("expired", 1),
        1,
    )
    (late,) = lines_of(client, batch.error_file_id)
    assert (late["custom_id"], late["response"], late["error"]["code"]) == (
        *("held", None),
        "batch_expired",
    )


def test_lines_beyond_the_queues_bound_wait(redis_url, client, queue_name, tmp_path):
    with JobsProcess(redis_url, tmp_path, "--queue-limit", "3"):
        batch = begin(client, [completion(queue_name, f"{n}") for n in range(12)])
        assert wait_for(client, batch.id).request_counts.completed == 12


def test_the_bound_of_an_api_key_holds_for_its_batches(
    keyed_gateway, jobs, worker, queue_name, redis_client
):
    with openai.OpenAI(base_url=f"{keyed_gateway.url}/v1", api_key="sk-anna-batches") as anna:
        batch = begin(anna, [completion(queue_name, f"{n}", max_tokens=30) for n in range(6)])
        assert wait_for(anna, batch.id).request_counts.completed == 6
    assert worker.most_running == 1


def test_an_outage_of_redis_only_delays(own_server, tmp_path):
    from gateway_process import GatewayProcess

    server = own_server()
    flags = ("--batch-in-flight", "5")
    with (
        GatewayProcess(server.url, tmp_path) as gateway,
        JobsProcess(server.url, tmp_path, *flags) as jobs,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=20) as client,
    ):
        with StubWorker(server.url, "m"):
            batch = begin(client, [completion("m", f"{n}") for n in range(100)])
            wait_for(client, batch.id, lambda one: one.request_counts.completed >= 10)
        server.stop()
        server.start()
        with StubWorker(server.url, "m"):
            batch = wait_for(client, batch.id)
        assert batch.request_counts.completed == 100, jobs.log
        ids = [one["custom_id"] for one in lines_of(client, batch.output_file_id)]
        assert sorted(ids, key=int) == [f"{n}" for n in range(100)]


def test_files_come_and_go(client):
    file = client.files.create(file=("notes.jsonl", b"a\nb\n" * 700_000), purpose="batch")
    assert (file.bytes, file.filename, file.purpose) == (2_800_000, "notes.jsonl", "batch")
    assert client.files.retrieve(file.id).created_at == file.created_at
    assert client.files.content(file.id).read() == b"a\nb\n" * 700_000
    other = upload(client, ["x"])
    assert [one.id for one in client.files.list()] == [other, file.id]
    assert [one.id for one in client.files.list(limit=1)] == [other, file.id]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match=file.id):
        client.files.retrieve(file.id)
    assert [one.id for one in client.files.list()] == [other]


def test_batches_are_listed_page_by_page(client, jobs):
    ids = [begin(client, [completion("m", "a")]).id for _ in range(5)]
    assert [one.id for one in client.batches.list(limit=2)] == ids[::-1]
    first = client.batches.list(limit=2)
    assert (first.has_more, [one.id for one in first.data]) == (True, ids[:2:-1])
    with pytest.raises(openai.NotFoundError):
        client.batches.list(after="batch_none")


def test_what_a_batch_cannot_be(client):
    with pytest.raises(openai.NotFoundError, match="file-none"):
        client.batches.create(
            input_file_id="file-none", endpoint="/v1/completions", completion_window="24h"
        )
    file_id = upload(client, ["x"])
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        client.batches.create(
            input_file_id=file_id,
            endpoint="/v1/embeddings",
            completion_window="24h",
        )
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("x", b"x"), purpose="fine-tune")


def test_an_idempotency_key_makes_one_batch(client, queue_name, jobs):
    file_id = upload(client, [completion(queue_name, "a")])
    asked = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    headers = {"Idempotency-Key": "monday"}
    ids = {client.batches.create(**asked, extra_headers=headers).id for _ in range(2)}
    assert len(ids) == 1
    with pytest.raises(openai.BadRequestError, match="asks something else"):
        client.batches.create(**asked, metadata={"a": "b"}, extra_headers=headers)


def test_tenants_do_not_see_each_others_files(keyed_gateway):
    anna, ben = (
        openai.OpenAI(base_url=f"{keyed_gateway.url}/v1", api_key=key, max_retries=0)
        for key in ("sk-anna", "sk-ben")
    )
    with anna, ben:
        file_id = upload(anna, ["x"])
        for ask in (ben.files.retrieve, ben.files.content, ben.files.delete):
            with pytest.raises(openai.NotFoundError):
                ask(file_id)
        assert list(ben.files.list()) == []
        batch = anna.batches.create(
            input_file_id=file_id, endpoint="/v1/completions", completion_window="24h"
        )
        for ask in (ben.batches.retrieve, ben.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(batch.id)
        assert list(ben.batches.list()) == []

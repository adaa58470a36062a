"""`ls`, `tail` and `cancel`, run as an operator would."""

import json

import pytest
from stub_worker import StubWorker, answer

from pagestream.producer import Client


@pytest.fixture
def client(redis_url, queue_name):
    with Client(redis_url, queue=queue_name) as made:
        yield made


def test_ls_lists_what_waits_and_runs(command, client, redis_url, queue_name):
    assert command("ls") == (0, "")
    with StubWorker(redis_url, queue_name) as worker:
        client.submit("hold", id="running", lane="low")
        assert worker.claimed.wait(20)
    client.submit("x", id="waiting", tenant="t", lane="high")
    status, told = command("ls", "--json")
    jobs = json.loads(told)
    assert status == 0
    assert [(one["id"], one["lane"], one["tenant"]) for one in jobs] == [
        ("waiting", "high", "t"),
        ("running", "low", "default"),
    ]
    assert all(one["queued_ms"] > 0 and one["prompt_tokens_max"] > 0 for one in jobs)
    status, told = command("ls", "--limit", "1")
    assert status == 0
    assert told.index("waiting") < told.index("running")


def test_tail_prints_the_answer(command, client, redis_url, queue_name):
    with StubWorker(redis_url, queue_name):
        client.submit("x", id="j", seed=3, max_tokens=5)
        assert command("tail", "j") == (0, answer(3, 5)[1] + "\n")
        chunks = list(client.job("j").stream())
        rest = "".join(chunk.text for chunk in chunks[2:])
        assert command("tail", "j", "--after", chunks[1].id) == (0, rest + "\n")
    status, told = command("tail", "nobody")
    assert status == 1
    assert "job nobody" in told


def test_cancel_says_what_it_found(command, client):
    client.submit("x", id="waits")
    status, told = command("cancel", "waits", "nobody")
    assert (status, told) == (0, "waits: cancelled\nnobody: unknown\n")

"""Redis users of a gateway and a jobs process: all they need, and nothing beside it."""

import asyncio
import json

import httpx2
import openai
import pytest
from acl_users import SHA256, connected, denied, server_with, url
from gateway_process import GatewayProcess
from jobs_process import JobsProcess
from loopback import free_port
from stub_worker import StubWorker
from waiting import until
from webhook_receiver import SECRET, receiver

from pagestream.producer import Client, InvalidRequest
from pagestream.producer.acl import rule
from pagestream.producer.jobs.pool import arq_pool
from pagestream.producer.keys import QUEUES, Around

QUEUE = "acl/queue-1.0"
USERS = [
    rule("worker", QUEUE, user="worker", password_sha256=SHA256),
    rule("gateway", "*", user="gateway", password_sha256=SHA256),
    rule("jobs", "*", user="jobs", password_sha256=SHA256),
]


@pytest.fixture
def server(own_server, tmp_path):
    return server_with(own_server, tmp_path, USERS)


def test_a_gateway_and_a_jobs_process_do_all_they_do(server, tmp_path):
    """Files, a batch, a response with a webhook, a schedule, a call through arq, and metrics."""
    flags = ("--webhook-allow", "127.0.0.1", "--health-port", str(free_port()))
    with (
        StubWorker(url(server, "worker"), QUEUE),
        GatewayProcess(url(server, "gateway"), tmp_path) as gateway,
        JobsProcess(
            url(server, "jobs"), tmp_path, *flags, PAGESTREAM_WEBHOOK_SECRET=SECRET
        ) as jobs,
        receiver() as hooked,
        connected(server, "worker") as worker,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as api,
        Client(url(server, "gateway"), queue=QUEUE) as client,
    ):
        worker.sadd(QUEUES, QUEUE)
        line = {"custom_id": "1", "method": "POST", "url": "/v1/completions"}
        line["body"] = {"model": QUEUE, "prompt": "a", "max_tokens": 2}
        file = api.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = api.batches.create(
            input_file_id=file.id,
            endpoint="/v1/completions",
            completion_window="24h",
            extra_headers={"X-Webhook": hooked.url},
        )
        api.responses.create(
            model=QUEUE, input="b", background=True, extra_headers={"X-Webhook": hooked.url}
        )
        job_id = client.schedule("c", delay_ms=10, max_tokens=2)
        assert client.unschedule(client.schedule("d", delay_ms=60_000))

        async def call() -> str:
            pool = arq_pool(url(server, "jobs"))
            try:
                called = await pool.enqueue_job("generate", "e", model=QUEUE, max_tokens=2)
                return await called.result(20, poll_delay=0.05)
            finally:
                await pool.aclose()

        assert asyncio.run(call())
        until(lambda: len(hooked.requests) == 2, "two webhooks")
        assert api.batches.retrieve(batch.id).status == "completed", jobs.log
        output = api.batches.list().data[0].output_file_id
        assert b'"custom_id":"1"' in api.files.content(output).read()
        api.files.delete(file.id)
        until(lambda: client.job(job_id).status().state == "done", "the scheduled job")
        shown = httpx2.get(f"{gateway.url}/metrics").text
        assert "pagestream_redis_up 1.0" in shown
        assert "pagestream_redis_up 1.0" in httpx2.get(f"http://127.0.0.1:{flags[-1]}/metrics").text
        assert "no permissions" not in (jobs.log + gateway.log).lower()
    with connected(server, "gateway") as user:
        denied(user, "ZRANGE", Around.DEAD_HOOKS, 0, -1)
        denied(user, "SET", "elsewhere", "x")
        denied(user, "CONFIG", "GET", "*")
    with connected(server, "jobs") as user:
        denied(user, "SET", "elsewhere", "x")
        denied(user, "FLUSHALL")
    with pytest.raises(InvalidRequest, match="queue"):
        rule("producer", "*", user="x", password_sha256=SHA256)

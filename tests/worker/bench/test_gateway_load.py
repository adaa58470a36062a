"""The load over HTTP: what a gateway's answers become, read from a real one."""

import httpx2
import pytest
from gateway_process import GatewayProcess
from stub_worker import StubWorker

from pagestream.producer.errors import JobFailed, QueueUnavailable, UnknownModel
from pagestream.worker.bench.client import drive
from pagestream.worker.bench.datasets import Sample
from pagestream.worker.bench.gateway import GatewayPlace, GatewayReply


@pytest.fixture
def place(redis_url, queue_name, tmp_path):
    with GatewayProcess(redis_url, tmp_path) as gateway, StubWorker(redis_url, queue_name):
        yield GatewayPlace(f"{gateway.url}/v1", queue_name)


async def test_a_refusal_is_its_own_requests(place):
    assert place.served_model().vocab_size == 1_000
    too_large = Sample([place.served_model().vocab_size], 3)
    async with place.open(2) as target:
        lines = await drive(target, [Sample([1, 2], 3), too_large], [0.0, 0.0])
    assert lines[0].tokens == [1, 1, 1]
    assert lines[0].sent_s < lines[0].arrivals_s[0] <= lines[0].ended_s
    assert lines[1].error.startswith("invalid_request: prompt_ids holds 1000")


async def test_a_job_that_fails_and_a_place_that_is_none(place):
    body = {"model": place.model, "prompt": "fail", "stream": True, "return_token_ids": True}
    async with httpx2.AsyncClient(base_url=place.base_url) as client:
        with pytest.raises(JobFailed, match="asked to fail") as failed:
            assert [tokens async for tokens in GatewayReply(client, body).arrivals()] == [1, 1]
        assert failed.value.code == "stub_failure"
    async with httpx2.AsyncClient(base_url="http://127.0.0.1:1") as client:
        with pytest.raises(QueueUnavailable, match="broke off"):
            [tokens async for tokens in GatewayReply(client, body).arrivals()]
    elsewhere = GatewayPlace(place.base_url.removesuffix("/v1"), place.model)
    with pytest.raises(UnknownModel, match="should end in /v1"):
        elsewhere.served_model()

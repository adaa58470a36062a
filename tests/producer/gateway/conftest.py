"""Two gateways, and OpenAI's own client on the test's queue."""

import json

import httpx2
import openai
import pytest
from gateway_process import GatewayProcess

KEYS = {
    "sk-anna": "anna",
    "sk-anna-batches": {"tenant": "anna", "queue_limit": 1},
    "sk-ben": {"tenant": "ben"},
}


@pytest.fixture(scope="module")
def gateways(redis_server, tmp_path_factory):
    """Two gateways that let everybody in."""
    folder = tmp_path_factory.mktemp("gateways")
    flags = ("--disconnect-grace", "1", "--first-entry-wait", "0.3")
    with (
        GatewayProcess(redis_server.url, folder, *flags) as one,
        GatewayProcess(redis_server.url, folder, *flags) as other,
    ):
        yield one, other


@pytest.fixture(scope="module")
def keyed_gateway(redis_server, tmp_path_factory):
    """One that wants an API key."""
    folder = tmp_path_factory.mktemp("keyed")
    file = folder / "keys.json"
    file.write_text(json.dumps(KEYS))
    with GatewayProcess(redis_server.url, folder, "--api-keys", str(file)) as gateway:
        yield gateway


@pytest.fixture
def http(gateways):
    """Plain HTTP to the first gateway."""
    with httpx2.Client(base_url=gateways[0].url, timeout=20) as client:
        yield client


@pytest.fixture
def client(gateways, worker):
    """OpenAI's client, without its retries."""
    with openai.OpenAI(
        base_url=f"{gateways[0].url}/v1", api_key="none", max_retries=0, timeout=20
    ) as one:
        yield one

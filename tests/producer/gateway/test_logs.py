"""What a gateway logs: JSON where that is asked for, and nothing of what was asked of a model."""

import json

import httpx2
import pytest
from gateway_process import GatewayProcess
from stub_worker import StubWorker

SECRET = "Xyzzy-plugh"


@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_no_prompt_no_answer_and_no_key_is_logged(redis_url, queue_name, tmp_path, log_format):
    bodies = [
        {"prompt": SECRET, "max_tokens": 2, "seed": 4},
        {"prompt": f"fail {SECRET}", "max_tokens": 9, "seed": 4},
        {"prompt": SECRET, "temperature": SECRET},
        {"prompt": [SECRET, {SECRET: 1}]},
        {"prompt": SECRET, "model": SECRET},
    ]
    with (
        StubWorker(redis_url, queue_name),
        GatewayProcess(redis_url, tmp_path, "--log-format", log_format) as gateway,
    ):
        headers = {"Authorization": f"Bearer {SECRET}"}
        with httpx2.Client(base_url=gateway.url, headers=headers, timeout=20) as http:
            for body in bodies:
                http.post("/v1/completions", json={"model": queue_name, **body})
            http.post("/v1/completions", content=f'{{"prompt": "{SECRET}')
            http.get(f"/v1/streams/{SECRET}")
    lines = gateway.log.splitlines()
    assert lines
    assert SECRET not in gateway.log
    if log_format == "json":
        messages = [json.loads(line)["message"] for line in lines]
        assert any("Uvicorn running" in message for message in messages)
    else:
        assert any("I uvicorn.error: Uvicorn running" in line for line in lines)

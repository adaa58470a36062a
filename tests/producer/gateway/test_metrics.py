"""`/metrics` of a gateway in a process of its own."""

import json

import httpx2
import pytest
from gateway_process import GatewayProcess
from prometheus_client.parser import text_string_to_metric_families
from stub_worker import StubWorker
from waiting import until

BODY = {"prompt": "hello", "max_tokens": 3, "seed": 4}


@pytest.fixture
def gateway(redis_url, tmp_path):
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"sk": "anna"}))
    with GatewayProcess(redis_url, tmp_path, "--api-keys", str(keys)) as process:
        yield process


def scrape(gateway: GatewayProcess) -> dict[tuple[str, ...], float]:
    told = httpx2.get(f"{gateway.url}/metrics")
    assert told.status_code == 200
    assert told.headers["content-type"].startswith("text/plain")
    return {
        (
            sample.name.removeprefix("pagestream_"),
            *(sample.labels[label] for label in sorted(sample.labels)),
        ): sample.value
        for family in text_string_to_metric_families(told.text)
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status(gateway, redis_url, queue_name):
    with (
        StubWorker(redis_url, queue_name),
        httpx2.Client(base_url=gateway.url, headers={"Authorization": "Bearer sk"}) as http,
    ):
        path, body = "/v1/completions", {"model": queue_name, **BODY}
        assert http.post(path, json=body).status_code == 200
        assert http.post(path, json={**body, "stream": True}).status_code == 200
        assert http.post(path, json={**body, "model": "none"}).status_code == 404
        assert httpx2.post(f"{gateway.url}{path}", json=body).status_code == 401
        for number in range(3):
            assert http.get(f"/invented/{number}").status_code == 404
        assert http.request("BREW", "/coffee").status_code >= 400
        found = scrape(gateway)
        assert found["gateway_requests_total", "POST", path, "200"] == 2
        assert found["gateway_requests_total", "POST", path, "404"] == 1
        assert found["gateway_requests_total", "POST", path, "401"] == 1
        assert found["gateway_requests_total", "GET", "other", "404"] == 3
        assert [key for key in found if key[0] == "gateway_requests_total" and "BREW" in key] == []
        assert found["gateway_request_duration_seconds_count", path] == 4
        assert found["gateway_response_start_seconds_count", path] == 4
        assert found["queue_workers", queue_name] == 1
        assert found["queue_jobs_waiting", "low", queue_name] == 0
        assert found[("redis_up",)] == 1
    assert not [key for key in found if "sk" in key or "anna" in key], "no tenant, no key"


def test_an_open_stream_is_in_progress_until_its_client_leaves(gateway, redis_url, queue_name):
    body = {"model": queue_name, "prompt": "hold", "max_tokens": 2, "stream": True}
    headers = {"Authorization": "Bearer sk"}
    with StubWorker(redis_url, queue_name):
        with httpx2.stream(
            "POST", f"{gateway.url}/v1/completions", json=body, headers=headers, timeout=20
        ) as told:
            assert told.status_code == 200
            # The scrape is one of them.
            assert scrape(gateway)[("gateway_requests_in_progress",)] == 2
        until(lambda: scrape(gateway)[("gateway_requests_in_progress",)] == 1)


def test_a_queue_without_a_worker_is_seen(gateway, redis_url, queue_name):
    with StubWorker(redis_url, queue_name):
        pass
    body = {"model": queue_name, **BODY, "stream": True}
    headers = {"Authorization": "Bearer sk"}
    with httpx2.stream(
        "POST", f"{gateway.url}/v1/completions", json=body, headers=headers, timeout=20
    ) as told:
        assert told.status_code == 200
        found = scrape(gateway)
        assert found["queue_workers", queue_name] == 0
        assert found["queue_jobs_waiting", "normal", queue_name] == 1

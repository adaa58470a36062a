"""deploy/keda: its objects are KEDA's, and what it counts is what there is to do.

The streams of a ScaledObject are filled by the real client and emptied by a worker; what KEDA would
read of them (XLEN) is read here. Source: KEDA, "Redis Streams" and "ScaledObject specification".
"""

import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from redis import Redis
from stub_worker import StubWorker

from pagestream.producer import Client
from pagestream.producer.keys import LANES, Keys

ROOT = Path(__file__).resolve().parents[2]
FILES = {file.name: yaml.safe_load(file.read_text()) for file in (ROOT / "deploy/keda").iterdir()}
BY_STREAMS, BY_METRICS = FILES["worker.yaml"]["spec"], FILES["worker-by-metrics.yaml"]["spec"]
KUBERNETES = ROOT / "deploy/kubernetes"


def as_keda_reads(given: dict[str, Any]) -> dict[str, Any]:
    """Through the types that are made from KEDA's own definition; what they do not know is lost."""
    read = ScaledObject.model_validate(given)
    return read.model_dump(mode="json", by_alias=True, exclude_unset=True)


@pytest.mark.parametrize("name", FILES)
def test_it_is_a_scaled_object_and_nothing_more(name: str) -> None:
    assert as_keda_reads(FILES[name]) == FILES[name]
    wrong = FILES[name] | {"spec": FILES[name]["spec"] | {"colour": "red"}}
    assert as_keda_reads(wrong) == FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_it_scales_our_workers(name: str) -> None:
    worker, _ = yaml.safe_load_all((KUBERNETES / "worker.yaml").read_text())
    assert FILES[name]["metadata"]["namespace"] == worker["metadata"]["namespace"]
    assert FILES[name]["spec"]["scaleTargetRef"]["name"] == worker["metadata"]["name"]
    assert FILES[name]["spec"]["minReplicaCount"] <= worker["spec"]["replicas"]


def test_it_asks_the_redis_that_workers_use() -> None:
    _, service, _ = yaml.safe_load_all((KUBERNETES / "redis.yaml").read_text())
    named, (port,) = service["metadata"], service["spec"]["ports"]
    for trigger in BY_STREAMS["triggers"]:
        address = f"{named['name']}.{named['namespace']}.svc:{port['port']}"
        assert trigger["metadata"]["address"] == address


def test_the_three_lanes_are_added_up() -> None:
    triggers = {trigger["name"]: trigger for trigger in BY_STREAMS["triggers"]}
    assert list(triggers) == list(LANES)
    modifiers = BY_STREAMS["advanced"]["scalingModifiers"]
    assert modifiers["formula"] == " + ".join(LANES)
    for lane, trigger in triggers.items():
        assert trigger["type"] == "redis-streams"
        assert trigger["metadata"].keys() == {"address", "stream", "streamLength"}
        assert trigger["metadata"]["stream"] == Keys("demo").jobs(lane)
        assert trigger["metadata"]["streamLength"] == modifiers["target"]


def test_what_keda_counts_is_what_there_is_to_do(
    redis_url: str, redis_client: Redis, queue_name: str
) -> None:
    """Waiting and running jobs, and nothing once they have ended."""

    def counted() -> list[int]:
        streams = [trigger["metadata"]["stream"] for trigger in BY_STREAMS["triggers"]]
        return [
            redis_client.xlen(stream.replace("{ps:demo}", Keys(queue_name).prefix.rstrip(":")))
            for stream in streams
        ]

    assert counted() == [0, 0, 0]  # no stream is there yet
    with Client(redis_url, queue=queue_name) as client:
        jobs = [client.submit("hold", lane=lane) for lane in (*LANES, "low")]
        assert counted() == [1, 1, 2]
        with StubWorker(redis_url, queue_name) as worker:
            assert worker.claimed.wait(20)
            assert counted() == [1, 1, 2]
            worker.released.set()
            for job in jobs:
                job.result(timeout_ms=20_000)
        assert counted() == [0, 0, 0]


def test_after_a_cancel_redis_does_not_know_the_lag(
    redis_url: str, redis_client: Redis, queue_name: str
) -> None:
    """Why the length is counted, and not the group's lag."""
    with Client(redis_url, queue=queue_name) as client:
        first, second = client.submit("one"), client.submit("two")
        (group,) = redis_client.xinfo_groups(Keys(queue_name).jobs("normal"))
        assert group["name"] == b"workers"
        if "lag" not in group:
            pytest.skip("this server is older than Redis 7, and has no lag at all")
        assert group["lag"] == 2
        assert second.cancel() == "cancelled"
        (group,) = redis_client.xinfo_groups(Keys(queue_name).jobs("normal"))
        assert group["lag"] is None
        assert redis_client.xlen(Keys(queue_name).jobs("normal")) == 1
        assert first.cancel() == "cancelled"


def test_metrics_say_the_same() -> None:
    (trigger,) = BY_METRICS["triggers"]
    query = trigger["metadata"]["query"]
    promql_parser.parse(query)
    names = set(re.findall(r"pagestream_\w+", query))
    assert names == {"pagestream_queue_jobs_waiting", "pagestream_queue_jobs_running"}
    exported = (ROOT / "docs/metrics.md").read_text()
    assert all(f"| `{name}` | `model_name`, `lane` |" in exported for name in names)
    assert trigger["metadata"]["threshold"] == BY_STREAMS["advanced"]["scalingModifiers"]["target"]
    assert (
        BY_METRICS["advanced"]["horizontalPodAutoscalerConfig"]
        == (BY_STREAMS["advanced"]["horizontalPodAutoscalerConfig"])
    )

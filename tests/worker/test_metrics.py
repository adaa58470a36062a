"""`/metrics` and `/debug` of a whole worker, and what the numbers mean."""

import http.client
import json
import re
from collections.abc import Callable
from pathlib import Path

from loopback import free_port
from prometheus_client.parser import text_string_to_metric_families
from redis_server import RedisServer
from stub_engine import StubOptions
from wire_tools import Wire
from wire_tools import Worker as WireWorker
from worker_harness import Client, Worker

from pagestream.producer.keys import Keys
from pagestream.worker.messages import Load, Ready, Step
from pagestream.worker.metrics import COUNTERS, HISTOGRAMS, WorkerCollector
from pagestream.worker.queue.meter import Meter

SLOW = StubOptions(step_s=0.004, num_blocks=65, max_running=2)
READY = Ready(
    max_model_tokens=64,
    max_running=8,
    num_blocks=11,
    block_tokens=16,
    vocab_size=10,
    device="cpu",
    weight_bytes=0,
    kv_bytes=0,
)


def ask(port: int, path: str) -> tuple[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200
    body = answer.read().decode()
    connection.close()
    return answer.headers["Content-Type"], body


def scrape(port: int) -> dict[str, float]:
    """Sample -> value; labels other than the queue's name are part of the sample's name."""
    _, text = ask(port, "/metrics")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            name = sample.name.removeprefix("pagestream_")
            found[name + (json.dumps(labels, sort_keys=True) if labels else "")] = sample.value
    return found


def settled(port: int, client: Client, **wanted: float) -> dict[str, float]:
    """Scrape until the samples are as wanted: the end is read before the worker counts it."""
    for _ in range(500):
        found = scrape(port)
        if all(found.get(name) == value for name, value in wanted.items()):
            return found
        client.redis.blpop(["nothing"], timeout=0.01)
    raise AssertionError({name: found.get(name) for name in wanted})


def test_a_worker_counts_what_it_does(start: Callable[..., Worker], client: Client) -> None:
    port = free_port()
    start(SLOW, flags={"health_port": port, "heartbeat_ttl": 0.6})
    for number in range(4):
        options = {"lane": "low"} if number == 3 else {}
        client.submit(
            f"j{number}",
            prompt_ids=[1] * 20,
            sampling={"max_tokens": 50, "ignore_eos": True},
            options=options,
        )
    client.submit("bad", prompt_ids=[1], model="another")
    client.wait_tokens("j0", 5)
    running = scrape(port)
    assert running["num_requests_running"] == 2
    assert running["max_requests_running"] == 2
    assert running["worker_ready"] == running["redis_up"] == running["queue_workers"] == 1
    assert running['queue_jobs_waiting{"lane": "low"}'] == 1
    assert running['queue_oldest_age_seconds{"lane": "low"}'] > 0
    assert 0 < running["kv_cache_usage_perc"] < 1
    for number in range(4):
        client.result(f"j{number}")
    client.result("bad")
    done = settled(port, client, **{'request_success_total{"finished_reason": "length"}': 4})
    assert done['request_success_total{"finished_reason": "error"}'] == 1
    assert done['request_success_total{"finished_reason": "cancelled"}'] == 0
    assert done["generation_tokens_total"] == 200
    assert done["prompt_tokens_total"] == done["prefill_computed_tokens_total"] == 80
    assert done["claims_total"] == 5
    assert done["num_requests_running"] == done["kv_cache_usage_perc"] == 0
    assert done["time_to_first_token_seconds_count"] == 4
    assert done["request_prefill_time_seconds_count"] == 4
    assert done["inter_token_latency_seconds_count"] == 4 * 49
    assert (
        done["request_queue_time_seconds_count"] == done["e2e_request_latency_seconds_count"] == 5
    )
    assert done["request_decode_time_seconds_count"] == 4
    # 49 gaps of 4 ms each, and each request's decode is the sum of its gaps.
    gaps_s = done["inter_token_latency_seconds_sum"]
    assert gaps_s >= 49 * 4 * 0.004
    assert abs(gaps_s - done["request_decode_time_seconds_sum"]) < 0.01 * gaps_s
    assert done['inter_token_latency_seconds_bucket{"le": "+Inf"}'] == 196
    assert done["publish_lag_seconds_count"] > 0
    assert done["fenced_writes_total"] == done["engine_deaths_total"] == 0
    lag = {name: value for name, value in done.items() if name.startswith("queue_jobs")}
    assert set(lag.values()) == {0.0}
    assert len(lag) == 6


def test_an_engine_that_finds_less_memory_is_shown_as_it_is(
    start: Callable[..., Worker], client: Client, tmp_path: Path
) -> None:
    """Something else has taken what is missing: the old engine dies of it, the next has less."""
    port, blocks = free_port(), tmp_path / "blocks"
    start(StubOptions(hungry_token=77, blocks_file=blocks), flags={"health_port": port})
    client.submit("before", prompt_ids=[1], sampling={"max_tokens": 1})
    client.result("before")
    blocks.write_text("41")
    client.submit("hungry", prompt_ids=[77], sampling={"max_tokens": 9, "ignore_eos": True})
    assert client.result("hungry").end.error == "out_of_memory"
    client.submit("after", prompt_ids=[1], sampling={"max_tokens": 1})
    client.result("after")
    found = settled(port, client, claims_total=3, num_requests_running=0)
    assert found["out_of_memory_total"] == found["engine_deaths_total"] == 1
    (info,) = [name for name in found if name.startswith("worker_info")]
    assert '"num_blocks": "40"' in info
    assert json.loads(ask(port, "/debug")[1])["ready"]["num_blocks"] == 41


def test_reclaims_fences_and_dead_letters_are_counted(
    start: Callable[..., Worker], client: Client, wire: Wire
) -> None:
    port = free_port()
    ids = {
        "payload": json.dumps({"v": 1, "prompt_ids": [1], "sampling": {"max_tokens": 3}}).encode()
    }
    dead = WireWorker(wire, "dead")
    wire.submit("orphan", **ids)
    dead.claim_one()
    dead.die()
    wire.redis.xadd(wire.keys.dead, {"id": "x", "reason": "crashed", "message": ""})
    start(SLOW, flags={"health_port": port, "heartbeat_ttl": 0.6})
    client.result("orphan")
    counted = settled(port, client, **{'lease_reclaims_total{"outcome": "requeued"}': 1})
    assert counted["queue_dead_letters"] == 1
    client.submit("long", prompt_ids=[1], sampling={"max_tokens": 400, "ignore_eos": True})
    client.wait_tokens("long", 3)
    wire.redis.hincrby(wire.keys.job("long"), "epoch", 1)  # as if another had claimed it
    owner = wire.record("long")["owner"]
    wire.redis.hdel(wire.keys.running(owner), "long")
    settled(port, client, fenced_writes_total=1)
    wire.delete("long")


def test_a_scrape_outlives_redis(
    own_server: Callable[..., RedisServer], keys: Keys, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    server, port = own_server(), free_port()
    worker = Worker(server.url, keys, tmp_path, SLOW, flags={"health_port": port}).start()
    client = Client(server.url, keys)
    try:
        client.submit("j", prompt_ids=[1], sampling={"max_tokens": 5, "ignore_eos": True})
        client.result("j")
        assert scrape(port)["redis_up"] == 1
        server.kill()
        found = scrape(port)
        assert (found["redis_up"], found["generation_tokens_total"]) == (0, 5)
        assert not [name for name in found if name.startswith("queue_")]
        server.start()
        assert settled(port, client, redis_up=1)["queue_workers"] >= 0
    finally:
        worker.end()
        client.redis.close()


def test_debug_shows_the_scheduler_and_no_text(
    start: Callable[..., Worker], client: Client
) -> None:
    port = free_port()
    start(SLOW, flags={"health_port": port, "heartbeat_ttl": 0.6})
    secret = "the secret prompt"
    for number in range(3):
        client.submit(f"j{number}", prompt=secret, sampling={"max_tokens": 400, "ignore_eos": True})
    client.wait_tokens("j0", 100)
    kind, text = ask(port, "/debug")
    assert kind == "application/json"
    assert "secret" not in text
    state = json.loads(text)
    assert [job["id"] for job in state["jobs"]] == ["j0", "j1"]
    assert all(job["sent_to_engine"] for job in state["jobs"])
    assert state["jobs"][0]["engine"]["blocks"] > 0
    assert state["load"]["running"] == 2
    assert state["view"]["block_map"].startswith("u")
    for number in range(3):
        client.cancel(f"j{number}")


def test_histograms_are_cumulative_and_ratios_are_ratios() -> None:
    meter = Meter()
    for value in (0.0004, 0.003, 0.003, 99.0):
        meter.publish_lag.observe(value)
    meter.held = 1
    meter.heard(Step([], Load(step=1, running=1, free_blocks=4, used_slots=72, allocated_slots=96)))
    families = {
        one.name: one for one in WorkerCollector(meter, lambda: READY, "m", "w", str).collect()
    }
    lag = families["pagestream_publish_lag_seconds"].samples
    buckets = [sample.value for sample in lag if sample.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-1]) == (1, 4)
    assert families["pagestream_kv_cache_usage_perc"].samples[0].value == 0.6
    assert families["pagestream_kv_cache_waste_ratio"].samples[0].value == 0.25
    info = families["pagestream_worker"].samples[0].labels
    assert (info["worker"], info["num_blocks"], info["block_size"]) == ("w", "10", "16")


def test_every_metric_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    listed = set(re.findall(r"`pagestream_(\w+)`", page))
    assert {f"{name}_total" for name in COUNTERS} <= listed
    assert {f"{name}_seconds" for name in HISTOGRAMS} <= listed

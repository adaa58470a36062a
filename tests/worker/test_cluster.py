"""A queue on a node of a Redis Cluster that owns the queue's slot, and hardly another."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from loopback import free_port
from redis_server import RedisServer
from stub_engine import StubOptions, expected_ids
from waiting import until
from wire_machine import run_machine
from worker_harness import Worker

from pagestream.producer import Client
from pagestream.producer.admin import Admin
from pagestream.producer.keys import QUEUES, Keys
from pagestream.worker.messages import Sampling

KEYS = Keys("clustered")
SLOW = StubOptions(step_s=0.004)
BUS = 10_000
"""Between a node's port and that of its bus."""


@pytest.fixture
def admin(own_server: Callable[..., RedisServer]) -> Iterator[redis.Redis]:
    port = next(port for port in iter(free_port, 0) if port + BUS < 2**16)
    server = own_server(
        *("--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes"),
        *("--cluster-require-full-coverage", "no"),
    )
    with redis.Redis.from_url(server.url) as client:
        for key in (KEYS.bell, QUEUES):
            own_slot_of(client, key)
        until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
        yield client


def own_slot_of(node: redis.Redis, key: str) -> None:
    with suppress(redis.ResponseError):  # it has the slot already
        node.execute_command("CLUSTER", "ADDSLOTS", node.cluster("KEYSLOT", key))


def url_of(node: redis.Redis) -> str:
    return f"unix://{node.connection_pool.connection_kwargs['path']}"


def test_whatever_happens_to_a_queue_happens_in_its_slot(admin: redis.Redis) -> None:
    run_machine(admin, examples=15, begin=lambda keys: own_slot_of(admin, keys.bell))


def test_a_dead_letter_a_webhook_and_a_drain_do_too(admin: redis.Redis, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    url, flags = url_of(admin), {"name": "w", "max_crashes": 1}
    worker = Worker(url, KEYS, tmp_path, StubOptions(deadly_token=7), flags=flags).start()
    try:
        with Client(url, queue=KEYS.queue, tenant="anna") as client, Admin(url) as operator:
            job = client.submit(prompt_ids=[1], max_tokens=9, webhook="https://a.example/")
            assert len(job.result().ids) <= 9
            poison = client.submit(prompt_ids=[7], max_tokens=9)
            until(lambda: list(operator.letters(KEYS.queue)), "a dead letter")
            operator.retry(KEYS.queue, next(operator.letters(KEYS.queue)))
            until(lambda: poison.status().state == "dead", "another")
            operator.drain(KEYS.queue, "w")
            assert worker.wait() == 0
    finally:
        if worker.thread.is_alive():
            worker.end()


def test_a_queue_keeps_to_its_slot(admin: redis.Redis, tmp_path: Path) -> None:
    with pytest.raises(redis.ResponseError, match="non local key"):
        admin.eval("return redis.call('SET', 'other', 1)", 1, KEYS.bell)
    (tmp_path / "config.json").write_text("{}")
    url = url_of(admin)
    worker = Worker(url, KEYS, tmp_path, SLOW).start()
    try:
        with Client(url, queue=KEYS.queue) as client:
            jobs = [
                client.submit(prompt_ids=[index], max_tokens=400, ignore_eos=True, mirror=True)
                for index in range(6)
            ]
            jobs[0].cancel()
            jobs[1].delete()
            next(iter(jobs[2].stream()))
            assert worker.end() == 0  # what runs is handed back
            worker = Worker(url, KEYS, tmp_path, SLOW).start()
            for index in range(2, 6):
                wanted = expected_ids([index], Sampling(max_tokens=400))
                assert list(jobs[index].result().ids) == wanted
        with Admin(url) as operator:
            assert operator.queues() == [KEYS.queue]
    finally:
        assert worker.end() == 0

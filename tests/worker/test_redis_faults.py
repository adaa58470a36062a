"""What a server does when it is unwell: the disk is full, the memory is full, the line is dead."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from flaky_proxy import FlakyProxy
from redis_server import RedisServer
from stub_engine import StubOptions, expected_ids
from worker_harness import Client, Worker

from pagestream.producer import Client as ProducerClient
from pagestream.producer import QueueUnavailable, RedisFull
from pagestream.producer.keys import Keys
from pagestream.worker.messages import Sampling

SLOW = StubOptions(step_s=0.004)
TOKENS = 300


@pytest.fixture
def server(own_server: Callable[..., RedisServer]) -> RedisServer:
    return own_server("--enable-protected-configs", "yes")


@pytest.fixture
def client(server: RedisServer, keys: Keys) -> Iterator[Client]:
    made = Client(server.url, keys)
    yield made
    made.redis.close()


@contextlib.contextmanager
def working(url: str, keys: Keys, folder: Path) -> Iterator[Worker]:
    (folder / "config.json").write_text("{}")
    worker = Worker(url, keys, folder, SLOW).start()
    try:
        yield worker
    finally:
        assert worker.end() == 0


def submit(client: Client, job_id: str) -> None:
    sampling = {"max_tokens": TOKENS, "ignore_eos": True}
    client.submit(job_id, prompt_ids=[len(job_id)], sampling=sampling)


def check(client: Client, job_id: str) -> None:
    wanted = expected_ids([len(job_id)], Sampling(max_tokens=TOKENS))
    assert client.result(job_id).ids == wanted


def test_a_full_disk_stops_writes_and_loses_nothing(
    server: RedisServer, client: Client, keys: Keys, tmp_path: Path
) -> None:
    """MISCONF: a snapshot cannot be written, and the server refuses every write until it can."""
    with working(server.url, keys, tmp_path), ProducerClient(server.url, queue=keys.queue) as more:
        submit(client, "j")
        client.wait_tokens("j", 5)
        client.redis.config_set("save", "3600 100000000")
        snapshots = tmp_path / "snapshots"
        snapshots.mkdir()
        client.redis.config_set("appendonly", "no")  # its folder cannot go while it is written
        client.redis.config_set("dir", str(snapshots))
        shutil.rmtree(snapshots)
        _snapshot(client.redis, "err")
        with pytest.raises(QueueUnavailable, match="refuses"):
            more.submit(prompt_ids=[1], id="refused")
        before = len(client.entries("j"))
        with pytest.raises(redis.ResponseError):
            client.redis.set("any", "write")
        assert len(client.entries("j")) == before
        snapshots.mkdir()
        client.redis.config_set("dir", str(snapshots))
        _snapshot(client.redis, "ok")
        check(client, "j")
        assert not more.submit(prompt_ids=[1], id="refused", max_tokens=3).attached
        assert len(more.job("refused").result().ids) <= 3


def _snapshot(server: redis.Redis, wanted: str) -> None:
    """Take a snapshot and wait until its outcome is known."""
    with contextlib.suppress(redis.ResponseError):
        server.bgsave()
    while server.info("persistence")["rdb_bgsave_in_progress"]:
        pass  # each question is a round trip
    assert server.info("persistence")["rdb_last_bgsave_status"] == wanted


def test_a_full_memory_pushes_back_and_drains(
    server: RedisServer, client: Client, keys: Keys, tmp_path: Path
) -> None:
    """Nothing new is accepted, what was accepted is run and finished, and then there is room."""
    for index in range(20):
        submit(client, "j" * (index + 1))
    with working(server.url, keys, tmp_path), ProducerClient(server.url, queue=keys.queue) as more:
        client.wait_tokens("j", 5)
        client.redis.config_set("maxmemory", "1")
        with pytest.raises(RedisFull):
            more.submit(prompt_ids=[1], id="later")
        for index in range(20):
            check(client, "j" * (index + 1))
        client.redis.config_set("maxmemory", "0")
        assert not more.submit(prompt_ids=[1], id="later").attached


def test_a_half_open_line_is_given_up_and_its_jobs_go_on(
    server: RedisServer, client: Client, keys: Keys, tmp_path: Path
) -> None:
    """Nothing ever comes back on the old connections; the socket's timeout finds that out."""
    proxy = FlakyProxy(server.socket)
    try:
        with working(f"{proxy.url}?socket_timeout=0.5", keys, tmp_path):
            submit(client, "j")
            for seen in (5, 60, 120):
                client.wait_tokens("j", seen)
                proxy.fall_silent()
            check(client, "j")
            assert client.result("j").end.epoch == 1, "it came back within its heartbeat's life"
    finally:
        proxy.close()


def test_answers_lost_on_the_way_change_nothing(
    server: RedisServer, client: Client, keys: Keys, tmp_path: Path
) -> None:
    proxy = FlakyProxy(server.socket)
    try:
        with working(proxy.url, keys, tmp_path):
            for index in range(5):
                submit(client, "j" * (index + 1))
            for seen in range(5, 280, 25):
                client.wait_tokens("j", seen)
                proxy.lose_answers = 1
            for index in range(5):
                check(client, "j" * (index + 1))
            assert proxy.lost > 5
    finally:
        proxy.close()


def test_a_worker_that_comes_up_first_waits_for_redis_to_load(
    own_server: Callable[..., RedisServer], keys: Keys, tmp_path: Path
) -> None:
    """After a restart of the host: Redis answers LOADING until its file is read."""
    server = own_server()
    with redis.Redis.from_url(server.url) as filling:
        filling.mset({f"filler:{number}": "x" * 100 for number in range(1_500)})
        filling.bgrewriteaof()
        while filling.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.01)
    server.stop()
    server.options = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    server.launch()
    with redis.Redis.from_url(server.url, socket_timeout=5) as probe:
        wait_until_loading(probe)
        with working(server.url, keys, tmp_path):
            server.wait_until_up()
            client = Client(server.url, keys)
            submit(client, "j")
            check(client, "j")
            client.redis.close()


def wait_until_loading(probe: redis.Redis) -> None:
    deadline_s = time.monotonic() + 20
    while True:
        assert time.monotonic() < deadline_s, "the server never said that it loads"
        try:
            probe.ping()
        except redis.BusyLoadingError:
            return
        except redis.ConnectionError:
            time.sleep(0.005)

"""What a server does when it is unwell: the disk is full, the memory is full, the line is dead."""

import contextlib
import http.client
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from flaky_proxy import FlakyProxy
from loopback import free_port
from our_processes import cpu_ticks
from redis_server import RedisServer, open_settings
from stub_engine import StubOptions, expected_ids
from waiting import until
from worker_harness import Client, Worker

from pagestream.producer import Client as ProducerClient
from pagestream.producer import QueueUnavailable, RedisFull
from pagestream.producer.keys import Keys
from pagestream.worker.chaos.processes import engine_pid
from pagestream.worker.messages import Sampling
from pagestream.worker.process import EngineProcess

SLOW = StubOptions(step_s=0.004)
TOKENS = 300


@pytest.fixture
def server(own_server: Callable[..., RedisServer]) -> RedisServer:
    return own_server(*open_settings())


@pytest.fixture
def client(server: RedisServer, keys: Keys) -> Iterator[Client]:
    made = Client(server.url, keys)
    yield made
    made.redis.close()


@contextlib.contextmanager
def working(
    url: str, keys: Keys, folder: Path, options: StubOptions = SLOW, **more: Any
) -> Iterator[Worker]:
    (folder / "config.json").write_text("{}")
    worker = Worker(url, keys, folder, options, **more).start()
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


def test_an_append_only_file_that_cannot_grow_stops_writes_and_readiness(
    server: RedisServer, client: Client, keys: Keys, tmp_path: Path
) -> None:
    """As on a full disk: the server cannot write its file any further."""
    assert server.process is not None
    port = free_port()
    flags = {"health_port": port, "heartbeat_ttl": 1.0}
    with working(server.url, keys, tmp_path, flags=flags):
        submit(client, "j")
        client.wait_tokens("j", 5)
        assert ask(port, "/readyz") == 200
        file = next(server.append_only.glob("*.incr.aof"), server.append_only)
        limit = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (file.stat().st_size, limit[1]))
        until(lambda: ask(port, "/readyz") == 503)
        assert ask(port, "/livez") == 200
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            client.redis.set("any", "write")
        assert client.state("j") == "running"
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limit)
        until(lambda: ask(port, "/readyz") == 200)
        check(client, "j")


def test_a_server_that_stands_still_for_long_stops_the_engine_not_the_worker(
    server: RedisServer,
    client: Client,
    keys: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What waits to be written has a bound; probes say what is wrong; then everything goes on."""
    assert server.process is not None
    port, jobs, tokens = free_port(), [f"j{index}" for index in range(8)], 30_000
    flags = {"health_port": port, "heartbeat_ttl": 1.0}
    quick = StubOptions(max_model_tokens=10**5, num_blocks=10**5, run_ahead_tokens=32)
    bounded = partial(EngineProcess, outbox_bytes=20_000)
    monkeypatch.setattr("pagestream.worker.service.EngineProcess", bounded)
    url = f"{server.url}?socket_timeout=0.5"
    with working(url, keys, tmp_path, quick, flags=flags):
        for index, job_id in enumerate(jobs):
            client.submit(
                job_id, prompt_ids=[index], sampling={"max_tokens": tokens, "ignore_eos": True}
            )
        client.wait_tokens(jobs[-1], 5)
        server.process.send_signal(signal.SIGSTOP)
        try:
            engine = engine_pid(os.getpid())
            until(lambda: ask(port, "/readyz") == 503)
            until(lambda: is_asleep(engine))
            stopped_ticks = cpu_ticks(engine)
            assert ask(port, "/livez") == 200
        finally:
            server.process.send_signal(signal.SIGCONT)
        for index, job_id in enumerate(jobs):
            wanted = expected_ids([index], Sampling(max_tokens=tokens))
            assert client.result(job_id).ids == wanted
        assert cpu_ticks(engine) > stopped_ticks, "it had not ended, and went on"
        until(lambda: ask(port, "/readyz") == 200)


def is_asleep(pid: int | None) -> bool:
    """Whether a process does nothing for a while."""
    before = cpu_ticks(pid)
    time.sleep(0.5)
    return cpu_ticks(pid) == before


def ask(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


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
    fill = random.Random(0)
    with redis.Redis.from_url(server.url) as filling:
        # While it loads, a server answers once in 2 MB of its file, which it compresses.
        filling.mset({f"filler:{number}": fill.randbytes(20_000) for number in range(1_500)})
        filling.bgrewriteaof()
        while filling.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.01)
    server.stop()
    server.options = ("--key-load-delay", "1000")
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


def test_an_idle_worker_sits_out_a_change_of_roles(
    server: RedisServer, client: Client, keys: Keys, tmp_path: Path
) -> None:
    """Whoever waits on a server that becomes a replica is told UNBLOCKED, and READONLY after it."""
    with working(server.url, keys, tmp_path):
        submit(client, "before")
        check(client, "before")
        until(lambda: client.redis.info("clients")["blocked_clients"] == 1)
        client.redis.replicaof("127.0.0.1", str(free_port()))
        until(lambda: client.redis.info("replication")["role"] == "slave")
        until(lambda: client.redis.info("stats")["total_error_replies"] > 2)
        client.redis.replicaof("no", "one")
        submit(client, "after")
        check(client, "after")


def test_somebodys_endless_script_is_sat_out(
    server: RedisServer, client: Client, keys: Keys, tmp_path: Path
) -> None:
    """BUSY: the server answers nothing else until the script is killed."""
    flags = {"health_port": (port := free_port()), "heartbeat_ttl": 1.0}
    with (
        working(server.url, keys, tmp_path, flags=flags),
        ProducerClient(server.url, queue=keys.queue) as producer,
        contextlib.closing(redis.Redis.from_url(server.url)) as somebody,
    ):
        sampling = {"max_tokens": TOKENS, "ignore_eos": True}
        job = producer.submit(prompt_ids=[1], **sampling)
        client.wait_tokens(job.id, 5)
        client.redis.config_set("lua-time-limit", 50)
        errors = client.redis.info("stats")["total_error_replies"]
        with ThreadPoolExecutor() as pool:
            pool.submit(end_script, somebody)
            until(lambda: is_busy(client.redis))
            late = pool.submit(producer.submit, prompt_ids=[2], **sampling)
            until(lambda: ask(port, "/readyz") == 503)
            client.redis.script_kill()
        for one, prompt_ids in ((job, [1]), (late.result(), [2])):
            wanted = expected_ids(prompt_ids, Sampling(max_tokens=TOKENS))
            assert one.result().ids == tuple(wanted)
        assert client.redis.info("stats")["total_error_replies"] > errors + 2


def end_script(redis_client: redis.Redis) -> None:
    """Run a script that ends when it is killed."""
    with contextlib.suppress(redis.ResponseError):
        redis_client.eval("while true do end", 0)


def is_busy(redis_client: redis.Redis) -> bool:
    try:
        redis_client.get("any")
    except redis.ResponseError as error:
        return str(error).startswith("BUSY ")
    return False

"""The whole queue process against a real server, with the stub engine in a real child process."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from bad_payloads import BAD, CONTEXT
from redis_server import RedisServer
from stub_engine import StubOptions
from tiny_tokenizer import BOS, EOS
from worker_harness import Client, Worker, expected_reply

from pagestream.producer.admin import Admin
from pagestream.producer.keys import Keys
from pagestream.producer.lua import Script
from pagestream.producer.protocol import ModelInfo
from pagestream.worker.chaos.processes import engine_pid
from pagestream.worker.messages import Sampling
from pagestream.worker.queue.lease import Lease
from pagestream.worker.queue.tokenizer import Tokenizer

SLOW = StubOptions(step_s=0.004)


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    loaded = Tokenizer.load(model)
    assert loaded is not None
    return loaded


class Jobs:
    """Random jobs and what their replies must be."""

    def __init__(self, client: Client, tokenizer: Tokenizer, seed: int = 0) -> None:
        self.client = client
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.wanted: dict[str, tuple[list[int], str]] = {}
        self.eos = tokenizer._backend.token_to_id(EOS)

    def ids_job(
        self, job_id: str, tokens: int, stop: tuple[str, ...] = (), prompt_tokens: int | None = None
    ) -> None:
        """A job that runs its whole length, unless a stop string ends it."""
        length = prompt_tokens or self.rng.randrange(1, 30)
        prompt_ids = [self.rng.randrange(256) for _ in range(length)]
        sampling = {"max_tokens": tokens, "ignore_eos": True, "stop": stop}
        self.client.submit(job_id, prompt_ids=prompt_ids, sampling=sampling)
        self.wanted[job_id] = expected_reply(
            self.tokenizer, prompt_ids, Sampling(max_tokens=tokens), stop
        )

    def random_job(self, job_id: str) -> None:
        tokens, stop = self.rng.randrange(1, 60), self._stop()
        text = "".join(self.rng.choice("thea é日\n") for _ in range(self.rng.randrange(1, 40)))
        sampling = {"max_tokens": tokens, "stop": stop, "min_tokens": 0}
        if self.rng.random() < 0.5:
            prompt_ids = self.tokenizer.encode_prompt(text)
            self.client.submit(job_id, prompt=text, sampling=sampling)
        else:
            messages = [{"role": "user", "content": text}]
            prompt_ids = self.tokenizer.encode_chat(messages)
            self.client.submit(job_id, messages=messages, sampling=sampling)
        self.wanted[job_id] = expected_reply(
            self.tokenizer,
            prompt_ids,
            Sampling(max_tokens=tokens, stop_token_ids=(self.eos,)),
            stop,
        )

    def _stop(self) -> tuple[str, ...]:
        # Two and three characters: they span tokens of the byte vocabulary.
        return tuple(
            "".join(self.rng.choice("abcdefgh ") for _ in range(self.rng.randrange(1, 3)))
            for _ in range(self.rng.randrange(3))
        )

    def check(self) -> None:
        for job_id, (ids, text) in self.wanted.items():
            reply = self.client.result(job_id)
            assert reply.ids == ids, job_id
            assert reply.text == text, job_id
            assert reply.end.usage.completion_tokens == len(ids)
            assert reply.end.reason in ("stop", "length")
            assert self.client.state(job_id) == "done"


@pytest.fixture
def jobs(client: Client, tokenizer: Tokenizer) -> Jobs:
    return Jobs(client, tokenizer)


def test_hundreds_of_jobs_are_exact(start: Callable[..., Worker], jobs: Jobs) -> None:
    for index in range(100):
        jobs.random_job(f"early-{index}")
    worker = start(replace(StubOptions(), max_running=32))
    for index in range(200):
        jobs.random_job(f"late-{index}")
    jobs.check()
    reasons = {jobs.client.result(job_id).end.reason for job_id in jobs.wanted}
    assert reasons == {"stop", "length"}
    assert worker.end() == 0
    assert not list(jobs.client.redis.scan_iter(f"{jobs.client.keys.prefix}jobs:*"))


def test_every_bad_job_gets_its_error_and_harms_no_other(
    start: Callable[..., Worker], jobs: Jobs, client: Client
) -> None:
    start(replace(SLOW, max_model_tokens=CONTEXT))
    names = list(BAD)
    for index, name in enumerate(names):
        client.submit_bytes(f"bad-{index}", BAD[name][0])
        jobs.ids_job(f"good-{index}", tokens=20)
    jobs.check()
    for index, name in enumerate(names):
        _, code, word = BAD[name]
        reply = client.result(f"bad-{index}")
        assert reply.ids == []
        assert (reply.end.reason, reply.end.error) == ("error", code), name
        assert word in reply.end.message, name
        assert client.state(f"bad-{index}") == "failed"


def test_credit_keeps_to_the_cache(start: Callable[..., Worker], jobs: Jobs) -> None:
    # 15 usable blocks hold about three of these prompts; 60 rows would be free.
    start(replace(StubOptions(), num_blocks=16, max_model_tokens=200))
    for index in range(30):
        jobs.ids_job(f"j{index}", tokens=30)
    jobs.check()


def test_what_does_not_fit_after_all_goes_back(
    start: Callable[..., Worker], jobs: Jobs, client: Client
) -> None:
    start(replace(SLOW, num_blocks=16, max_model_tokens=200))
    for index in range(8):
        prompt_ids = [index] * 100
        client.submit(
            f"j{index}",
            prompt_ids=prompt_ids,
            sampling={"max_tokens": 20, "ignore_eos": True},
            options={"tokens_max": 1},  # a producer's lie: all of them are claimed at once
        )
        jobs.wanted[f"j{index}"] = expected_reply(
            jobs.tokenizer, prompt_ids, Sampling(max_tokens=20)
        )
    jobs.check()
    assert max(client.result(name).end.epoch for name in jobs.wanted) == 2
    assert {client.redis.hget(client.keys.job(name), "crashes") for name in jobs.wanted} == {b"0"}


def test_cancel_while_it_runs(start: Callable[..., Worker], jobs: Jobs, client: Client) -> None:
    start(replace(SLOW, max_running=1, max_model_tokens=100_000, num_blocks=8192))
    client.submit("long", prompt_ids=[1, 2, 3], sampling={"max_tokens": 90_000, "ignore_eos": True})
    jobs.ids_job("next", tokens=10)
    client.wait_tokens("long", 5)
    assert client.cancel("long") == b"cancelling"
    reply = client.result("long")
    assert reply.end.reason == "cancelled"
    assert 5 <= len(reply.ids) < 400
    assert jobs.tokenizer.decode(reply.ids) == reply.text
    assert client.state("long") == "cancelled"
    jobs.check()  # its row was freed


def test_deleted_reply_frees_the_row(
    start: Callable[..., Worker], jobs: Jobs, client: Client
) -> None:
    start(replace(SLOW, max_running=1, max_model_tokens=100_000, num_blocks=8192))
    client.submit("long", prompt_ids=[1, 2, 3], sampling={"max_tokens": 90_000, "ignore_eos": True})
    client.wait_tokens("long", 5)
    client.redis.delete(client.keys.out("long"))
    jobs.ids_job("next", tokens=10)
    jobs.check()
    assert client.state("long") == "cancelled"
    assert client.entries("long") == []


def test_a_job_deleted_and_submitted_again_is_the_new_one(
    start: Callable[..., Worker], jobs: Jobs, client: Client
) -> None:
    """In one step's time: the worker hears of both at once, and both have the same epoch."""
    start(replace(SLOW, step_s=0.03))
    delete = Script("delete")
    jobs.ids_job("other", tokens=400)
    for round_ in range(8):
        jobs.ids_job("job", tokens=400)
        if round_ % 2:
            client.wait_tokens("job", 3)
        else:
            client.wait_for("job", lambda entries: len(entries) > 1)
        assert delete(client.redis, client.keys.bell, "job") == b"deleted"
        jobs.ids_job("job", tokens=5)
        assert client.result("job").ids == jobs.wanted["job"][0]
        assert client.state("job") == "done"
        delete(client.redis, client.keys.bell, "job")
    del jobs.wanted["job"]
    jobs.check()


def test_deadline_ends_a_running_job(start: Callable[..., Worker], client: Client) -> None:
    start(replace(SLOW, step_s=0.02))
    client.submit("first", prompt_ids=[1], sampling={"max_tokens": 1})
    client.result("first")  # the engine is up: what comes now begins at once
    client.submit(
        "late",
        prompt_ids=[1, 2, 3],
        sampling={"max_tokens": 500, "ignore_eos": True},
        options={"deadline_ms": 1000},
    )
    reply = client.result("late")
    assert reply.end.reason == "expired"
    assert 1 <= len(reply.ids) < 100


def test_drain_lets_running_jobs_finish(
    start: Callable[..., Worker], jobs: Jobs, client: Client
) -> None:
    worker = start(SLOW)
    jobs.ids_job("running", tokens=100)
    client.wait_tokens("running", 2)
    worker.ask_to_stop()
    assert worker.wait() == 0
    jobs.check()
    client.submit("later", prompt_ids=[1])
    assert client.state("later") == "queued"


@pytest.mark.parametrize("way", ["second signal", "grace", "command"])
def test_handed_back_jobs_go_on_elsewhere(
    start: Callable[..., Worker], jobs: Jobs, client: Client, redis_url: str, way: str
) -> None:
    flags = {"name": "first"}
    first = start(SLOW, grace_s=0.05 if way == "grace" else 20.0, flags=flags)
    names = [f"j{index}" for index in range(20)]
    for name in names:
        jobs.ids_job(name, tokens=300, stop=("zq", "yy"))
    client.wait_tokens(names[0], 5)
    if way == "command":
        with Admin(redis_url) as admin:
            admin.drain(client.keys.queue, "first", at_once=True)
    else:
        first.ask_to_stop()
    if way == "second signal":
        first.ask_to_stop()
    assert first.wait() == 0
    progress = {name: sum(len(entry.ids) for entry in client.entries(name)) for name in names}
    assert all(count < 300 for count in progress.values())
    assert any(progress.values())
    crashes = {client.redis.hget(client.keys.job(name), "crashes") for name in names}
    assert crashes == {b"0"}
    start()
    jobs.check()
    assert {client.result(name).end.epoch for name in names} == {2}


@pytest.mark.parametrize(("deaths", "epoch"), [(1, 1), (2, 2)])
def test_engine_crash_loses_and_repeats_nothing(
    start: Callable[..., Worker],
    jobs: Jobs,
    client: Client,
    tmp_path: Path,
    deaths: int,
    epoch: int,
) -> None:
    """The worker keeps its jobs over one death; after the second each runs alone, under a claim."""
    crashes = tmp_path / "crashes"
    crashes.write_text(str(deaths))
    worker = start(replace(SLOW, crash_file=crashes, crash_at_step=25))
    for index in range(40):
        jobs.ids_job(f"j{index}", tokens=60, stop=("zq",))
    jobs.check()
    assert crashes.read_text() == "0"  # it died so often
    assert {client.result(name).end.epoch for name in jobs.wanted} == {epoch}
    assert worker.end() == 0


def test_an_engine_that_dies_again_and_again_ends_the_worker(
    start: Callable[..., Worker], jobs: Jobs, client: Client, tmp_path: Path
) -> None:
    crashes = tmp_path / "crashes"
    crashes.write_text("100")
    worker = start(replace(SLOW, crash_file=crashes, crash_at_step=3))
    # No job meets a third crash: it is the engine that is bad, not they.
    for index in range(12):
        jobs.ids_job(f"j{index}", tokens=3)
        client.wait_for(f"j{index}", lambda e: e[-1].event == "end" or not worker.thread.is_alive())
    assert worker.wait() == 70
    states = {client.state(name) for name in jobs.wanted}
    assert states == {"done", "queued"}
    start()
    jobs.check()


def test_a_wedged_engine_is_killed(
    start: Callable[..., Worker], jobs: Jobs, client: Client, tmp_path: Path
) -> None:
    stall = tmp_path / "stall"
    start(replace(SLOW, stall_file=stall), flags={"step_stall": 0.5})
    jobs.ids_job("j", tokens=200)
    client.wait_tokens("j", 5)
    stall.touch()
    client.wait_for("j", lambda _: not stall.exists() or _killed(client, stall))
    jobs.check()


def test_an_engine_that_does_not_read_is_wedged(start: Callable[..., Worker], jobs: Jobs) -> None:
    """Its socket is full of prompts: the worker beats on, and then kills it as any other."""
    large = replace(SLOW, max_model_tokens=10**6, num_blocks=10**5)
    start(large, flags={"step_stall": 3.0})
    jobs.ids_job("j", tokens=200)
    jobs.client.wait_tokens("j", 5)
    engine = engine_pid(os.getpid())
    assert engine is not None
    os.kill(engine, signal.SIGSTOP)
    for index in range(6):
        jobs.ids_job(f"large{index}", tokens=5, prompt_tokens=100_000)
    jobs.check()
    assert jobs.client.redis.hget(jobs.client.keys.job("j"), "crashes") == b"1"


def test_an_engine_that_no_kill_ends_is_given_up(
    start: Callable[..., Worker],
    jobs: Jobs,
    client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a process in the kernel: its signal waits. The worker must not hold its jobs for ever."""
    monkeypatch.setattr("pagestream.worker.queue.supervisor.KILL_S", 0.5)
    monkeypatch.setattr("pagestream.worker.process.EngineProcess.kill", lambda self: None)
    stall = tmp_path / "stall"
    worker = start(replace(SLOW, stall_file=stall), flags={"step_stall": 0.5})
    jobs.ids_job("j", tokens=200)
    client.wait_tokens("j", 5)
    stall.touch()
    assert worker.wait() == 70
    assert client.state("j") == "queued"
    assert b"cannot be killed" in (client.redis.hget(client.keys.job("j"), "last_error") or b"")
    stall.unlink()
    start()
    jobs.check()


def _killed(client: Client, stall: Path) -> bool:
    if client.redis.hget(client.keys.job("j"), "crashes") == b"1":
        stall.unlink()
        return True
    return False


def test_cut_connections(start: Callable[..., Worker], jobs: Jobs, client: Client) -> None:
    worker = start(SLOW)
    for index in range(20):
        jobs.ids_job(f"j{index}", tokens=150)
    for seen in (5, 40, 80, 120):
        client.wait_tokens("j0", seen)
        client.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    jobs.check()
    # Idle, waiting for the bell on a connection that goes too.
    client.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    jobs.ids_job("after", tokens=5)
    jobs.check()
    assert worker.end() == 0


def test_a_slow_server_makes_larger_writes_and_stops_nothing(
    start: Callable[..., Worker], jobs: Jobs, client: Client
) -> None:
    start(SLOW)
    jobs.ids_job("j", tokens=300)
    client.wait_tokens("j", 5)
    client.redis.execute_command("CLIENT", "PAUSE", "300", "WRITE")
    jobs.check()
    assert max(len(entry.ids) for entry in client.entries("j")) > 20


@pytest.fixture
def own(
    own_server: Callable[..., RedisServer], keys: Keys, tokenizer: Tokenizer
) -> Iterator[tuple[RedisServer, Jobs]]:
    server = own_server()
    made = Client(server.url, keys)
    yield server, Jobs(made, tokenizer)
    made.redis.close()


def test_server_restart_mid_stream(
    own: tuple[RedisServer, Jobs], start: Callable[..., Worker]
) -> None:
    server, jobs = own
    worker = start(SLOW, url=server.url)
    for index in range(20):
        jobs.ids_job(f"j{index}", tokens=300)
    jobs.client.wait_tokens("j0", 20)
    server.kill()
    server.start()
    jobs.check()
    assert worker.end() == 0


def test_rollback_mid_stream(
    own: tuple[RedisServer, Jobs], start: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    """The server comes back with an older file: it forgot tokens it had acknowledged."""
    server, jobs = own
    worker = start(SLOW, url=server.url)
    for index in range(10):
        jobs.ids_job(f"j{index}", tokens=400)
    jobs.client.wait_tokens("j0", 20)
    server.keep_older()
    jobs.client.wait_tokens("j0", 60)
    server.kill()
    server.forget()
    server.start()
    jobs.check()
    assert "10 of 10 jobs are still ours" in caplog.text
    assert worker.end() == 0


def test_a_flushed_queue_takes_its_jobs_again(
    own_server: Callable[..., RedisServer],
    start: Callable[..., Worker],
    keys: Keys,
    tokenizer: Tokenizer,
) -> None:
    """The second claim has the epoch of the first: the engine's last words on that are nobody's."""
    server = own_server()
    worker = start(replace(SLOW, run_ahead_tokens=3), server.url)
    client = Client(server.url, keys)
    for _ in range(12):
        jobs = Jobs(client, tokenizer)
        for number in range(8):
            jobs.ids_job(f"job-{number}", 60)
        for job_id in jobs.wanted:
            client.wait_tokens(job_id, 6)
        client.redis.flushall()
    jobs = Jobs(client, tokenizer)
    for number in range(8):
        jobs.ids_job(f"job-{number}", 60)
    jobs.check()
    assert worker.thread.is_alive()
    client.redis.close()


def test_an_outage_ends_the_worker_in_the_end(
    own: tuple[RedisServer, Jobs], keys: Keys, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, jobs = own
    worker = Worker(server.url, keys, model, SLOW).start()
    jobs.ids_job("j", tokens=300)
    jobs.client.wait_tokens("j", 5)
    server.kill()
    monkeypatch.setattr("pagestream.worker.service.LAST_WORD_S", 0.2)
    assert worker.end() == 75
    server.start()


def test_prompt_has_bos(start: Callable[..., Worker], jobs: Jobs, client: Client) -> None:
    start()
    client.submit("j", prompt="the", sampling={"max_tokens": 1})
    usage = client.result("j").end.usage
    assert usage.prompt_tokens == len(jobs.tokenizer.encode_prompt("the"))
    assert jobs.tokenizer.encode_prompt("the")[0] == jobs.tokenizer._backend.token_to_id(BOS)


def test_no_wake_up_is_lost(start: Callable[..., Worker], jobs: Jobs, client: Client) -> None:
    start()
    for index in range(50):
        jobs.ids_job(f"j{index}", tokens=2)
        client.result(f"j{index}")
    jobs.check()


def test_redis_client_version() -> None:
    assert redis.VERSION >= (5, 0, 4)


def test_a_heartbeat_may_be_due_before_the_first_step(
    start: Callable[..., Worker], jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host that is busy while it starts: Redis's time is not known yet."""
    register = Lease.register

    def late(self: Lease, info: ModelInfo) -> None:
        register(self, info)
        self._beat_due_ms = 0.0

    monkeypatch.setattr(Lease, "register", late)
    worker = start()
    jobs.ids_job("j", 5)
    jobs.check()
    assert worker.end() == 0

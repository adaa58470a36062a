"""The watchdog: planted stalls end real workers, and what only looks like one does not."""

import http.client
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from loopback import free_port
from stub_engine import StubOptions
from stub_process import Process
from worker_harness import Client, Worker

from pagestream.producer.keys import Keys
from pagestream.worker.health import Health
from pagestream.worker.watchdog import EXIT_AFTER_S, Watchdog

LIMIT_S = 60.0


class Watched:
    """A watchdog whose worker, Redis and time are the test's."""

    def __init__(self) -> None:
        self.health = Health(answer_s=3600.0)
        self.refuses = ""
        self.health.serves(lambda: self.refuses)
        self.left: tuple[str, object] = ("", None)
        self.redis_answers = True
        self.ended = 0
        self.watchdog = Watchdog(
            *(self.health, lambda: self.left, lambda: self.redis_answers),
            limit_s=LIMIT_S,
            end=self._end,
        )

    def _end(self) -> None:
        self.ended += 1

    def run(self, seconds: float, turn: Callable[[], object] = lambda: None) -> None:
        """Let time pass; `turn` is what the loop does between two looks."""
        for _ in range(round(seconds / self.watchdog.tick_s)):
            turn()
            self.watchdog.tick(self.watchdog.tick_s)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_loop_that_stands_still(watched: Watched) -> None:
    watched.run(600, watched.health.answered)
    watched.run(LIMIT_S)
    assert (watched.health.stalled, watched.ended) == ("", 0)
    watched.run(5)
    assert watched.health.not_alive() == ("no call to Redis has ended for 65 s, and Redis answers")
    assert watched.ended == 0
    watched.run(EXIT_AFTER_S)
    assert watched.ended == 1


def test_work_that_is_left_undone(watched: Watched) -> None:
    watched.left = ("jobs wait", 7)
    watched.run(LIMIT_S + 5, watched.health.answered)
    assert watched.health.stalled == ""
    watched.run(5, watched.health.answered)
    assert watched.health.stalled == "jobs wait, for 65 s"
    watched.run(5, watched.health.answered)
    assert watched.ended == 1


def test_a_stall_that_ends_by_itself(watched: Watched) -> None:
    watched.run(LIMIT_S + 5)
    assert watched.health.stalled
    watched.run(5, watched.health.answered)
    assert watched.health.stalled == ""
    watched.run(LIMIT_S, watched.health.answered)
    assert watched.ended == 0


def _idle(watched: Watched) -> None:
    watched.run(3600, watched.health.answered)


def _outage(watched: Watched) -> None:
    watched.left = ("jobs wait", 7)  # as of before
    watched.refuses = "Redis has not answered for 9 s"
    watched.run(3600, watched.health.failed)


def _call_that_ends_late_in_an_outage(watched: Watched) -> None:
    watched.redis_answers = False
    for _ in range(20):
        watched.run(180)
        watched.health.failed()


def _drain(watched: Watched) -> None:
    watched.left = ("jobs wait", 7)
    watched.refuses = "it is draining"
    watched.run(3600, watched.health.answered)


def _new_engine_that_loads(watched: Watched) -> None:
    watched.left = ("jobs wait", 7)
    watched.refuses = "the engine is being started again"
    watched.run(3600, watched.health.answered)


def _work_that_gets_on_slowly(watched: Watched) -> None:
    for claims in range(60):
        watched.left = ("jobs wait", claims)
        watched.run(LIMIT_S - 5, watched.health.answered)


def _stopped_process_that_wakes(watched: Watched) -> None:
    watched.left = ("jobs wait", 7)
    for _ in range(5):
        watched.watchdog.tick(86_400.0)  # the first look after a night of SIGSTOP


@pytest.mark.parametrize(
    "case",
    [
        *(_idle, _outage, _call_that_ends_late_in_an_outage, _drain, _new_engine_that_loads),
        *(_work_that_gets_on_slowly, _stopped_process_that_wakes),
    ],
)
def test_what_only_looks_like_a_stall(watched: Watched, case: Callable[[Watched], None]) -> None:
    case(watched)
    assert (watched.health.stalled, watched.ended) == ("", 0)


# ---- whole workers

_STUCK_LOOP = """
import threading
from pagestream.worker.queue.step_answer import AnswerHandler
def _take_claims(self, claims, reply):
    if claims:
        a_call_that_never_returns()
def a_call_that_never_returns():
    threading.Event().wait()
AnswerHandler._take_claims = _take_claims
"""
_STUCK_INTAKE = """
import threading
from pagestream.worker.queue.intake import Intake
def a_call_that_never_returns(self, job_id, data):
    threading.Event().wait()
Intake.prepare = a_call_that_never_returns
"""
_BLIND_CREDIT = """
from pagestream.worker.queue.credit import Credit
Credit.of = lambda self, jobs: (0, 0)
"""
_SOON = """
from pagestream.worker import watchdog
watchdog.EXIT_AFTER_S = 1.0
"""


def livez(port: int) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/livez")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["why"]
    finally:
        connection.close()


@pytest.fixture
def spawn(tmp_path: Path, redis_url: str, keys: Keys) -> Iterator[Callable[..., Process]]:
    (tmp_path / "config.json").write_text("{}")
    made: list[Process] = []

    def start(plant: str = "", options: dict[str, Any] | None = None, **flags: Any) -> Process:
        defaults = {
            "model": str(tmp_path),
            "served_model_name": keys.queue,
            "redis_url": f"{redis_url}?socket_timeout=1",
            "work_stall": 2.0,
        }
        made.append(Process(tmp_path, {**defaults, **flags}, options or {}, _SOON + plant))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.wait()


@pytest.fixture
def client(redis_url: str, keys: Keys) -> Iterator[Client]:
    made = Client(redis_url, keys)
    yield made
    made.redis.close()


@pytest.mark.parametrize(
    ("plant", "why", "stack"),
    [
        (_STUCK_LOOP, "no call to Redis has ended for", "a_call_that_never_returns"),
        (_STUCK_INTAKE, "job j is claimed and not prepared", "a_call_that_never_returns"),
        (_BLIND_CREDIT, "jobs wait, and it runs nothing and takes none", "thread MainThread"),
    ],
    ids=["stuck-loop", "stuck-intake", "takes-nothing"],
)
def test_a_silent_stall_fails_the_health_check_and_ends_with_75(
    spawn: Callable[..., Process], client: Client, plant: str, why: str, stack: str
) -> None:
    port = free_port()
    worker = spawn(plant, health_port=port)
    worker.wait_log("serves")
    assert livez(port) == (200, "")
    # Too long to be prepared at once, on the loop's own thread.
    client.submit("j", prompt_ids=[1] * 4_000, sampling={"max_tokens": 5})
    worker.wait_log("the worker is stalled: ")
    status, said = livez(port)
    assert (status, why in said) == (503, True)
    assert worker.wait() == 75
    log = "".join(worker.log)
    assert stack in log
    assert why in log
    assert not re.search("gets on again", log)


def test_another_worker_takes_over_what_a_stalled_one_held(
    spawn: Callable[..., Process], client: Client, redis_url: str, keys: Keys, tmp_path: Path
) -> None:
    worker = spawn(_STUCK_LOOP)
    worker.wait_log("serves")
    client.submit("j", prompt_ids=[1], sampling={"max_tokens": 5, "ignore_eos": True})
    assert worker.wait() == 75
    other = Worker(redis_url, keys, tmp_path, StubOptions()).start()
    try:
        assert len(client.result("j").ids) == 5
        assert client.redis.hget(client.keys.job("j"), "crashes") == b"1"
    finally:
        assert other.end() == 0


def test_a_long_step_and_a_stopped_process_are_no_stall(
    spawn: Callable[..., Process], client: Client
) -> None:
    """The engine says nothing for longer than the limit, twice; once it is the process itself."""
    worker = spawn(options={"step_s": 3.0})
    worker.wait_log("serves")
    client.submit("slow", prompt_ids=[1], sampling={"max_tokens": 2, "ignore_eos": True})
    assert len(client.result("slow").ids) == 2
    worker.process.send_signal(signal.SIGSTOP)
    client.submit("late", prompt_ids=[1], sampling={"max_tokens": 1, "ignore_eos": True})
    until_s, deadline_s = client.redis.time()[0] + 4, time.monotonic() + 30
    while client.redis.time()[0] < until_s:
        assert time.monotonic() < deadline_s
        client.redis.xread({client.keys.out("late"): "$"}, block=200)
    worker.process.send_signal(signal.SIGCONT)
    assert len(client.result("late").ids) == 1
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "stalled" not in "".join(worker.log)


def test_a_limit_that_one_call_may_pass_is_refused(
    spawn: Callable[..., Process], redis_url: str
) -> None:
    worker = spawn(redis_url=f"{redis_url}?socket_timeout=40", work_stall=60.0)
    assert worker.wait() == 78
    assert "--work-stall 60 should be at least twice" in worker.log[-1]


def test_users_of_the_worker_role_may_ask_what_the_watchdog_asks(
    own_server: Callable[..., Any], keys: Keys, tmp_path: Path
) -> None:
    from pagestream.producer.acl import rule

    path = tmp_path / "users.acl"
    sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    path.write_text(rule("worker", keys.queue, user="w", password_sha256=sha256))
    server = own_server("--aclfile", str(path))
    with redis.Redis.from_url(server.url.replace("unix://", "unix://w:secret@")) as mine:
        assert mine.exists(keys.ready("high"), keys.ready("low")) == 0
        assert mine.ping()

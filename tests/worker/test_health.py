"""What probes are told, by a `Health` alone and by a whole worker."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import free_port
from redis_server import RedisServer
from stub_engine import StubOptions
from worker_harness import Client, Worker

from pagestream.producer.keys import Keys
from pagestream.worker import health as health_module
from pagestream.worker.errors import ConfigError
from pagestream.worker.health import Health, probes

SLOW = StubOptions(step_s=0.004)


def ask(port: int, path: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(body) if is_json else {}
    finally:
        connection.close()


def wait_for(port: int, path: str, status: int, turn: Callable[[], object]) -> str:
    """Ask until the answer is `status`; `turn` waits for something that happens meanwhile."""
    for _ in range(1000):
        found, body = ask(port, path)
        if found == status:
            return body["why"]
        turn()
    raise AssertionError(f"{path} stays {found}: {body}")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1_000.0]
    monkeypatch.setattr(health_module.time, "monotonic", lambda: now[0])
    yield now
    monkeypatch.undo()


def test_an_outage_is_not_ready_but_alive_and_a_stall_is_neither(clock: list[float]) -> None:
    health = Health(answer_s=3.0)
    assert (health.not_alive(), health.not_ready()) == ("", "it is loading")
    clock[0] += 3_600  # loading takes what it takes
    assert health.not_alive() == ""
    health.serves(lambda: "")
    assert (health.not_alive(), health.not_ready()) == ("", "")
    for _ in range(100):
        clock[0] += 1
        health.failed()
    assert health.not_alive() == ""
    assert health.not_ready() == "Redis has not answered for 100.0 s"
    health.answered()
    assert health.not_ready() == ""
    assert health.calls == 102, "what the watchdog looks at: each call that ended, well or badly"
    health.stalled = "no call has ended"
    assert health.not_alive() == "no call has ended"


def test_two_paths_and_no_other() -> None:
    port, health = free_port(), Health(answer_s=60.0)
    with probes(port, health):
        assert ask(port, "/livez") == (200, {"ok": True, "why": ""})
        assert ask(port, "/readyz?verbose") == (503, {"ok": False, "why": "it is loading"})
        health.serves(lambda: "it is draining")
        assert ask(port, "/readyz") == (503, {"ok": False, "why": "it is draining"})
        assert ask(port, "/metrics")[0] == 404
        with pytest.raises(ConfigError, match=f"--health-port {port}"), probes(port, health):
            pass
    with pytest.raises(ConnectionRefusedError):
        ask(port, "/livez")
    assert "health" not in [thread.name for thread in threading.enumerate()]


def test_a_worker_through_an_outage_and_a_drain(
    own_server: Callable[..., RedisServer], keys: Keys, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    server = own_server()
    port = free_port()
    flags = {"health_port": port, "heartbeat_ttl": 1.0}
    worker = Worker(server.url, keys, tmp_path, SLOW, flags=flags).start()
    client = Client(server.url, keys)
    try:
        client.submit("j", prompt_ids=[1], sampling={"max_tokens": 500, "ignore_eos": True})
        client.wait_tokens("j", 5)
        assert ask(port, "/readyz")[0] == 200
        server.kill()
        why = wait_for(port, "/readyz", 503, lambda: worker.thread.join(0.05))
        assert "Redis has not answered" in why
        assert ask(port, "/livez")[0] == 200
        server.start()
        wait_for(port, "/readyz", 200, lambda: worker.thread.join(0.05))
        worker.ask_to_stop()
        assert wait_for(port, "/readyz", 503, lambda: None) == "it is draining"
        assert len(client.result("j").ids) == 500
        assert worker.wait() == 0
    finally:
        if worker.thread.is_alive():
            worker.end()
        client.redis.close()

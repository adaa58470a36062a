"""`pagestream chaos` as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from pagestream.producer.errors import InvalidRequest
from pagestream.producer.keys import QUEUES
from pagestream.worker.chaos.run import FAULTS, choose, plan
from pagestream.worker.chaos.stage import Options

FOREIGN = Options(redis_url="redis://example.com:6379/0")


def pagestream(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pagestream.producer.cli", "chaos", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.mark.timeout(180)
def test_a_users_server_is_left_as_it_was(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    before = set(redis_client.keys())
    figures = tmp_path / "chaos.json"
    words = ("--seconds", "2", "--seed", "5", "--in-flight", "6", "--json", str(figures))
    done = pagestream("--redis-url", redis_url, *words, "--fault", "connections cut")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 5" in done.stdout
    assert "the promise was kept" in done.stdout
    report = json.loads(figures.read_text())
    assert report["clean"]
    assert report["rows"][-1]["times"] > 0
    assert set(redis_client.keys()) == before
    assert not [name for name in redis_client.smembers(QUEUES) if name.startswith(b"chaos-")]


def test_a_users_server_is_never_harmed() -> None:
    allowed = choose([], FOREIGN)
    assert allowed
    assert not any(fault.own_server for fault in allowed)
    for fault in FAULTS:
        if fault.own_server:
            with pytest.raises(InvalidRequest, match="not done to a server"):
                choose([fault.name], FOREIGN)


def test_what_tls_hides_is_left_out() -> None:
    tls = Options(redis_url="rediss://example.com:6379/0")
    assert not any(fault.proxied for fault in choose([], tls))


def test_wrong_flags_are_a_sentence() -> None:
    unknown = pagestream("--fault", "locusts")
    assert unknown.returncode == 78
    assert "no fault is called 'locusts'; there are: worker killed" in unknown.stderr
    nowhere = pagestream("--redis-url", "redis://127.0.0.1:1", "--seconds", "1")
    assert nowhere.returncode == 69
    assert "no Redis" in nowhere.stderr


def test_a_seed_plans_the_same_faults() -> None:
    def planned(seed: int) -> list[tuple[str, float]]:
        steps = zip(range(60), plan(FAULTS, seed), strict=False)
        return [(fault.name, random.random()) for _, (fault, random) in steps]

    assert planned(1) == planned(1)
    assert planned(1) != planned(2)
    assert {name for name, _ in planned(1)} == {fault.name for fault in FAULTS}

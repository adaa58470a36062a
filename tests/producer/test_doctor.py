"""The doctor finds what is planted, says how to mend it, and exits accordingly."""

import hashlib
import json
import time
from pathlib import Path

import pytest
import redis
from stub_worker import StubWorker
from typer.testing import CliRunner

from pagestream.producer import Client
from pagestream.producer.acl import ROLES, rule
from pagestream.producer.cli import build
from pagestream.producer.doctor import Finding, examine


def wrong(findings: list[Finding]) -> dict[str, str]:
    return {one.what: one.fix for one in findings if one.level == "wrong"}


@pytest.fixture
def server(own_server):
    return own_server("--maxmemory", "256mb")


def test_a_server_as_it_should_be(server):
    with StubWorker(server.url, "well"):
        findings = examine(server.url, time.monotonic)
    assert wrong(findings) == {}
    told = {one.what: one.found for one in findings}
    assert told["persistence"] == "appendonly yes, appendfsync everysec"
    assert told["eviction"] == "noeviction"
    assert told["queue well"] == "1 workers live"
    assert all(one.fix for one in findings if one.level != "ok")


@pytest.mark.parametrize(
    ("setting", "value", "what", "fix"),
    [
        ("appendonly", "no", "persistence", "CONFIG SET appendonly yes"),
        ("appendfsync", "no", "persistence", "CONFIG SET appendfsync everysec"),
        ("maxmemory-policy", "allkeys-lru", "eviction", "CONFIG SET maxmemory-policy noeviction"),
        ("maxmemory", "1mb", "memory", "raise maxmemory"),
    ],
)
def test_each_mistake_comes_with_its_fix(server, setting, value, what, fix):
    with redis.Redis.from_url(server.url) as client:
        client.config_set(setting, value)
    found = wrong(examine(server.url, time.monotonic))
    assert list(found) == [what]
    assert fix in found[what]


def test_jobs_that_nobody_serves_are_wrong(server):
    with StubWorker(server.url, "left"):
        pass
    with Client(server.url, queue="left") as client:
        client.submit("x")
    assert list(wrong(examine(server.url, time.monotonic))) == ["queue left"]


def test_a_user_with_few_rights_is_told_what_it_may_not_ask(server):
    with redis.Redis.from_url(server.url) as client:
        client.execute_command(
            *("ACL", "SETUSER", "poor", "on", ">secret"),
            *("+ping", "+client|setinfo", "+client|setname"),
        )
    url = f"{server.url}?username=poor&password=secret"
    levels = {one.what: one.level for one in examine(url, time.monotonic)}
    assert levels["version"] == levels["persistence"] == levels["scripts"] == "note"


def by_what(url: str) -> dict[str, Finding]:
    return {one.what: one for one in examine(url, time.monotonic)}


@pytest.fixture
def with_roles(own_server, tmp_path):
    """A server with two queues, a user of each role on the first, and nobody who serves."""
    sha256 = hashlib.sha256(b"secret").hexdigest()
    users = [rule(role, "one", user=role, password_sha256=sha256) for role in ROLES]
    path: Path = tmp_path / "users.acl"
    path.write_text("\n".join([*users, "user default on nopass ~* &* +@all"]))
    server = own_server("--aclfile", str(path))
    for queue in ("one", "two"):
        with StubWorker(server.url, queue):
            pass
        with Client(server.url, queue=queue) as client:
            client.submit("x", lane="low")
    return server


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("producer", {"scripts"}),
        ("reader", set()),
        ("observer", {"queue one"}),
        ("worker", {"version", "scripts"}),
        ("admin", {"scripts", "queue one"}),
    ],
)
def test_each_role_is_told_what_it_may_not_ask_and_who_may(with_roles, role, may):
    found = by_what(with_roles.url.replace("unix://", f"unix://{role}:secret@"))
    asked = {"version", "persistence", "scripts", "queues", "queue one", "queue two"} & set(found)
    denied = {what for what in asked if "this user may" in found[what].found}
    assert asked - denied == may
    assert all(found[what].level == "note" and found[what].fix for what in denied)
    assert "the server's own administrator" in found["persistence"].fix
    assert "pagestream acl" not in found["persistence"].fix, "no role may ask CONFIG"
    if "version" in denied:
        assert "pagestream acl worker|jobs --queue …" in found["version"].fix
    if "queues" in denied:
        assert "pagestream acl observer|admin|gateway|jobs --queue …" in found["queues"].fix
    if "queue two" in found:
        assert "pagestream acl observer --queue two" in found["queue two"].fix
    if "queue one" in may:
        assert found["queue one"].found == "no worker lives, and jobs wait (1)"


def test_who_is_advised_may_ask_indeed(with_roles):
    """The worker role is named for INFO: its doctor knows version and memory."""
    found = by_what(with_roles.url.replace("unix://", "unix://worker:secret@"))
    assert found["version"].level == "ok"
    assert "MiB used" in found["memory"].found


@pytest.mark.parametrize(
    ("script", "level", "found"),
    [
        ("exit 9", "wrong", "nvidia-smi said nothing, exit status 9"),
        ("exit 0", "wrong", "nvidia-smi said nothing, exit status 0"),
        ("echo >&2; echo no driver >&2; exit 9", "wrong", "no driver"),
        ("echo NVIDIA H100, 81559 MiB, 580.1", "ok", "NVIDIA H100, 81559 MiB, 580.1"),
    ],
)
def test_whatever_nvidia_smi_says(server, tmp_path, monkeypatch, script, level, found):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    _, told = run("doctor", "--redis-url", server.url, "--json")
    (gpu,) = [one for one in json.loads(told) if one["what"] == "GPU"]
    assert (gpu["level"], gpu["found"]) == (level, found)


def test_a_round_trip_that_is_felt(server):
    ticks = iter(range(1_000))
    (slow,) = [one for one in examine(server.url, lambda: next(ticks)) if one.what == "round trip"]
    assert (slow.level, slow.found) == ("note", "1000.00 ms")


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(build(list(arguments)), arguments)
    return done.exit_code, done.output


def test_the_command_and_its_exit_status(server):
    status, told = run("doctor", "--redis-url", server.url, "--json")
    assert status == 0
    assert {one["what"] for one in json.loads(told)} > {"version", "GPU", "scripts"}
    with redis.Redis.from_url(server.url) as client:
        client.config_set("appendonly", "no")
    status, told = run("doctor", "--redis-url", server.url, "--quiet")
    assert status == 1
    assert "wrong persistence: appendonly no" in told
    assert "round trip" not in told
    server.kill()
    status, told = run("doctor", "--redis-url", server.url)
    assert status == 69
    assert "Traceback" not in told

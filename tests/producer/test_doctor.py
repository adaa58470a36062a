"""The doctor finds what is planted, says how to mend it, and exits accordingly."""

import json
import time

import pytest
import redis
from stub_worker import StubWorker
from typer.testing import CliRunner

from pagestream.producer import Client
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

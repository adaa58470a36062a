"""Usage: what the script that ends a job counts, days, and months of them."""

import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner
from wire_tools import Worker, end

from pagestream.producer.calls import Calls
from pagestream.producer.cli import build
from pagestream.producer.connection import connect_async
from pagestream.producer.keys import QUEUES
from pagestream.producer.protocol import Usage
from pagestream.producer.usage import DAY_MS, DAYS_KEPT, UsageStore

DONE = Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=8)


@pytest.fixture
def day(redis_client):
    """Today's number."""
    seconds, _ = redis_client.time()
    return seconds * 1000 // DAY_MS


@pytest.fixture
def known(redis_client, queue_name):
    redis_client.sadd(QUEUES, queue_name)


def date_of(day: int):
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)


@asynccontextmanager
async def usage(url: str):
    redis = connect_async(url, client_name="test")
    yield UsageStore(Calls(redis, url, 5_000))
    await redis.aclose()


def ours(found, queue_name):
    return [one for one in found if one.queue == queue_name]


def test_each_end_is_counted_for_its_tenant_and_day(wire, keys, redis_client, day):
    for job, tenant in (("a", "acme"), ("b", "acme"), ("c", "default"), ("d", "default")):
        wire.submit(job, tenant=tenant)
    wire.cancel("d")
    worker = Worker(wire)
    claims = worker.claim(slots=4)
    ends = [end(claim, 4, usage=DONE) for claim in claims]
    worker.step(ends=ends)
    counts = {}
    for number in (day, day + 1):  # midnight may have come in between
        for name, count in redis_client.hgetall(keys.usage(number)).items():
            counts[name.decode()] = counts.get(name.decode(), 0) + int(count)
    assert counts == {
        "acme:requests": 2,
        "acme:prompt_tokens": 20,
        "acme:completion_tokens": 8,
        "acme:cached_tokens": 16,
        "default:requests": 2,
        "default:prompt_tokens": 10,
        "default:completion_tokens": 4,
        "default:cached_tokens": 8,
    }
    ttl_ms = max(redis_client.pttl(keys.usage(number)) for number in (day, day + 1))
    assert (DAYS_KEPT - 1) * DAY_MS < ttl_ms <= DAYS_KEPT * DAY_MS


async def test_days_are_rolled_into_months_once(redis_url, redis_client, keys, known, day):
    old = day - 32  # of another month, and over
    month = f"{date_of(old):%Y-%m}"
    redis_client.hset(keys.usage(old), mapping={"acme:requests": 3, "acme:prompt_tokens": 5})
    redis_client.hset(keys.usage(day), mapping={"acme:requests": 1})
    async with usage(redis_url) as store:
        before = ours(await store.month(month), keys.queue)
        await store.roll()
        await store.roll()
        assert ours(await store.month(month), keys.queue) == before
        this_month = ours(await store.month(f"{date_of(day):%Y-%m}"), keys.queue)
    assert [(one.requests, one.prompt_tokens) for one in before] == [(3, 5)]
    assert [one.requests for one in this_month] == [1]
    assert redis_client.hget(keys.usage(month), "acme:requests") == b"3"
    assert redis_client.pttl(keys.usage(month)) > 390 * DAY_MS
    assert not redis_client.hexists(keys.usage(f"{date_of(day):%Y-%m}"), f":{day}")


def test_the_command_shows_days_and_months(redis_url, redis_client, keys, known, day):
    redis_client.hset(keys.usage(day - 1), mapping={"acme:requests": 1234, "b:prompt_tokens": 7})
    redis_client.hset(keys.usage(day - 8), mapping={"acme:requests": 1})

    def run(*words: str) -> str:
        words = ("usage", "--redis-url", redis_url, *words)
        done = CliRunner().invoke(build(list(words)), list(words))
        assert done.exit_code == 0, done.output
        return done.stdout

    def rows(*words: str):
        return [one for one in json.loads(run("--json", *words)) if one["queue"] == keys.queue]

    assert "1,234" in run()
    yesterday = f"{date_of(day - 1):%Y-%m-%d}"
    assert [(one["period"], one["tenant"]) for one in rows()] == [
        (yesterday, "acme"),
        (yesterday, "b"),
    ]
    assert len(rows("--days", "9")) == 3
    assert rows("--month", f"{date_of(day - 1):%Y-%m}")[0]["requests"] >= 1234
    words = ["usage", "--redis-url", redis_url, "--month", "november"]
    assert CliRunner().invoke(build(words), words).exit_code == 2

"""What an operator allows a tenant: bounds and rates at the submit, and commands that set them."""

import json
import re

import pytest
from typer.testing import CliRunner
from wire_tools import Worker, end, row

from pagestream.producer import (
    AsyncClient,
    Client,
    InvalidRequest,
    QueueFull,
    RateLimited,
    TenantLimits,
)
from pagestream.producer.cli import build


@pytest.fixture
def allow(redis_client, keys):
    """`allow(**{"t:weight": 2})`: what an operator sets."""
    return lambda **fields: redis_client.hset(keys.limits, mapping=fields)


def submit(wire, job_id: str, **options) -> tuple[str, int, str]:
    options.setdefault("tokens_max", 10)
    status, _, retry_after_ms, state = wire.submit_raw(job_id, b"{}", json.dumps(options))
    return status.decode(), retry_after_ms, state.decode()


def pass_time(wire, tenant: str, ms: int) -> None:
    """Let a bucket's last filling lie so much further back."""
    key = wire.keys.rate(tenant)
    for what in ("jobs_ms", "tokens_ms"):
        if (at := wire.redis.hget(key, what)) is not None:
            wire.redis.hset(key, what, int(at) - ms)


# ---- bounds


def test_an_operators_bound_goes_before_the_clients(wire, allow):
    allow(**{"t:queue_limit": 2, "*:queue_limit": 1})
    assert submit(wire, "a", tenant="t", queue_limit=1)[0] == "accepted"
    assert submit(wire, "b", tenant="t", queue_limit=1)[0] == "accepted"
    status, retry_after_ms, bound = submit(wire, "c", tenant="t", queue_limit=50)
    assert (status, bound) == ("full", "2")
    assert retry_after_ms >= 100
    assert submit(wire, "d", tenant="other")[0] == "accepted"
    assert submit(wire, "e", tenant="other")[0] == "full", "everybody's bound is 1"


@pytest.mark.parametrize("value", ["", "x", "0", "-3", "nan", "inf", "1e99"])
def test_a_limit_that_is_none_limits_nothing(wire, allow, value):
    allow(
        **{f"t:{name}": value for name in ("weight", "queue_limit", "jobs_per_s", "tokens_per_s")}
    )
    for number in range(30):
        assert submit(wire, f"j{number}", tenant="t")[0] == "accepted"
    assert len(Worker(wire).claim(30)) == 30


def test_limits_of_another_type_harm_nobody(wire, redis_client, keys):
    redis_client.set(keys.limits, "a string")
    assert submit(wire, "job")[0] == "accepted"
    worker = Worker(wire)
    claim = worker.claim_one()
    assert worker.step(rows=[row(claim, 0, 5)]).row_codes == "k"
    assert worker.lease.reap(["job"]).weights == {}


# ---- rates


def test_jobs_a_second(wire, allow):
    allow(**{"t:jobs_per_s": 0.5})
    statuses = [submit(wire, f"j{number}", tenant="t")[0] for number in range(7)]
    assert statuses == ["accepted"] * 5 + ["limited"] * 2, "ten seconds' worth at once"
    status, retry_after_ms, what = submit(wire, "more", tenant="t")
    assert (status, what) == ("limited", "jobs")
    assert 1900 <= retry_after_ms <= 2000
    assert wire.record("more") == {}
    assert submit(wire, "other", tenant="o")[0] == "accepted"
    pass_time(wire, "t", retry_after_ms)
    assert submit(wire, "more", tenant="t")[0] == "accepted", "the hint is right"
    assert submit(wire, "again", tenant="t")[0] == "limited"


def test_attaching_costs_nothing(wire, allow):
    allow(**{"t:jobs_per_s": 0.1})
    assert submit(wire, "j", tenant="t")[0] == "accepted"
    assert submit(wire, "j", tenant="t")[0] == "attached"
    assert submit(wire, "k", tenant="t")[0] == "limited"
    assert submit(wire, "j", tenant="t")[0] == "attached"


def test_tokens_a_second_are_those_computed(wire, allow):
    allow(**{"*:tokens_per_s": 10})
    assert submit(wire, "j", tenant="t", tokens_max=60)[0] == "accepted"
    assert submit(wire, "k", tenant="t", tokens_max=60)[0] == "accepted", "100 at once, then debt"
    status, retry_after_ms, what = submit(wire, "l", tenant="t")
    assert (status, what) == ("limited", "tokens")
    assert 1900 <= retry_after_ms <= 2000
    worker = Worker(wire)
    claims = worker.claim(2)
    # The bound of 60 turns out to be 20; each also writes 5.
    worker.step(
        rows=[row(claim, 0, *range(5)) for claim in claims],
        prefills=[(claim.job_id, 1, 20) for claim in claims],
    )
    level = float(wire.redis.hget(wire.keys.rate("t"), "tokens"))
    assert level == pytest.approx(100 - 2 * 25, abs=2)


def test_a_prompt_computed_twice_is_paid_once(wire, allow):
    allow(**{"t:tokens_per_s": 10})
    submit(wire, "j", tenant="t", tokens_max=60)
    worker = Worker(wire)
    worker.claim_one()
    worker.step(prefills=[("j", 1, 0)], returns=[("j", 1)])
    worker.claim_one()
    worker.step(prefills=[("j", 2, 30)], returns=[("j", 2)])
    worker.claim_one()
    worker.step(prefills=[("j", 3, 30)])
    level = float(wire.redis.hget(wire.keys.rate("t"), "tokens"))
    assert level == pytest.approx(100 - 30, abs=2)


def test_output_drives_a_tenant_into_debt_and_time_pays_it(wire, allow):
    allow(**{"t:tokens_per_s": 10})
    submit(wire, "j", tenant="t")
    worker = Worker(wire)
    claim = worker.claim_one()
    worker.step(rows=[row(claim, 0, *range(150))])
    status, retry_after_ms, _ = submit(wire, "k", tenant="t")
    assert status == "limited"
    assert 5900 <= retry_after_ms <= 6000
    pass_time(wire, "t", retry_after_ms + 20)  # the host's clock may be set back a little
    assert submit(wire, "k", tenant="t")[0] == "accepted"


def test_a_bucket_that_is_full_again_leaves_no_key(wire, allow):
    allow(**{"t:jobs_per_s": 100, "t:tokens_per_s": 10})
    submit(wire, "j", tenant="t", tokens_max=5)
    assert 0 < wire.redis.pttl(wire.keys.rate("t")) <= 600
    submit(wire, "k", tenant="t", tokens_max=500)
    assert 40_000 < wire.redis.pttl(wire.keys.rate("t")) <= 51_000


# ---- clients


async def test_a_client_gets_typed_errors_with_a_hint(redis_url, queue_name, allow):
    allow(**{"slow:jobs_per_s": 0.1, "small:queue_limit": 1})
    async with AsyncClient(redis_url, queue=queue_name, tenant="slow") as client:
        await client.submit("p")
        with pytest.raises(
            RateLimited, match=r"slow .* jobs a second .* try again in \d+ ms"
        ) as info:
            await client.submit("q")
        assert 9_000 <= info.value.retry_after_ms <= 10_000
        await client.submit("p", tenant="small")
        with pytest.raises(QueueFull, match="holds 1 unfinished jobs of tenant small"):
            await client.submit("q", tenant="small")
        outcomes = await client.submit_many([{"prompt": "r"}, {"prompt": "r", "tenant": "free"}])
        assert isinstance(outcomes[0], RateLimited)
        assert (await outcomes[1].status()).tenant == "free"
        assert await client.limits() == TenantLimits(jobs_per_s=0.1)
        assert await client.limits("small") == TenantLimits(queue_limit=1)


@pytest.mark.parametrize("tenant", ["", "a:b", "*", 7])
async def test_a_tenant_that_cannot_be_is_refused(redis_url, queue_name, tenant):
    async with AsyncClient(redis_url, queue=queue_name) as client:
        with pytest.raises(InvalidRequest, match="tenant"):
            await client.submit("p", tenant=tenant)


def test_the_synchronous_client_shows_limits(redis_url, queue_name, allow):
    allow(**{"*:weight": 3})
    with Client(redis_url, queue=queue_name) as client:
        assert client.limits() == TenantLimits(weight=3.0)


# ---- commands


@pytest.fixture
def tenants(redis_url, queue_name):
    app = build(["tenants"])

    def run(*words: str, code: int = 0) -> str:
        common = ["--queue", queue_name, "--redis-url", redis_url]
        done = CliRunner().invoke(app, ["tenants", *words, *common], env={"COLUMNS": "120"})
        assert done.exit_code == code, done.output
        return done.output

    return run


def test_an_operator_sets_shows_and_unsets(tenants, wire, redis_client, keys):
    tenants("set", "acme", "--weight", "2.5", "--queue-limit", "100")
    tenants("set", "*", "--jobs-per-s", "5", "--tokens-per-s", "1000")
    assert redis_client.hgetall(keys.limits) == {
        b"acme:weight": b"2.5",
        b"acme:queue_limit": b"100",
        b"*:jobs_per_s": b"5",
        b"*:tokens_per_s": b"1000",
    }
    wire.submit("j", tenant="acme", tokens_max=50)
    worker = Worker(wire)
    worker.step(rows=[row(worker.claim_one(), 0, *range(75))], prefills=[("j", 1, 50)])
    shown = json.loads(tenants("show", "--json"))
    assert [one["tenant"] for one in shown] == ["*", "acme"]
    assert shown[1]["limits"] == {
        "weight": 2.5,
        "queue_limit": 100,
        "jobs_per_s": None,
        "tokens_per_s": None,
    }
    assert (shown[1]["unfinished_jobs"], shown[1]["served_tokens"]) == (1, 50.0)
    assert re.search(r"acme +│ +1 +│ +50 +│ +2.5 +│ +100 +│ +– +│ +–", tenants("show"))
    tenants("unset", "acme")
    tenants("unset", "*")
    assert not redis_client.exists(keys.limits)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("set", "acme"), "nothing to set"),
        (("set", "acme", "--weight", "0"), "weight=0"),
        (("set", "acme", "--weight", "nan"), "weight=nan"),
        (("set", "a:b", "--weight", "1"), "tenant"),
        (("unset", ""), "tenant"),
    ],
)
def test_a_wrong_command_says_why(tenants, redis_client, keys, words, says):
    assert says in tenants(*words, code=2)
    assert not redis_client.exists(keys.limits)


def test_ended_jobs_leave_the_bound(wire, allow):
    allow(**{"t:queue_limit": 1})
    submit(wire, "a", tenant="t")
    worker = Worker(wire)
    worker.step(ends=[end(worker.claim_one(), 0)])
    assert submit(wire, "b", tenant="t")[0] == "accepted"

"""What goes on in a queue, read while workers of the tests hold jobs, by both readers."""

import asyncio
import itertools

import msgspec
import pytest
from wire_tools import SNAPSHOT, Wire, Worker, end, row

from pagestream.producer.errors import JobNotFound, QueueUnavailable
from pagestream.producer.live import AsyncLive, Live, QueueLive, Timeline


def look(url: str, queue: str) -> QueueLive:
    """Both readers, which must agree."""

    async def read() -> tuple[list[str], QueueLive]:
        async with AsyncLive(url) as live:
            return await live.queues(), await live.queue(queue)

    names, apart = asyncio.run(read())
    with Live(url) as live:
        assert live.queues() == names
        together = live.queue(queue)
    same = msgspec.structs.replace(apart, at_ms=together.at_ms, lanes=together.lanes)
    assert same == together
    assert [lane.waiting for lane in apart.lanes] == [lane.waiting for lane in together.lanes]
    return together


def lanes(queue: QueueLive) -> dict[str, tuple[int, int]]:
    return {lane.lane: (lane.waiting, lane.running) for lane in queue.lanes}


def test_an_unknown_queue_is_empty(redis_url: str, queue_name: str) -> None:
    queue = look(redis_url, queue_name)
    assert lanes(queue) == {"high": (0, 0), "normal": (0, 0), "low": (0, 0)}
    assert (queue.waiting, queue.running, queue.tenants, queue.workers) == (0, 0, [], [])
    assert queue.at_ms > 1_600_000_000_000


def test_who_waits_by_lane_and_tenant_and_for_how_long(redis_url: str, wire: Wire) -> None:
    for number in range(3):
        wire.submit(f"n{number}")
    wire.submit("h0", lane="high", tenant="acme")
    worker = Worker(wire, "w-1")
    worker.claim(slots=2)
    wire.submit("low", lane="low")
    wire.age("low", 90_000)
    queue = look(redis_url, wire.keys.queue)
    assert lanes(queue) == {"high": (0, 1), "normal": (2, 1), "low": (1, 0)}
    assert (queue.waiting, queue.running) == (3, 2)
    oldest = {lane.lane: lane.oldest_ms for lane in queue.lanes}
    assert oldest["high"] == 0
    assert 0 <= oldest["normal"] < 60_000
    assert 90_000 <= oldest["low"] < 150_000
    tenants = {one.tenant: (one.waiting, one.running) for one in queue.tenants}
    assert tenants == {"default": (3, 1), "acme": (0, 1)}


def test_jobs_handed_back_wait_again_with_their_age(redis_url: str, wire: Wire) -> None:
    wire.submit("j")
    wire.age("j", 40_000)
    worker = Worker(wire)
    claim = worker.claim_one()
    assert lanes(look(redis_url, wire.keys.queue))["normal"] == (0, 1)
    worker.step(returns=[(claim.job_id, claim.epoch)])
    queue = look(redis_url, wire.keys.queue)
    assert lanes(queue)["normal"] == (1, 0)
    assert queue.lanes[1].oldest_ms >= 40_000


def test_suspects_wait_and_dead_letters_are_counted(redis_url: str, wire: Wire) -> None:
    wire.submit("bad")
    first = Worker(wire)
    for _ in range(2):
        first.claim_one()
        first.die()
        first = Worker(wire)
        wire.watch()
        first.lease.reap(())
    queue = look(redis_url, wire.keys.queue)
    assert (queue.suspects, queue.dead_letters) == (1, 0)
    assert lanes(queue)["normal"] == (1, 0)
    wire.redis.xadd(wire.keys.dead, {"id": "x", "reason": "crashed", "message": ""})
    assert look(redis_url, wire.keys.queue).dead_letters == 1


def test_workers_say_what_they_do(redis_url: str, wire: Wire) -> None:
    beating = Worker(wire, "a", heartbeat_ms=0)
    beating.step(snapshot=msgspec.json.encode(SNAPSHOT).decode())
    silent = Worker(wire, "b")
    newer = Worker(wire, "c", heartbeat_ms=0)
    newer.step(snapshot='{"at_ms": "another format"}')
    silent.die()
    found = {worker.name: worker for worker in look(redis_url, wire.keys.queue).workers}
    assert found["a"].snapshot == SNAPSHOT
    assert [found[name].is_alive for name in "abc"] == [True, False, True]
    assert found["b"].snapshot is found["c"].snapshot is None
    assert (SNAPSHOT.occupancy, SNAPSHOT.kv.usage, SNAPSHOT.prefix_hit_rate) == (0.75, 0.25, 0.4)
    assert 0 < wire.redis.pttl(wire.keys.live("a")) <= 3_000
    beating.step()  # a beat without one leaves the last
    assert found["a"] in look(redis_url, wire.keys.queue).workers
    beating.lease.leave()
    assert not wire.redis.exists(wire.keys.live("a"))


def timeline(url: str, wire: Wire, job_id: str) -> Timeline:
    with Live(url) as live:
        return live.timeline(wire.keys.queue, job_id)


def test_a_jobs_timeline_from_its_acceptance_to_its_end(redis_url: str, wire: Wire) -> None:
    wire.submit("j", lane="high")
    waiting = timeline(redis_url, wire, "j")
    assert (waiting.state, waiting.lane, waiting.claims) == ("queued", "high", [])
    now_ms = waiting.queued_ms + 500
    assert waiting.phases(now_ms) == [("queue", waiting.queued_ms, now_ms)]

    worker = Worker(wire, "w-1")
    claim = worker.claim_one()
    claimed = timeline(redis_url, wire, "j")
    assert (claimed.state, claimed.worker, claimed.first_token_ms) == ("running", "w-1", None)
    assert [name for name, *_ in claimed.phases(now_ms)] == ["queue", "prefill"]

    worker.step(rows=[row(claim, 0, 7)], prefills=[("j", claim.epoch, 5, True)])
    worker.step(rows=[row(claim, 1, 8, 9)])
    running = timeline(redis_url, wire, "j")
    assert running.output_tokens == 3
    assert running.first_token_ms is not None

    worker.step(ends=[end(claim, 3)])
    done = timeline(redis_url, wire, "j")
    assert (done.state, done.reason, done.output_tokens) == ("done", "stop", 3)
    assert (done.usage.completion_tokens, done.timings.total_ms) == (3, 1.5)
    assert done.queued_ms <= done.claimed_ms <= done.first_token_ms <= done.finished_ms
    assert [(one.epoch, one.worker, one.offset) for one in done.claims] == [(1, "w-1", 0)]
    phases = done.phases(0)
    assert [name for name, *_ in phases] == ["queue", "prefill", "decode"]
    assert (phases[0][1], phases[-1][2]) == (done.queued_ms, done.finished_ms)
    assert all(before[2] == after[1] for before, after in itertools.pairwise(phases))


def test_a_timeline_shows_who_took_the_job_over(redis_url: str, wire: Wire) -> None:
    wire.submit("j")
    first, second = Worker(wire, "first"), Worker(wire, "second")
    claim = first.claim_one()
    first.step(rows=[row(claim, 0, 1, 2)], prefills=[("j", 1, 5, True)])
    seen = timeline(redis_url, wire, "j").first_token_ms
    first.step(returns=[("j", claim.epoch)])
    again = second.claim_one()
    second.step(rows=[row(again, 2, 3)], prefills=[("j", 2, 5, True)])
    second.step(ends=[end(again, 3, "error", error="e", message="why")])
    found = timeline(redis_url, wire, "j")
    assert [(one.epoch, one.worker, one.offset) for one in found.claims] == [
        (1, "first", 0),
        (2, "second", 2),
    ]
    assert (found.worker, found.error, found.message) == ("second", "e", "why")
    assert found.first_token_ms == seen, "the first token is the first, whoever gave it"
    assert all(begin <= until for _, begin, until in found.phases(0))


def test_a_prompt_without_a_token_has_no_first_token(redis_url: str, wire: Wire) -> None:
    wire.submit("j")
    worker = Worker(wire)
    claim = worker.claim_one()
    worker.step(returns=[("j", claim.epoch)], prefills=[("j", claim.epoch, 0, False)])
    assert timeline(redis_url, wire, "j").first_token_ms is None


def test_errors_say_what_is_wrong(redis_url: str, wire: Wire, tmp_path) -> None:
    with Live(redis_url) as live, pytest.raises(JobNotFound, match="no job nothing"):
        live.timeline(wire.keys.queue, "nothing")
    with (
        Live(f"unix://{tmp_path}/nowhere", retries=0) as live,
        pytest.raises(QueueUnavailable, match="nowhere"),
    ):
        live.queue("m")
    wire.redis.set(wire.keys.served, "a string")
    with Live(redis_url) as live, pytest.raises(QueueUnavailable, match="WRONGTYPE"):
        live.queue(wire.keys.queue)

"""A worker's life on the wire: register, beat, reap, resend, wait, replay, leave."""

import signal
import threading

import pytest
from flaky_proxy import FlakyProxy
from redis.exceptions import ConnectionError as RedisConnectionError
from wire_tools import ALL_TOKENS, MODEL, Wire, Worker, end, row

from pagestream.producer.connection import connect
from pagestream.producer.errors import WorkerNameTaken
from pagestream.producer.keys import QUEUES
from pagestream.worker.queue import lease as lease_module
from pagestream.worker.queue import server_clock
from pagestream.worker.queue.lease import StepCall


class Clock:
    """A monotonic clock that a test turns."""

    def __init__(self) -> None:
        self.ms = 1_000_000.0

    def __call__(self) -> float:
        return self.ms


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    for module in (lease_module, server_clock):
        monkeypatch.setattr(module, "monotonic_ms", clock)
    return clock


# ---- register and leave


def test_register_makes_the_worker_known(wire, keys, redis_client):
    worker = Worker(wire, "w-1")
    assert 2_000 < redis_client.pttl(keys.heartbeat("w-1")) <= 3_000
    assert redis_client.hkeys(keys.model) == [b"w-1"]
    assert b'"context_tokens":1000' in redis_client.hget(keys.model, "w-1")
    assert redis_client.sismember(QUEUES, keys.queue)
    assert worker.step().status == "applied"


def test_a_live_workers_name_is_taken(wire):
    first = Worker(wire, "w-1")
    with pytest.raises(WorkerNameTaken, match="'w-1'"):
        Worker(wire, "w-1")
    assert first.step().status == "applied", "the first one does not notice"


def test_register_may_be_sent_twice(wire):
    worker = Worker(wire, "w-1")
    worker.lease.register(MODEL)
    assert worker.step().status == "applied"


def test_register_takes_over_what_a_dead_namesake_left(wire):
    wire.submit("job")
    old = Worker(wire, "w-1")
    old.step(rows=[row(old.claim_one(), 0, 5)])
    old.die()
    new = Worker(wire, "w-1")
    assert wire.state("job") == "queued"
    claim = new.claim_one()
    assert (claim.epoch, claim.crashes) == (2, 1)


def test_leave_gives_everything_back_and_goes(wire, keys, redis_client):
    for number in range(3):
        wire.submit(f"job-{number}")
    worker = Worker(wire, "w-1")
    worker.claim(2)
    wire.cancel("job-0")
    worker.lease.leave()
    assert wire.state("job-0") == "cancelled"
    assert wire.state("job-1") == "queued"
    assert wire.record("job-1")["crashes"] == "0"
    left = [key for key in redis_client.scan_iter(f"{keys.prefix}*") if b"w-1" in key]
    assert left == []
    assert redis_client.hlen(keys.model) == 0
    consumers = redis_client.xinfo_consumers(keys.jobs("normal"), "workers")
    assert [consumer["name"] for consumer in consumers] == [b"returned"]


# ---- the heartbeat


def test_a_heartbeat_goes_out_once_a_second(wire, keys, redis_client, clock):
    worker = Worker(wire)
    beat = keys.heartbeat(worker.name)
    assert worker.lease.beat_due_ms() == 1000
    clock.ms += 999
    worker.step(info='{"step": 1}')
    assert redis_client.get(beat) == b"{}"
    clock.ms += 1
    assert worker.lease.beat_due_ms() == 0
    redis_client.pexpire(beat, 1_500)
    worker.step(info='{"step": 2}')
    assert redis_client.get(beat) == b'{"step": 2}'
    assert redis_client.pttl(beat) > 2_000
    assert worker.lease.beat_due_ms() == 1000


def test_the_lifetimes_can_be_chosen(wire, keys, redis_client, clock):
    worker = Worker(wire, heartbeat_ttl_ms=60_000, heartbeat_ms=20_000)
    assert redis_client.pttl(keys.heartbeat(worker.name)) > 50_000
    assert worker.lease.beat_due_ms() == 20_000


# ---- the reaper


def test_a_dead_workers_jobs_are_taken_back(wire, keys, redis_client):
    for number in range(3):
        wire.submit(f"job-{number}")
    dead, alive = Worker(wire, "w-dead"), Worker(wire, "w-alive")
    first, _ = dead.claim(2)
    dead.step(rows=[row(first, 0, 5, 6)])
    assert alive.lease.reap(()).workers == (), "it still beats"
    dead.die()
    reaped = alive.lease.reap(())
    assert (reaped.put_back, reaped.dead, reaped.workers) == (2, 0, ("w-dead",))
    assert alive.lease.reap(()).put_back == 0, "once"
    claims = alive.claim(10)
    assert [(c.job_id, c.epoch, c.crashes) for c in claims] == [
        ("job-0", 2, 1),
        ("job-1", 2, 1),
        ("job-2", 1, 0),
    ]
    assert [e.ids for e in alive.lease.replay("job-0") if e.event == "tokens"] == [(5, 6)]
    left = [key for key in redis_client.scan_iter(f"{keys.prefix}*") if b"w-dead" in key]
    assert left == []
    assert redis_client.hkeys(keys.model) == [b"w-alive"]
    consumers = redis_client.xinfo_consumers(keys.jobs("normal"), "workers")
    assert b"w-dead" not in [consumer["name"] for consumer in consumers]


def test_two_reapers_count_one_crash(wire):
    wire.submit("job")
    dead, one, two = Worker(wire), Worker(wire), Worker(wire)
    dead.claim_one()
    dead.die()
    results = [reaper.lease.reap(()).put_back for reaper in (one, two)]
    assert results == [1, 0]
    assert wire.record("job")["crashes"] == "1"


def test_reaping_rings_the_bell(wire):
    wire.submit("job")
    dead, alive = Worker(wire), Worker(wire)
    dead.claim_one()
    bell_id = alive.step().bell_id
    dead.die()
    assert not alive.is_rung(bell_id, 1)
    alive.lease.reap(())
    assert alive.is_rung(bell_id, 1)


def test_a_job_of_ours_that_we_do_not_run_goes_back_uncounted(wire):
    wire.submit("held")
    wire.submit("lost")
    worker = Worker(wire)
    worker.claim(2)
    assert worker.lease.reap({"held"}).lost == (("lost", 1),)
    assert wire.state("lost") == "running", "the next step hands it back"
    claims = worker.claim(5)
    assert [(c.job_id, c.epoch, c.crashes) for c in claims] == [("lost", 2, 0)]
    assert worker.lease.reap({"held", "lost"}).lost == ()


def test_what_the_index_has_lost_is_found_in_the_pending_lists(wire, keys, redis_client):
    wire.submit("a", tenant="t1")
    wire.submit("b", tenant="t2", lane="low")
    dead, alive = Worker(wire), Worker(wire)
    dead.claim(2)
    redis_client.delete(keys.running(dead.name))
    dead.die()
    assert alive.lease.reap(()).put_back == 2
    assert {claim.job_id for claim in alive.claim(5)} == {"a", "b"}


def test_a_lane_entry_deleted_by_hand_is_written_again(wire, keys, redis_client):
    wire.submit("job")
    dead, alive = Worker(wire), Worker(wire)
    dead.claim_one()
    redis_client.xdel(keys.jobs("normal"), wire.record("job")["entry"])
    dead.die()
    assert alive.lease.reap(()).put_back == 1
    assert alive.claim_one().job_id == "job"


def test_nobody_reaps_while_a_step_is_unanswered(wire):
    wire.submit("job")
    dead, alive = Worker(wire), Worker(wire)
    dead.claim_one()
    dead.die()

    def refuse(*args):
        raise RedisConnectionError("refused")

    held, alive.lease._held = alive.lease._held, type("Down", (), {"execute_command": refuse})()
    call = StepCall()
    with pytest.raises(RedisConnectionError):
        alive.lease.step(call)
    alive.lease._held = held
    assert alive.lease.reap(()).put_back == 0
    alive.lease.step(call)
    assert alive.lease.reap(()).put_back == 1


def test_nobody_is_dead_until_the_heartbeats_were_watched_for_a_life(wire, keys, redis_client):
    """Down, paused or flushed: afterwards every heartbeat is gone, and says nothing."""
    wire.submit("job")
    silent, others = Worker(wire), [Worker(wire), Worker(wire)]
    silent.claim_one()
    redis_client.delete(keys.heartbeat(silent.name))
    wire.watch(last_ms_ago=1_501)
    assert [one.lease.reap(()).put_back for one in others] == [0, 0]
    wire.watch(since_ms_ago=2_900)
    assert others[0].lease.reap(()).put_back == 0, "it may be on its way back"
    wire.watch(since_ms_ago=3_000)
    assert others[1].lease.reap(()).put_back == 1
    assert int(wire.record("job")["crashes"]) == 1


def test_a_clock_that_was_put_back_kills_nobody(wire, keys, redis_client):
    wire.submit("job")
    silent, other = Worker(wire), Worker(wire)
    silent.claim_one()
    redis_client.delete(keys.heartbeat(silent.name))
    wire.watch(last_ms_ago=-3_600_000)
    assert other.lease.reap(()).put_back == 0


def test_a_server_that_stood_still_costs_no_job_a_crash(own_server, keys):
    """SIGSTOP for longer than the heartbeats live, with a reap under way."""
    server = own_server()
    with connect(server.url, client_name="worker") as client:
        wire = Wire(client, keys)
        wire.submit("job")
        lives = {"heartbeat_ttl_ms": 400, "heartbeat_ms": 130}
        holder, other = Worker(wire, **lives), Worker(wire, **lives)
        claim = holder.claim_one()
        wire.watch()
        server.process.send_signal(signal.SIGSTOP)
        reaper = threading.Thread(target=other.lease.reap, args=((),))
        reaper.start()
        reaper.join(0.5)
        assert reaper.is_alive(), "the reap waits for the server"
        server.process.send_signal(signal.SIGCONT)
        reaper.join()
        assert client.exists(keys.heartbeat(holder.name)) == 0, "its heartbeat is gone"
        assert holder.step(rows=[row(claim, 0, 5)]).row_codes == "k"
        assert wire.record("job")["crashes"] == "0"


def test_reaping_goes_on_when_the_server_is_full(own_server, keys):
    server = own_server()
    with connect(server.url, client_name="worker") as client:
        wire = Wire(client, keys)
        wire.submit("job")
        dead, alive = Worker(wire), Worker(wire)
        dead.claim_one()
        dead.die()
        client.config_set("maxmemory", 1)
        assert alive.lease.reap(()).put_back == 1


# ---- crashes of the engine


def test_an_engine_crash_counts_once_and_keeps_the_epoch(wire):
    wire.submit("job")
    worker = Worker(wire)
    claim = worker.claim_one()
    for _ in range(2):
        assert worker.lease.crashed([("job", 1, 0)]) == [("job", 1, "kept")]
    assert worker.step(rows=[row(claim, 0, 5)]).row_codes == "k"


def test_an_engine_crash_at_the_cap_ends_the_job(wire):
    wire.submit("poison")
    wire.submit("fenced")
    worker = Worker(wire, crash_cap=2)
    worker.claim(2)
    worker.step(returns=[("fenced", 1)])
    outcome = worker.lease.crashed([("poison", 1, 0), ("fenced", 1, 0), ("unknown", 1, 0)])
    assert outcome == [("poison", 1, "kept"), ("fenced", 0, "fenced"), ("unknown", 0, "fenced")]
    assert worker.lease.crashed([("poison", 1, 1)]) == [("poison", 2, "dead")]
    assert worker.lease.crashed([("poison", 1, 1)]) == [("poison", 2, "dead")]
    assert wire.state("poison") == "dead"
    assert len(wire.dead_letters()) == 1
    assert worker.lease.reap(()).lost == ()


# ---- time


def test_the_lease_knows_the_servers_time(wire, redis_client):
    worker = Worker(wire)
    with pytest.raises(AssertionError, match="no step"):
        worker.lease.now_ms()
    for _ in range(3):
        worker.step()
    seconds, microseconds = redis_client.time()
    assert abs(worker.lease.now_ms() - (seconds * 1000 + microseconds / 1000)) < 50


def test_the_clock_keeps_its_best_reading_and_follows_a_jump(clock):
    seen = server_clock.ServerClock()
    seen.set(5_000_010, 1_000_000.0, 1_000_020.0)
    clock.ms = 1_000_020.0
    assert seen.now_ms() == 5_000_020
    seen.set(5_000_130, 1_000_020.0, 1_000_220.0)
    clock.ms = 1_000_220.0
    assert seen.now_ms() == 5_000_220, "a slow answer says less"
    seen.set(5_000_301, 1_000_300.0, 1_000_300.0)
    clock.ms = 1_000_300.0
    assert seen.now_ms() == 5_000_301, "a quick one says more"
    seen.set(9_000_000, 1_000_300.0, 1_000_500.0)
    clock.ms = 1_000_500.0
    assert seen.now_ms() == 9_000_100, "somebody set the server's clock"


# ---- waiting and reading


def test_wait_returns_for_the_bell_and_for_control(wire):
    wire.submit("job")
    worker = Worker(wire)
    bell_id = worker.step(slots=1, tokens=ALL_TOKENS).bell_id
    assert not worker.is_rung(bell_id, 1)
    wire.submit("more")
    assert worker.is_rung(bell_id, 60_000)
    bell_id = worker.step().bell_id
    assert not worker.is_rung(bell_id, 1)
    wire.cancel("job")
    assert worker.is_rung(bell_id, 60_000)
    worker.step()
    assert not worker.is_rung(bell_id, 1)


def test_wait_wakes_for_a_submit_in_the_meantime(wire, redis_url):
    worker = Worker(wire)
    bell_id = worker.step().bell_id
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(worker.is_rung(bell_id, 5_000)))
    thread.start()
    with connect(redis_url, client_name="producer") as client:
        while not client.info("clients")["blocked_clients"]:
            pass
        Wire(client, wire.keys).submit("job")
    thread.join()
    assert woken == [True]


def test_replay_reads_long_replies_whole(wire, monkeypatch):
    monkeypatch.setattr(lease_module, "REPLAY_PAGE_ENTRIES", 7)
    wire.submit("job")
    worker = Worker(wire)
    claim = worker.claim_one()
    worker.step(rows=[row(claim, number, number) for number in range(40)])
    entries = worker.lease.replay("job")
    assert [entry.ids[0] for entry in entries if entry.event == "tokens"] == list(range(40))
    assert entries == wire.reply("job")
    assert worker.lease.replay("unknown") == []


def test_controls_are_read_in_order_and_once(wire, keys, redis_client):
    worker = Worker(wire)
    control = keys.control(worker.name)
    for number in range(300):
        redis_client.xadd(control, {"kind": "cancel", "id": f"job-{number}"})
    redis_client.xadd(control, {"kind": "drain"})
    redis_client.xadd(control, {"odd": b"\xff"})
    seen = [control.job_id for _ in range(3) for control in worker.step().controls]
    assert seen == [*(f"job-{number}" for number in range(300)), "", ""]
    assert redis_client.xlen(control) <= 1, "what was read is trimmed"


# ---- lost answers


def test_a_lost_answer_of_every_call(wire, redis_server, redis_url, keys):
    """The connection is cut after the server has run the script; the call is made again."""
    proxy = FlakyProxy(redis_server.socket)
    try:
        with connect(proxy.url, client_name="worker") as client:
            client.ping()
            worker = Worker(Wire(client, keys), "w-1")
            wire.submit("a")
            wire.submit("b")

            def lossy(function, *args):
                client.ping()
                proxy.lose_answers = 1
                with pytest.raises(RedisConnectionError):
                    function(*args)
                return function(*args)

            claims = lossy(worker.lease.step, StepCall(slots=2, tokens=ALL_TOKENS)).claims
            assert [claim.epoch for claim in claims] == [1, 1]
            first, second = claims
            reply = lossy(worker.lease.step, StepCall(rows=[row(first, 0, 5), row(second, 0, 6)]))
            assert (reply.status, reply.row_codes) == ("already", "kk")
            reply = lossy(worker.lease.step, StepCall(ends=[end(first, 1)], returns=[("b", 1)]))
            assert (reply.status, reply.end_codes) == ("already", "k")
            assert wire.ids("a") == ["0-1", "1-0", "1-1", "1-2"]
            assert wire.state("b") == "queued"
            lossy(worker.lease.register, MODEL)
            lossy(worker.lease.reap, ())
            lossy(worker.lease.leave)
            assert proxy.lost == 6
    finally:
        proxy.close()
    assert wire.lane_entries() == 1


def test_a_worker_goes_on_after_the_server_was_killed(own_server, keys):
    server = own_server("--appendfsync", "always")
    with connect(server.url, client_name="worker") as client:
        wire = Wire(client, keys)
        wire.submit("job")
        worker = Worker(wire)
        claim = worker.claim_one()
        call = StepCall(rows=[row(claim, 0, 5)])
        server.kill()
        with pytest.raises(RedisConnectionError):
            worker.lease.step(call)
        server.start()
        assert worker.lease.step(call).row_codes == "k", "scripts are loaded again"
        assert wire.ids("job") == ["0-1", "1-0", "1-1"]

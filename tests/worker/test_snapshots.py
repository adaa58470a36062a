"""What a worker says of itself: the engine's view, the counts, the snapshot beside a heartbeat."""

import time
from collections.abc import Callable

from stub_engine import StubOptions
from worker_harness import Client, Worker

from pagestream.producer.live import Live, QueueLive
from pagestream.producer.snapshot import WorkerSnapshot
from pagestream.worker.engine.blocks import BlockPool
from pagestream.worker.engine.request import Request
from pagestream.worker.engine.scheduler import Scheduler
from pagestream.worker.engine.view import MOST_CELLS
from pagestream.worker.messages import Load, Sampling, Step
from pagestream.worker.queue.meter import Histogram, Meter

SLOW = StubOptions(step_s=0.004, num_blocks=65, max_running=2)
FAST_BEAT = {"heartbeat_ttl": 0.6}


def scheduler(num_blocks: int = 9, **options) -> Scheduler:
    return Scheduler(
        BlockPool(num_blocks, 4), **{"max_running": 4, "max_step_tokens": 8, **options}
    )


def add(queue: Scheduler, name: str, ids: list[int], tokens: int = 4) -> None:
    queue.add(Request(name, ids, Sampling(max_tokens=tokens)))


def step(queue: Scheduler) -> None:
    plan = queue.schedule()
    queue.commit(plan, [1] * len(plan))


def test_a_view_shows_requests_and_blocks() -> None:
    queue = scheduler()
    add(queue, "a", [1] * 10)
    add(queue, "b", [1] * 9)
    step(queue)
    view = queue.view(step=1)
    assert view.step == 1
    assert [(one.request_id, one.state, one.computed_tokens) for one in view.requests] == [
        ("a", "prefill", 8),
        ("b", "waiting", 0),
    ]
    assert (view.block_map, view.blocks_per_cell, view.idle_blocks) == ("uuu.....", 1, 0)
    step(queue)
    view = queue.view(step=2)
    # `b` shares two full blocks with `a`, which has its first output token.
    assert view.block_map == "ssuu...."
    assert [(one.state, one.blocks, one.cached_tokens) for one in view.requests] == [
        ("decode", 3, 0),
        ("decode", 3, 8),
    ]
    assert queue.abort("a")
    assert queue.abort("b")
    view = queue.view(step=2)
    assert (view.block_map.count("c"), view.block_map.count(".")) == (view.idle_blocks, 6)
    assert view.idle_blocks == 2
    load = queue.load(2)
    assert (load.prefix_query_tokens, load.prefix_hit_tokens, load.prefill_tokens) == (19, 8, 11)


def test_a_large_pool_is_shown_by_every_nth_block() -> None:
    pool = BlockPool(10 * MOST_CELLS + 1, 16)
    pool.allocate(15)
    cells, span = pool.picture(MOST_CELLS)
    assert (len(cells), span) == (MOST_CELLS, 10)
    assert cells == "uu" + "." * (MOST_CELLS - 2)


def test_a_histogram_counts_by_upper_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.0)
    histogram.observe(1.5, times=3)
    histogram.observe(9.0)
    assert (histogram.counts, histogram.sum) == ([1, 3, 1], 14.5)


def test_counters_go_on_over_an_engine_that_begins_again() -> None:
    meter = Meter()
    meter.heard(Step([], Load(step=5, preemptions=2, prefill_tokens=50, out_of_memory=3)))
    meter.heard(Step([], Load(step=7, preemptions=3, prefill_tokens=70, out_of_memory=4)))
    meter.heard(Step([], Load(step=2, preemptions=1, prefill_tokens=10, out_of_memory=1)))
    assert (meter.steps, meter.preemptions, meter.prefill_tokens) == (9, 4, 80)
    assert meter.out_of_memory == 5


def wait_for(
    url: str, queue: str, found: Callable[[WorkerSnapshot], bool], timeout_s: float = 20.0
) -> QueueLive:
    """Read until a worker's snapshot is as wanted: one comes every 0.2 s."""
    deadline_s = time.monotonic() + timeout_s
    with Live(url) as live:
        while True:
            now = live.queue(queue)
            snapshots = [worker.snapshot for worker in now.workers if worker.snapshot]
            if any(map(found, snapshots)):
                return now
            assert time.monotonic() < deadline_s, snapshots
            time.sleep(0.02)


def test_a_worker_shows_its_batch_its_blocks_and_its_slowest_jobs(
    start: Callable[..., Worker], client: Client, redis_url: str
) -> None:
    start(SLOW, flags=FAST_BEAT)
    for number in range(3):
        client.submit(
            f"j{number}", prompt_ids=[1] * 20, sampling={"max_tokens": 400, "ignore_eos": True}
        )
    client.wait_tokens("j1", 10)
    queue = wait_for(
        redis_url,
        client.keys.queue,
        lambda one: "u" in one.kv.block_map and one.decode_tokens_per_s > 0,
    )
    (worker,) = queue.workers
    snapshot = worker.snapshot
    assert (worker.is_alive, snapshot.running, snapshot.slots) == (True, 2, 2)
    assert snapshot.occupancy == 1.0
    assert len(snapshot.kv.block_map) == snapshot.kv.total_blocks == 64
    assert 0 < snapshot.kv.used_blocks < 64
    assert [job.id for job in snapshot.slowest] == ["j0", "j1"]
    assert {job.state for job in snapshot.slowest} <= {"decode", "waiting"}
    assert all(job.age_ms > 0 and job.prompt_tokens == 20 for job in snapshot.slowest)
    assert snapshot.device == "cpu"
    assert snapshot.refuses == ""
    for number in range(3):
        client.result(f"j{number}")
    queue = wait_for(
        redis_url,
        client.keys.queue,
        lambda one: one.finished == {"length": 3} and "u" not in one.kv.block_map,
    )
    (idle,) = [worker.snapshot for worker in queue.workers]
    assert (idle.running, idle.waiting, idle.kv.used_blocks, idle.slowest) == (0, 0, 0, [])
    assert idle.output_tokens == 1200
    assert idle.prompt_tokens == 60


def test_a_snapshot_says_that_the_engine_is_gone_or_that_it_drains(
    start: Callable[..., Worker], client: Client, redis_url: str, tmp_path
) -> None:
    crashes = tmp_path / "crashes"
    crashes.write_text("1")
    worker = start(StubOptions(step_s=0.004, crash_file=crashes, crash_at_step=10), flags=FAST_BEAT)
    client.submit("j", prompt_ids=[1], sampling={"max_tokens": 400, "ignore_eos": True})
    client.wait_tokens("j", 30)
    worker.ask_to_stop()
    queue = wait_for(redis_url, client.keys.queue, lambda one: one.refuses == "it is draining")
    assert queue.workers[0].snapshot.running == 1
    assert worker.wait() == 0
    with Live(redis_url) as live:
        assert live.queue(client.keys.queue).workers == []


def test_no_text_of_a_prompt_is_in_a_snapshot(
    start: Callable[..., Worker], client: Client, redis_url: str
) -> None:
    start(SLOW, flags=FAST_BEAT)
    client.submit("j", prompt="a secret prompt", sampling={"max_tokens": 300, "ignore_eos": True})
    queue = wait_for(redis_url, client.keys.queue, lambda one: bool(one.slowest))
    raw = client.redis.get(client.keys.live(queue.workers[0].name))
    assert raw
    assert b"secret" not in raw
    client.cancel("j")

"""The three policies, as rules and as runs on an engine without a model."""

import pytest
from bench_engine import FakeClock, FakeEngine

from pagestream.worker.bench.batching import RULES, Moment, continuous, dynamic, static
from pagestream.worker.bench.datasets import Sample
from pagestream.worker.bench.offline import Player


def test_static_waits_for_a_full_batch_and_for_its_end():
    assert static(Moment(waiting=3, running=0, more_to_come=True, batch_size=4)) == 0
    assert static(Moment(waiting=5, running=0, more_to_come=True, batch_size=4)) == 4
    assert static(Moment(waiting=3, running=0, more_to_come=False, batch_size=4)) == 3
    assert static(Moment(waiting=9, running=1, more_to_come=True, batch_size=4)) == 0


def test_dynamic_takes_who_is_there_when_nobody_runs():
    assert dynamic(Moment(waiting=3, running=0, more_to_come=True, batch_size=4)) == 3
    assert dynamic(Moment(waiting=9, running=0, more_to_come=True, batch_size=4)) == 4
    assert dynamic(Moment(waiting=9, running=1, more_to_come=False, batch_size=4)) == 0


def test_continuous_takes_everybody_at_once():
    assert continuous(Moment(waiting=9, running=7, more_to_come=True, batch_size=4)) == 9


def play(rule, workload, arrivals=None, **engine):
    clock = FakeClock()
    fake = FakeEngine(clock, **engine)
    played, lines = Player(fake, clock).play(workload, arrivals, rule=RULES[rule], batch_size=2)
    return played, lines, fake


WORKLOAD = [Sample([1] * 4, tokens) for tokens in (1, 4, 2, 2)]


def test_a_static_batch_idles_until_its_longest_ends():
    played, lines, fake = play("static", WORKLOAD, max_running=2)
    assert fake.handed_over == [(0.0, 0), (0.0, 1), (4.0, 2), (4.0, 3)]
    assert fake.running_a_step == [2, 1, 1, 1, 2, 2]
    assert played.steps == 6
    assert played.idle_seats == pytest.approx(3 / 12)
    assert played.running_mean == pytest.approx(9 / 6)
    assert lines[2].queue_ms == pytest.approx(4000)
    assert [line.ended_s for line in lines] == [1, 4, 6, 6]


def test_continuous_batching_fills_the_seats():
    played, _, fake = play("continuous", WORKLOAD, max_running=2)
    assert fake.running_a_step == [2, 2, 2, 2, 1]
    assert played.steps == 5
    assert played.idle_seats is None


def test_when_all_have_arrived_dynamic_is_static():
    assert play("dynamic", WORKLOAD, max_running=2)[0] == play("static", WORKLOAD, max_running=2)[0]


def test_arrivals_tell_static_from_dynamic_and_from_continuous():
    arrivals = [0.0, 0.5, 1.5, 7.0]
    starts = {
        rule: [at for at, _ in play(rule, WORKLOAD, arrivals, max_running=2)[2].handed_over]
        for rule in RULES
    }
    # Requests 0 and 1 make the first batch at 0.5, which ends at 4.5; the next waits for 3.
    assert starts["static"] == [0.5, 0.5, 7.0, 7.0]
    # 0 starts alone and ends at 1.0; then 1 has come, alone again; 2 and 3 likewise.
    assert starts["dynamic"] == [0.0, 1.0, 5.0, 7.0]
    assert starts["continuous"] == [0.0, 1.0, 2.0, 7.0]


def test_a_batch_is_no_larger_than_what_the_cache_holds_to_its_end():
    # 9 blocks of 16 tokens beside the padding block; each request may reach 5 blocks.
    workload = [Sample([1] * 70, 10)] * 3
    _, _, fake = play("static", workload, num_blocks=10)
    assert [at for at, _ in fake.handed_over] == [0.0, 10.0, 20.0]


def test_latencies_are_counted_from_the_arrival():
    _, lines, _ = play("continuous", WORKLOAD, [0.0, 0.5, 1.5, 7.0], max_running=2)
    assert lines[1].sent_s == 0.5
    assert lines[1].queue_ms == pytest.approx(500)
    assert lines[1].ttft_ms == pytest.approx(1500)


def test_every_run_reports_its_own_share_of_the_engines_counters():
    clock = FakeClock()
    player = Player(FakeEngine(clock, max_running=2), clock)
    first, _ = player.play(WORKLOAD)
    second, _ = player.play(WORKLOAD)
    assert (first.steps, first.kv_waste) == (second.steps, second.kv_waste)
    # Tokens held in 16-token blocks, a step: 4, 4 / 5, 4 / 6, 5 / 7, 4 / 5 of so many blocks.
    assert first.kv_waste == pytest.approx(1 - 44 / (9 * 16), abs=1e-5)

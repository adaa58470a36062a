from bench_engine import FakeClock, FakeEngine

from pagestream.worker.bench.datasets import Sample
from pagestream.worker.bench.offline import Player


def test_contiguous_reservation_by_hand():
    clock = FakeClock()
    player = Player(FakeEngine(clock, max_running=2, num_blocks=129), clock)
    # One step with both, two with the second alone, who holds 20, 21, 22 tokens: 2 blocks.
    played, _ = player.play([Sample([1] * 10, 1), Sample([1] * 20, 3)], reservations=True)
    assert played.kv is not None
    used = 10 + 20 + 21 + 22
    slots = {"paged": 16 + 3 * 32, "own": 11 + 3 * 23, "context": 4 * 2048}
    request_steps, capacity = 4, 128 * 16
    for name, held in played.kv.items():
        assert held.waste == round(1 - used / slots[name], 4), name
        assert held.tokens_a_request == slots[name] / request_steps, name
        assert held.fit_at_once == int(capacity / (slots[name] / request_steps)), name
    assert played.kv["context"].fit_at_once == 1


def test_waiting_requests_reserve_nothing():
    clock = FakeClock()
    player = Player(FakeEngine(clock, max_running=1), clock)
    played, _ = player.play([Sample([1] * 10, 2), Sample([1] * 30, 2)], reservations=True)
    assert played.kv is not None
    assert played.kv["own"].tokens_a_request == (12 * 2 + 32 * 2) / 4
    assert played.kv["context"].tokens_a_request == 2048


def test_a_second_run_is_accounted_alone():
    clock = FakeClock()
    player = Player(FakeEngine(clock, max_running=2), clock)
    workload = [Sample([1] * 10, 1), Sample([1] * 20, 3)]
    assert player.play(workload, reservations=True)[0].kv == (
        player.play(workload, reservations=True)[0].kv
    )

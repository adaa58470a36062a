import pytest
from bench_engine import FakeClock, FakeEngine

from pagestream.worker.bench.latency import measure_batches
from pagestream.worker.bench.offline import Player
from pagestream.worker.errors import ConfigError


def measure(sizes=(3,), lens=(4, 12), context=8, told=lambda size: None, **engine):
    clock = FakeClock()
    # A step takes 5 ms for each new prompt, and 1 ms and another for each running request.
    fake = FakeEngine(clock, cost=lambda new, running: (5 * new + 1 + running) / 1000, **engine)
    results = measure_batches(
        Player(fake, clock), list(sizes), context_tokens=context, output_lens=lens, repeats=3,
        warmups=1, told=told,
    )  # fmt: skip
    return results, fake


def test_a_decode_step_is_the_difference_of_two_lengths():
    told = []
    (one, other), fake = measure(sizes=(3, 2), told=told.append)
    assert one.decode_step_ms == pytest.approx(4.0)  # 1 + 3: nothing of the prefill is in it
    assert one.first_tokens_ms.p50 == pytest.approx(19.0)
    assert one.short_ms.p50 == pytest.approx(15 + 4 * 4)
    assert one.long_ms.p50 == pytest.approx(15 + 12 * 4)
    assert one.decode_tokens_per_s == pytest.approx(750)
    assert len(one.decode_steps_ms) == 3
    assert other.decode_step_ms == pytest.approx(3.0)
    assert told == [3] * 4 + [2] * 4
    assert len(fake.handed_over) == 4 * 2 * (3 + 2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sizes": (5,)}, "--max-num-seqs is 4"),
        ({"sizes": (0,)}, "--batch-sizes 0: a batch has at least 1"),
        ({"lens": (12, 12)}, "--output-lens"),
        ({"num_blocks": 6}, "needs 6 KV blocks, and there are 5"),
    ],
)
def test_what_cannot_be_measured_is_said(options, reason):
    with pytest.raises(ConfigError, match=reason):
        measure(**({"context": 20} | options))


def test_a_batch_that_never_runs_as_one_is_refused():
    clock = FakeClock()
    fake = FakeEngine(clock, max_running=4, admitted_a_step=1)
    with pytest.raises(ConfigError, match="--output-lens longer than 2"):
        measure_batches(
            Player(fake, clock), [4], context_tokens=8, output_lens=(2, 9), repeats=1, warmups=0
        )

import pytest

from pagestream.worker.bench.datasets import Sample
from pagestream.worker.bench.metrics import Spread, Timeline, meets, read_objectives, summarize
from pagestream.worker.errors import ConfigError

# Sent at 10 s; tokens at 10.2, 10.3 and, two together, at 10.6: five in all with the first two.
LINE = Timeline(10.0, [10.2, 10.3, 10.6], [2, 1, 2], queue_ms=40.0, ended_s=10.7)
ONE_TOKEN = Timeline(10.5, [11.0], [1], queue_ms=60.0, ended_s=11.0)
FAILED = Timeline(10.1, [10.4], [1], error="lost: gone")


def test_a_requests_times_by_their_definitions():
    assert LINE.ttft_ms == pytest.approx(200)
    assert LINE.e2el_ms == pytest.approx(600)
    assert LINE.tpot_ms == pytest.approx((600 - 200) / (5 - 1))
    assert LINE.gaps_ms == pytest.approx([100, 300])
    assert ONE_TOKEN.tpot_ms is None
    assert ONE_TOKEN.gaps_ms == []


def test_a_run_counts_what_completed():
    samples = [Sample([1] * 6, 5), Sample([1] * 4, 1), Sample([1] * 9, 3)]
    run = summarize(samples, [LINE, ONE_TOKEN, FAILED], {"ttft": 300.0, "tpot": 101.0})
    assert (run.requests, run.completed, run.failed) == (3, 2, 1)
    assert run.duration_s == pytest.approx(1.0)  # first sent 10.0, last end 11.0
    assert (run.input_tokens, run.output_tokens) == (10, 6)
    assert run.requests_per_s == pytest.approx(2)
    assert run.output_tokens_per_s == pytest.approx(6)
    assert run.total_tokens_per_s == pytest.approx(16)
    assert run.goodput_requests_per_s == pytest.approx(1)  # the other one's TTFT is 500 ms
    assert run.ttft_ms == Spread(mean=350, std=150, p50=350, p90=470, p99=497)
    assert run.tpot_ms == Spread(mean=100, std=0, p50=100, p90=100, p99=100)
    assert run.itl_ms == Spread(mean=200, std=100, p50=200, p90=280, p99=298)
    assert run.queue_ms == Spread(mean=50, std=10, p50=50, p90=58, p99=59.8)
    assert run.tokens_an_arrival_mean == pytest.approx(1.5)
    assert run.errors == ["lost: gone"]


def test_without_a_stream_only_the_end_is_known():
    run = summarize([Sample([1], 5)], [LINE], streamed=False)
    assert (run.ttft_ms, run.tpot_ms, run.itl_ms, run.tokens_an_arrival_mean) == (None,) * 4
    assert run.e2el_ms is not None
    assert run.goodput_requests_per_s is None


def test_nothing_completed_is_no_division_by_zero():
    run = summarize([Sample([1], 5)], [FAILED])
    assert (run.completed, run.output_tokens_per_s, run.e2el_ms) == (0, 0.0, None)


def test_goodput_asks_for_every_objective():
    assert meets(LINE, {"ttft": 201, "tpot": 101, "e2el": 601})
    for name, bound in {"ttft": 199, "tpot": 99, "e2el": 599}.items():
        assert not meets(LINE, {"ttft": 201, "tpot": 101, "e2el": 601} | {name: bound})
    assert meets(ONE_TOKEN, {"tpot": 0.001})


def test_objectives_are_read_or_refused():
    assert read_objectives(["ttft:200", "tpot:50.5"]) == {"ttft": 200.0, "tpot": 50.5}
    for word in ("ttft", "itl:3", "ttft:-1", "ttft:x", "e2el:nan"):
        with pytest.raises(ConfigError, match="--goodput"):
            read_objectives([word])

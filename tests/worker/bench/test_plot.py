import pytest

from pagestream.worker.bench import plot
from pagestream.worker.bench.metrics import Spread, Summary
from pagestream.worker.bench.serve import Served
from pagestream.worker.errors import ConfigError


def served(rate, scale, *, repeat=0, goodput=None, tpot=True):
    spread = Spread(mean=scale, std=0, p50=scale, p90=2 * scale, p99=3 * scale)
    summary = Summary(
        requests=1, completed=1, failed=0, duration_s=1, input_tokens=1, output_tokens=1,
        requests_per_s=scale, output_tokens_per_s=scale, total_tokens_per_s=scale,
        goodput_requests_per_s=goodput, ttft_ms=spread, tpot_ms=spread if tpot else None,
        itl_ms=spread if tpot else None, e2el_ms=spread,
    )  # fmt: skip
    return Served(
        rate=rate, repeat=repeat, summary=summary, client_cpu=0, steps=1, kv_waste=None,
        preemptions=0, prefix_hit_tokens=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "results",
    [
        [
            served(1.0, 10, goodput=1.0),
            served(40.0, 900, goodput=2.0),
            served(None, 5e4, goodput=0),
        ],
        [served(None, 10)],
        [served(4.0, 10, tpot=False)],
        [served(4.0, 0.0)],
    ],
)
def test_a_picture_is_drawn_of_whatever_there_is(tmp_path, results):
    path = tmp_path / "load.png"
    plot.plot_latencies(results, "a title", path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) > 20_000


def test_repeats_of_a_rate_are_their_median():
    results = [served(2.0, 10), served(2.0, 50, repeat=1), served(2.0, 20, repeat=2)]
    assert plot._percentile(results, "ttft_ms", "p90") == 40
    assert list(plot._places([*results, served(None, 1), served(10.0, 1)])) == [2.0, 10.0, 16.0]


def test_without_matplotlib_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pagestream\[bench\]"):
        plot.require_matplotlib()

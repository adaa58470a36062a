import statistics
from itertools import pairwise

import pytest

from pagestream.worker.bench.arrivals import arrival_times


def gaps(*arguments, **options):
    return [after - before for before, after in pairwise(arrival_times(*arguments, **options))]


def test_an_infinite_rate_is_all_at_once():
    assert arrival_times(3, float("inf")) == [0.0, 0.0, 0.0]
    assert arrival_times(0, 5.0) == []


# A gamma distribution's standard deviation is mean / sqrt(shape); shape 1 is the exponential one.
@pytest.mark.parametrize(("burstiness", "spread"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)])
def test_gaps_have_the_mean_and_the_spread_that_were_asked_for(burstiness, spread):
    drawn = gaps(20_000, 8.0, burstiness, seed=1)
    assert statistics.mean(drawn) == pytest.approx(1 / 8, rel=0.05)
    assert statistics.stdev(drawn) / statistics.mean(drawn) == pytest.approx(spread, rel=0.05)
    assert min(drawn) >= 0


def test_the_seed_decides():
    assert arrival_times(50, 3.0, 0.7, seed=4) == arrival_times(50, 3.0, 0.7, seed=4)
    assert arrival_times(50, 3.0, 0.7, seed=4) != arrival_times(50, 3.0, 0.7, seed=5)
    assert arrival_times(50, 3.0, 0.7, seed=4)[0] == 0.0

"""When requests arrive: all at once, or at random with a given rate and burstiness.

Knows no requests and no clock: a list of seconds since the first arrival.
"""

import math

import numpy as np


def arrival_times(count: int, rate: float, burstiness: float = 1.0, seed: int = 0) -> list[float]:
    """Seconds at which `count` requests arrive, ascending; the first at 0.

    Gaps are drawn from a gamma distribution of mean 1/`rate`.

    Args:
        count: requests.
        rate: requests a second on average; `inf` is all at once.
        burstiness: the distribution's shape. 1 is a Poisson process; less comes in bursts, more
            more evenly.
        seed: the same seed, the same arrivals.
    """
    assert rate > 0, f"a rate of {rate} requests a second"
    assert burstiness > 0, f"a burstiness of {burstiness}"
    if math.isinf(rate) or count == 0:
        return [0.0] * count
    gaps = np.random.default_rng(seed).gamma(burstiness, 1 / (rate * burstiness), count - 1)
    return [0.0, *np.cumsum(gaps).tolist()]

"""From the times at which tokens arrived to the figures that are reported.

The definitions are those of vLLM's serving benchmark, so that figures compare:

    TTFT   first token - request sent
    E2EL   last token - request sent
    TPOT   (E2EL - TTFT) / (output tokens - 1), of requests with two tokens and more
    ITL    each gap between consecutive arrivals of a request's tokens; tokens that arrive together
           are one arrival
    goodput   requests a second that meet every stated objective

Knows no engine and no queue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
import numpy as np

from ..errors import ConfigError
from .datasets import Sample

OBJECTIVES = ("ttft", "tpot", "e2el")
"""What `--goodput` can bound, in milliseconds, for each request."""


@dataclass(slots=True)
class Timeline:
    """What became of one request; seconds on one clock."""

    sent_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list[float])
    """When tokens arrived."""
    tokens: list[int] = field(default_factory=list[int])
    """How many in each arrival."""
    queue_ms: float | None = None
    ended_s: float | None = None
    """When its end was known; None if it did not end well."""
    error: str = ""

    @property
    def output_tokens(self) -> int:
        """Tokens that arrived."""
        return sum(self.tokens)

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return (self.arrivals_s[0] - self.sent_s) * 1000

    @property
    def e2el_ms(self) -> float:
        """Time to the last token."""
        return (self.arrivals_s[-1] - self.sent_s) * 1000

    @property
    def tpot_ms(self) -> float | None:
        """Time a token after the first; None for a single one."""
        if self.output_tokens < 2:
            return None
        return (self.e2el_ms - self.ttft_ms) / (self.output_tokens - 1)

    @property
    def gaps_ms(self) -> list[float]:
        """Time from each arrival to the next."""
        return [(after - before) * 1000 for before, after in pairwise(self.arrivals_s)]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How values are spread; `p50` is the median."""

    mean: float
    std: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def over(cls, values: Sequence[float]) -> "Spread":
        """Summarize at least one value."""
        p50, p90, p99 = (round(float(one), 3) for one in np.percentile(values, (50, 90, 99)))
        mean, std = round(float(np.mean(values)), 3), round(float(np.std(values)), 3)
        return cls(mean=mean, std=std, p50=p50, p90=p90, p99=p99)

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Summarize; None where there is nothing to summarize."""
        return cls.over(values) if values else None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A run's figures. Latencies are None where tokens were not watched as they came."""

    requests: int
    completed: int
    failed: int
    duration_s: float
    """From the first request sent to the last end."""
    input_tokens: int
    """Of completed requests, as `output_tokens`."""
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    """Input and output."""
    goodput_requests_per_s: float | None = None
    ttft_ms: Spread | None = None
    tpot_ms: Spread | None = None
    itl_ms: Spread | None = None
    e2el_ms: Spread | None = None
    queue_ms: Spread | None = None
    tokens_an_arrival_mean: float | None = None
    errors: list[str] = []
    """What failed requests said, each sentence once."""


def summarize(
    samples: Sequence[Sample],
    timelines: Sequence[Timeline],
    objectives_ms: Mapping[str, float] | None = None,
    *,
    streamed: bool = True,
) -> Summary:
    """Summarize a run; `streamed` False leaves out what only a token stream shows."""
    done = [
        (sample, line)
        for sample, line in zip(samples, timelines, strict=True)
        if line.ended_s is not None
    ]
    lines = [line for _, line in done]
    began_s = min((line.sent_s for line in timelines), default=0.0)
    duration_s = max((line.ended_s or began_s for line in lines), default=began_s) - began_s
    a_second = 1 / duration_s if duration_s > 0 else 0.0
    inputs = sum(len(sample.prompt_ids) for sample, _ in done)
    outputs = sum(line.output_tokens for line in lines)
    arrivals = sum(len(line.arrivals_s) for line in lines)
    return Summary(
        requests=len(samples),
        completed=len(done),
        failed=len(samples) - len(done),
        duration_s=round(duration_s, 4),
        input_tokens=inputs,
        output_tokens=outputs,
        requests_per_s=round(len(done) * a_second, 3),
        output_tokens_per_s=round(outputs * a_second, 1),
        total_tokens_per_s=round((inputs + outputs) * a_second, 1),
        goodput_requests_per_s=(
            round(sum(meets(line, objectives_ms) for line in lines) * a_second, 3)
            if objectives_ms
            else None
        ),
        ttft_ms=Spread.of([line.ttft_ms for line in lines]) if streamed else None,
        tpot_ms=(
            Spread.of([line.tpot_ms for line in lines if line.tpot_ms is not None])
            if streamed
            else None
        ),
        itl_ms=Spread.of([gap for line in lines for gap in line.gaps_ms]) if streamed else None,
        e2el_ms=Spread.of([line.e2el_ms for line in lines]),
        queue_ms=Spread.of([line.queue_ms for line in lines if line.queue_ms is not None]),
        tokens_an_arrival_mean=round(outputs / arrivals, 3) if streamed and arrivals else None,
        errors=sorted({line.error for line in timelines if line.error}),
    )


def meets(line: Timeline, objectives_ms: Mapping[str, float]) -> bool:
    """Whether a request met every objective; a single token has no TPOT to miss."""
    actual = {"ttft": line.ttft_ms, "tpot": line.tpot_ms or 0.0, "e2el": line.e2el_ms}
    return all(actual[name] <= bound for name, bound in objectives_ms.items())


def read_objectives(words: Sequence[str]) -> dict[str, float]:
    """Read `ttft:200 tpot:50`, milliseconds.

    Raises:
        ConfigError: a word is not one of the objectives with a positive number.
    """
    objectives: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition(":")
        try:
            objectives[name] = float(value)
        except ValueError:
            objectives[name] = 0.0
        if name not in OBJECTIVES or not objectives[name] > 0:
            raise ConfigError(
                f"--goodput {word!r} is not one of {', '.join(OBJECTIVES)} with milliseconds, "
                "such as ttft:200"
            )
    return objectives

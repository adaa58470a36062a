"""Counts what a worker does, as plain numbers that are cheap to keep and may be read at any time.

The loop tells it what happens, on its own thread; whoever exports the numbers (`worker.metrics`,
the snapshot) reads them, from any.  Names and meanings are vLLM's where it has the same.
This module knows no Prometheus, no Redis and no text.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from ..messages import Load, Step
from .calls import Reaped, StepCall, StepReply
from .reply import Job

LATENCY_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
"""Bounds for the time to the first token."""
TOKEN_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15),
    *(0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)
"""Bounds for the time between tokens."""
REQUEST_S = (
    *(0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0),
    *(60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
"""Bounds for what takes as long as a request or its wait."""
PUBLISH_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


class Histogram:
    """Counts of observations by upper bound. One thread writes; reading at any time is safe."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        """Observations by bucket, not cumulated; the last is above every bound."""
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, `times` over."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class JobObserver(Protocol):
    """Is told of each job that comes and goes."""

    def claimed(self, job: Job) -> None:
        """It was claimed."""
        ...

    def ended(self, job: Job) -> None:
        """Its end was written, so nobody else will write another."""
        ...


class Meter:
    """What one worker has done since its start."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.load = Load()
        """The engine's last report."""
        self.held = 0
        """Jobs the worker holds."""
        self.steps = self.preemptions = self.out_of_memory = 0
        self.prefix_query_tokens = self.prefix_hit_tokens = 0
        self.prefill_tokens = 0
        """Prompt tokens computed; those of preempted and resumed requests again."""
        self.prompt_tokens = self.generation_tokens = 0
        self.finished: Counter[str] = Counter()
        self.claims = self.returns = self.evictions = 0
        self.reclaimed_jobs = self.reclaimed_dead = 0
        """Jobs taken back from dead workers: put back, and given up."""
        self.fenced_writes = self.rollbacks = self.engine_deaths = 0
        self.time_to_first_token = Histogram(LATENCY_S)
        self.inter_token_latency = Histogram(TOKEN_S)
        self.e2e_latency = Histogram(REQUEST_S)
        self.queue_time = Histogram(REQUEST_S)
        self.prefill_time = Histogram(REQUEST_S)
        self.decode_time = Histogram(REQUEST_S)
        self.publish_lag = Histogram(PUBLISH_S)
        self._unpublished_s: float | None = None
        self._gap_s = 0.0
        self._gaps = 0

    # ---- what the engine says

    def heard(self, step: Step) -> None:
        """The engine ended a step."""
        load = step.load
        last, self.load = self.load, load
        if load.step < last.step:  # a new engine process counts from 0
            last = Load()
        self.steps += load.step - last.step
        self.preemptions += load.preemptions - last.preemptions
        self.out_of_memory += load.out_of_memory - last.out_of_memory
        self.prefix_query_tokens += load.prefix_query_tokens - last.prefix_query_tokens
        self.prefix_hit_tokens += load.prefix_hit_tokens - last.prefix_hit_tokens
        self.prefill_tokens += load.prefill_tokens - last.prefill_tokens
        if self._unpublished_s is None:
            self._unpublished_s = step.made_s

    def takes(self, job: Job, tokens: int, now_s: float) -> None:
        """The job is about to take `tokens` new ones, made at `now_s`."""
        self.generation_tokens += tokens
        last_s = job.last_token_s
        if last_s is not None:
            # Nearly all rows of a batch got their last token together: their gaps are one number.
            gap_s = now_s - last_s
            if gap_s == self._gap_s:
                self._gaps += 1
                return
            self._flush_gaps()
            self._gap_s, self._gaps = gap_s, 1
            return
        self.prompt_tokens += job.prompt_tokens
        self.prefill_time.observe(now_s - job.claimed_s)
        if not job.ids:
            self.time_to_first_token.observe(now_s - job.accepted_s)

    def _flush_gaps(self) -> None:
        if self._gaps:
            self.inter_token_latency.observe(self._gap_s, self._gaps)
            self._gaps = 0

    # ---- what goes to Redis and comes back

    def claimed(self, job: Job) -> None:
        """A job was claimed."""
        self.claims += 1
        if job.epoch == 1:
            self.queue_time.observe(job.claimed_s - job.accepted_s)

    def wrote(self, call: StepCall, reply: StepReply) -> None:
        """A step was written, or was written before."""
        self._flush_gaps()
        if self._unpublished_s is not None:
            self.publish_lag.observe(time.monotonic() - self._unpublished_s)
            self._unpublished_s = None
        self.returns += len(call.returns)
        self.evictions += call.victim is not None and reply.victim_left
        self.fenced_writes += reply.row_codes.count("f") + reply.end_codes.count("f")

    def ended(self, job: Job) -> None:
        """A job's end was written."""
        now_s = time.monotonic()
        assert job.reason is not None, "the job has not ended"
        self.finished[job.reason] += 1
        self.e2e_latency.observe(now_s - job.accepted_s)
        if job.first_token_s is not None:
            self.decode_time.observe((job.last_token_s or now_s) - job.first_token_s)

    def reaped(self, reaped: Reaped) -> None:
        """Dead workers' jobs were taken back."""
        self.reclaimed_jobs += reaped.put_back
        self.reclaimed_dead += reaped.dead

"""A worker's numbers as Prometheus metrics, made when somebody scrapes.

Names and meanings are vLLM's where it has the same (`vllm:num_requests_running` is
`pagestream_num_requests_running`), with its label `model_name`. `docs/metrics.md` lists them all.
This module reads a `Meter`: it knows no loop, no jobs and no HTTP.
"""

from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pagestream.producer.protocol import FinishReason

from .messages import Ready
from .queue.meter import Histogram, Meter

HISTOGRAMS = {
    "time_to_first_token": "From a job's acceptance by the queue to its first token, seconds.",
    "inter_token_latency": "Between two publications of a request's tokens, seconds.",
    "e2e_request_latency": "From a job's acceptance by the queue to its end, seconds.",
    "request_queue_time": "From a job's acceptance to its first claim by a worker, seconds.",
    "request_prefill_time": "From a claim to its first token, seconds.",
    "request_decode_time": "From a claim's first token to its last, seconds.",
    "publish_lag": "From a step's tokens to Redis's acknowledgement of them, seconds.",
}

COUNTERS = {
    "prompt_tokens": "Prompt tokens of requests that gave a token.",
    "generation_tokens": "Output tokens.",
    "prefill_computed_tokens": "Prompt tokens computed; those of preempted requests again.",
    "prefix_cache_queries": "Tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Tokens found there.",
    "num_preemptions": "Requests that lost their KV blocks to another.",
    "out_of_memory": "Times that the GPU's memory was too little for a step, or a part of one.",
    "engine_steps": "Steps of the engine.",
    "engine_deaths": "Engine processes that ended without being asked to.",
    "claims": "Jobs taken from the queue.",
    "handed_back": "Jobs returned to the queue with their progress.",
    "evictions": "Jobs returned to make room for a better lane or a poorer tenant.",
    "fenced_writes": "Writes that Redis refused: the job has another owner now.",
    "redis_rollbacks": "Times that Redis forgot acknowledged writes.",
}


class WorkerCollector(Collector):
    """Exports one worker's meter."""

    def __init__(
        self,
        meter: Meter,
        ready: Callable[[], Ready],
        model_name: str,
        worker: str,
        refuses: Callable[[], str],
    ) -> None:
        """Prepare.

        Args:
            meter: what is exported.
            ready: returns what the engine can take, which another process may change.
            model_name: the label of every metric.
            worker: the worker's name.
            refuses: says why no job is taken now, or nothing.
        """
        self._meter = meter
        self._ready = ready
        self._labels = {"model_name": model_name}
        self._worker = worker
        self._refuses = refuses

    def collect(self) -> Iterator[Metric]:
        """Read the meter."""
        yield from self._gauges()
        for name, value in self._counts().items():
            yield self._counter(name, COUNTERS[name], {(): value})
        yield self._counter(
            "request_success",
            "Jobs this worker ended, by why.",
            {(reason,): self._meter.finished[reason] for reason in get_args(FinishReason)},
            "finished_reason",
        )
        yield self._counter(
            "lease_reclaims",
            "Jobs taken back from workers that died, by what became of them.",
            {
                ("requeued",): self._meter.reclaimed_jobs,
                ("dead_letter",): self._meter.reclaimed_dead,
            },
            "outcome",
        )
        for name, histogram in self._histograms().items():
            yield self._histogram(name, histogram)

    def _gauges(self) -> Iterator[Metric]:
        meter, ready = self._meter, self._ready()
        load, total = meter.load, ready.num_blocks - 1  # block 0 is nobody's
        running = load.running if meter.held else 0
        used = total - load.free_blocks if meter.held and load.step else 0
        waste = 1 - load.used_slots / load.allocated_slots if used and load.allocated_slots else 0.0
        values = {
            "num_requests_running": ("Requests in the running batch.", running),
            "num_requests_waiting": (
                "Jobs the worker holds that are not in the batch: being tokenized, or without "
                "KV blocks. What no worker holds is pagestream_queue_jobs_waiting.",
                max(0, meter.held - running),
            ),
            "max_requests_running": ("Requests that may run at once.", ready.max_running),
            "kv_cache_usage_perc": ("KV blocks in use, 0 to 1.", used / total),
            "kv_cache_waste_ratio": ("Token slots of those blocks that are empty, 0 to 1.", waste),
            "worker_ready": ("1 while the worker takes jobs.", not self._refuses()),
        }
        for name, (text, value) in values.items():
            family = GaugeMetricFamily(f"pagestream_{name}", text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), float(value))
            yield family
        info = InfoMetricFamily("pagestream_worker", "What this worker is.", labels=[*self._labels])
        facts = {
            "worker": self._worker,
            "device": ready.device,
            "block_size": str(ready.block_tokens),
            "num_blocks": str(total),
        }
        info.add_metric(list(self._labels.values()), facts)
        yield info

    def _counts(self) -> dict[str, int]:
        meter = self._meter
        return {
            "prompt_tokens": meter.prompt_tokens,
            "generation_tokens": meter.generation_tokens,
            "prefill_computed_tokens": meter.prefill_tokens,
            "prefix_cache_queries": meter.prefix_query_tokens,
            "prefix_cache_hits": meter.prefix_hit_tokens,
            "num_preemptions": meter.preemptions,
            "out_of_memory": meter.out_of_memory,
            "engine_steps": meter.steps,
            "engine_deaths": meter.engine_deaths,
            "claims": meter.claims,
            "handed_back": meter.returns,
            "evictions": meter.evictions,
            "fenced_writes": meter.fenced_writes,
            "redis_rollbacks": meter.rollbacks,
        }

    def _histograms(self) -> dict[str, Histogram]:
        meter = self._meter
        return {
            "time_to_first_token": meter.time_to_first_token,
            "inter_token_latency": meter.inter_token_latency,
            "e2e_request_latency": meter.e2e_latency,
            "request_queue_time": meter.queue_time,
            "request_prefill_time": meter.prefill_time,
            "request_decode_time": meter.decode_time,
            "publish_lag": meter.publish_lag,
        }

    def _counter(
        self, name: str, text: str, values: dict[tuple[str, ...], int], *labels: str
    ) -> Metric:
        family = CounterMetricFamily(f"pagestream_{name}", text, labels=[*self._labels, *labels])
        for more, value in values.items():
            family.add_metric([*self._labels.values(), *more], value)
        return family

    def _histogram(self, name: str, histogram: Histogram) -> Metric:
        # One copy, so that what is counted meanwhile cannot make a bucket larger than the next.
        counts, total = list(histogram.counts), 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip([*histogram.bounds, float("inf")], counts, strict=True):
            total += count
            buckets.append((floatToGoString(bound), total))
        family = HistogramMetricFamily(
            f"pagestream_{name}_seconds", HISTOGRAMS[name], labels=list(self._labels)
        )
        family.add_metric(list(self._labels.values()), buckets, histogram.sum)
        return family

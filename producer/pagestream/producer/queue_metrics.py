"""What the queues look like, as Prometheus metrics: lag, age, workers, dead letters.

Read from Redis when somebody scrapes, so that a process that serves no model exports them too and a
queue without a worker is seen. Every process that exports a queue gives the same numbers: take one,
`max by (model_name, lane)`, not a sum. Needs prometheus-client, which the extras `worker`,
`gateway` and `jobs` bring. This module knows no HTTP.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from .errors import QueueUnavailable
from .live import Live, QueueLive

SCRAPE_TIMEOUT_S = 2.0
"""How long a scrape waits for Redis: the other metrics must not wait for it for long."""


class QueueCollector(Collector):
    """Exports the state of queues at each scrape.

    While Redis cannot be reached `pagestream_redis_up` is 0 and the queues' metrics are left out.
    """

    def __init__(self, url: str, queues: Callable[[Live], Iterable[str]] = Live.queues) -> None:
        """Prepare; nothing is read before a scrape.

        Args:
            url: where Redis is.
            queues: which queues to export; every one that the server knows if left out.

        Raises:
            InvalidRequest: the URL is not one that Redis clients take.
        """
        self._live = Live(url, timeout_s=SCRAPE_TIMEOUT_S, retries=0)
        self._queues = queues

    def collect(self) -> Iterator[Metric]:
        """Read the queues."""
        try:
            found = [self._live.queue(name) for name in self._queues(self._live)]
            is_up = True
        except QueueUnavailable:
            found, is_up = [], False
        up = GaugeMetricFamily("pagestream_redis_up", "1 if this process can read Redis.")
        up.add_metric([], is_up)
        yield up
        yield from queue_metrics(found)

    def close(self) -> None:
        """Close the connections."""
        self._live.close()


def queue_metrics(queues: Sequence[QueueLive]) -> Iterator[Metric]:
    """Yield the metrics of these queues."""
    lanes = [((queue.name, lane.lane), lane) for queue in queues for lane in queue.lanes]
    by_lane = ("model_name", "lane")
    yield _gauge(
        "jobs_waiting",
        "Jobs that no worker holds: the lag.",
        by_lane,
        [(labels, lane.waiting) for labels, lane in lanes],
    )
    yield _gauge(
        "jobs_running",
        "Jobs that workers hold.",
        by_lane,
        [(labels, lane.running) for labels, lane in lanes],
    )
    yield _gauge(
        "oldest_age_seconds",
        "How long the job that waits longest has waited; 0 if none does.",
        by_lane,
        [(labels, lane.oldest_ms / 1000) for labels, lane in lanes],
    )
    whole = [((queue.name,), queue) for queue in queues]
    yield _gauge(
        "workers",
        "Workers that are alive.",
        ("model_name",),
        [(labels, sum(one.is_alive for one in queue.workers)) for labels, queue in whole],
    )
    yield _gauge(
        "suspects",
        "Jobs that wait to be run alone.",
        ("model_name",),
        [(labels, queue.suspects) for labels, queue in whole],
    )
    yield _gauge(
        "dead_letters",
        "Jobs that were given up and not dealt with.",
        ("model_name",),
        [(labels, queue.dead_letters) for labels, queue in whole],
    )


def _gauge(
    name: str,
    text: str,
    labels: Sequence[str],
    rows: Iterable[tuple[Sequence[str], float]],
) -> Metric:
    family = GaugeMetricFamily(f"pagestream_queue_{name}", text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family

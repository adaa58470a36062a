"""What a worker shows of itself over HTTP: `/metrics` and `/debug`, beside its probes.

Both are made when somebody asks, on the thread that answers. This module knows how the parts of a
worker are shown: nothing of what they do.
"""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pagestream.producer.queue_metrics import QueueCollector

from .health import Health, Page
from .metrics import WorkerCollector
from .queue.loop import QueueLoop
from .queue.meter import Meter


class Monitor:
    """One worker's meter and health, and the pages that show them."""

    def __init__(self, redis_url: str, answer_s: float) -> None:
        """A worker is ready only if Redis has answered within the last `answer_s`."""
        self.health = Health(answer_s)
        self.meter = Meter()
        self.pages: Mapping[str, Page] = {"/metrics": self._metrics, "/debug": self._debug}
        self._redis_url = redis_url
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._queue: QueueCollector | None = None
        self._snapshot: Callable[[], bytes] | None = None

    def serves(self, loop: QueueLoop, queue: str, worker: str) -> None:
        """The worker is registered, and `loop` begins."""
        self._queue = QueueCollector(self._redis_url, lambda _: [queue])
        self._registry.register(self._queue)
        self._registry.register(
            WorkerCollector(self.meter, lambda: loop.ready, queue, worker, self.health.not_ready)
        )
        self._snapshot = loop.debug
        self.health.serves(loop.refuses)

    def close(self) -> None:
        """Close the connections of scrapes."""
        if self._queue is not None:
            self._queue.close()

    def _metrics(self) -> tuple[str, bytes]:
        return CONTENT_TYPE_LATEST, generate_latest(self._registry)

    def _debug(self) -> tuple[str, bytes]:
        return "application/json", self._snapshot() if self._snapshot else b"{}"

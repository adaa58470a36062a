"""`/metrics`: what the gateway answers and how fast, and the queues as it sees them.

A request is counted once, when it ends: a stream's tokens pay nothing. This module knows requests
by their route and status alone.
"""

import time

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..queue_metrics import QueueCollector
from .waiting import CLIENT_CLOSED_REQUEST

SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0),
    *(320.0, 640.0),
)
METHODS = {"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"}
ELSE = "other"
"""Stands for routes and methods that the gateway does not know: anybody can invent those."""

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Return the metrics; reads Redis, so FastAPI runs it on a thread."""
    registry: CollectorRegistry = request.app.state.metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class GatewayMetrics:
    """One gateway's counts, and the registry that `/metrics` shows."""

    def __init__(self, redis_url: str) -> None:
        """Prepare; Redis is read when somebody scrapes.

        Raises:
            InvalidRequest: the URL is not one that Redis clients take.
        """
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._queues = QueueCollector(redis_url)
        self.registry.register(self._queues)
        self.requests = Counter(
            "pagestream_gateway_requests",
            "Requests that have ended, by route, method and HTTP status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.open = Gauge(
            "pagestream_gateway_requests_in_progress",
            "Requests that are being answered; open streams are most of them.",
            registry=self.registry,
        )
        self.headers = Histogram(
            "pagestream_gateway_response_start_seconds",
            "From a request to its status, which of a stream waits for the first token.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "pagestream_gateway_request_duration_seconds",
            "From a request to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )

    def close(self) -> None:
        """Close the connections of scrapes."""
        self._queues.close()


class CountRequests:
    """ASGI middleware: tells a `GatewayMetrics` of each request."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, started_s = time.monotonic(), 0.0
        status = str(CLIENT_CLOSED_REQUEST)

        async def watch(message: Message) -> None:
            nonlocal started_s, status
            if message["type"] == "http.response.start":
                started_s, status = time.monotonic(), str(message["status"])
            await send(message)

        self._metrics.open.inc()
        try:
            await self._app(scope, receive, watch)
        except Exception:
            status = "500"
            raise
        finally:
            self._metrics.open.dec()
            self._ended(scope, status, began_s, started_s)

    def _ended(self, scope: Scope, status: str, began_s: float, started_s: float) -> None:
        route = getattr(scope.get("route"), "path", ELSE)
        method = scope["method"] if scope["method"] in METHODS else ELSE
        self._metrics.requests.labels(route, method, status).inc()
        self._metrics.duration.labels(route).observe(time.monotonic() - began_s)
        if started_s:
            self._metrics.headers.labels(route).observe(started_s - began_s)

"""What a jobs process shows of itself over HTTP: `/health`, `/ready` and `/metrics`.

Answered by the loop that does the work, so that an answer is a sign of life. What is in Redis is
read when somebody scrapes. This module knows counts; not what is counted.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..batch.batches import About
from ..batch.due import Due
from ..batch.lines import Line
from ..batch.runner import Answer, Asked
from ..errors import BadSettings, QueueUnavailable
from ..hooks.sender import Outcome
from ..hooks.store import HookStore

STUCK_S = 60.0
"""A process that has not looked at its list for so long hangs; an outage is looked at, too."""
KINDS = ("batch", "hook", "prompt")
"""Kinds of entries that people ask for; the others are always there."""


class Monitor:
    """One process's counts; belongs to one event loop."""

    def __init__(self, due: Due, hooks: HookStore) -> None:
        self._due = due
        self._hooks = hooks
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._up = self._gauge("redis_up", "1 if this process can read Redis.")
        self._entries = self._gauge(
            "jobs_due", "What is to be done some time: batches, webhooks, prompts.", "kind"
        )
        self._late = self._gauge(
            "jobs_due_late_seconds", "How long the entry that is most overdue has been due."
        )
        self._dead = self._gauge("webhooks_dead", "Webhooks that were given up and not dealt with.")
        self._lines = Counter(
            "pagestream_batch_lines",
            "Lines of batches that were answered here, by the file they go to.",
            ["kind"],
            registry=self._registry,
        )
        self._webhooks = Counter(
            "pagestream_webhooks",
            "Attempts to deliver webhooks, by outcome.",
            ["outcome"],
            registry=self._registry,
        )
        for kind in ("output", "errors"):
            self._lines.labels(kind)
        for outcome in ("delivered", "failed", "dead"):
            self._webhooks.labels(outcome)

    def count_webhook(self, outcome: Outcome) -> None:
        """Count an attempt to deliver a webhook."""
        self._webhooks.labels(outcome).inc()

    def counted(self, asked: Asked) -> Asked:
        """Return who answers lines, with the answers counted."""
        return _CountedLines(asked, self._lines)

    async def metrics(self) -> bytes:
        """Return the metrics as text."""
        try:
            entries, late_ms = await self._due.look()
            dead = await self._hooks.dead_count()
        except QueueUnavailable:
            self._up.set(0)
        else:
            self._up.set(1)
            for kind in KINDS:
                self._entries.labels(kind).set(entries.get(kind, 0))
            self._late.set(late_ms / 1000)
            self._dead.set(dead)
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"pagestream_{name}", text, labels, registry=self._registry)


class _CountedLines:
    """Counts answers that are kept."""

    def __init__(self, asked: Asked, lines: Counter) -> None:
        self._asked = asked
        self._lines = lines

    async def answer(self, about: About, line: Line) -> Answer:
        answer = await self._asked.answer(about, line)
        if answer.is_final:
            self._lines.labels("output" if answer.status == 200 else "errors").inc()
        return answer

    async def give_up(self, batch_id: str) -> None:
        await self._asked.give_up(batch_id)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals to the process."""
        yield


@asynccontextmanager
async def probes(
    port: int | None,
    monitor: Monitor,
    *,
    silent_s: Callable[[], float],
    ping: Callable[[], Awaitable[object]],
) -> AsyncGenerator[None]:
    """Answer probes while the block runs; without a port, do nothing.

    Args:
        port: on every address of the host.
        monitor: what `/metrics` shows.
        silent_s: how long ago the process looked at its list.
        ping: asks Redis, and raises `QueueUnavailable` without an answer.

    Raises:
        BadSettings: the port cannot be had.
    """
    if port is None:
        yield
        return
    try:
        listening = socket.create_server(("", port))
    except OSError as error:
        raise BadSettings(f"--health-port {port}: {error}") from error
    app = _application(monitor, silent_s, ping)
    server = _Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        listening.close()


def _application(
    monitor: Monitor, silent_s: Callable[[], float], ping: Callable[[], Awaitable[object]]
) -> Starlette:
    async def health(request: Request) -> Response:
        is_alive = silent_s() < STUCK_S
        return JSONResponse({"ok": is_alive}, 200 if is_alive else 503)

    async def ready(request: Request) -> Response:
        try:
            await ping()
        except QueueUnavailable as error:
            return JSONResponse({"ok": False, "why": str(error)}, 503)
        return JSONResponse({"ok": True})

    async def metrics(request: Request) -> Response:
        return Response(await monitor.metrics(), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", metrics),
        ]
    )

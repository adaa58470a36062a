"""What a probe is told: whether this worker is alive, and whether it takes jobs.

`Health` is written by the threads that know and read by the one that answers HTTP. Alive means that
the watchdog finds no stall: an outage of Redis is none; ready means that it serves now.
This module knows no jobs, no Redis and no engine.
"""

import json
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

from .errors import ConfigError

Page = Callable[[], tuple[str, bytes]]
"""Makes what a path answers beside the probes: content type and body."""


class Health:
    """The state of one worker, in the words of a probe."""

    def __init__(self, answer_s: float) -> None:
        """A worker is ready only if Redis has answered within the last `answer_s`."""
        self._answer_s = answer_s
        self._answered_s = time.monotonic()
        self._refuses: Callable[[], str] | None = None
        self.calls = 0
        """Calls to Redis that have ended, well or badly."""
        self.stalled = ""
        """Why the watchdog would have the process replaced, or nothing."""

    def serves(self, refuses: Callable[[], str]) -> None:
        """The worker is registered; `refuses()` says why it takes no jobs now, or nothing."""
        self.answered()
        self._refuses = refuses

    def answered(self) -> None:
        """Redis has answered a call."""
        self._answered_s = time.monotonic()
        self.calls += 1

    def failed(self) -> None:
        """Redis has not answered, or refused; the call will be made again."""
        self.calls += 1

    def not_alive(self) -> str:
        """Return why the process should be replaced, or nothing."""
        return self.stalled

    def not_ready(self) -> str:
        """Return why the worker takes no jobs now, or nothing."""
        if self._refuses is None:
            return "it is loading"
        silent_s = time.monotonic() - self._answered_s
        if silent_s > self._answer_s:
            return f"Redis has not answered for {silent_s:.1f} s"
        return self._refuses()


class HealthServer(ThreadingHTTPServer):
    """Answers on every address of the host: `/livez` and `/readyz` with 200, or 503 and why.

    Other paths are answered by `pages`.
    """

    daemon_threads = True

    def __init__(self, port: int, health: Health, pages: Mapping[str, Page]) -> None:
        self.health = health
        self.pages = pages
        super().__init__(("", port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    timeout = 5

    def do_GET(self) -> None:
        assert isinstance(self.server, HealthServer), "this handler is one of a HealthServer"
        health = self.server.health
        answers = {"/livez": health.not_alive, "/readyz": health.not_ready}
        path = self.path.partition("?")[0]
        if path in self.server.pages:
            self._answer(200, *self.server.pages[path]())
        elif path in answers:
            why = answers[path]()
            body = json.dumps({"ok": not why, "why": why}).encode()
            self._answer(503 if why else 200, "application/json", body)
        else:
            known = ", ".join([*answers, *self.server.pages])
            self.send_error(404, f"this worker answers {known}")

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a probe comes every few seconds."""


@contextmanager
def probes(
    port: int | None, health: Health, pages: Mapping[str, Page] = MappingProxyType({})
) -> Generator[None, None, None]:
    """Answer probes, and `pages` beside them, while the block runs; without a port, do nothing.

    Raises:
        ConfigError: the port cannot be had.
    """
    if port is None:
        yield
        return
    try:
        server = HealthServer(port, health, pages)
    except OSError as error:
        raise ConfigError(f"--health-port {port} cannot be used: {error}") from error
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""Lines of batches are requests: the gateway's own application answers them, without a network.

So a line's answer is byte for byte what the gateway would have said, refusals included.
This module knows requests and who asks; what they mean is the gateway's.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import FastAPI, Request

from ..batch.batches import About
from ..batch.files import new_id
from ..batch.lines import Line
from ..batch.runner import Answer
from ..gateway.api_keys import ApiKey
from ..gateway.app import create_app
from ..gateway.asking import Caller, Kind, caller
from ..gateway.bodies import Body
from ..gateway.queues import Queues
from ..gateway.settings import GatewaySettings
from ..job import AsyncJob
from ..request import JobSpec

_CALLER = "pagestream.caller"

log = logging.getLogger(__name__)


KEPT_MS = 120_000
"""How long a line's job is kept once it has ended: a jobs process that is away for less finds its
answer. Longer would only fill Redis, where the batch has the answers itself."""


class BatchCaller(Caller, frozen=True, kw_only=True):
    """A line of a batch as who asks: its jobs are remembered, so that they can be cancelled."""

    jobs: list[AsyncJob]

    async def submit(
        self, kind: Kind, body: Body, question: JobSpec, *, place: int = 0, keep: bool = False
    ) -> AsyncJob:
        """Submit a job as `Caller` does, and remember it."""
        job = await super().submit(kind, body, question, place=place, keep=keep)
        self.jobs.append(job)
        return job

    def _spec(
        self, kind: Kind, body: Body, question: JobSpec, place: int, keep: bool
    ) -> Mapping[str, Any]:
        return {**super()._spec(kind, body, question, place, keep), "retention_ms": KEPT_MS}


class InProcess:
    """Answers lines on the gateway's application; belongs to one event loop."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._jobs: dict[str, dict[str, list[AsyncJob]]] = {}
        """Jobs of lines that have no answer yet: batch -> custom_id -> jobs."""

    @property
    def queues(self) -> Queues:
        """The application's way to Redis."""
        return self._app.state.queues

    async def answer(self, about: About, line: Line) -> Answer:
        """Return what the gateway answers to a line; wait as long as it takes."""
        jobs = self._jobs.setdefault(about.id, {}).setdefault(line.custom_id, [])
        caller = BatchCaller(
            key=ApiKey(about.tenant, about.queue_limit),
            queues=self.queues,
            settings=self._app.state.settings,
            priority="low",
            idempotency_key=f"{about.id}\n{line.custom_id}",
            on_disconnect="keep",
            jobs=jobs,
        )
        answer = await self._exchange(line, caller)
        # A wait that is broken off leaves its jobs here: for whoever gives them up, or comes back.
        self._jobs[about.id].pop(line.custom_id, None)
        return answer

    async def give_up(self, batch_id: str) -> None:
        """Cancel the jobs of a batch's unanswered lines."""
        lines = self._jobs.pop(batch_id, {})
        await asyncio.gather(*(job.cancel() for jobs in lines.values() for job in jobs))

    async def _exchange(self, line: Line, caller: Caller) -> Answer:
        exchange = _Exchange(msgspec.json.encode(line.body))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": line.method,
            "scheme": "http",
            "path": line.url,
            "raw_path": line.url.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
            "client": None,
            "server": None,
            _CALLER: caller,
        }
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("the gateway failed on a line of a batch")
            return Answer(status=500, request_id=new_id("req_"), body=_FAILURE)
        return Answer(
            status=exchange.status,
            request_id=new_id("req_"),
            body=msgspec.json.decode(bytes(exchange.body)),
            retry_after_s=float(exchange.headers.get(b"retry-after", b"1")),
        )


_FAILURE: dict[str, Any] = {
    "error": {
        "message": "the gateway failed on this line; its log says more",
        "type": "server_error",
        "param": None,
        "code": None,
    }
}


@asynccontextmanager
async def in_process(settings: GatewaySettings) -> AsyncGenerator[InProcess]:
    """Start the gateway's application for lines of batches; no port is opened."""
    app = create_app(settings)
    app.dependency_overrides[caller] = _asking_line
    async with app.router.lifespan_context(app):
        yield InProcess(app)


def _asking_line(request: Request) -> Caller:
    return request.scope[_CALLER]


class _Exchange:
    """One request, and what comes back; its client never hangs up."""

    def __init__(self, body: bytes) -> None:
        self.status = 500
        self.headers: dict[bytes, bytes] = {}
        self.body = bytearray()
        self._request: bytes | None = body

    async def receive(self) -> MutableMapping[str, Any]:
        if self._request is None:
            await asyncio.Event().wait()
        body, self._request = self._request, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
        else:
            self.body += message.get("body", b"")

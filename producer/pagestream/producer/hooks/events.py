"""What is told of an end: that it came, and how; never what was asked or answered.

Events look like OpenAI's, whose batches and responses they name as OpenAI does; all other jobs are
`job.…`. An event's id is made of what it tells, so that it is the same however often it is told.
This module knows no HTTP and no Redis.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from ..batch.batches import Batch
from ..batch.files import made_id
from ..protocol import JobState, Usage

_JOB: Mapping[str, str] = {
    "done": "completed",
    "failed": "failed",
    "dead": "failed",
    "cancelled": "cancelled",
    "expired": "expired",
}


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """An event that is to be sent somewhere."""

    id: str
    """The event's; without a dot, as Standard Webhooks has it."""
    url: str
    tenant: str
    about: str
    """Whose end it tells, for people: `batch_…`, or `<queue>/<job id>`."""
    type: str
    body: bytes
    """The event, as it is signed and sent."""


class JobEnd(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a job, as its queue's stream of them has it."""

    id: str
    tenant: str
    webhook: str
    state: JobState
    reason: str
    usage: str
    """JSON; empty where no worker ended it."""


def of_job(queue: str, entry_id: str, end: JobEnd) -> Hook:
    """Return what is told of a job's end; `entry_id` is that of the end in the queue's stream."""
    event_id = made_id("evt_", queue, entry_id, end.id)
    data: dict[str, Any] = {"id": end.id}
    if end.id.removeprefix(f"{end.tenant}.").startswith("resp_"):
        kind = f"response.{_response_status(end)}"
    else:
        kind = f"job.{_JOB[end.state]}"
        usage = msgspec.json.decode(end.usage, type=Usage) if end.usage else Usage()
        data |= {"queue": queue, "state": end.state, "usage": msgspec.to_builtins(usage)}
    return Hook(
        id=event_id,
        url=end.webhook,
        tenant=end.tenant,
        about=f"{queue}/{end.id}",
        type=kind,
        body=_event(event_id, kind, int(entry_id.split("-")[0]), data),
    )


def of_batch(batch: Batch) -> Hook | None:
    """Return what is told of a batch's end; None if nobody asked for it."""
    about = batch.about
    if about.webhook is None:
        return None
    event_id, kind = made_id("evt_", about.id), f"batch.{batch.status}"
    ended_ms = batch.reached_ms.get(batch.status, about.created_ms)
    return Hook(
        id=event_id,
        url=about.webhook,
        tenant=about.tenant,
        about=about.id,
        type=kind,
        body=_event(event_id, kind, ended_ms, {"id": about.id}),
    )


def _response_status(end: JobEnd) -> str:
    """Return the status that `/v1/responses` gives to such an end."""
    if end.state == "done":
        return "incomplete" if end.reason == "length" else "completed"
    return "cancelled" if end.state in ("cancelled", "expired") else "failed"


def _event(event_id: str, kind: str, at_ms: int, data: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(
        {
            "id": event_id,
            "object": "event",
            "type": kind,
            "created_at": at_ms // 1000,
            "data": data,
        }
    )

"""The dashboard: a page at `/dashboard`, and what it reads and does under `/dashboard/api`.

With API keys a viewer sees the queues' figures and its own tenant's jobs; without them everybody
sees everything. Prompts and answers are no part of it. The page is the files of `static/`, as they
are. This module knows no Redis: `live` and `admin` read and act.
"""

import asyncio
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from ..admin import Admin, DeadLetter
from ..errors import InvalidRequest, JobNotFound
from ..keys import check_name
from ..live import AsyncLive, QueueLive, Timeline
from ..snapshot import WorkerSnapshot
from .api_keys import ApiKeys
from .asking import Asking

LETTERS_MAX = 1_000
"""Dead letters of a queue that are looked at, the newest first."""

STATIC = Path(__file__).with_name("static")
_MEDIA = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {path.name: path for path in STATIC.iterdir() if path.suffix in _MEDIA}

# The page runs its own files and talks to its own gateway, whatever a job's name or error says.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

router = APIRouter(prefix="/dashboard", include_in_schema=False)


class Viewer(msgspec.Struct, frozen=True):
    """Who looks: a tenant, or None where nobody is asked for a key and all may be seen."""

    tenant: str | None

    def sees(self, tenant: str) -> bool:
        """Return whether a tenant's jobs may be shown."""
        return self.tenant is None or self.tenant == tenant


def viewer(request: Request, authorization: Annotated[str | None, Header()] = None) -> Viewer:
    """Return who looks.

    Raises:
        InvalidKey: nobody who is known here.
    """
    keys: ApiKeys = request.app.state.api_keys
    tenant = keys.of(authorization).tenant
    return Viewer(tenant if keys.are_asked_for else None)


def json_only(content_type: Annotated[str | None, Header()] = None) -> None:
    """Refuse what another site's page could have sent: forms cannot say this type.

    Raises:
        InvalidRequest: the request has another type, or none.
    """
    media = (content_type or "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise InvalidRequest(f"Content-Type is {content_type!r}; send application/json")


Viewing = Annotated[Viewer, Depends(viewer)]


class Retry(BaseModel):
    """Which dead letter is to be queued again."""

    model_config = ConfigDict(extra="forbid")

    queue: str
    letter: str


@router.get("")
async def page() -> Response:
    """Return the page: it holds no data."""
    return FileResponse(STATIC / "index.html", media_type="text/html", headers=_HEADERS)


@router.get("/{name}")
async def file(name: str) -> Response:
    """Return one of the page's files."""
    if name not in _FILES:
        raise HTTPException(404, "the dashboard has no such file")
    path = _FILES[name]
    return FileResponse(path, media_type=_MEDIA[path.suffix], headers=_HEADERS)


@router.get("/api/live")
async def live(request: Request, viewing: Viewing) -> Response:
    """Return every queue as it is now, with its workers' last snapshots."""
    reader: AsyncLive = request.app.state.live
    names = await reader.queues()
    queues = await asyncio.gather(*(reader.queue(name) for name in names))
    shown = [_visible(queue, viewing) for queue in queues]
    return _json({"tenant": viewing.tenant, "queues": shown})


@router.get("/api/jobs/{job_id}")
async def job(
    request: Request, job_id: str, viewing: Viewing, queue: str | None = None
) -> Response:
    """Return a job's timeline, of each queue that has a job of this id.

    Raises:
        InvalidRequest: no job or queue can have the name.
        JobNotFound: none has, or the job is another tenant's.
    """
    check_name("job id", job_id)
    reader: AsyncLive = request.app.state.live
    names = [queue] if queue is not None else await reader.queues()
    found = await asyncio.gather(*(_timeline(reader, name, job_id) for name in names))
    jobs = [
        {"queue": name, "phases": one.phases(one.at_ms), **msgspec.structs.asdict(one)}
        for name, one in zip(names, found, strict=True)
        if one is not None and viewing.sees(one.tenant)
    ]
    if not jobs:
        raise JobNotFound(f"there is no job {job_id!r} here, or it has been kept long enough")
    return _json({"jobs": jobs})


@router.post("/api/jobs/{job_id}/cancel", dependencies=[Depends(json_only)])
async def cancel(job_id: str, ask: Asking) -> Response:
    """Cancel a job that was asked of this gateway."""
    found, _, _ = await ask.queues.find(job_id, ask.tenant)
    return _json({"outcome": await found.cancel()})


@router.get("/api/dead")
def dead(request: Request, viewing: Viewing) -> Response:
    """Return the newest dead letters of all queues, newest first."""
    admin: Admin = request.app.state.admin
    letters = [
        _letter(queue, one)
        for queue in admin.queues()
        for one in islice(admin.letters(queue, newest_first=True), LETTERS_MAX)
        if viewing.sees(one.tenant)
    ]
    return _json({"letters": sorted(letters, key=lambda one: -one["died_ms"])})


@router.post("/api/dead/retry", dependencies=[Depends(json_only)])
def retry(request: Request, body: Retry, viewing: Viewing) -> Response:
    """Queue a dead letter's job again.

    Raises:
        JobNotFound: there is no such letter, or it is another tenant's.
    """
    admin: Admin = request.app.state.admin
    letter = admin.letter(body.queue, body.letter)
    if not viewing.sees(letter.tenant):
        raise JobNotFound(f"queue {body.queue!r} has no dead letter {body.letter!r}")
    admin.retry(body.queue, letter)
    return _json({"id": letter.id})


async def _timeline(reader: AsyncLive, queue: str, job_id: str) -> Timeline | None:
    try:
        return await reader.timeline(queue, job_id)
    except JobNotFound:
        return None


def _visible(queue: QueueLive, viewing: Viewer) -> QueueLive:
    """A queue without what is other tenants' alone."""
    return msgspec.structs.replace(
        queue,
        tenants=[one for one in queue.tenants if viewing.sees(one.tenant)],
        workers=[
            msgspec.structs.replace(one, snapshot=_own_jobs(one.snapshot, viewing))
            for one in queue.workers
        ],
    )


def _own_jobs(snapshot: WorkerSnapshot | None, viewing: Viewer) -> WorkerSnapshot | None:
    if snapshot is None:
        return None
    slowest = [one for one in snapshot.slowest if viewing.sees(one.tenant)]
    return msgspec.structs.replace(snapshot, slowest=slowest)


def _letter(queue: str, letter: DeadLetter) -> dict[str, Any]:
    told = msgspec.structs.asdict(letter)
    del told["payload"]  # what was asked is nobody's business here
    return {"queue": queue, "died_ms": letter.died_ms, **told}


def _json(answer: dict[str, Any]) -> Response:
    headers = {**_HEADERS, "Cache-Control": "no-store"}
    return Response(msgspec.json.encode(answer), media_type="application/json", headers=headers)

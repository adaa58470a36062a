"""`/v1/responses`: a job that can be left and come back to.

Nothing is kept beside the job: what it was asked is its record, what it answered its reply, both
for the queue's retention. So a response that runs in the background is one that nobody has to read.
This module knows the requests; what a response looks like is `response_form`'s.

Source: OpenAI's API reference, "Responses".
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from ..errors import InvalidRequest, JobFailed
from ..job import AsyncJob, JobStatus, Result
from ..request import JobSpec
from .asking import Asking, Caller, accepted_s, sampling_of, text_of
from .bodies import ResponseBody
from .events import event_response
from .response_form import ResponseEvents, Told, response_object
from .waiting import first_chunks, while_connected

router = APIRouter(prefix="/v1/responses", tags=["OpenAI"])

After = Annotated[int | None, Query(ge=0, description="Leave out events up to this one.")]


@router.post("")
async def create_response(request: Request, body: ResponseBody, ask: Asking) -> Response:
    """Answer whole, in events, or in the background."""
    after = _number_of(ask.last_event_of(body))
    question = JobSpec(
        messages=_messages(body), sampling=sampling_of(body, max_tokens=body.max_output_tokens)
    )
    job = await ask.submit("resp_", body, question, keep=bool(body.background))
    told = Told.of_body(job.id, body, accepted_s(await job.status()))
    if body.stream:
        return await _events(ask, job, told, after)
    if body.background:
        return JSONResponse(response_object(told, "queued"))
    try:
        result = await while_connected(request, job.result())
    except JobFailed as error:
        if error.code in ("cancelled", "expired"):
            return JSONResponse(response_object(told, "cancelled"))
        raise
    return JSONResponse(_finished(told, result))


@router.get("/{response_id}")
async def retrieve_response(
    response_id: str, ask: Asking, stream: bool = False, starting_after: After = None
) -> Response:
    """Return a response as it is now; or its events, from the first or behind one."""
    job, status, model = await ask.queues.find(response_id, ask.tenant)
    told = await _told(ask, job, status, model)
    if stream:
        after = _number_of(ask.last_event_id) if starting_after is None else starting_after
        return await _events(ask, job, told, after)
    return JSONResponse(await _now(job, status, told))


@router.post("/{response_id}/cancel")
async def cancel_response(response_id: str, ask: Asking) -> Response:
    """Cancel a response that runs; one that has ended stays as it is."""
    job, _, model = await ask.queues.find(response_id, ask.tenant)
    outcome = await job.cancel()
    status = await job.status()
    told = await _told(ask, job, status, model)
    if outcome == "cancelling":  # over in a step
        return JSONResponse(response_object(told, "cancelled"))
    return JSONResponse(await _now(job, status, told))


@router.delete("/{response_id}")
async def delete_response(response_id: str, ask: Asking) -> Response:
    """Delete all there is of a response."""
    job, _, _ = await ask.queues.find(response_id, ask.tenant)
    await job.delete()
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


def _messages(body: ResponseBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for item in body.input:
        role = "system" if item.role == "developer" else item.role
        messages.append({"role": role, "content": text_of(item.content)})
    return messages


def _number_of(event_id: str | None) -> int | None:
    if event_id is None:
        return None
    if not (event_id.isascii() and event_id.isdigit() and len(event_id) <= 18):
        raise InvalidRequest(
            f"Last-Event-ID: {event_id!r} is not the number of a response's event",
            param="Last-Event-ID",
        )
    return int(event_id)


async def _told(ask: Caller, job: AsyncJob, status: JobStatus, model: str) -> Told:
    payload = await ask.queues.payload(model, job.id)
    return Told.of_payload(job.id, payload, model, status)


async def _events(ask: Caller, job: AsyncJob, told: Told, after: int | None) -> Response:
    stream = job.stream()
    first = await first_chunks(stream, ask.settings.first_entry_wait)
    return event_response(stream, ResponseEvents(told, after), first)


async def _now(job: AsyncJob, status: JobStatus, told: Told) -> dict[str, Any]:
    if status.state == "done":
        return _finished(told, await job.result())
    if status.state in ("failed", "dead"):
        try:
            await job.result()
        except JobFailed as error:
            return response_object(told, "failed", error=error)
    words = {"queued": "queued", "running": "in_progress"}
    return response_object(told, words.get(status.state, "cancelled"))


def _finished(told: Told, result: Result) -> dict[str, Any]:
    status = "completed" if result.finish_reason == "stop" else "incomplete"
    return response_object(told, status, text=result.text, usage=result.usage)

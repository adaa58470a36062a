"""`/v1/streams/<id>`: take up a broken stream where it broke off, on any gateway.

This module knows no formats beyond which one an id stands for.
"""

from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response

from ..errors import InvalidRequest
from .asking import Asking
from .chat import ChatEvents
from .completions import CompletionEvents
from .events import event_response
from .waiting import first_answer

router = APIRouter(prefix="/v1/streams", tags=["pagestream"])


@router.get("/{job_id}")
async def resume_stream(
    job_id: str,
    ask: Asking,
    from_: Annotated[str | None, Query(alias="from", description="An event's id.")] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Return a job's events from behind an event, or from the first; usage comes at the end."""
    job, status, model = await ask.queues.find(job_id, ask.tenant)
    if "resp_" in job_id:
        raise InvalidRequest(
            f"{job_id} is a response: GET /v1/responses/{job_id}?stream=true&starting_after=N"
        )
    after = from_ or last_event_id
    stream = job.stream(after)
    first = await first_answer(stream, ask.settings.first_entry_wait)
    form = ChatEvents if "chatcmpl-" in job_id else CompletionEvents
    events = form(job_id, model, (status.queued_ms or 0) // 1000, with_usage=True)
    return event_response(stream, events, first, resumed=after is not None)

"""`/v1/streams/<id>`: take up a broken stream where it broke off, on any gateway.

This module knows no formats beyond which one an id stands for.
"""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from ..errors import InvalidRequest
from .asking import Asking, accepted_s
from .chat import ChatEvents
from .completion_form import Mark, told_in_events
from .completions import CompletionEvents

router = APIRouter(prefix="/v1/streams", tags=["pagestream"])


@router.get("/{job_id}")
async def resume_stream(
    job_id: str,
    ask: Asking,
    from_: Annotated[str | None, Query(alias="from", description="An event's id.")] = None,
) -> Response:
    """Return a job's events from behind an event, or from the first; usage comes at the end."""
    job, status, model = await ask.queues.find(job_id, ask.tenant)
    if "resp_" in job_id:
        raise InvalidRequest(
            f"{job_id} is a response: GET /v1/responses/{job_id}?stream=true&starting_after=N"
        )
    behind = Mark.of(from_, "from") if from_ else Mark.of(ask.last_event_id)
    form = ChatEvents if "chatcmpl-" in job_id else CompletionEvents
    events = form(
        *(job_id, model, accepted_s(status)), with_usage=True, with_event_ids=True, behind=behind
    )
    return await told_in_events(job, events, ask.settings.first_entry_wait)

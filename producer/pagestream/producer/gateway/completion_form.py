"""What `/v1/chat/completions` and `/v1/completions` say alike: heads, usage, and telling in events.

This module knows no requests' questions and no queues.
"""

from typing import Any

from fastapi.responses import Response

from ..job import AsyncJob
from ..protocol import Usage
from .events import DONE, Form, event_response
from .waiting import first_answer


class CompletionForm:
    """What each event of one answer begins with, and what it may add."""

    kind: str
    """OpenAI's name of such an event."""
    done = DONE

    def __init__(
        self, job_id: str, model: str, created_s: int, *, with_usage: bool, with_ids: bool = False
    ) -> None:
        self._head = head_of(job_id, self.kind, created_s, model)
        self._with_usage = with_usage
        self._with_ids = with_ids

    def event(self, choice: dict[str, Any], ids: tuple[int, ...]) -> dict[str, Any]:
        """Return the event of a choice."""
        more = {"token_ids": ids} if self._with_ids else {}
        return {**self._head, "choices": [{**choice, **more}]}

    def usage_event(self, usage: Usage | None) -> list[dict[str, Any]]:
        """Return the event of the token counts, if they are known and wanted."""
        if usage is None or not self._with_usage:
            return []
        return [{**self._head, "choices": [], "usage": usage_of(usage)}]


def head_of(job_id: str, kind: str, created_s: int, model: str) -> dict[str, Any]:
    """Return what every answer begins with, whole or in events."""
    return {"id": job_id, "object": kind, "created": created_s, "model": model}


def usage_of(usage: Usage) -> dict[str, Any]:
    """Return token counts as completions tell them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


async def told_in_events(
    job: AsyncJob, form: Form, wait_s: float, after: str | None = None
) -> Response:
    """Tell a job in events, from behind the cursor `after` or from the first.

    The headers wait `wait_s` for the first token, at most.

    Raises:
        PagestreamError: the job ended badly before its first token, or cannot be read.
    """
    stream = job.stream(after)
    first = await first_answer(stream, wait_s)
    return event_response(stream, form, first, resumed=after is not None)

"""`/v1/chat/completions`. This module knows one format, and nothing of queues.

Source: OpenAI's API reference, "Chat Completions".
"""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ..job import Chunk, Result
from ..request import JobSpec
from .asking import Asking, accepted_s, chat_of, sampling_of
from .bodies import ChatBody
from .completion_form import CompletionForm, Mark, head_of, told_in_events, usage_of
from .waiting import while_connected

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request, body: ChatBody, ask: Asking) -> Response:
    """Answer a chat, whole or in server-sent events."""
    behind = Mark.of(ask.last_event_of(body))
    sampling = sampling_of(body, max_tokens=body.max_completion_tokens or body.max_tokens)
    question = JobSpec(messages=chat_of(body.messages), sampling=sampling)
    job = await ask.submit("chatcmpl-", body, question)
    created_s = accepted_s(await job.status())
    if not body.stream:
        result = await while_connected(request, job.result())
        return JSONResponse(_whole(result, body, created_s))
    form = ChatEvents(
        *(job.id, body.model, created_s),
        with_usage=body.wants_usage,
        with_ids=body.return_token_ids,
        with_event_ids=ask.can_ask_again(body),
        behind=behind,
    )
    return await told_in_events(job, form, ask.settings.first_entry_wait)


class ChatEvents(CompletionForm):
    """A chat completion in events."""

    kind = "chat.completion.chunk"

    def beginning(self) -> Iterator[dict[str, Any]]:
        """Say who speaks."""
        yield self._delta({"role": "assistant", "content": ""}, None, ())

    def choices(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """Say what is new, and how it ended."""
        if chunk.text or chunk.ids:
            yield self._delta({"content": chunk.text}, None, chunk.ids)
        if chunk.finish_reason is not None:
            yield self._delta({}, chunk.finish_reason, ())

    def _delta(
        self, delta: dict[str, Any], finish_reason: str | None, ids: tuple[int, ...]
    ) -> dict[str, Any]:
        return self.event({"index": 0, "delta": delta, "finish_reason": finish_reason}, ids)


def _whole(result: Result, body: ChatBody, created_s: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": result.text, "refusal": None}
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": result.finish_reason,
    }
    if body.return_token_ids:
        choice["token_ids"] = result.ids
    return {
        **head_of(result.id, "chat.completion", created_s, body.model),
        "choices": [choice],
        "usage": usage_of(result.usage),
    }

"""`/v1/chat/completions`. This module knows one format, and nothing of queues.

Source: OpenAI's API reference, "Chat Completions".
"""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ..job import Chunk, Result
from ..protocol import Usage
from ..request import JobSpec
from .asking import Asking, chat_of, created_s, sampling_of
from .bodies import ChatBody
from .events import DONE, event_response
from .waiting import first_answer, while_connected

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request, body: ChatBody, ask: Asking) -> Response:
    """Answer a chat, whole or in server-sent events."""
    sampling = sampling_of(body, max_tokens=body.max_completion_tokens or body.max_tokens)
    question = JobSpec(messages=chat_of(body.messages), sampling=sampling)
    job = await ask.submit("chatcmpl-", body, question)
    accepted_s = await created_s(job)
    if not body.stream:
        result = await while_connected(request, job.result())
        return JSONResponse(_whole(result, body, accepted_s))
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    form = ChatEvents(job.id, body.model, accepted_s, with_usage, body.return_token_ids)
    stream = job.stream()
    first = await first_answer(stream, ask.settings.first_entry_wait)
    return event_response(stream, form, first)


class ChatEvents:
    """A chat completion in events."""

    done = DONE

    def __init__(
        self, job_id: str, model: str, created_s: int, with_usage: bool, with_ids: bool = False
    ) -> None:
        self._head: dict[str, Any] = {
            "id": job_id,
            "object": "chat.completion.chunk",
            "created": created_s,
            "model": model,
        }
        self._with_usage = with_usage
        self._with_ids = with_ids

    def opening(self) -> Iterator[dict[str, Any]]:
        """Say who speaks."""
        yield self._event({"role": "assistant", "content": ""}, None, ())

    def of(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """Say what is new, how it ended, and what it took."""
        if chunk.text or chunk.ids:
            yield self._event({"content": chunk.text}, None, chunk.ids)
        if chunk.finish_reason is not None:
            yield self._event({}, chunk.finish_reason, ())
        if chunk.usage is not None and self._with_usage:
            yield {**self._head, "choices": [], "usage": usage_of(chunk.usage)}

    def _event(
        self, delta: dict[str, Any], finish_reason: str | None, ids: tuple[int, ...]
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        if self._with_ids:
            choice["token_ids"] = ids
        return {**self._head, "choices": [choice]}


def usage_of(usage: Usage) -> dict[str, Any]:
    """Return token counts as completions tell them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


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
        "id": result.id,
        "object": "chat.completion",
        "created": created_s,
        "model": body.model,
        "choices": [choice],
        "usage": usage_of(result.usage),
    }

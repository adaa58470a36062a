"""What a response of `/v1/responses` looks like, whole and in events.

Events are a function of the reply stream alone, so their numbers are the same on every gateway, now
and later. This module knows no requests and no queues.

Source: OpenAI's API reference, "Responses" and "Streaming events".
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from ..errors import JobFailed
from ..job import Chunk, JobStatus
from ..protocol import Payload, Usage
from .asking import accepted_s
from .bodies import ResponseBody
from .events import Event


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a response repeats of its request."""

    id: str
    model: str
    created_s: int
    temperature: float | None
    top_p: float | None
    max_output_tokens: int | None
    instructions: str | None
    background: bool

    @classmethod
    def of_body(cls, job_id: str, body: ResponseBody, created_s: int) -> "Told":
        """Take it from the request."""
        return cls(
            id=job_id,
            model=body.model,
            created_s=created_s,
            temperature=body.temperature,
            top_p=body.top_p,
            max_output_tokens=body.max_output_tokens,
            instructions=body.instructions,
            background=bool(body.background),
        )

    @classmethod
    def of_payload(cls, job_id: str, payload: Payload, model: str, status: JobStatus) -> "Told":
        """Take it from the job's record."""
        first = (payload.messages or [{}])[0]
        return cls(
            id=job_id,
            model=model,
            created_s=accepted_s(status),
            temperature=payload.sampling.temperature,
            top_p=payload.sampling.top_p,
            max_output_tokens=payload.sampling.max_tokens,
            instructions=first.get("content") if first.get("role") == "system" else None,
            background=status.reader_timeout_ms is None,
        )


def response_object(
    told: Told,
    status: str,
    *,
    text: str | None = None,
    usage: Usage | None = None,
    error: JobFailed | None = None,
) -> dict[str, Any]:
    """Return a response; `text` is its whole output, once there is one."""
    output = [] if text is None else [_message(told.id, status, text)]
    return {
        "id": told.id,
        "object": "response",
        "created_at": told.created_s,
        "status": status,
        "background": told.background,
        "error": error and {"code": "server_error", "message": str(error)},
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": told.instructions,
        "max_output_tokens": told.max_output_tokens,
        "metadata": {},
        "model": told.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": told.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": told.top_p,
        "truncation": "disabled",
        "usage": usage and _usage(usage),
        "user": None,
    }


class ResponseEvents:
    """A response in events, each with its number as its id; those up to `after` are left out."""

    done = b""

    def __init__(self, told: Told, after: int | None) -> None:
        self._told = told
        self._after = -1 if after is None else after
        self._number = 0
        self._text = ""

    def opening(self) -> Iterator[Event]:
        """Say that there is a response, and that a text comes."""
        message: dict[str, Any] = {**_message(self._told.id, "in_progress", ""), "content": []}
        beginning = response_object(self._told, "in_progress")
        yield from self._numbered(
            {"type": "response.created", "response": beginning},
            {"type": "response.in_progress", "response": beginning},
            {"type": "response.output_item.added", "output_index": 0, "item": message},
            {**self._place("response.content_part.added"), "part": _part("")},
        )

    def of(self, chunk: Chunk) -> Iterator[Event]:
        """Say what is new, and how it ended."""
        self._text += chunk.text
        if chunk.text:
            yield from self._numbered(
                {**self._place("response.output_text.delta"), "delta": chunk.text, "logprobs": []}
            )
        if chunk.finish_reason in ("stop", "length"):
            yield from self._ending(chunk)
        elif chunk.finish_reason is not None:
            yield from self._broken_off(chunk)

    def _ending(self, chunk: Chunk) -> Iterator[Event]:
        status = "completed" if chunk.finish_reason == "stop" else "incomplete"
        whole = response_object(self._told, status, text=self._text, usage=chunk.usage)
        item = whole["output"][0]
        yield from self._numbered(
            {**self._place("response.output_text.done"), "text": self._text, "logprobs": []},
            {**self._place("response.content_part.done"), "part": _part(self._text)},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": f"response.{status}", "response": whole},
        )

    def _broken_off(self, chunk: Chunk) -> Iterator[Event]:
        error = JobFailed(f"the job ended with {chunk.finish_reason!r}")
        status = "failed" if chunk.finish_reason == "error" else "cancelled"
        broken = response_object(self._told, status, text=self._text, error=error)
        failed = {"type": "response.failed", "response": broken}
        yield from (event._replace(id=None) for event in self._numbered(failed))

    def _place(self, kind: str) -> dict[str, Any]:
        return {
            "type": kind,
            "item_id": _message_id(self._told.id),
            "output_index": 0,
            "content_index": 0,
        }

    def _numbered(self, *messages: dict[str, Any]) -> Iterator[Event]:
        for message in messages:
            number, self._number = self._number, self._number + 1
            if number > self._after:
                yield Event({**message, "sequence_number": number}, str(number))


def _message(response_id: str, status: str, text: str) -> dict[str, Any]:
    return {
        "id": _message_id(response_id),
        "type": "message",
        "status": status if status in ("in_progress", "incomplete") else "completed",
        "role": "assistant",
        "content": [_part(text)],
    }


def _message_id(response_id: str) -> str:
    return f"msg_{response_id.rpartition('resp_')[2]}"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }

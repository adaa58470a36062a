"""`/v1/completions`: one job a prompt. This module knows one format, and nothing of queues.

Source: OpenAI's API reference, "Completions".
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ..errors import InvalidRequest, PagestreamError
from ..job import AsyncJob, Chunk, Result
from ..protocol import Usage
from ..request import JobSpec
from .asking import Asking, created_s, sampling_of
from .bodies import CompletionBody
from .chat import usage_of
from .events import DONE, event_response
from .waiting import first_answer, while_connected

router = APIRouter(tags=["OpenAI"])

MAX_PROMPTS = 128


@router.post("/v1/completions")
async def create_completion(request: Request, body: CompletionBody, ask: Asking) -> Response:
    """Continue one prompt or several, whole; or one in server-sent events."""
    questions = _questions(body)
    if body.stream and len(questions) > 1:
        raise InvalidRequest(f"prompt holds {len(questions)} prompts; a stream answers one")
    outcomes = await asyncio.gather(
        *(
            ask.submit("cmpl-", body, question, place=place)
            for place, question in enumerate(questions)
        ),
        return_exceptions=True,
    )
    jobs = await _all_or_none(outcomes)
    accepted_s = await created_s(jobs[0])
    if not body.stream:
        results = await while_connected(request, _results(jobs))
        return JSONResponse(_whole(results, body, accepted_s))
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    form = CompletionEvents(jobs[0].id, body.model, accepted_s, with_usage, body.return_token_ids)
    stream = jobs[0].stream()
    first = await first_answer(stream, ask.settings.first_entry_wait)
    return event_response(stream, form, first)


class CompletionEvents:
    """A completion in events."""

    done = DONE

    def __init__(
        self, job_id: str, model: str, created_s: int, with_usage: bool, with_ids: bool = False
    ) -> None:
        self._head: dict[str, Any] = {
            "id": job_id,
            "object": "text_completion",
            "created": created_s,
            "model": model,
        }
        self._with_usage = with_usage
        self._with_ids = with_ids

    def opening(self) -> Iterator[dict[str, Any]]:
        """Nothing comes before the text."""
        return iter(())

    def of(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """Say what is new, how it ended, and what it took."""
        choice = _choice(0, chunk.text, chunk.finish_reason)
        if self._with_ids:
            choice["token_ids"] = chunk.ids
        yield {**self._head, "choices": [choice]}
        if chunk.usage is not None and self._with_usage:
            yield {**self._head, "choices": [], "usage": usage_of(chunk.usage)}


def _questions(body: CompletionBody) -> list[JobSpec]:
    sampling = sampling_of(body)
    match body.prompt:
        case str() as text:
            return [JobSpec(prompt=text, sampling=sampling)]
        case [int(), *_] as ids:
            return [JobSpec(prompt_ids=ids, sampling=sampling)]  # pyright: ignore[reportArgumentType]
        case []:
            raise InvalidRequest("prompt is empty; give at least one token of input")
        case many if len(many) > MAX_PROMPTS:
            raise InvalidRequest(f"prompt holds {len(many)} prompts; at most {MAX_PROMPTS}")
        case many:
            return [
                JobSpec(prompt=one, sampling=sampling)
                if isinstance(one, str)
                else JobSpec(prompt_ids=one, sampling=sampling)  # pyright: ignore[reportArgumentType]
                for one in many
            ]


async def _all_or_none(outcomes: Sequence[AsyncJob | BaseException]) -> list[AsyncJob]:
    """Return the jobs; if one was refused, cancel the others and say why."""
    jobs = [one for one in outcomes if isinstance(one, AsyncJob)]
    errors = [one for one in outcomes if isinstance(one, BaseException)]
    if not errors:
        return jobs
    for job in jobs:
        if not job.attached:
            await job.cancel()
    raise next((one for one in errors if isinstance(one, PagestreamError)), errors[0])


async def _results(jobs: Sequence[AsyncJob]) -> list[Result]:
    # All are read at once: a job that nobody reads would be cancelled.
    reading = [asyncio.create_task(job.result()) for job in jobs]
    try:
        return await asyncio.gather(*reading)
    finally:
        for one in reading:
            one.cancel()


def _whole(results: Sequence[Result], body: CompletionBody, created_s: int) -> dict[str, Any]:
    choices = [_choice(place, one.text, one.finish_reason) for place, one in enumerate(results)]
    if body.return_token_ids:
        choices = [
            {**choice, "token_ids": one.ids} for choice, one in zip(choices, results, strict=True)
        ]
    usage = Usage(
        prompt_tokens=sum(one.usage.prompt_tokens for one in results),
        completion_tokens=sum(one.usage.completion_tokens for one in results),
        cached_tokens=sum(one.usage.cached_tokens for one in results),
    )
    return {
        "id": results[0].id,
        "object": "text_completion",
        "created": created_s,
        "model": body.model,
        "choices": choices,
        "usage": usage_of(usage),
    }


def _choice(place: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": place, "text": text, "logprobs": None, "finish_reason": finish_reason}

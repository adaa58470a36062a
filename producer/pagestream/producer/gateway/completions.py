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
from .asking import Asking, accepted_s, sampling_of
from .bodies import CompletionBody
from .completion_form import CompletionForm, Mark, head_of, told_in_events, usage_of
from .waiting import while_connected

router = APIRouter(tags=["OpenAI"])

MAX_PROMPTS = 128


@router.post("/v1/completions")
async def create_completion(request: Request, body: CompletionBody, ask: Asking) -> Response:
    """Continue one prompt or several, whole; or one in server-sent events."""
    questions = _questions(body)
    if body.stream and len(questions) > 1:
        raise InvalidRequest(
            f"prompt holds {len(questions)} prompts; a stream answers one", param="prompt"
        )
    behind = Mark.of(ask.last_event_of(body))
    outcomes = await asyncio.gather(
        *(
            ask.submit("cmpl-", body, question, place=place)
            for place, question in enumerate(questions)
        ),
        return_exceptions=True,
    )
    jobs = await _all_or_none(outcomes)
    created_s = accepted_s(await jobs[0].status())
    if not body.stream:
        results = await while_connected(request, _results(jobs))
        return JSONResponse(_whole(results, body, created_s))
    form = CompletionEvents(
        *(jobs[0].id, body.model, created_s),
        with_usage=body.wants_usage,
        with_ids=body.return_token_ids,
        with_event_ids=ask.can_ask_again(body),
        behind=behind,
    )
    return await told_in_events(jobs[0], form, ask.settings.first_entry_wait)


class CompletionEvents(CompletionForm):
    """A completion in events."""

    kind = "text_completion"

    def choices(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """Say what is new, and how it ended."""
        yield self.event(_choice(0, chunk.text, chunk.finish_reason), chunk.ids)


def _questions(body: CompletionBody) -> list[JobSpec]:
    sampling = sampling_of(body)
    prompts: Any = body.prompt
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        prompts = [prompts]
    if not prompts:
        raise InvalidRequest("prompt is empty; give at least one token of input", param="prompt")
    if len(prompts) > MAX_PROMPTS:
        raise InvalidRequest(
            f"prompt holds {len(prompts)} prompts; at most {MAX_PROMPTS}", param="prompt"
        )
    return [
        JobSpec(prompt=one, sampling=sampling)
        if isinstance(one, str)
        else JobSpec(prompt_ids=one, sampling=sampling)
        for one in prompts
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
        **head_of(results[0].id, "text_completion", created_s, body.model),
        "choices": choices,
        "usage": usage_of(usage),
    }


def _choice(place: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": place, "text": text, "logprobs": None, "finish_reason": finish_reason}

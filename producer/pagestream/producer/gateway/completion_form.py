"""What `/v1/chat/completions` and `/v1/completions` say alike: heads, usage, and telling in events.

This module knows no requests' questions and no queues.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi.responses import Response

from ..errors import InvalidRequest
from ..job import AsyncJob, Chunk
from ..protocol import Usage
from .events import DONE, Event, event_response
from .waiting import first_answer

BEGINNING = "0-0"
"""Id of what comes before the first entry."""

_EVENT_ID = re.compile(r"([0-9]{1,18})-([0-9]{1,18})(?:\.([1-9]))?")


class Mark(msgspec.Struct, frozen=True):
    """How far a reader has been told an answer: behind an entry, and some events of the next."""

    entry: str
    events: int = 0

    @classmethod
    def of(cls, event_id: str | None, field: str = "Last-Event-ID") -> "Mark | None":
        """Take it from an event's id, which the request has in `field`; None where it has none.

        Raises:
            InvalidRequest: no event can have this id.
        """
        if event_id is None:
            return None
        match = _EVENT_ID.fullmatch(event_id)
        if match is None:
            raise InvalidRequest(
                f"{field}: {event_id!r} is not an event's id, like '1-17'", param=field
            )
        epoch, offset, told = match.groups()
        if told is None:
            return cls(event_id)
        # Only the end is told in several events, and its offset is one more than the last token's.
        return cls(f"{epoch}-{max(0, int(offset) - 1)}", int(told))


class CompletionForm:
    """What each event of one answer begins with, and what it may add."""

    kind: str
    """OpenAI's name of such an event."""
    done = DONE

    def __init__(
        self,
        job_id: str,
        model: str,
        created_s: int,
        *,
        with_usage: bool,
        with_ids: bool = False,
        with_event_ids: bool,
        behind: Mark | None = None,
    ) -> None:
        """Say what is told of a job.

        Args:
            job_id: the answer's id.
            model: its name in the request.
            created_s: when the job was accepted.
            with_usage: an event of the token counts ends it.
            with_ids: choices have their token ids.
            with_event_ids: events have an SSE `id:`, beside the field `event_id` that all have. Not
                where nobody can ask the same again: vLLM's benchmark cannot read such lines.
            behind: where to begin; None is the beginning.
        """
        self._head = head_of(job_id, self.kind, created_s, model)
        self._with_usage = with_usage
        self._with_ids = with_ids
        self._with_event_ids = with_event_ids
        self._has_begun = behind is not None
        self.behind = behind

    def opening(self) -> Iterator[Event]:
        """Nothing before the first chunk: some readers measure the time to the first event."""
        return iter(())

    def of(self, chunk: Chunk) -> Iterator[Event]:
        """Say what a chunk says that the reader was not told.

        The last event of an entry has the entry's id, `1-18`; those before it `1-18.1`, `1-18.2`.
        """
        if not self._has_begun:
            self._has_begun = True
            yield from (self._named(message, BEGINNING) for message in self.beginning())
        messages = [*self.choices(chunk), *self._usage(chunk.usage)]
        is_end = chunk.finish_reason is not None
        has_failed = is_end and chunk.finish_reason not in ("stop", "length")
        told = self.behind.events if self.behind is not None and is_end else 0
        for number, message in enumerate(messages, 1):
            inside = "" if number == len(messages) else f".{number}"
            if number > told:
                yield self._named(message, None if has_failed else f"{chunk.id}{inside}")

    def _named(self, message: dict[str, Any], event_id: str | None) -> Event:
        if event_id is None:
            return Event(message, None)
        return Event({**message, "event_id": event_id}, event_id if self._with_event_ids else None)

    def beginning(self) -> Iterator[dict[str, Any]]:
        """What comes before the first chunk's own: nothing."""
        return iter(())

    def choices(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """What a chunk says beside the token counts."""
        raise NotImplementedError

    def event(self, choice: dict[str, Any], ids: tuple[int, ...]) -> dict[str, Any]:
        """Return the event of a choice."""
        more = {"token_ids": ids} if self._with_ids else {}
        return {**self._head, "choices": [{**choice, **more}]}

    def _usage(self, usage: Usage | None) -> list[dict[str, Any]]:
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


async def told_in_events(job: AsyncJob, form: CompletionForm, wait_s: float) -> Response:
    """Tell a job in events, from where its form begins.

    The headers wait `wait_s` for the first token, at most.

    Raises:
        PagestreamError: the job ended badly before its first token, or cannot be read.
    """
    stream = job.stream(form.behind and form.behind.entry)
    first = await first_answer(stream, wait_s)
    return event_response(stream, form, first)

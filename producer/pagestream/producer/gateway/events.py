"""Server-sent events of one reply stream. An event's id says where to go on behind it.

So a browser's `Last-Event-ID` works on any gateway. What an event says, and its id, are its form's
matter. A failure has no id: who comes back is told it again, or what a retried job says since.
This module knows no requests.

Source: WHATWG HTML, "Server-sent events".
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, NamedTuple, Protocol

import msgspec
from fastapi.responses import StreamingResponse

from ..errors import PagestreamError
from ..job import Chunk, TokenStream
from .failures import body_of

KEEP_ALIVE_S = 15.0
"""Silence after which something is sent that says nothing, so that proxies keep the connection."""

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_encode = msgspec.json.Encoder().encode


class Event(NamedTuple):
    """One event of an answer."""

    message: dict[str, Any]
    id: str | None
    """What to come back with for what is behind it; None leaves that as it was."""


class Form(Protocol):
    """How one kind of answer is told in events."""

    done: bytes
    """What ends a whole stream."""

    def opening(self) -> Iterable[Event]:
        """What is told at once."""
        ...

    def of(self, chunk: Chunk) -> Iterable[Event]:
        """What a chunk says."""
        ...


DONE = b"data: [DONE]\n\n"


def event_response(stream: TokenStream, form: Form, first: list[Chunk] | None) -> StreamingResponse:
    """Return the response that tells a stream to its end; `first` chunks are already taken."""
    body = _body(stream, form, first)
    return StreamingResponse(body, media_type="text/event-stream", headers=_HEADERS)


def frame(message: dict[str, Any], event_id: str | None = None) -> bytes:
    """Return one event."""
    head = b"" if event_id is None else b"id: %b\n" % event_id.encode()
    if "type" in message:
        head += b"event: %b\n" % message["type"].encode()
    return head + b"data: %b\n\n" % _encode(message)


async def _body(stream: TokenStream, form: Form, first: list[Chunk] | None) -> AsyncIterator[bytes]:
    async with stream:
        opening = list(form.opening())
        yield _frames(opening)
        has_ids = any(event.id for event in opening)
        chunks = first
        while True:
            if chunks is None:
                yield _nothing(has_ids)
            elif not chunks:
                yield form.done
                return
            else:
                events = [event for chunk in chunks for event in form.of(chunk)]
                yield _frames(events)
                has_ids = has_ids or any(event.id for event in events)
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    chunks = await stream.take()
            except TimeoutError:
                chunks = None
            except PagestreamError as error:
                yield frame(body_of(error))
                return


def _frames(events: Iterable[Event]) -> bytes:
    return b"".join(frame(*event) for event in events)


def _nothing(has_ids: bool) -> bytes:
    # Behind an id OpenAI's client takes a blank line for an event; vLLM's benchmark loses what
    # follows a comment. Two, because some readers part a stream at empty lines.
    return b": waiting\n" if has_ids else b"\n\n"

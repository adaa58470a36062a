"""Waits for answers as long as the client does, and for a stream's first news before its headers.

This module knows no jobs' contents and no formats.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from ..job import Chunk, TokenStream

T = TypeVar("T")


CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client left before it was answered: for counts alone."""


class HungUp(Exception):
    """The client has closed the connection: nobody waits for the answer."""


async def while_connected(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Return the answer; stop waiting for it, and so reading the job, when the client hangs up.

    Raises:
        HungUp: it did.
    """
    waiting = asyncio.create_task(answer)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise HungUp
        return waiting.result()
    finally:
        for task in (waiting, gone):
            task.cancel()
        await asyncio.gather(waiting, gone, return_exceptions=True)


async def first_chunks(stream: TokenStream, wait_s: float) -> list[Chunk] | None:
    """Return a stream's first chunks, or None if nothing came in `wait_s`: it may be queued long.

    Raises:
        PagestreamError: there is no such job, or it cannot be read.
    """
    try:
        async with asyncio.timeout(wait_s):
            return await stream.take()
    except TimeoutError:
        return None


async def first_answer(stream: TokenStream, wait_s: float) -> list[Chunk] | None:
    """As `first_chunks`, and a job that ended badly before its first token is an error here."""
    chunks = await first_chunks(stream, wait_s)
    is_broken_off = chunks and chunks[-1].finish_reason in ("cancelled", "expired", "error")
    if is_broken_off and not any(chunk.ids for chunk in chunks or ()):
        await stream.take()  # raises what the end stands for
    return chunks


async def _gone(request: Request) -> None:
    # The body has been read: the next message is the end of the connection.
    while (await request.receive())["type"] != "http.disconnect":
        pass

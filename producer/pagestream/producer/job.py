"""A job's handle, its token stream, and its result.

A handle is an id and a client: any process can make one for any job. What it reads is the reply
stream, which holds the whole answer until the job's retention has passed; nothing here keeps state
that a second reader, or the same one after a crash, could miss.
This module knows entries and how they add up: no connections, no scripts.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self

import msgspec

from .errors import InvalidRequest, JobCancelled, JobExpired, JobFailed, PagestreamError
from .protocol import Entry, FinishReason, JobState, Timings, Usage

if TYPE_CHECKING:
    from .store import JobStore

_CURSOR = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")
_CLAIMED = "1-0"
"""The entry of a job's first claim: what is before it, or it, is no chunk."""

CancelOutcome = Literal["cancelled", "cancelling", "finished", "unknown"]
"""What a cancel found: a queued job (over at once), a running one (over in a step), or neither."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """New output of a job."""

    id: str
    """The cursor: `stream(after=chunk.id)` goes on behind this chunk.

    The last chunk of a job that failed has the cursor of the one before: a dead job may be retried,
    and then its tokens go on from there."""
    text: str = ""
    """May be empty while a character, or what may become a stop string, is incomplete."""
    ids: tuple[int, ...] = ()
    index: int = 0
    """Position of the first of `ids` in the output."""
    choice: int = 0
    finish_reason: FinishReason | None = None
    """On the last chunk only."""
    usage: Usage | None = None
    """On the last chunk only."""
    timings: Timings | None = None
    """On the last chunk only."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A finished job's whole answer."""

    id: str
    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A job's record as it is now; times in Redis' ms since 1970, None where not reached."""

    id: str
    state: JobState
    lane: str
    tenant: str
    epoch: int
    """Claims so far: a job that was handed back or recovered has more than one."""
    crashes: int
    """Workers that died while they held the job."""
    worker: str | None = None
    reader_timeout_ms: int | None = None
    queued_ms: int | None = None
    claimed_ms: int | None = None
    finished_ms: int | None = None


class Progress:
    """How far a reader has come, so that no token reaches it twice.

    Entries come in order and once as long as Redis keeps its writes. When it forgot the last ones,
    tokens are written again under new entry ids; by their offsets they are recognised and left out.
    """

    def __init__(self, after: str | None) -> None:
        self.tokens = 0
        """Output tokens given to the reader, over all choices."""
        self.chars: int | None = 0
        """Characters given, or None where reading began in the middle."""
        if after is not None:
            self.tokens = int(after.split("-")[1])
            self.chars = 0 if self.tokens == 0 else None
        self._cursor = after or "0-0"

    def straddles(self, entry: Entry) -> bool:
        """Return whether the entry begins with tokens the reader has and goes on beyond them."""
        return entry.event == "tokens" and (
            entry.offset - len(entry.ids) < self.tokens < entry.offset
        )

    def trim(self, entry: Entry, text_before: str) -> Entry:
        """Cut off what the reader has; `text_before` is the stream's text before the entry."""
        known = self.tokens - (entry.offset - len(entry.ids))
        # A reader that began in the middle does not know where in the text it stands.
        cut = max(0, self.chars - len(text_before)) if self.chars is not None else 0
        return msgspec.structs.replace(
            entry, start=entry.start + known, ids=entry.ids[known:], text=entry.text[cut:]
        )

    def accept(self, entry: Entry) -> Chunk | None:
        """Count the entry and return it as a chunk; None when it says nothing new."""
        if entry.event == "end":
            return self._chunk(entry)
        if entry.event != "tokens" or entry.offset <= self.tokens:
            return None
        self.tokens = entry.offset
        return self._chunk(entry)

    def _chunk(self, entry: Entry) -> Chunk:
        if self.chars is not None:
            self.chars += len(entry.text)
        ended = entry.event == "end"
        if not ended or entry.reason in ("stop", "length"):
            self._cursor = entry.id
        return Chunk(
            id=self._cursor,
            text=entry.text,
            ids=entry.ids,
            index=self.tokens if ended else entry.start,
            choice=entry.choice,
            finish_reason=entry.reason,
            usage=entry.usage if ended else None,
            timings=entry.timings if ended else None,
        )


class Source(Protocol):
    """Where a token stream's entries come from: the shared reader, or a pub/sub mirror."""

    async def take(self) -> list[Entry]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class TokenStream(AsyncIterator[Chunk]):
    """A job's chunks in order; iterate it, or `take` all there are.

    After the last chunk the iteration ends, or raises what became of the job. Leaving early costs
    nothing: the job goes on, and another stream can start from `cursor`.
    """

    def __init__(self, job: "AsyncJob", source: Source, after: str | None) -> None:
        self.cursor = after
        """Id of the last chunk given."""
        self._job = job
        self._source = source
        self._behind: str | None = after
        """Where reading begins, until it is known that more can come."""
        self._progress = Progress(after)
        self._entries: deque[Entry] = deque()
        self._chunks: deque[Chunk] = deque()
        self._ended = False
        self._error: PagestreamError | None = None
        self._loop = asyncio.get_running_loop()

    async def take(self) -> list[Chunk]:
        """Wait for new output and return all of it; an empty list is the end.

        Raises:
            JobFailed: the job ended in an error; or `JobCancelled`, `JobExpired`.
            JobNotFound: there is no such job.
            JobLost: Redis no longer has the job.
            QueueUnavailable: Redis could not be reached for too long.
        """
        await self._fill()
        chunks = list(self._chunks)
        self._chunks.clear()
        if chunks:
            self.cursor = chunks[-1].id
        return chunks

    async def __anext__(self) -> Chunk:
        if not self._chunks:
            await self._fill()
            if not self._chunks:
                raise StopAsyncIteration
        chunk = self._chunks.popleft()
        self.cursor = chunk.id
        return chunk

    async def _fill(self) -> None:
        """Wait until there is a chunk or the end; a cancelled wait loses nothing."""
        while not self._chunks and not self._ended:
            if not self._entries:
                await self._job.check_known()
                if self._behind is not None and await self._job.ends_at(self._behind):
                    await self.aclose()
                    return
                self._behind = None
                self._entries.extend(await self._source.take())
            while self._entries:
                entry = self._entries[0]
                if self._progress.straddles(entry):
                    text_before = await self._job.text_before(entry)
                    entry = self._progress.trim(entry, text_before)
                self._entries.popleft()
                if (chunk := self._progress.accept(entry)) is not None:
                    self._chunks.append(chunk)
                if entry.event == "end":
                    self._end(entry)
        if not self._chunks and self._error is not None:
            raise self._error

    def _end(self, entry: Entry) -> None:
        self._ended = True
        self._error = error_of(self._job.id, entry)
        self._entries.clear()
        self._source.close()

    async def aclose(self) -> None:
        """Stop reading; the job goes on."""
        self._ended = True
        self._source.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # A stream left in the middle is collected in whatever thread; its line lives in the loop's.
        if not self._ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._source.close)


class AsyncJob:
    """One job of a queue: read it, ask after it, cancel it, delete it."""

    def __init__(
        self,
        store: "JobStore",
        job_id: str,
        *,
        submitted: bool,
        attached: bool,
        reader_timeout_ms: int | None = None,
    ) -> None:
        self.id = job_id
        self.attached = attached
        """Whether `submit` found the job already there, with the same payload."""
        self.reader_timeout_ms: int | None = reader_timeout_ms
        """Readers are counted where this is set; read with the record of a job found by its id."""
        self._store = store
        self._known = submitted

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {self._store.keys.queue}>"

    def stream(self, after: str | None = None) -> TokenStream:
        """Return the job's chunks from behind the cursor `after`, or from the first.

        Any number of readers may read one job, while it runs or later, in any process: each gets
        the same tokens.

        Raises:
            InvalidRequest: `after` is not a cursor.
        """
        _check_cursor(after)
        # A new job need not be read twice, once at its claim and once for its tokens.
        behind = after if self.attached else after or _CLAIMED
        feed = self._store.feed(self.id, behind)
        return TokenStream(self, self._store.attended(self, feed), after)

    def subscribe(self, after: str | None = None) -> TokenStream:
        """Return the same chunks, taken from the pub/sub mirror of a job with `mirror=True`.

        The mirror delivers at most once: a slow or disconnected subscriber misses messages without
        notice. Each message carries its entry's id, so a gap shows, and is filled from the stream;
        a quiet second is taken as a possible gap. What you get is therefore what `stream` gives. It
        costs a connection a job where `stream` shares one, and a job without a mirror comes once a
        second.
        """
        _check_cursor(after)
        mirror = self._store.mirror(self.id, after)
        return TokenStream(self, self._store.attended(self, mirror), after)

    async def result(self, timeout_ms: int | None = None) -> Result:
        """Wait for the end and return the whole answer.

        Raises:
            TimeoutError: the job has not ended within `timeout_ms`; it goes on.
            JobFailed: the job ended in an error; or `JobCancelled`, `JobExpired`.
            JobNotFound: there is no such job.
            JobLost: Redis no longer has the job; submit it again under the same id.
            QueueUnavailable: Redis could not be reached for too long.
        """
        ids: list[int] = []
        text: list[str] = []
        last = Chunk(id="")
        async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000):
            async with self.stream() as stream:
                while chunks := await stream.take():
                    for chunk in chunks:
                        ids.extend(chunk.ids)
                        text.append(chunk.text)
                    last = chunks[-1]
        assert last.finish_reason, "a stream that ends without an error ends with a reason"
        assert last.usage is not None, "the last chunk carries usage"
        assert last.timings is not None, "the last chunk carries timings"
        return Result(
            id=self.id,
            text="".join(text),
            ids=tuple(ids),
            finish_reason=last.finish_reason,
            usage=last.usage,
            timings=last.timings,
        )

    async def status(self) -> JobStatus:
        """Return the job's record as it is now.

        Raises:
            JobNotFound: there is no such job, or its retention has passed.
            QueueUnavailable: Redis cannot be reached.
        """
        return await self._store.status(self.id)

    async def cancel(self) -> CancelOutcome:
        """Cancel the job; its readers get what was published, then `JobCancelled`.

        Raises:
            QueueUnavailable: Redis cannot be reached.
        """
        return await self._store.cancel(self.id)

    async def delete(self) -> bool:
        """Delete all that Redis holds of the job, running or not; return whether there was any.

        Raises:
            QueueUnavailable: Redis cannot be reached.
        """
        return await self._store.delete(self.id)

    async def check_known(self) -> None:
        """Make sure once that the job exists: waiting for one that never did would not end.

        Raises:
            JobNotFound: there is no such job.
        """
        if not self._known:
            self.reader_timeout_ms = (await self.status()).reader_timeout_ms
            self._known = True

    async def ends_at(self, cursor: str) -> bool:
        """Return whether the job has ended and nothing is behind a cursor: no entry will come."""
        state = (await self.status()).state
        if state in ("queued", "running"):
            return False
        return not await self._store.entries(self.id, cursor)

    async def text_before(self, entry: Entry) -> str:
        """Return the text of the stream's entries before `entry`, of its choice."""
        entries = await self._store.entries(self.id, None)
        before = [
            one for one in entries if one.choice == entry.choice and one.offset < entry.offset
        ]
        return "".join(one.text for one in before)


def error_of(job_id: str, end: Entry) -> JobFailed | None:
    """Return the error that a terminal entry stands for, or None for an answer."""
    if end.reason in ("stop", "length"):
        return None
    because = f": {end.message}" if end.message else ""
    if end.reason == "cancelled":
        return JobCancelled(f"job {job_id} was cancelled{because}")
    if end.reason == "expired":
        return JobExpired(f"job {job_id} ran out of time{because}")
    return JobFailed(f"job {job_id} failed{because}", code=end.error or "error")


def _check_cursor(after: str | None) -> None:
    if after is not None and not _CURSOR.fullmatch(after):
        raise InvalidRequest(
            f"after={after!r} is not a cursor; pass the id of a chunk, like '1-17'"
        )

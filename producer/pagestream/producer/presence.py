"""Says for every open token stream that somebody reads it: a client's side of `reader_timeout_ms`.

One task a client renews all its readers in one call, three times in the shortest timeout, however
many tokens come. A job without the timeout costs nothing. This module knows ids and times: no
Redis, no entries.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from .errors import PagestreamError
from .job import Source
from .protocol import Entry

RENEWALS_PER_TIMEOUT = 3
JOBS_PER_CALL = 1_000

_log = logging.getLogger(__name__)


class Attended(Protocol):
    """A job that may want its readers to be counted."""

    id: str
    reader_timeout_ms: int | None


class Presence:
    """The readers of one client; belongs to one event loop."""

    def __init__(self, renew: Callable[[Sequence[str]], Awaitable[object]]) -> None:
        """`renew(ids)` tells Redis that these jobs are read."""
        self._renew = renew
        self._readers: dict[ReadSource, Attended] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self, reader: "ReadSource", job: Attended) -> None:
        """Count a reader, at once and until its end; harmless twice."""
        if job.reader_timeout_ms is None or reader in self._readers:
            return
        self._readers[reader] = job
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="pagestream-presence")

    def end(self, reader: "ReadSource") -> None:
        """Count it no more; harmless twice."""
        self._readers.pop(reader, None)

    async def aclose(self) -> None:
        """Stop renewing: whoever reads from here does not any more."""
        self._readers.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._readers:
            self._changed.clear()
            timeouts = {job.id: job.reader_timeout_ms or 0 for job in self._readers.values()}
            ids = list(timeouts)
            try:
                for start in range(0, len(ids), JOBS_PER_CALL):
                    await self._renew(ids[start : start + JOBS_PER_CALL])
            except PagestreamError as error:
                _log.warning("readers could not be renewed: %s", error)
            pause_s = min(timeouts.values()) / 1000 / RENEWALS_PER_TIMEOUT
            try:
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                continue


class ReadSource:
    """A source of entries whose reader counts from the first `take` to `close`."""

    def __init__(self, source: Source, presence: Presence, job: Attended) -> None:
        self._source = source
        self._presence = presence
        self._job = job

    async def take(self) -> list[Entry]:
        """Wait for entries, as the source does."""
        self._presence.begin(self, self._job)
        return await self._source.take()

    def close(self) -> None:
        """Stop reading; harmless twice."""
        self._presence.end(self)
        self._source.close()

"""Takes the ends of jobs that name a webhook from their queues, and has them told.

A queue's keys and those of what is due are on different slots, so an end is put there before it is
taken here: it may be told twice, under one id, and is never forgotten.
"""

import logging

import msgspec

from ..calls import Calls
from ..keys import QUEUES, Keys
from .events import JobEnd, of_job
from .store import HookStore

PAGE = 500
"""Ends taken from a queue in one go."""
LOOK_MS = 500

log = logging.getLogger(__name__)


class Collector:
    """Looks through every queue; belongs to one event loop."""

    def __init__(self, calls: Calls, store: HookStore) -> None:
        self._calls = calls
        self._store = store

    async def collect(self, _: str) -> int:
        """Take what has ended; return in how many ms to look again.

        Raises:
            QueueUnavailable: Redis cannot be reached.
        """
        is_more = False
        for name in await self._calls.command("SMEMBERS", QUEUES):
            is_more |= await self._take(name.decode())
        return 0 if is_more else LOOK_MS

    async def _take(self, queue: str) -> bool:
        key = Keys(queue).hooks
        page = await self._calls.command("XRANGE", key, "-", "+", "COUNT", PAGE)
        for entry_id, fields in page:
            text = {name.decode(): value.decode() for name, value in fields.items()}
            try:
                hook = of_job(queue, entry_id.decode(), msgspec.convert(text, JobEnd))
            except msgspec.ValidationError as error:
                log.error("an end in %s cannot be read, and is dropped: %s", key, error)
                continue
            await self._store.put(hook)
        if page:
            await self._calls.command("XDEL", key, *(entry_id for entry_id, _ in page))
        return len(page) == PAGE

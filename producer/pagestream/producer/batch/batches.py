"""Records of batches, and the answers of their lines until these are files.

Every change of status is one script, so that of several runners one makes it; a line's answer is
kept once, whoever computed it. This module knows no lines' contents and nobody who runs them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, Unpack

import msgspec

from ..calls import Calls
from ..errors import InvalidRequest
from ..hooks.urls import check_url
from ..keys import FILE_RETENTION_MS, Around
from ..lua import Argument, Script
from .files import NotHere, newest
from .lines import Kind, Problem

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
ENDED: tuple[Status, ...] = ("failed", "completed", "expired", "cancelled")

WINDOWS = {"24h": 24 * 3_600_000}
"""OpenAI's words for how long a batch may take, in ms."""


class BatchNotFound(NotHere):
    """There is no such batch: it never was, is another tenant's, or its retention has passed."""

    code = "batch_not_found"


class Asking(TypedDict):
    """What a batch is asked."""

    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    webhook: NotRequired[str | None]
    queue_limit: NotRequired[int | None]


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch is from its beginning."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    created_ms: int
    """In Redis's ms since 1970, as all of them."""
    expires_ms: int
    webhook: str | None = None
    """Who is told of its end."""
    queue_limit: int | None = None
    """Unfinished jobs its tenant may have, where whoever asked for it had a bound of its own."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as it is now."""

    about: About
    status: Status
    total: int
    """Lines; 0 until they have been counted."""
    completed: int
    failed: int
    reached_ms: Mapping[str, int]
    """When it came to each status."""
    problems: Sequence[Problem]
    """Why it failed before it began."""
    output_file_id: str | None
    error_file_id: str | None

    @property
    def ended(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.status in ENDED


class BatchStore:
    """The batches of one Redis; belongs to one event loop.

    Every method raises `QueueUnavailable` when Redis cannot be reached.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._move = Script("batch_move")
        self._record = Script("batch_record")

    async def create(self, batch_id: str, **asked: Unpack[Asking]) -> Batch:
        """Create a batch, or return the one that has this id and asks the same.

        Raises:
            InvalidRequest: the window or the webhook is none, or the id is a batch's that asks
                something else.
        """
        window = asked["completion_window"]
        if window not in WINDOWS:
            raise InvalidRequest(f"completion_window={window!r} is not one of {', '.join(WINDOWS)}")
        if (webhook := asked.get("webhook")) is not None:
            check_url(webhook)
        now_ms = await self._calls.now_ms()
        about = About(id=batch_id, created_ms=now_ms, expires_ms=now_ms + WINDOWS[window], **asked)
        key = Around.batch(batch_id)
        await self._calls.command("HSETNX", key, "about", msgspec.json.encode(about))
        await self._calls.command("HSETNX", key, "status", "validating")
        await self._calls.command("PEXPIRE", key, WINDOWS[window] + FILE_RETENTION_MS)
        await self._calls.command("ZADD", Around.batches(about.tenant), "NX", now_ms, batch_id)
        batch = await self.get(batch_id, about.tenant)
        known = batch.about
        same = msgspec.structs.replace(
            about,
            created_ms=known.created_ms,
            expires_ms=known.expires_ms,
            queue_limit=known.queue_limit,
        )
        if same != known:
            raise InvalidRequest(f"the batch {batch_id} asks something else; take another key")
        return batch

    async def get(self, batch_id: str, tenant: str | None = None) -> Batch:
        """Return a batch; of any tenant if none is named.

        Raises:
            BatchNotFound: there is none of this id.
        """
        key = Around.batch(batch_id)
        fields: dict[bytes, bytes] = await self._calls.command("HGETALL", key)
        known = {name.decode(): value for name, value in fields.items()}
        if not {"about", "status"} <= known.keys():
            raise _missing(batch_id)
        about = msgspec.json.decode(known["about"], type=About)
        if tenant not in (None, about.tenant):
            raise _missing(batch_id)
        for count, kind in (("completed", "output"), ("failed", "errors")):
            if count not in known:
                known[count] = await self._calls.command("HLEN", f"{key}:{kind}")
        return Batch(
            about=about,
            status=msgspec.convert(known["status"].decode(), Status),
            total=int(known.get("total", 0)),
            completed=int(known["completed"]),
            failed=int(known["failed"]),
            reached_ms={
                name.removesuffix("_ms"): int(value)
                for name, value in known.items()
                if name.endswith("_ms")
            },
            problems=msgspec.json.decode(known.get("problems", b"[]"), type=list[Problem]),
            output_file_id=_text(known.get("output_file_id")),
            error_file_id=_text(known.get("error_file_id")),
        )

    async def page(self, tenant: str, *, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """Return a tenant's batches, the newest first, and whether there are more.

        Args:
            tenant: whose.
            after: begin behind this batch.
            limit: so many at most.

        Raises:
            BatchNotFound: there is no batch `after`.
        """
        return await newest(
            self._calls, Around.batches(tenant), lambda one: self.get(one, tenant), after, limit
        )

    async def move(
        self, batch_id: str, since: Sequence[Status], to: Status, **fields: Argument
    ) -> bool:
        """Move a batch to a status, with fields, if it has one of `since`; return if it did."""
        pairs = [one for pair in fields.items() for one in pair]
        moved = await self._calls.run(
            lambda: self._move.run(
                self._calls.client, Around.batch(batch_id), ",".join(since), to, *pairs
            )
        )
        return moved == 1

    async def record(self, batch_id: str, number: int, kind: Kind, answer: bytes) -> bool:
        """Keep a line's answer; return False if it has one, or the batch takes no more."""
        kept = await self._calls.run(
            lambda: self._record.run(
                self._calls.client, Around.batch(batch_id), number, kind, answer
            )
        )
        return kept == 1

    async def answered(self, batch_id: str) -> set[int]:
        """Return the numbers of the lines that have an answer."""
        return {
            int(number)
            for kind in ("output", "errors")
            for number in await self._calls.command("HKEYS", f"{Around.batch(batch_id)}:{kind}")
        }

    async def answers(
        self, batch_id: str, kind: Kind, numbers: Sequence[int]
    ) -> list[bytes | None]:
        """Return the answers of lines, where they have one."""
        return await self._calls.command("HMGET", f"{Around.batch(batch_id)}:{kind}", *numbers)

    async def is_late(self, batch: Batch) -> bool:
        """Return whether the batch has no time left."""
        return await self._calls.now_ms() >= batch.about.expires_ms

    async def close(self, batch_id: str) -> None:
        """Let no line have an answer any more; a batch in progress is then `finalizing`."""
        await self.move(batch_id, ["in_progress"], "finalizing", closed=1)
        await self.move(batch_id, ["cancelling"], "cancelling", closed=1)

    async def forget_answers(self, batch_id: str) -> None:
        """Drop the answers of a batch whose files hold them."""
        key = Around.batch(batch_id)
        await self._calls.command("DEL", f"{key}:output", f"{key}:errors")


def _missing(batch_id: str) -> BatchNotFound:
    return BatchNotFound(f"there is no batch {batch_id!r} here, or its retention has passed")


def _text(value: Any) -> str | None:
    return value.decode() if value else None

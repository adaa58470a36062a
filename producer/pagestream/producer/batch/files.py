"""Files in Redis, in pieces: what a batch is asked, and what it answered.

A file is there once its `about` is written, which comes last: an upload that broke off is none, and
is gone after an hour. No piece is changed afterwards. This module knows no lines.
"""

import hashlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TypeVar

import msgspec

from ..calls import Calls
from ..errors import InvalidRequest, PagestreamError
from ..keys import FILE_RETENTION_MS, Around

T = TypeVar("T")

PIECE_BYTES = 1 << 20
UPLOAD_MS = 3_600_000
"""How long an upload may take; what is left of one that broke off is gone after it."""


class NotHere(PagestreamError):
    """There is none of this id here."""


class FileNotFound(NotHere):
    """There is no such file: it never was, is another tenant's, or its retention has passed."""

    code = "file_not_found"


class FileTooLarge(InvalidRequest):
    """The file has more bytes than a file may have."""

    code = "file_too_large"


class File(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a file beside its content."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_ms: int
    """In Redis's ms since 1970."""
    expires_ms: int

    @property
    def pieces(self) -> int:
        """How many pieces its content is in."""
        return -(-self.bytes // PIECE_BYTES)


class FileStore:
    """The files of one Redis; belongs to one event loop."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def create(
        self,
        content: AsyncIterable[bytes],
        *,
        tenant: str,
        filename: str,
        purpose: str,
        bytes_max: int | None = None,
        file_id: str | None = None,
    ) -> File:
        """Store a file and return what is known of it.

        Args:
            content: its bytes, in parts of any size.
            tenant: whose it is.
            filename: what its owner calls it.
            purpose: OpenAI's word for what it is for.
            bytes_max: refuse more.
            file_id: makes the call one that may be repeated with the same content.

        Raises:
            FileTooLarge: the content has more than `bytes_max` bytes; nothing is left of it.
            QueueUnavailable: Redis cannot be reached. `RedisFull` is a kind of it.
        """
        file_id = file_id or new_id("file-")
        key = Around.file(file_id)
        total_bytes, pieces = 0, 0
        async for piece in _in_pieces(content):
            total_bytes += len(piece)
            if bytes_max is not None and total_bytes > bytes_max:
                await self._calls.command("DEL", key)
                raise FileTooLarge(
                    f"the file {filename!r} has more than {bytes_max:,} bytes; cut it in several"
                )
            await self._calls.command("HSET", key, str(pieces), piece)
            if pieces == 0:
                await self._calls.command("PEXPIRE", key, UPLOAD_MS)
            pieces += 1
        now_ms = await self._calls.now_ms()
        about = File(
            id=file_id,
            tenant=tenant,
            filename=filename,
            purpose=purpose,
            bytes=total_bytes,
            created_ms=now_ms,
            expires_ms=now_ms + FILE_RETENTION_MS,
        )
        await self._calls.command("HSET", key, "about", msgspec.json.encode(about))
        await self._calls.command("PEXPIRE", key, FILE_RETENTION_MS)
        await self._calls.command("ZADD", Around.files(tenant), now_ms, file_id)
        return about

    async def get(self, file_id: str, tenant: str) -> File:
        """Return what is known of a tenant's file.

        Raises:
            FileNotFound: it has none of this id.
            QueueUnavailable: Redis cannot be reached.
        """
        about: bytes | None = await self._calls.command("HGET", Around.file(file_id), "about")
        file = msgspec.json.decode(about, type=File) if about else None
        if file is None or file.tenant != tenant:
            raise FileNotFound(f"there is no file {file_id!r} here, or its retention has passed")
        return file

    async def content(self, file: File) -> AsyncIterator[bytes]:
        """Yield a file's pieces.

        Raises:
            FileNotFound: it was deleted meanwhile.
            QueueUnavailable: Redis cannot be reached.
        """
        for place in range(file.pieces):
            piece: bytes | None = await self._calls.command(
                "HGET", Around.file(file.id), str(place)
            )
            if piece is None:
                raise FileNotFound(f"the file {file.id!r} is no longer here")
            yield piece

    async def lines(self, file: File) -> AsyncIterator[tuple[int, bytes]]:
        """Yield (number from 1, line) of each line that is not blank; raises as `content`."""
        number, rest = 0, b""
        async for piece in self.content(file):
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                number += 1
                if line.strip():
                    yield number, line
        if rest.strip():
            yield number + 1, rest

    async def page(self, tenant: str, *, after: str | None, limit: int) -> tuple[list[File], bool]:
        """Return a tenant's files, the newest first, and whether there are more than `limit`.

        Raises:
            FileNotFound: there is no file `after`, behind which to begin.
            QueueUnavailable: Redis cannot be reached.
        """
        return await newest(
            self._calls, Around.files(tenant), lambda one: self.get(one, tenant), after, limit
        )

    async def keep(self, file: File, for_ms: int) -> None:
        """Keep a file for at least so long from now.

        Raises:
            QueueUnavailable: Redis cannot be reached.
        """
        left_ms = await self._calls.command("PTTL", Around.file(file.id))
        if 0 <= left_ms < for_ms:
            await self._calls.command("PEXPIRE", Around.file(file.id), for_ms)

    async def delete(self, file: File) -> None:
        """Delete a file.

        Raises:
            QueueUnavailable: Redis cannot be reached.
        """
        await self._calls.command("DEL", Around.file(file.id))
        await self._calls.command("ZREM", Around.files(file.tenant), file.id)


def new_id(kind: str) -> str:
    """Return a new random id that begins with `kind`."""
    return f"{kind}{os.urandom(16).hex()}"


def made_id(kind: str, *parts: str) -> str:
    """Return the id that stands for `parts`: the same for the same ones."""
    digest = hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogatepass"), digest_size=16)
    return f"{kind}{digest.hexdigest()}"


async def newest(
    calls: Calls,
    index: str,
    get: Callable[[str], Awaitable[T]],
    after: str | None,
    limit: int,
) -> tuple[list[T], bool]:
    """Return what an index names, newest first, and whether there is more; drop what has expired.

    Raises:
        PagestreamError: `after` is not there: what `get` raises.
    """
    ids = [one.decode() for one in await calls.command("ZREVRANGE", index, 0, -1)]
    if after is not None:
        await get(after)
        ids = ids[ids.index(after) + 1 :]
    found: list[T] = []
    for one in ids:
        if len(found) == limit:
            return found, True
        try:
            found.append(await get(one))
        except NotHere:
            await calls.command("ZREM", index, one)
    return found, False


async def _in_pieces(content: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    held = bytearray()
    async for part in content:
        held += part
        while len(held) >= PIECE_BYTES:
            yield bytes(held[:PIECE_BYTES])
            del held[:PIECE_BYTES]
    if held:
        yield bytes(held)

"""Whether a server keeps what it acknowledged through a power loss, and its replicas with it.

`WAITAOF` (Redis and Valkey from 7.2 on) says so of every write before it; a server without, or with
one that answers too early, has to run with `appendfsync always`. This module knows a server's
settings and answers: no keys, no jobs.
"""

import re
from typing import Any

from redis.exceptions import ResponseError

from .errors import NotDurable, QueueUnavailable

_NEEDS = (
    "durability strict needs `appendonly yes`, and `appendfsync always` or a server that has "
    "WAITAOF (Redis or Valkey from 7.2 on)"
)


async def has_barrier(redis: Any, sync_replicas: int = 0) -> bool:
    """Return True if the server has `WAITAOF`, False if it syncs before every answer.

    Of a server whose settings this user may not read, its word is taken.

    Raises:
        NotDurable: neither, or its `WAITAOF` is worth nothing with its settings; or fewer replicas
            than asked for are connected to it.
    """
    try:
        _, connected = await redis.execute_command("WAITAOF", 1, sync_replicas, 1)
    except ResponseError as error:
        if "unknown command" not in str(error) or sync_replicas:
            raise NotDurable(f"{_NEEDS}; this one says: {error}") from error
    else:
        if connected < sync_replicas:
            raise NotDurable(
                f"nothing was accepted: sync_replicas={sync_replicas}, and {connected} replicas "
                "are connected; start more, or ask for fewer"
            )
        await _check_word(redis)
        return True
    try:
        settings = await redis.config_get("append*")
    except ResponseError as error:
        raise NotDurable(f"{_NEEDS}; whether this one does cannot be read: {error}") from error
    check_fsync_always(settings)
    return False


async def _check_word(redis: Any) -> None:
    """Refuse a server whose `WAITAOF` does not wait for the disk.

    Between two syncs of `everysec` it answers at once in Redis 7.4 and in Valkey from 8 on.
    Source: https://github.com/redis/redis/pull/13793; Valkey 9.1.2 traced.
    """
    try:
        settings = await redis.config_get("appendfsync")
        answer = await redis.execute_command("HELLO")
    except ResponseError:
        return
    known = dict(zip(answer[::2], answer[1::2], strict=True))
    server, version = known[b"server"].decode(), known[b"version"].decode()
    release = tuple(map(int, re.findall(r"\d+", version)[:2]))
    is_early = release >= (7, 4) and not (server == "redis" and release >= (8, 0))
    if is_early and settings["appendfsync"] == "everysec":
        raise NotDurable(
            f"with appendfsync everysec {server} {version} says that writes are on disk before "
            "they are: `CONFIG SET appendfsync always`, or leave out durability strict"
        )


def check_fsync_always(settings: dict[str, str]) -> None:
    """Check what `CONFIG GET append*` returned.

    Raises:
        NotDurable: writes may not be on disk when they are acknowledged.
    """
    has_file, fsync = settings.get("appendonly", "?"), settings.get("appendfsync", "?")
    if (has_file, fsync) != ("yes", "always"):
        raise NotDurable(f"{_NEEDS}; this one has appendonly {has_file}, appendfsync {fsync}")


def check_on_disk(reply: Any, sync_replicas: int = 0) -> None:
    """Check what `WAITAOF` returned.

    Raises:
        NotDurable: the server has no append-only file any more, or too few replicas have it on
            theirs.
        QueueUnavailable: the disk did not get there in time.
    """
    if isinstance(reply, ResponseError):
        raise NotDurable(f"{_NEEDS}; this one says: {reply}")
    if isinstance(reply, Exception):
        raise reply
    if reply[0] < 1:
        raise QueueUnavailable(
            "the job was accepted but is not on disk yet; submit it again under the same id"
        )
    if reply[1] < sync_replicas:
        raise NotDurable(
            f"the job was accepted, but {reply[1]} of sync_replicas={sync_replicas} replicas have "
            "it on disk; submit it again under the same id once they are back and have "
            "`appendonly yes`, or ask for fewer"
        )

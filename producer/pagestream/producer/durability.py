"""Whether a server keeps what it acknowledged through a power loss, and its replicas with it.

`WAITAOF` (Redis and Valkey from 7.2 on) says so of every write before it, whatever the server's
fsync policy; an older server has to run with `appendfsync always`. This module knows a server's
settings and answers: no keys, no jobs.
"""

from typing import Any

from redis.exceptions import ResponseError

from .errors import NotDurable, QueueUnavailable

_NEEDS = (
    "durability strict needs `appendonly yes`, and `appendfsync always` or a server that has "
    "WAITAOF (Redis or Valkey from 7.2 on)"
)


async def has_barrier(redis: Any, sync_replicas: int = 0) -> bool:
    """Return True if the server has `WAITAOF`, False if it syncs before every answer.

    Raises:
        NotDurable: neither; or fewer replicas than asked for are connected to it.
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
        return True
    try:
        settings = await redis.config_get("append*")
    except ResponseError as error:
        raise NotDurable(f"{_NEEDS}; whether this one does cannot be read: {error}") from error
    check_fsync_always(settings)
    return False


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

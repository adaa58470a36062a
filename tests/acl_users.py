"""A server with users of chosen rights, all with the password `secret`."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import redis
from redis.exceptions import NoPermissionError
from redis_server import RedisServer

SHA256 = hashlib.sha256(b"secret").hexdigest()


def server_with(
    own_server: Callable[..., RedisServer], folder: Path, users: Sequence[str]
) -> RedisServer:
    """A server of the test's own with these lines in its ACL file."""
    path = folder / "users.acl"
    path.write_text("\n".join([*users, "user default on nopass ~* &* +@all"]))
    return own_server("--aclfile", str(path))


def url(server: RedisServer, user: str) -> str:
    return server.url.replace("unix://", f"unix://{user}:secret@")


@contextlib.contextmanager
def connected(server: RedisServer, user: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(url(server, user), protocol=2)
    with contextlib.closing(client):
        yield client


def denied(client: redis.Redis, *command: str | bytes | int) -> None:
    with pytest.raises(NoPermissionError):
        client.execute_command(*command)

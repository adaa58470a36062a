"""Connections to Redis, with every option chosen here.

redis-py's own defaults differ between its versions (RESP2 or 3, a socket timeout or none, ten
silent retries or none) and some of them repeat a command whose answer was lost. What we send must
be safe to repeat, and who repeats it is our choice: nothing is retried unless `retries` says so.
This module knows URLs, options and connections: no keys, no commands.
"""

import socket
from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.backoff
import redis.retry
from redis.exceptions import BusyLoadingError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from . import sentinel
from .errors import InvalidRequest
from .sending import send_at_once

TIMEOUT_S = 10.0
"""Longest wait for an answer; a blocking command must ask for less."""

CONNECT_TIMEOUT_S = 5.0

HEALTH_CHECK_S = 15
"""A connection idle for longer is pinged before it is used."""

POOL_WAIT_S = 20.0
"""How long a call waits for a free connection before it fails."""

_RETRIED: list[type[Exception]] = [RedisConnectionError, RedisTimeoutError, BusyLoadingError]
_BROKEN = (RedisConnectionError, RedisTimeoutError, OSError)
_SCHEMES = ("redis://", "rediss://", "unix://", *sentinel.SCHEMES)


def connect(
    url: str,
    *,
    client_name: str,
    timeout_s: float = TIMEOUT_S,
    retries: int = 0,
    max_connections: int = 8,
) -> redis.Redis:
    """Return a synchronous client: RESP2, bytes in and out, safe to share between threads.

    It connects at its first command. `redis://`, `rediss://` (TLS) and `unix://` URLs, with
    redis-py's query options (`?ssl_ca_certs=…`), which win over what is chosen here; and
    `redis+sentinel://` URLs, see `sentinel`.

    Args:
        url: where the server is.
        client_name: shown by CLIENT LIST; a worker's id.
        timeout_s: longest wait for an answer.
        retries: repeats of a command after a lost connection. Workers take 0 and repeat a whole
            step themselves; a client whose commands are safe to repeat may take more.
        max_connections: connections at most; a call beyond them waits for a free one.

    Raises:
        InvalidRequest: the URL is not one of these.
    """
    options = _options(url, client_name, timeout_s)
    pool = _from_url(
        sentinel.pool if url.startswith(sentinel.SCHEMES) else redis.BlockingConnectionPool,
        url,
        **options,
        retry=redis.retry.Retry(_backoff(retries), retries),
        retry_on_error=_RETRIED if retries else [],
        max_connections=max_connections,
        timeout=POOL_WAIT_S,
    )
    return redis.Redis.from_pool(pool)


def connect_async(
    url: str,
    *,
    client_name: str,
    timeout_s: float = TIMEOUT_S,
    retries: int = 0,
    max_connections: int = 8,
) -> redis.asyncio.Redis:
    """Return an asyncio client; everything else is as in `connect`.

    Raises:
        InvalidRequest: the URL is not one of these.
    """
    options = _options(url, client_name, timeout_s)
    is_sentinel = url.startswith(sentinel.SCHEMES)
    pool = _from_url(
        sentinel.async_pool if is_sentinel else redis.asyncio.BlockingConnectionPool,
        url,
        **options,
        retry=redis.asyncio.retry.Retry(_backoff(retries), retries),
        retry_on_error=_RETRIED if retries else [],
        max_connections=max_connections,
        timeout=POOL_WAIT_S,
    )
    send_at_once(pool)
    return redis.asyncio.Redis.from_pool(pool)


class HeldConnection:
    """One connection of a client's pool, held for good; connects at its first command.

    No command has to take a connection and give it back, nor to pass a client's layers, which are
    cold code after a pause: 0.1 to 0.2 ms. For one thread; answers are as the server gives them.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool: Any = client.connection_pool
        self._held: Any = None

    def execute_command(self, *words: Any) -> Any:
        """Send one command and return its answer; errors are redis-py's."""
        try:
            connection = self._connection()
            connection.send_command(*words)
            return connection.read_response()
        except _BROKEN:
            # The pool connects it anew: to another server, if a Sentinel says so.
            self.close()
            raise

    def execute_all(self, *commands: Sequence[Any]) -> list[Any]:
        """Send commands at once and return their answers, or what the server refuses them with."""
        try:
            connection = self._connection()
            connection.send_packed_command(connection.pack_commands(commands))
            return [_answer_or_refusal(connection) for _ in commands]
        except _BROKEN:
            self.close()
            raise

    def close(self) -> None:
        """Give the connection back to the pool."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _connection(self) -> Any:
        if self._held is None:
            self._held = redis.Redis(connection_pool=self._pool, single_connection_client=True)
        return self._held.connection


def _answer_or_refusal(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as refusal:
        return refusal


class AsyncHeldConnection:
    """`HeldConnection` for an event loop; while it is busy, others of the pool take its place.

    Answers are as redis-py's client gives them.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        pool: Any = client.connection_pool
        self._client: Any = client
        self._held: Any = redis.asyncio.Redis(connection_pool=pool, single_connection_client=True)
        self._is_busy = False

    async def execute_command(self, *words: Any) -> Any:
        """Send one command and return its answer; errors are redis-py's."""
        if self._is_busy:
            return await self._client.execute_command(*words)
        self._is_busy = True
        try:
            if self._held.connection is None:
                await self._held.initialize()
            connection: Any = self._held.connection
            await connection.send_command(*words)
            answer = await connection.read_response()
        except _BROKEN:
            await self.aclose()
            raise
        finally:
            self._is_busy = False
        read = self._client.response_callbacks.get(words[0])
        return read(answer) if read else answer

    async def aclose(self) -> None:
        """Give the connection back to the pool; before its client is closed."""
        await self._held.aclose()


def _options(url: str, client_name: str, timeout_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "protocol": 2,
        "decode_responses": False,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "health_check_interval": HEALTH_CHECK_S,
        "client_name": client_name,
    }
    if not url.startswith("unix://"):
        options["socket_keepalive"] = True
        options["socket_keepalive_options"] = _keepalive()
    return options


def _keepalive() -> dict[int, int]:
    """A peer that vanished without a word is noticed after 25 s, where the system allows it."""
    wanted = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}


def _backoff(retries: int) -> redis.backoff.AbstractBackoff:
    if retries == 0:
        return redis.backoff.NoBackoff()
    return redis.backoff.FullJitterBackoff(cap=1.0, base=0.02)


def _from_url(pool: Any, url: str, **options: Any) -> Any:
    # The URL may hold a password: errors name its scheme only.
    scheme = url.split("://")[0] + "://" if "://" in url else "no scheme"
    if not url.startswith(_SCHEMES):
        raise InvalidRequest(
            f"a Redis URL begins with {', '.join(_SCHEMES)}; this one has {scheme}"
        )
    try:
        if url.startswith(sentinel.SCHEMES):
            del options["timeout"]  # these pools do not wait for a free connection
            made = pool(sentinel.SentinelUrl.parse(url), **options)
        else:
            made = pool.from_url(url, **options)
        # An option redis-py does not know is noticed only where a connection is made.
        made.connection_class(**made.connection_kwargs)
        return made
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"the {scheme} Redis URL cannot be used: {error}") from error

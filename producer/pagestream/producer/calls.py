"""Runs commands that are safe to repeat, through outages, within a time limit.

What redis-py raises becomes one of three answers here: try again, `InvalidRequest` (a script
refused an argument), or `QueueUnavailable`.
This module knows one connection pool: no keys, no jobs.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .errors import InvalidRequest, PagestreamError, QueueUnavailable, RedisFull

_PASSING = ("BUSY ", "UNBLOCKED", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
"""Errors of a server that is starting, changing its role, or running a script of somebody: wait and
ask again."""

T = TypeVar("T")


def may_pass(error: Exception) -> bool:
    """Return whether an error may pass by itself: an outage, not a refusal."""
    if isinstance(error, ReadOnlyError):
        return True
    if isinstance(error, ResponseError):
        return str(error).startswith(_PASSING)
    if isinstance(
        error, (AuthenticationError, AuthorizationError)
    ):  # connection errors to redis-py
        return False
    return isinstance(error, (RedisConnectionError, RedisTimeoutError, OSError))


def mask_password(url: str) -> str:
    """Return a Redis URL as it may be shown: without its password."""
    masked = re.sub(r"//([^/@:]*):.*@", r"//\1:***@", url)
    return re.sub(r"([?&](sentinel_)?password=)[^&]*", r"\1***", masked)


def unavailable(url: str, error: Exception) -> QueueUnavailable:
    """Return what a command that failed means to a caller who does not repeat it."""
    return QueueUnavailable(f"Redis at {mask_password(url)}: {error}")


class Calls:
    """Repeats commands on one client until they succeed or `timeout_ms` has passed."""

    def __init__(self, client: Any, url: str, timeout_ms: int) -> None:
        self.client = client
        self._address = mask_password(url)
        self._timeout_ms = timeout_ms

    async def command(self, *words: str | int | bytes) -> Any:
        """Send one command.

        Raises:
            QueueUnavailable: no answer in time, or the server refuses it.
        """
        return await self.run(lambda: self.client.execute_command(*words))

    async def now_ms(self) -> int:
        """Return what time it is on the server, in ms since 1970; raises as `command`."""
        seconds, micros = await self.command("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def run(self, command: Callable[[], Awaitable[T]], *, job_id: str | None = None) -> T:
        """Run something that may be repeated; `job_id` names the job that it submits.

        Raises:
            InvalidRequest: a script refuses an argument.
            QueueUnavailable: no answer in time, or the server refuses it.
        """
        pause_s = 0.02
        last: Exception | None = None
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                while True:
                    try:
                        return await command()
                    except (RedisError, OSError) as error:
                        if not may_pass(error):
                            raise self.refused(error) from error
                        last = error
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, 0.5)
        except TimeoutError:
            raise QueueUnavailable(self._no_answer(last, job_id)) from last

    def refused(self, error: Exception) -> PagestreamError:
        """Return what a server's refusal means to a caller."""
        text = str(error)
        if text.startswith("INVALID "):
            return InvalidRequest(text.removeprefix("INVALID "))
        if "used memory" in text or text.startswith("OOM"):
            return RedisFull(f"Redis at {self._address} is at its maxmemory; try again later")
        return QueueUnavailable(f"Redis at {self._address} refuses: {text}")

    def _no_answer(self, last: Exception | None, job_id: str | None) -> str:
        because = f" ({last})" if last else ""
        again = f"; submit again under the same id, {job_id}: it runs once" if job_id else ""
        return f"Redis at {self._address} gave no answer in {self._timeout_ms} ms{because}{again}"

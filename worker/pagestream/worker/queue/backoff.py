"""Patience with Redis: a call is made again until it works, with growing and random pauses.

This module knows no scripts and no jobs; what is called must be safe to call again.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0
LOG_EVERY_S = 10.0

# What a server says while it starts, fails over, or is full: it may well say something else later.
_PASSING = (
    "LOADING",
    "BUSY ",  # with somebody's script; BUSYGROUP is another matter
    "UNBLOCKED",
    "READONLY",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
)

P = ParamSpec("P")
T = TypeVar("T")


class RedisGone(Exception):
    """Redis was away for longer than the worker waits."""


class Patience:
    """Makes calls through outages of Redis."""

    def __init__(
        self,
        limit_s: Callable[[], float],
        on_answer: Callable[[], None] = lambda: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing is called yet.

        Args:
            limit_s: how long an outage may last now; it is asked again at every attempt.
            on_answer: called after each call that worked.
            on_failure: called after each that did not, and will be made again.
        """
        self._limit_s = limit_s
        self._on_answer = on_answer
        self._on_failure = on_failure

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function`, again and again while Redis cannot answer.

        Raises:
            RedisGone: the outage lasted longer than the limit.
        """
        began_s = logged_s = None
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                result = function(*args, **kwargs)
            except RedisError as error:
                if not is_passing(error):
                    raise
                now_s = time.monotonic()
                began_s = began_s or now_s
                if now_s - began_s > self._limit_s():
                    raise RedisGone(
                        f"Redis has been away for {now_s - began_s:.0f} s: {error}"
                    ) from error
                if logged_s is None or now_s - logged_s > LOG_EVERY_S:
                    logger.warning("Redis is away (%.1f s so far): %s", now_s - began_s, error)
                    logged_s = now_s
                self._on_failure()
                # Random, so that the workers of a queue do not all come back at once.
                time.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            else:
                self._on_answer()
                if began_s is not None:
                    logger.warning("Redis is back after %.1f s", time.monotonic() - began_s)
                return result


def is_passing(error: RedisError) -> bool:
    """Whether the same call may work later."""
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return True
    return isinstance(error, ResponseError) and _says_passing(str(error))


def _says_passing(message: str) -> bool:
    # redis-py drops the word of errors it has a class for ("command not allowed when used memory
    # …"), and an error inside a script may follow other words.
    return any(word in message for word in (*_PASSING, "used memory", "read only replica"))

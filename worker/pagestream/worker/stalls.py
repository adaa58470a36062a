"""What counts as a stall of a worker, and how a stalled one ends.

This module knows the parts of a worker: when and how long to look is `watchdog`'s.
"""

import logging
import os
from contextlib import suppress

from redis import Redis
from redis.exceptions import RedisError

from pagestream.producer.keys import LANES, Keys

from .errors import ConfigError
from .monitor import Monitor
from .process import EngineProcess
from .queue.loop import QueueLoop
from .watchdog import Watchdog

STALLED = 75
"""Exit status of a worker that its watchdog has ended: something may start it again."""


def check_timeouts(redis: Redis, work_stall_s: float) -> None:
    """Refuse a limit that a call to Redis may pass without a stall.

    Raises:
        ConfigError: it is shorter than two of a connection's timeouts.
    """
    timeout_s = redis.connection_pool.connection_kwargs.get("socket_timeout")
    if timeout_s is None or work_stall_s < 2 * timeout_s:
        raise ConfigError(
            f"--work-stall {work_stall_s:g} should be at least twice what one call to Redis may "
            f"take, {timeout_s} s: raise it, or lower ?socket_timeout= in the Redis URL"
        )


def watchdog(
    loop: QueueLoop,
    engine: EngineProcess,
    redis: Redis,
    keys: Keys,
    monitor: Monitor,
    *,
    limit_s: float,
) -> Watchdog:
    """Return what watches a worker, and ends this process once it is stalled."""
    ready = [keys.ready(lane) for lane in LANES]

    def undone() -> tuple[str, object]:
        why, mark = loop.undone()
        if why or not loop.is_idle:
            return why, mark
        with suppress(RedisError):
            if redis.exists(*ready):
                return "jobs wait, and it runs nothing and takes none", monitor.meter.claims
        return "", None

    def answers() -> bool:
        with suppress(RedisError):
            return bool(redis.ping())
        return False

    def end() -> None:
        # At once: a thread that does not return cannot be waited for. The jobs go to other workers
        # when this one's heartbeat is over, each with a crash: it may be a job's fault.
        engine.kill()
        logging.shutdown()
        os._exit(STALLED)

    return Watchdog(monitor.health, undone, answers, limit_s=limit_s, end=end)

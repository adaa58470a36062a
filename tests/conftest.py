"""Fixtures every room shares."""

import os
import signal

# A shell that starts the tests in its background has them, and what they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported, here and in the processes that tests start: OpenMP threads that share
# their cores with a server and a worker wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from redis_server import (
    keys,
    nothing_around,
    own_server,
    queue_name,
    redis_client,
    redis_server,
    redis_url,
    waitaof,
    wire,
)
from sentinel_set import sentinels

__all__ = [
    "keys",
    "nothing_around",
    "own_server",
    "queue_name",
    "redis_client",
    "redis_server",
    "redis_url",
    "sentinels",
    "waitaof",
    "wire",
]

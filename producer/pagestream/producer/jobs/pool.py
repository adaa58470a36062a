"""arq's connection for services that use arq already.

    pool = arq_pool("redis://localhost:6379/0")
    job = await pool.enqueue_job("generate", "def add(a, b):", model="demo", max_tokens=32)
    text = await job.result()

This module knows connections; what the functions do is `calling`'s.
"""

from typing import cast

from arq.connections import ArqRedis
from redis.asyncio import ConnectionPool

from ..connection import connect_async
from ..keys import FILE_RETENTION_MS, Around
from .packing import pack, unpack


def arq_pool(url: str, *, queue_name: str = Around.CALLS) -> ArqRedis:
    """Return an arq pool whose jobs a jobs process runs; close it with `aclose()`.

    Raises:
        InvalidRequest: the URL is not one that Redis clients take.
    """
    redis = connect_async(url, client_name="pagestream-arq", max_connections=100)
    pool = ArqRedis(
        cast(ConnectionPool, redis.connection_pool),
        job_serializer=pack,
        job_deserializer=unpack,
        default_queue_name=queue_name,
        expires_extra_ms=FILE_RETENTION_MS,
    )
    pool.auto_close_connection_pool = True  # it has the connections for itself
    return pool

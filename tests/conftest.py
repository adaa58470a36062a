"""Fixtures every room shares."""

from redis_server import keys, own_server, queue_name, redis_client, redis_server, redis_url, wire

__all__ = ["keys", "own_server", "queue_name", "redis_client", "redis_server", "redis_url", "wire"]

"""Connections to whichever server Sentinel names the master, found anew at every connect.

`redis+sentinel://user:password@host:26379,other:26379/<service>/<db>?options`; `rediss+sentinel://`
speaks TLS to the servers and to the sentinels. User and password are the servers'; a sentinel's own
are the options `sentinel_username` and `sentinel_password`.
This module knows how to find a master: no keys, no commands.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis.asyncio.sentinel
import redis.connection
import redis.sentinel

from .sending import send_at_once

SCHEMES = ("redis+sentinel://", "rediss+sentinel://")
PORT = 26379
ANSWER_S = 1.0
"""How long one sentinel may take before the next is asked."""


@dataclass(frozen=True)
class SentinelUrl:
    """A Sentinel URL, taken apart."""

    sentinels: list[tuple[str, int]]
    service: str
    options: dict[str, Any] = field(repr=False)
    """Options of connections to the master."""
    sentinel_options: dict[str, Any] = field(repr=False)
    """Options of connections to the sentinels."""

    @classmethod
    def parse(cls, url: str) -> "SentinelUrl":
        """Take a URL apart.

        Raises:
            ValueError: a part is missing or malformed; the message holds no password.
        """
        parts = urlsplit(url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        service, _, database = parts.path.strip("/").partition("/")
        if not hosts or not service:
            raise ValueError("it has to name sentinels and a service: host:26379,…/<service>")
        query = dict(parse_qsl(parts.query))
        sentinel_query = {
            name.removeprefix("sentinel_"): query.pop(name)
            for name in ("sentinel_username", "sentinel_password")
            if name in query
        }
        scheme = "rediss" if parts.scheme.startswith("rediss") else "redis"
        if database and not database.isdigit():
            raise ValueError(f"the database is a number, not {database!r}")
        # redis-py knows the types of its own options.
        library: Any = redis.connection
        plain: dict[str, Any] = library.parse_url(
            f"{scheme}://x/{database or 0}?{urlencode(query)}"
        )
        options = {name: value for name, value in plain.items() if name not in ("host", "port")}
        is_tls = options.pop("connection_class", None) is not None
        username, _, password = credentials.partition(":")
        login = {"username": unquote(username), "password": unquote(password)}
        options.update({name: value for name, value in login.items() if value})
        tls = {name: value for name, value in options.items() if name.startswith("ssl")}
        if is_tls:
            options["ssl"] = tls["ssl"] = True
        timeouts = {"socket_timeout": ANSWER_S, "socket_connect_timeout": ANSWER_S}
        return cls(
            [_address(host) for host in hosts.split(",")],
            unquote(service),
            options,
            {"protocol": 2, **timeouts, **tls, **sentinel_query},
        )


def pool(url: SentinelUrl, **options: Any) -> Any:
    """Return a pool of synchronous connections to the master."""
    sentinel = _Sentinel(url.sentinels, sentinel_kwargs=url.sentinel_options)
    return redis.sentinel.SentinelConnectionPool(url.service, sentinel, **options | url.options)


def async_pool(url: SentinelUrl, **options: Any) -> Any:
    """Return a pool of asyncio connections to the master."""
    sentinel = _AsyncSentinel(url.sentinels, sentinel_kwargs=url.sentinel_options)
    for one in sentinel.sentinels:
        send_at_once(one.connection_pool)
    pool: Any = redis.asyncio.sentinel.SentinelConnectionPool
    return pool(url.service, sentinel, **options | url.options)


class _Sentinel(redis.sentinel.Sentinel):
    """Keeps no connection to a sentinel: it is asked at every connect, which is rare."""

    def discover_master(self, service_name: str) -> Any:
        parent: Any = super()
        try:
            return parent.discover_master(service_name)
        finally:
            for one in self.sentinels:
                one.connection_pool.disconnect(inuse_connections=False)


class _AsyncSentinel(redis.asyncio.sentinel.Sentinel):
    """The same for asyncio."""

    async def discover_master(self, service_name: str) -> Any:
        parent: Any = super()
        try:
            return await parent.discover_master(service_name)
        finally:
            # redis-py 5 declares the synchronous kind.
            pools: list[Any] = [one.connection_pool for one in self.sentinels]
            closing = (pool.disconnect(inuse_connections=False) for pool in pools)
            # A cancellation that comes just now must not leave one open.
            await asyncio.shield(asyncio.gather(*closing))


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):  # an IPv6 address without a port
        host, port = text, str(PORT)
    if not host or not port.isdigit():
        raise ValueError(f"{text!r} is not host:port")
    return host.strip("[]"), int(port)

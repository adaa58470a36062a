"""The proxy does to connections what it is told, and nothing otherwise."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from random import Random

import pytest

from pagestream.worker.chaos.proxy import Proxy

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """In front of a server that echoes."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    made = Proxy(lambda: asyncio.open_connection("127.0.0.1", port), Random(0))
    await made.start()
    yield made
    await made.close()
    server.close()
    await server.wait_closed()


Connect = Callable[[], Awaitable[Ends]]


@pytest.fixture
async def connected(proxy: Proxy) -> AsyncIterator[Connect]:
    """`await connected()`: a connection that has been through to the server."""
    opened: list[Ends] = []

    async def connect() -> Ends:
        opened.append(await asyncio.open_connection("127.0.0.1", proxy.port))
        assert await said(opened[-1], b"hello") == b"hello"
        return opened[-1]

    yield connect
    for _, writer in opened:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def said(ends: Ends, what: bytes) -> bytes:
    """The answer; empty when the connection ended."""
    reader, writer = ends
    writer.write(what)
    try:
        return await reader.read(1 << 20)
    except ConnectionResetError:
        return b""


async def test_a_cut_comes_after_some_bytes(proxy: Proxy, connected: Connect) -> None:
    ends = await connected()
    assert proxy.cut(bytes_max=100) == 1
    got = b""
    while part := await said(ends, b"x" * 1000):
        got += part
    assert len(got) <= 100
    assert await said(await connected(), b"again") == b"again"


async def test_an_answer_is_lost_after_the_request_arrived(
    proxy: Proxy, connected: Connect
) -> None:
    ends = await connected()
    proxy.drop_answers()
    assert await said(ends, b"x") == b""
    assert proxy.lost_answers == 1


async def test_silence_holds_everything_until_it_heals(proxy: Proxy, connected: Connect) -> None:
    ends = await connected()
    proxy.silence()
    waiting = asyncio.create_task(said(ends, b"later"))
    late = asyncio.create_task(connected())
    done, _ = await asyncio.wait([waiting, late], timeout=0.1)
    assert not done
    proxy.heal()
    assert await waiting == b"later"
    await late


async def test_a_half_open_connection_never_answers_and_never_ends(
    proxy: Proxy, connected: Connect
) -> None:
    ends = await connected()
    proxy.forget_links()
    waiting = asyncio.create_task(said(ends, b"anybody?"))
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    assert await said(await connected(), b"new") == b"new"
    waiting.cancel()


async def test_a_delay_is_felt_and_ends(proxy: Proxy, connected: Connect) -> None:
    ends = await connected()
    loop = asyncio.get_running_loop()
    proxy.delay(0.05)
    began_s = loop.time()
    for _ in range(5):
        assert await said(ends, b"x") == b"x"
    assert loop.time() - began_s > 0.1
    proxy.heal()

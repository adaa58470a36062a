"""Connections: what is chosen, and that nothing is repeated behind our back."""

import asyncio
import ssl

import pytest
import redis
import redis.asyncio
from flaky_proxy import FlakyProxy
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from waiting import is_ended_by_cancel, until

from pagestream.producer.connection import (
    AsyncHeldConnection,
    HeldConnection,
    connect,
    connect_async,
)
from pagestream.producer.errors import InvalidRequest


@pytest.fixture
def proxy(redis_server):
    proxy = FlakyProxy(redis_server.socket)
    yield proxy
    proxy.close()


def test_bytes_in_and_out_under_a_name(redis_url, redis_client, queue_name):
    with connect(redis_url, client_name="w-1") as client:
        assert client.client_getname() in (b"w-1", "w-1")
        client.set(f"{{ps:{queue_name}}}:x", b"\xff")
        assert client.get(f"{{ps:{queue_name}}}:x") == b"\xff"
        (mine,) = [c for c in redis_client.client_list() if c["name"] == "w-1"]
        assert mine.get("resp", "2") == "2"


def test_a_lost_answer_is_an_error_and_the_command_is_not_repeated(proxy, redis_client, keys):
    with connect(proxy.url, client_name="w-1") as client:
        client.ping()
        proxy.lose_answers = 1
        with pytest.raises(RedisConnectionError):
            client.xadd(keys.dead, {"a": "b"})
        assert redis_client.xlen(keys.dead) == 1
        assert client.xlen(keys.dead) == 1, "and the connection is not out of step"


def test_retries_are_for_those_who_ask(proxy, redis_client, keys):
    with connect(proxy.url, client_name="c", retries=3) as client:
        client.ping()
        proxy.lose_answers = 1
        client.hincrby(keys.pace, "count", 1)
        assert redis_client.hget(keys.pace, "count") == b"2"


def test_asyncio_connections_are_the_same(proxy, redis_client, keys):
    async def main() -> None:
        async with connect_async(proxy.url, client_name="a") as client:
            await client.ping()
            proxy.lose_answers = 1
            with pytest.raises(RedisConnectionError):
                await client.xadd(keys.dead, {"a": "b"})
            assert await client.xlen(keys.dead) == 1
            # More calls at once than connections: they wait for each other.
            replies = await asyncio.gather(*(client.xlen(keys.dead) for _ in range(50)))
            assert replies == [1] * 50
        async with connect_async(proxy.url, client_name="a", retries=3) as client:
            await client.ping()
            proxy.lose_answers = 1
            await client.hincrby(keys.pace, "count", 1)

    asyncio.run(main())
    assert redis_client.hget(keys.pace, "count") == b"2"


def test_a_held_connection_repeats_nothing_and_is_made_anew(proxy, redis_client, keys):
    with connect(proxy.url, client_name="w-1") as client:
        held = HeldConnection(client)
        first = held.execute_command("CLIENT", "ID")
        assert held.execute_command("CLIENT", "ID") == first
        proxy.lose_answers = 1
        with pytest.raises(RedisConnectionError):
            held.execute_command("XADD", keys.dead, "*", "a", "b")
        assert held.execute_command("XLEN", keys.dead) == 1, (
            "written once, and the answer is this command's"
        )
        redis_client.client_kill_filter(_id=held.execute_command("CLIENT", "ID"))
        with pytest.raises(RedisConnectionError):
            held.execute_command("XLEN", keys.dead)
        assert held.execute_command("XLEN", keys.dead) == 1
        held.close()


def test_a_held_connection_sends_commands_together(proxy, redis_client, keys):
    with connect(proxy.url, client_name="w-1") as client:
        held = HeldConnection(client)
        add = ("XADD", keys.dead, "1-1", "a", "b")
        entry, refusal, length = held.execute_all(add, add, ("XLEN", keys.dead))
        assert (entry, length) == (b"1-1", 1)
        assert isinstance(refusal, ResponseError), "the second has the id of the first"
        proxy.lose_answers = 1
        with pytest.raises(RedisConnectionError):
            held.execute_all(("XADD", keys.dead, "2-1", "a", "b"), ("XLEN", keys.dead))
        assert held.execute_all(("XLEN", keys.dead), ("PING",)) == [2, b"PONG"]
        held.close()


def test_a_held_connection_that_is_busy_lets_the_pool_send(proxy, redis_client, keys):
    async def main() -> None:
        client = connect_async(proxy.url, client_name="a")
        held = AsyncHeldConnection(client)
        mine = await held.execute_command("CLIENT", "ID")
        assert await held.execute_command("CLIENT", "ID") == mine
        # The list is empty: the held connection waits, and others answer meanwhile.
        waits = asyncio.create_task(held.execute_command("BLPOP", keys.bell, 0))
        while not redis_client.client_list(client_id=[str(mine)])[0]["cmd"].startswith("blpop"):
            await asyncio.sleep(0.01)
        others = await asyncio.gather(*(held.execute_command("CLIENT", "ID") for _ in range(20)))
        assert mine not in others
        # Whoever is cancelled takes its answer along.
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        assert await held.execute_command("PING") in (b"PONG", True)
        proxy.lose_answers = 1
        with pytest.raises(RedisConnectionError):
            await held.execute_command("XADD", keys.dead, "*", "a", "b")
        assert await held.execute_command("XLEN", keys.dead) == 1
        await held.aclose()
        await client.aclose()

    asyncio.run(main())


async def ask_for_ever(client: redis.asyncio.Redis) -> None:
    while True:
        await client.ping()


def test_an_asyncio_connection_swallows_no_cancellation(redis_url):
    """redis-py's would, before Python 3.12, just after a command is sent."""

    async def main() -> None:
        async with connect_async(redis_url, client_name="a") as client:
            for turns in range(60):
                asking = asyncio.create_task(ask_for_ever(client))
                assert await is_ended_by_cancel(asking, turns), f"after {turns} turns of the loop"

    asyncio.run(main())


def test_nor_does_one_that_asks_a_sentinel(sentinels):
    async def main() -> None:
        for turns in range(60):
            async with connect_async(sentinels.url, client_name="a") as client:
                asking = asyncio.create_task(ask_for_ever(client))
                assert await is_ended_by_cancel(asking, turns), f"after {turns} turns of the loop"

    asyncio.run(main())


def test_a_server_that_reads_no_more_is_an_error(tmp_path):
    async def main() -> None:
        is_over = asyncio.Event()

        async def stop_at_set(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async def word() -> bytes:
                size = int((await reader.readline())[1:])
                return (await reader.readexactly(size + 2))[:-2]

            while True:
                words = int((await reader.readline())[1:])
                if (command := await word()) == b"SET":
                    break
                for _ in range(words - 1):
                    await word()
                writer.write(b"+PONG\r\n" if command == b"PING" else b"+OK\r\n")
            await is_over.wait()
            writer.close()

        path = str(tmp_path / "s")
        server = await asyncio.start_unix_server(stop_at_set, path)
        async with (
            server,
            connect_async(f"unix://{path}", client_name="a", timeout_s=0.2) as client,
        ):
            with pytest.raises(RedisTimeoutError, match="writing"):
                await client.set("x", bytes(8 << 20))
            is_over.set()

    asyncio.run(main())


def test_held_connections_follow_a_failover(sentinels, keys):
    """The connection is made anew where the sentinel says that the master is now."""

    def master_port():
        return sentinels.sentinel.client.sentinel_master("main")["port"]

    async def main() -> None:
        async with connect_async(sentinels.url, client_name="a") as client:
            held = AsyncHeldConnection(client)
            assert await held.execute_command("SET", keys.dead, "a")
            sentinels.fail_over()
            until(lambda: master_port() == sentinels.replica.port, "the failover")
            with pytest.raises(RedisConnectionError):
                await held.execute_command("GET", keys.dead)
            assert await held.execute_command("SET", keys.dead, "b")
            await held.aclose()

    with connect(sentinels.url, client_name="w-1") as client:
        held = HeldConnection(client)
        assert held.execute_command("SET", keys.bell, "a")
        asyncio.run(main())
        with pytest.raises(RedisConnectionError):
            held.execute_command("GET", keys.bell)
        assert held.execute_command("SET", keys.bell, "b")
        held.close()
    assert sentinels.replica.client.mget(keys.bell, keys.dead) == [b"b", b"b"]


def test_every_kind_of_url():
    tls = connect("rediss://user:secret@host:7/2?ssl_ca_certs=/ca.pem", client_name="x")
    kwargs = tls.connection_pool.connection_kwargs
    assert issubclass(tls.connection_pool.connection_class, redis.SSLConnection)
    assert (kwargs["host"], kwargs["port"], kwargs["db"]) == ("host", 7, 2)
    assert (kwargs["username"], kwargs["password"]) == ("user", "secret")
    assert kwargs["ssl_ca_certs"] == "/ca.pem"
    connection = tls.connection_pool.make_connection()
    assert connection.cert_reqs == ssl.CERT_REQUIRED
    tcp = connect("redis://host", client_name="x").connection_pool.make_connection()
    assert tcp.socket_keepalive is True
    assert tcp.socket_timeout == 10
    unix = connect("unix:///a/b?db=3", client_name="x").connection_pool.make_connection()
    assert (unix.path, unix.db, unix.socket_timeout) == ("/a/b", 3, 10)


def test_the_url_has_the_last_word():
    client = connect("redis://host?socket_timeout=3", client_name="x")
    assert client.connection_pool.make_connection().socket_timeout == 3


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:6379",
        "http://u:secret@host",
        "redis://u:secret@host:notaport",
        "redis://h?bogus=1",
        "redis+sentinel://u:secret@host:1",
        "redis+sentinel://u:secret@host:x/service",
        "redis+sentinel://u:secret@host/service/notadb",
        "redis+sentinel://u:secret@host/service?bogus=1",
    ],
)
def test_a_bad_url_is_refused_without_its_password(url):
    with pytest.raises(InvalidRequest) as caught:
        connect(url, client_name="x").connection_pool.make_connection()
    assert "secret" not in str(caught.value)


def test_sentinel_urls():
    client = connect(
        "rediss+sentinel://u:p%40w@one,[::1]:7,two:8/main/3?socket_timeout=3"
        "&ssl_ca_certs=/ca.pem&sentinel_password=other",
        client_name="x",
    )
    pool = client.connection_pool
    assert pool.service_name == "main"
    kwargs = pool.connection_kwargs
    assert (kwargs["username"], kwargs["password"], kwargs["db"]) == ("u", "p@w", 3)
    assert (kwargs["socket_timeout"], kwargs["ssl_ca_certs"]) == (3, "/ca.pem")
    assert issubclass(pool.connection_class, redis.SSLConnection)
    sentinels = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"]) for one in sentinels] == [
        ("one", 26379),
        ("::1", 7),
        ("two", 8),
    ]
    assert {one["password"] for one in sentinels} == {"other"}
    assert {one["ssl_ca_certs"] for one in sentinels} == {"/ca.pem"}

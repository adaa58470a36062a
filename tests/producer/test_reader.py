"""The multiplexed reader, against a real server: nothing missed, nothing twice, nobody delayed."""

import asyncio
import time

import pytest
from redis.asyncio import Redis as AsyncRedis
from waiting import until

from pagestream.producer import reader as reader_module
from pagestream.producer.connection import connect_async
from pagestream.producer.errors import JobLost, PagestreamError, QueueUnavailable
from pagestream.producer.reader import BLOCK_MS, BUFFERED_ENTRIES, ENTRIES_PER_READ, Reader


class Bench:
    """A reader, and a connection to write what it reads."""

    def __init__(self, url: str, **options) -> None:
        self.redis: AsyncRedis = connect_async(url, client_name="test")
        blocking = connect_async(
            url, client_name="pagestream-client-reader", timeout_s=BLOCK_MS / 1000 + 5
        )
        self.unblocked = 0
        self.reader = Reader(blocking.connection_pool.make_connection, self.unblock, **options)

    async def unblock(self, client_id: int) -> None:
        self.unblocked += 1
        await self.redis.execute_command("CLIENT", "UNBLOCK", client_id)

    async def write(self, key: str, *entry_ids: str) -> None:
        for entry_id in entry_ids:
            fields = {"choice": 0, "start": 0, "ids": "7", "text": entry_id}
            await self.redis.xadd(key, fields, id=entry_id)

    async def __aenter__(self) -> "Bench":
        return self

    async def __aexit__(self, *_) -> None:
        await self.reader.aclose()
        await self.redis.aclose()


async def take(feed, count: int) -> list[str]:
    """The ids of the feed's next `count` entries."""
    ids: list[str] = []
    async with asyncio.timeout(20):
        while len(ids) < count:
            ids += [entry.id for entry in await feed.take()]
    assert len(ids) == count, ids
    return ids


def numbered(first: int, last: int) -> list[str]:
    return [f"1-{number}" for number in range(first, last + 1)]


@pytest.mark.parametrize("again_s", [reader_module.UNBLOCK_AGAIN_S, 60.0])
def test_a_new_stream_joins_a_waiting_connection_at_once(redis_url, keys, monkeypatch, again_s):
    """However long ago the last one joined: nobody waits until an unblock is sent again."""
    monkeypatch.setattr(reader_module, "UNBLOCK_AGAIN_S", again_s)

    async def run():
        async with Bench(redis_url) as bench:
            await bench.write(keys.out("a"), "0-1")
            first = bench.reader.open(keys.out("a"))
            await take(first, 1)
            waited = []
            for number in range(20):
                key = keys.out(f"b{number}")
                await bench.write(key, "0-1")
                begin = time.monotonic()
                await take(bench.reader.open(key), 1)
                waited.append(time.monotonic() - begin)
            # Without CLIENT UNBLOCK each would wait for the end of a call, up to a second.
            assert sum(waited) < 20 * BLOCK_MS / 1000 / 4
            assert bench.unblocked
            assert bench.reader.connections == 1

    asyncio.run(run())


def test_the_last_stream_that_leaves_ends_the_wait(redis_url, keys):
    async def run():
        async with Bench(redis_url) as bench:
            await bench.write(keys.out("a"), "0-1")
            feed = bench.reader.open(keys.out("a"))
            await take(feed, 1)
            async with asyncio.timeout(20):
                while not (await bench.redis.info("clients"))["blocked_clients"]:
                    await asyncio.sleep(0.01)
                feed.close()
                while not bench.unblocked:
                    await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_reader_begins_behind_its_cursor(redis_url, keys):
    async def run():
        async with Bench(redis_url) as bench:
            await bench.write(keys.out("a"), *numbered(1, 9))
            assert await take(bench.reader.open(keys.out("a"), "1-6"), 3) == numbered(7, 9)

    asyncio.run(run())


def test_readers_of_one_stream_share_a_place_in_the_call(redis_url, keys):
    async def run():
        async with Bench(redis_url) as bench:
            key = keys.out("a")
            await bench.write(key, *numbered(1, 5))
            early = bench.reader.open(key)
            assert await take(early, 5) == numbered(1, 5)
            late, later = bench.reader.open(key), bench.reader.open(key, "1-3")
            assert await take(late, 5) == numbered(1, 5)
            assert await take(later, 2) == numbered(4, 5)
            early.close()
            await bench.write(key, "1-6")
            assert await take(late, 1) == await take(later, 1) == ["1-6"]
            assert bench.reader.connections == 1

    asyncio.run(run())


def test_a_slow_reader_fills_no_memory_and_delays_nobody(redis_url, keys):
    async def run():
        async with Bench(redis_url) as bench:
            slow_key, quick_key = keys.out("slow"), keys.out("quick")
            total = BUFFERED_ENTRIES * 3
            await bench.write(slow_key, *numbered(1, total))
            slow, quick = bench.reader.open(slow_key), bench.reader.open(quick_key)
            for number in range(1, 100):  # each needs a call of its own
                await bench.write(quick_key, f"1-{number}")
                assert await take(quick, 1) == [f"1-{number}"]
            assert slow.full
            held = await slow.take()
            assert len(held) <= BUFFERED_ENTRIES + ENTRIES_PER_READ
            rest = await take(slow, total - len(held))
            assert [entry.id for entry in held] + rest == numbered(1, total)

    asyncio.run(run())


def test_a_cut_connection_loses_and_repeats_nothing(redis_url, redis_client, reader_ids, keys):
    async def run():
        async with Bench(redis_url) as bench:
            key = keys.out("a")
            await bench.write(key, "1-1")
            feed = bench.reader.open(key)
            got = await take(feed, 1)
            for number in range(2, 12):
                for client_id in reader_ids():
                    redis_client.execute_command("CLIENT", "KILL", "ID", client_id)
                await bench.write(key, f"1-{number}")
                got += await take(feed, 1)
            assert got == numbered(1, 11)

    asyncio.run(run())


def test_a_stream_survives_a_restart_of_the_server(own_server, keys):
    server = own_server("--appendfsync", "always")

    async def run():
        async with Bench(server.url) as bench:
            await bench.write(keys.out("a"), *numbered(1, 3))
            feed = bench.reader.open(keys.out("a"))
            assert await take(feed, 3) == numbered(1, 3)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await bench.redis.connection_pool.disconnect()
            await bench.write(keys.out("a"), "1-4")
            assert await take(feed, 1) == ["1-4"]

    asyncio.run(run())


def test_a_stream_that_vanishes_is_lost(redis_url, keys):
    async def run():
        async with Bench(redis_url) as bench:
            await bench.write(keys.out("a"), "1-1")
            await bench.write(keys.out("b"), "1-1")
            lost, other = bench.reader.open(keys.out("a")), bench.reader.open(keys.out("b"))
            await take(lost, 1)
            await take(other, 1)
            await bench.redis.delete(keys.out("a"))
            begin = time.monotonic()
            with pytest.raises(JobLost, match="submit"):
                await asyncio.wait_for(lost.take(), 10)
            assert time.monotonic() - begin < 5 * BLOCK_MS / 1000
            await bench.write(keys.out("b"), "1-2")
            assert await take(other, 1) == ["1-2"]

    asyncio.run(run())


def test_a_stream_that_redis_forgot_in_part_is_read_again(redis_url, keys):
    async def run():
        async with Bench(redis_url) as bench:
            key = keys.out("a")
            await bench.write(key, "3-1", "3-2")
            feed = bench.reader.open(key)
            await take(feed, 2)
            # A server that lost the claims 2 and 3, and another worker that has it since.
            async with bench.redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(key)
                pipeline.xadd(key, {"event": "queued"}, id="0-1")
                pipeline.xadd(key, {"event": "start"}, id="1-0")
                await pipeline.execute()
            assert await take(feed, 2) == ["0-1", "1-0"]

    asyncio.run(run())


def test_more_streams_than_a_call_takes_open_another_connection(redis_url, reader_ids, keys):
    async def run():
        async with Bench(redis_url) as bench:
            names = [keys.out(str(number)) for number in range(257)]
            for name in names:
                await bench.write(name, "1-1")
            feeds = [bench.reader.open(name) for name in names]
            for feed in feeds:
                assert await take(feed, 1) == ["1-1"]
            assert bench.reader.connections == len(reader_ids()) == 2
            for feed in feeds:
                feed.close()
            again = [bench.reader.open(name) for name in names]
            for feed in again:
                await take(feed, 1)
            assert bench.reader.connections == 2

    asyncio.run(run())


def test_an_entry_that_is_not_ours_ends_its_own_reader_only(redis_url, keys):
    async def run():
        async with Bench(redis_url) as bench:
            await bench.redis.xadd(keys.out("a"), {"what": "ever"}, id="1-1")
            await bench.write(keys.out("b"), "1-1")
            strange, good = bench.reader.open(keys.out("a")), bench.reader.open(keys.out("b"))
            with pytest.raises(PagestreamError, match="not ours"):
                await asyncio.wait_for(strange.take(), 10)
            assert await take(good, 1) == ["1-1"]

    asyncio.run(run())


def test_an_outage_is_sat_out_only_so_long(own_server, keys):
    server = own_server()

    async def run():
        async with Bench(server.url, reconnect_ms=300) as bench:
            await bench.write(keys.out("a"), "1-1")
            feed = bench.reader.open(keys.out("a"))
            await take(feed, 1)
            await asyncio.to_thread(server.kill)
            begin = time.monotonic()
            with pytest.raises(QueueUnavailable):
                await asyncio.wait_for(feed.take(), 10)
            assert 0.25 < time.monotonic() - begin < 5

    asyncio.run(run())


def test_closing_ends_the_connections_and_the_readers(redis_url, reader_ids, keys):
    async def run():
        async with Bench(redis_url) as bench:
            await bench.write(keys.out("a"), "1-1")
            feed = bench.reader.open(keys.out("a"))
            await take(feed, 1)
            assert len(reader_ids()) == 1
            await bench.reader.aclose()
            with pytest.raises(QueueUnavailable, match="closed"):
                await feed.take()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    until(lambda: reader_ids() == [], "the end of the connections, on the server")

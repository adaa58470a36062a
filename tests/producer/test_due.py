"""The list of what is due: leases, tickets, and entries that come back."""

import asyncio

import pytest

from pagestream.producer.batch import due as due_module
from pagestream.producer.batch.due import Due
from pagestream.producer.calls import Calls
from pagestream.producer.connection import connect_async
from pagestream.producer.keys import Around
from pagestream.producer.lua import Script


@pytest.fixture
async def due(redis_url, redis_client, monkeypatch):
    monkeypatch.setattr(due_module, "LEASE_MS", 300)
    redis_client.delete(Around.DUE)  # a jobs process of another test leaves what is always there
    connection = connect_async(redis_url, client_name="test-due")
    yield Due(Calls(connection, redis_url, 5_000))
    await connection.aclose()
    redis_client.delete(Around.DUE)


async def test_what_is_due_is_taken_once(due):
    await due.put("batch:a")
    await due.put("batch:later", 60_000)
    ((entry, ticket),) = await due.take(10)
    assert entry == "batch:a"
    assert await due.take(10) == []
    async with due.held(entry, ticket) as is_ours:
        assert is_ours
    await due.done(entry)
    assert await due.take(10) == []


async def test_who_is_late_has_lost_it(due, redis_client):
    await due.put("batch:a")
    ((entry, first),) = await due.take(10)
    await asyncio.sleep(0.002)  # a ticket is a millisecond
    redis_client.zadd(Around.DUE, {entry: 0})  # its lease is over
    ((_, second),) = await due.take(10)
    async with due.held(entry, first) as is_ours:
        assert not is_ours
    async with due.held(entry, second) as is_ours:
        assert is_ours


async def test_a_lease_is_renewed_while_at_work_and_ends_with_it(due, redis_client):
    await due.put("batch:a")
    ((entry, ticket),) = await due.take(10)
    async with asyncio.timeout(20), due.held(entry, ticket):
        begun_ms = redis_client.zscore(Around.DUE, entry)
        while redis_client.zscore(Around.DUE, entry) < begun_ms + 600:  # two leases later
            assert await due.take(10) == []
            await asyncio.sleep(0.02)
    async with asyncio.timeout(20):
        while not (taken := await due.take(10)):
            await asyncio.sleep(0.02)
    assert [one for one, _ in taken] == [entry]


async def test_what_is_done_meanwhile_is_not_brought_back(due, redis_client):
    await due.put("batch:a")
    ((entry, ticket),) = await due.take(10)
    async with due.held(entry, ticket):
        await due.done(entry)
        assert Script("due")(redis_client, Around.DUE, "hold", 300, entry) == 0
    assert redis_client.zscore(Around.DUE, entry) is None


async def test_so_many_are_taken_at_a_time(due):
    for place in range(5):
        await due.put(f"batch:{place}")
    assert [len(await due.take(3)) for _ in range(3)] == [3, 2, 0]

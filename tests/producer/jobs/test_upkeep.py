"""The hourly upkeep: names of what has expired, and keys without a lifetime."""

from pagestream.producer.batch.files import FileStore
from pagestream.producer.calls import Calls
from pagestream.producer.connection import connect_async
from pagestream.producer.jobs.upkeep import Upkeep
from pagestream.producer.keys import Around


async def content(data: bytes):
    yield data


async def test_names_of_what_has_expired_go_and_forgotten_keys_get_a_lifetime(own_server):
    server = own_server()
    redis = connect_async(server.url, client_name="test")
    calls = Calls(redis, server.url, 5_000)
    files = FileStore(calls)
    about = {"tenant": "acme", "filename": "f", "purpose": "batch"}
    kept, gone = [await files.create(content(b"x"), **about) for _ in range(2)]
    await redis.delete(Around.file(gone.id))
    await redis.hset(Around.file("file-broken"), "0", b"half an upload")
    await redis.zadd(Around.batches("acme"), {"batch_gone": 1})
    await redis.zadd(Around.DUE, {"batch:x": 1})
    kept_ms = await redis.pttl(Around.file(kept.id))
    upkeep = Upkeep(calls)
    assert await upkeep.sweep() == 3
    assert await redis.zrange(Around.files("acme"), 0, -1) == [kept.id.encode()]
    assert not await redis.exists(Around.batches("acme"))
    assert await redis.pttl(Around.file("file-broken")) > 0
    assert 0 < await redis.pttl(Around.file(kept.id)) <= kept_ms
    assert await redis.pttl(Around.DUE) == -1
    assert await upkeep.sweep() == 0
    await redis.aclose()

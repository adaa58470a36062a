"""A worker and its clients over TLS: the same tokens, and no word to a server nobody knows."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_server import RedisServer
from stub_engine import StubOptions, expected_ids
from tls_proxy import TlsProxy
from worker_harness import Worker

from pagestream.producer import AsyncClient, Client, QueueUnavailable
from pagestream.producer.keys import Keys
from pagestream.worker.messages import Sampling


@pytest.fixture
def proxy(redis_server: RedisServer, tmp_path: Path) -> Iterator[TlsProxy]:
    made = TlsProxy(redis_server.socket, tmp_path)
    yield made
    made.close()


def test_jobs_run_over_tls(proxy: TlsProxy, keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    worker = Worker(proxy.url, keys, tmp_path, StubOptions()).start()
    wanted = tuple(expected_ids([7], Sampling(max_tokens=40)))

    async def run() -> None:
        async with AsyncClient(proxy.url, queue=keys.queue) as client:
            job = await client.submit(prompt_ids=[7], max_tokens=40, ignore_eos=True, mirror=True)
            assert (await job.result()).ids == wanted
            mirrored = [chunk async for chunk in job.subscribe()]
            assert tuple(token for chunk in mirrored for token in chunk.ids) == wanted

    try:
        asyncio.run(run())
        with Client(proxy.url, queue=keys.queue) as client:
            job = client.submit(prompt_ids=[7], max_tokens=40, ignore_eos=True)
            assert job.result().ids == wanted
    finally:
        assert worker.end() == 0


def test_a_certificate_nobody_vouches_for_is_refused(proxy: TlsProxy, keys: Keys) -> None:
    with (
        Client(proxy.address, queue=keys.queue, timeout_ms=500) as client,
        pytest.raises(QueueUnavailable, match=r"(?i)certificate"),
    ):
        client.submit(prompt_ids=[7])

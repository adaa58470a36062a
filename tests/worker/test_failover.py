"""The master dies, its replica is promoted, and nobody who uses Sentinel's URL notices more."""

import asyncio
from pathlib import Path

import pytest
from sentinel_set import SentinelSet
from stub_engine import StubOptions, expected_ids
from worker_harness import Worker

from pagestream.producer import AsyncClient
from pagestream.producer.keys import Keys
from pagestream.worker.messages import Sampling

JOBS, TOKENS = 8, 400
BEHIND_TOKENS = 80
"""A lagging replica has fewer than these: the master dies when a reader has as many."""


@pytest.mark.parametrize("how", ["killed", "lagging", "demoted"])
def test_a_failover_mid_stream(
    sentinels: SentinelSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """A replica that lags forgets what its master had acknowledged, and so may one that is promoted
    while its master lives. Streams go on all the same.
    """
    (tmp_path / "config.json").write_text("{}")
    worker = Worker(sentinels.url, Keys("failover"), tmp_path, StubOptions(step_s=0.01)).start()

    async def read(client: AsyncClient, index: int) -> list[int]:
        job = await client.submit(
            prompt_ids=[index], max_tokens=TOKENS, ignore_eos=True, id=f"j{index}"
        )
        ids: list[int] = []
        async for chunk in job.stream():
            ids += chunk.ids
            started.set()
            if len(ids) >= BEHIND_TOKENS:
                ahead.set()
        return ids

    async def main() -> list[list[int]]:
        async with AsyncClient(sentinels.url, queue="failover", timeout_ms=20_000) as client:
            readers = [asyncio.create_task(read(client, index)) for index in range(JOBS)]
            await started.wait()
            if how == "lagging":
                await asyncio.to_thread(sentinels.fall_behind)
                await ahead.wait()
            promote = sentinels.switch if how == "demoted" else sentinels.fail_over
            await asyncio.to_thread(promote)
            after = await client.submit(prompt_ids=[99], max_tokens=3, ignore_eos=True)
            assert len((await after.result()).ids) == 3
            return await asyncio.gather(*readers)

    started, ahead = asyncio.Event(), asyncio.Event()
    try:
        replies = asyncio.run(main())
        for index, ids in enumerate(replies):
            assert ids == expected_ids([index], Sampling(max_tokens=TOKENS))
        assert sentinels.replica.client.exists(Keys("failover").out("j0"))
        if how != "demoted":  # between the promotion and the demotion two masters take writes
            assert ("Redis rolled back" in caplog.text) is (how == "lagging")
    finally:
        assert worker.end() == 0

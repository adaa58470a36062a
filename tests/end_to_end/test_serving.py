"""The whole path, for real: a client here, a server, a worker with the demo model beside it.

The right answers were computed by transformers (`demo_prompts`), not by our engine.
"""

import asyncio
import os
import signal

import pytest
from demo_prompts import load_demo_prompts

from pagestream.producer import AsyncClient, AsyncJob, JobFailed, SamplingParams
from pagestream.worker.llm import LLM

PROMPTS = load_demo_prompts()
GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)


async def ids_of(job: AsyncJob) -> list[int]:
    result = await job.result()
    return list(result.ids)


async def test_known_answers_all_at_once(start_worker, redis_url, queue_name):
    worker = start_worker()
    async with AsyncClient(redis_url, model=queue_name) as client:
        jobs = [
            await client.submit(prompt_ids=prompt.prompt_ids, sampling=GREEDY) for prompt in PROMPTS
        ]
        answers = await asyncio.gather(*map(ids_of, jobs))
        assert answers == [prompt.expected_ids for prompt in PROMPTS]
        texts = [await client.submit(prompt.text, sampling=GREEDY) for prompt in PROMPTS[:4]]
        assert await asyncio.gather(*map(ids_of, texts)) == answers[:4]
    assert worker.stop() == 0


async def test_a_seeded_request_is_the_same_alone_and_among_64(start_worker, redis_url, queue_name):
    start_worker("--max-num-seqs", "64")
    sampling = SamplingParams(temperature=0.8, top_p=0.95, seed=11, max_tokens=32, ignore_eos=True)
    (alone,) = LLM("demo", device="cpu").generate([PROMPTS[0].prompt_ids], sampling)
    async with AsyncClient(redis_url, model=queue_name) as client:
        others = SamplingParams(temperature=1.0, max_tokens=40, ignore_eos=True)
        jobs = [
            await client.submit(
                prompt_ids=PROMPTS[n % len(PROMPTS)].prompt_ids,
                sampling=sampling if n == 40 else others,
                id=f"{queue_name}-{n}",
            )
            for n in range(64)
        ]
        answers = await asyncio.gather(*map(ids_of, jobs))
    assert answers[40] == alone.token_ids
    assert len({tuple(answer) for answer in answers}) == 64


async def test_bad_requests_harm_nobody(start_worker, redis_url, queue_name, wire):
    async with AsyncClient(redis_url, model=queue_name) as client:
        # Before a worker says what it serves, a client cannot know better: the worker refuses.
        bad = [
            await client.submit(prompt_ids=[99_999], max_tokens=4),
            await client.submit(prompt_ids=[5] * 2_000, max_tokens=4),
        ]
        good = await client.submit(prompt_ids=PROMPTS[1].prompt_ids, sampling=GREEDY)
        start_worker()
        for job in bad:
            with pytest.raises(JobFailed) as caught:
                await job.result()
            assert caught.value.code == "invalid_request"
        assert await ids_of(good) == PROMPTS[1].expected_ids


async def test_a_chat_streams_text(start_worker, redis_url, queue_name):
    start_worker()
    async with AsyncClient(redis_url, model=queue_name) as client:
        job = await client.submit(
            messages=[{"role": "user", "content": "Return the sum of two numbers."}],
            temperature=0,
            max_tokens=24,
        )
        text = "".join([chunk.text async for chunk in job.stream()])
        assert text == (await job.result()).text
        assert text


@pytest.mark.parametrize("victim", ["engine", "worker"])
async def test_a_stream_outlives_a_kill(victim, start_worker, redis_url, queue_name):
    """SIGKILL in mid-stream: every stream goes on, with the tokens of an uninterrupted run."""
    long = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
    (whole,) = LLM("demo", device="cpu").generate([PROMPTS[0].prompt_ids], long)
    workers = {
        name: start_worker("--name", name) for name in ("one", "two")[: 1 + (victim == "worker")]
    }
    async with AsyncClient(redis_url, model=queue_name) as client:
        watched = await client.submit(prompt_ids=PROMPTS[0].prompt_ids, sampling=long)
        others = [
            await client.submit(prompt_ids=prompt.prompt_ids, sampling=GREEDY)
            for prompt in PROMPTS[:12]
        ]
        reader = watched.stream()
        seen = [await anext(reader) for _ in range(4)]
        owner = workers[(await watched.status()).worker]
        os.kill(owner.engine_pid() if victim == "engine" else owner.process.pid, signal.SIGKILL)
        seen += [chunk async for chunk in reader]
        assert [token_id for chunk in seen for token_id in chunk.ids] == whole.token_ids
        assert (await watched.status()).crashes == 1, "the kill came too late to prove anything"
        answers = await asyncio.gather(*map(ids_of, others))
        assert answers == [prompt.expected_ids for prompt in PROMPTS[:12]]

"""The asyncio client, against a real server and a stub worker whose words a test can predict."""

import asyncio
import threading
import time

import pytest
import redis
from stub_worker import MODEL, VOCAB, StubWorker, answer

from pagestream.producer import (
    AsyncClient,
    AsyncJob,
    InvalidRequest,
    JobCancelled,
    JobConflict,
    JobExpired,
    JobFailed,
    JobLost,
    JobNotFound,
    QueueFull,
    QueueUnavailable,
    RedisFull,
    SamplingParams,
    UnknownModel,
)
from pagestream.producer.protocol import decode_entry
from pagestream.producer.request import seed_of


async def chunks_of(stream):
    return [chunk async for chunk in stream]


def joined(chunks):
    ids = tuple(token for chunk in chunks for token in chunk.ids)
    return ids, "".join(chunk.text for chunk in chunks)


def test_a_prompt_becomes_its_tokens_in_order(redis_url, queue_name, worker):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            job = await client.submit("hello", max_tokens=20, seed=5)
            chunks = await chunks_of(job.stream())
            assert joined(chunks) == answer(5, 20)
            assert [chunk.index for chunk in chunks if chunk.ids] == list(range(20))
            assert [chunk.finish_reason for chunk in chunks] == [None] * 20 + ["length"]
            assert chunks[-1].usage.completion_tokens == 20
            assert chunks[-1].timings.total_ms == 3.0
            result = await job.result()
            assert (result.ids, result.text) == answer(5, 20)
            status = await job.status()
            assert (status.state, status.epoch, status.lane) == ("done", 1, "normal")
            assert status.queued_ms <= status.claimed_ms <= status.finished_ms

    asyncio.run(run())


def test_messages_and_token_ids_are_prompts_too(redis_url, queue_name, worker):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            message = {"role": "user", "content": "hi"}
            chat = await client.submit(messages=[message], seed=1)
            ids = await client.submit(prompt_ids=range(4), sampling=SamplingParams(seed=2), top_k=3)
            assert (await chat.result()).ids == answer(1)[0]
            assert (await ids.result()).ids == answer(2)[0]

    asyncio.run(run())


def test_300_streams_share_two_connections(redis_url, queue_name, worker, reader_ids):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:

            async def one(number):
                job = await client.submit("hi", seed=number, max_tokens=1 + number % 40)
                chunks = await chunks_of(job.stream())
                assert joined(chunks) == answer(number, 1 + number % 40)
                return len(reader_ids()) if number % 50 == 0 else 0

            connections = await asyncio.gather(*(one(number) for number in range(300)))
            assert 1 <= max(connections) <= 2
            assert client.reader_connections <= 2

    asyncio.run(run())


def test_a_late_reader_gets_the_identical_bytes(redis_url, queue_name, worker):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            job = await client.submit("hi", max_tokens=50)
            live = await chunks_of(job.stream())
        async with AsyncClient(redis_url, queue=queue_name) as other:
            late = other.job(job.id)
            assert await chunks_of(late.stream()) == live
            assert (
                await asyncio.gather(*(chunks_of(late.stream()) for _ in range(100)))
                == [live] * 100
            )

    asyncio.run(run())


def test_a_stream_goes_on_from_any_cursor(redis_url, queue_name, worker):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            job = await client.submit("hi", max_tokens=12)
            chunks = await chunks_of(job.stream())
            for place, chunk in enumerate(chunks[:-1]):
                assert await chunks_of(job.stream(after=chunk.id)) == chunks[place + 1 :]
            async with job.stream() as stream:
                first = [await anext(stream), await anext(stream)]
                assert stream.cursor == first[-1].id
            assert first + await chunks_of(job.stream(after=stream.cursor)) == chunks
            with pytest.raises(InvalidRequest, match="cursor"):
                job.stream(after="yesterday")

    asyncio.run(run())


def test_readers_survive_having_their_connection_cut(
    redis_url, redis_client, queue_name, worker, reader_ids
):
    worker.steps_allowed = threading.Semaphore(0)

    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            jobs = [await client.submit("hi", seed=seed, max_tokens=100) for seed in range(20)]
            streams = [job.stream() for job in jobs]
            got = [[] for _ in jobs]
            for _ in range(10):
                for stream, chunks in zip(streams, got, strict=True):
                    worker.steps_allowed.release(1)
                    chunks.append(await asyncio.wait_for(anext(stream), 20))
                for client_id in reader_ids():
                    redis_client.execute_command("CLIENT", "KILL", "ID", client_id)
            worker.steps_allowed.release(200)
            for seed, (stream, chunks) in enumerate(zip(streams, got, strict=True)):
                chunks += await chunks_of(stream)
                assert joined(chunks) == answer(seed, 100)
                assert len(chunks) == 101

    asyncio.run(run())


def test_a_submit_under_an_id_is_idempotent(redis_url, queue_name, worker):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            first = await client.submit("hi", id="order-7")
            again = await client.submit("hi", id="order-7")
            assert (first.attached, again.attached) == (False, True)
            assert await first.result() == await again.result()
            assert (await first.result()).ids == answer(seed_of("order-7"))[0]
            with pytest.raises(JobConflict, match="order-7"):
                await client.submit("bye", id="order-7")
            with pytest.raises(JobConflict):
                await client.submit("hi", id="order-7", seed=3)
            assert (await first.status()).epoch == 1

    asyncio.run(run())


def test_a_full_queue_says_when_to_try_again(redis_url, queue_name):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name, queue_limit=2) as client:
            jobs = [await client.submit("hi") for _ in range(2)]
            with pytest.raises(QueueFull) as caught:
                await client.submit("hi")
            assert 100 <= caught.value.retry_after_ms <= 30_000
            await jobs[0].cancel()
            await client.submit("hi")

    asyncio.run(run())


def test_cancel_ends_a_job_wherever_it_is(redis_url, queue_name):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            queued = await client.submit("hold")
            assert await queued.cancel() == "cancelled"
            with pytest.raises(JobCancelled):
                await queued.result()
            with StubWorker(redis_url, queue_name) as worker:
                running = await client.submit("hold")
                assert await asyncio.to_thread(worker.claimed.wait, 10)
                reading = asyncio.create_task(running.result())
                assert await running.cancel() == "cancelling"
                with pytest.raises(JobCancelled):
                    await asyncio.wait_for(reading, 10)
            assert await running.cancel() == "finished"
            assert (await running.status()).state == "cancelled"
            assert await client.job("nobody").cancel() == "unknown"

    asyncio.run(run())


def test_a_job_deleted_while_it_is_read_is_lost(redis_url, queue_name, worker):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            job = await client.submit("hold")
            reading = asyncio.create_task(job.result())
            await asyncio.to_thread(worker.claimed.wait, 10)
            assert await job.delete() is True
            begin = time.monotonic()
            with pytest.raises(JobLost):
                await asyncio.wait_for(reading, 10)
            assert time.monotonic() - begin < 5
            assert await job.delete() is False
            with pytest.raises(JobNotFound):
                await job.status()
            # Under the same id it can be handed in again.
            worker.released.set()
            again = await client.submit("hold", id=job.id)
            assert (await again.result()).ids == answer(seed_of(job.id))[0]

    asyncio.run(run())


def test_a_job_that_never_was_is_not_found(redis_url, queue_name):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            with pytest.raises(JobNotFound, match="nobody"):
                await client.job("nobody").result()
            with pytest.raises(InvalidRequest):
                client.job("no body")

    asyncio.run(run())


def test_a_failed_job_raises_what_the_worker_said(redis_url, queue_name, worker):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            job = await client.submit("fail", seed=4)
            got = []

            async def read():
                async for chunk in job.stream():
                    got.append(chunk)

            with pytest.raises(JobFailed, match="asked to fail") as caught:
                await read()
            assert caught.value.code == "stub_failure"
            assert joined(got) == answer(4, 2)

    asyncio.run(run())


def test_a_job_nobody_takes_in_time_expires(redis_url, queue_name):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            job = await client.submit("hi", queue_timeout_ms=1)
            await asyncio.sleep(0.005)
            with StubWorker(redis_url, queue_name), pytest.raises(JobExpired):
                await asyncio.wait_for(job.result(), 10)

    asyncio.run(run())


def test_a_result_is_waited_for_only_so_long(redis_url, queue_name, worker):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            job = await client.submit("hold")
            with pytest.raises(TimeoutError):
                await job.result(timeout_ms=100)
            worker.released.set()
            assert (await job.result(timeout_ms=10_000)).finish_reason == "length"

    asyncio.run(run())


def test_many_jobs_are_handed_over_at_once(redis_url, queue_name, worker):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            await client.submit("taken", id="taken")
            jobs = [f"prompt {number}" for number in range(600)]
            special = [{"prompt": ""}, {"prompt": "other", "id": "taken"}, {"prompt_ids": [VOCAB]}]
            outcomes = await client.submit_many([*jobs, *special, {"prompt": "last", "seed": 9}])
            assert [type(one) for one in outcomes[600:]] == [
                *(InvalidRequest, JobConflict, InvalidRequest),
                AsyncJob,
            ]
            results = await asyncio.gather(*(one.result() for one in outcomes[:600]))
            assert [one.ids for one in results] == [answer(seed_of(one.id))[0] for one in results]
            assert (await outcomes[-1].result()).ids == answer(9)[0]

    asyncio.run(run())


def test_many_jobs_on_a_server_that_forgot_the_script(redis_url, redis_client, queue_name, worker):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            redis_client.script_flush()
            outcomes = await client.submit_many(["a", "b"])
            assert [(await one.result()).finish_reason for one in outcomes] == ["length"] * 2

    asyncio.run(run())


def test_what_no_worker_can_do_is_refused_early(redis_url, queue_name):
    async def run(info, refused, error):
        with StubWorker(redis_url, queue_name, info=info):
            async with AsyncClient(redis_url, queue=queue_name, model=MODEL.name) as client:
                with pytest.raises(error):
                    await client.submit(**refused)

    chatless = type(MODEL)(**{**_fields(MODEL), "has_chat_template": False})
    other = type(MODEL)(**{**_fields(MODEL), "name": "other"})
    message = {"role": "user", "content": "hi"}
    asyncio.run(run(chatless, {"messages": [message]}, InvalidRequest))
    asyncio.run(run(MODEL, {"prompt_ids": [VOCAB]}, InvalidRequest))
    asyncio.run(run(MODEL, {"prompt_ids": [1] * MODEL.context_tokens}, InvalidRequest))
    asyncio.run(run(other, {"prompt": "hi"}, UnknownModel))


def test_a_dead_workers_model_refuses_nothing(redis_url, redis_client, queue_name, keys):
    redis_client.hset(keys.model, "dead", b'{"name": "other"}')

    async def run():
        async with AsyncClient(redis_url, queue=queue_name, model="m") as client:
            assert await client.models() == []
            await client.submit("hi")

    asyncio.run(run())


def test_a_model_is_seen_soon_by_who_asked_before_it_was_there(redis_url, queue_name):
    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            assert await client.models() == []
            with StubWorker(redis_url, queue_name):
                async with asyncio.timeout(5):  # what is known is believed for ten seconds
                    while not (models := await client.models()):
                        await asyncio.sleep(0.01)
            assert [info.name for info in models] == [MODEL.name]
            assert await client.models() == models, "the worker has left, which is not known yet"

    asyncio.run(run())


def test_a_server_that_is_down_is_unavailable_in_time():
    async def run():
        url = "redis://somebody:secret@127.0.0.1:1/0"
        async with AsyncClient(url, queue="q", timeout_ms=400) as client:
            begin = time.monotonic()
            with pytest.raises(QueueUnavailable) as caught:
                await client.submit("hi")
            assert 0.35 < time.monotonic() - begin < 2
            assert "secret" not in str(caught.value)
            assert "127.0.0.1:1" in str(caught.value)

    asyncio.run(run())


def test_a_short_outage_is_not_noticed(own_server, queue_name):
    server = own_server("--appendfsync", "always")

    async def run():
        async with AsyncClient(server.url, queue=queue_name) as client:
            with StubWorker(server.url, queue_name) as worker:
                job = await client.submit("hold", max_tokens=30)
                reading = asyncio.create_task(job.result())
                await asyncio.to_thread(worker.claimed.wait, 10)
                await asyncio.to_thread(server.kill)
                submitting = asyncio.create_task(client.submit("hi", id="during"))
                await asyncio.to_thread(server.start)
                worker.released.set()
                assert (await asyncio.wait_for(reading, 20)).ids == answer(seed_of(job.id), 30)[0]
                assert not (await submitting).attached
                assert (await submitting).id == "during"

    asyncio.run(run())


def test_a_full_server_refuses_and_loses_nothing(own_server, queue_name):
    """Back-pressure: submits are refused by name, what was accepted finishes and makes room."""
    server = own_server("--maxmemory", "1")

    async def run():
        async with AsyncClient(server.url, queue=queue_name) as client:
            admin = redis.Redis.from_url(server.url)
            admin.config_set("maxmemory", 0)
            jobs = [await client.submit("hold", id=f"j{i}", max_tokens=30) for i in range(8)]
            with StubWorker(server.url, queue_name) as worker:
                await asyncio.to_thread(worker.claimed.wait, 10)
                admin.config_set("maxmemory", 1)
                begin = time.monotonic()
                with pytest.raises(RedisFull, match="maxmemory"):
                    await client.submit("hi", id="later")
                assert time.monotonic() - begin < 2
                worker.released.set()
                results = [await asyncio.wait_for(job.result(), 20) for job in jobs]
                for job, result in zip(jobs, results, strict=True):
                    assert result.ids == answer(seed_of(job.id), 30)[0]
                admin.config_set("maxmemory", 0)
                later = await client.submit("hi", id="later")
                await asyncio.wait_for(later.result(), 20)
            admin.close()

    asyncio.run(run())


def test_tokens_that_redis_forgot_reach_no_reader_twice(redis_url, redis_client, queue_name, keys):
    """Redis loses its last writes: what the reader has is written again, cut up differently."""
    seed = 3

    def row(entry_id, first, last, text):
        ids = " ".join(map(str, answer(seed, last)[0][first:]))
        return entry_id, {"choice": 0, "start": first, "ids": ids, "text": text}

    words = answer(seed, 8)[1].replace("·", "· ").split(" ")
    words = [f" {word}" for word in words if word]
    assert "".join(words) == answer(seed, 8)[1]

    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            job = await client.submit("hi", seed=seed)
            key = keys.out(job.id)
            for number in range(5):
                entry_id, fields = row(f"2-{number + 1}", number, number + 1, words[number])
                redis_client.xadd(key, fields, id=entry_id)
            stream = job.stream()
            got = [await anext(stream) for _ in range(5)]
            with redis_client.pipeline(transaction=True) as pipeline:
                pipeline.delete(key)
                kept = [row("1-1", 0, 1, words[0]), row("1-2", 1, 2, words[1])]
                again = [
                    row("1-4", 2, 4, words[2] + words[3]),
                    row("1-7", 4, 7, "".join(words[4:7])),
                ]
                for entry_id, fields in [*kept, *again, row("1-8", 7, 8, words[7])]:
                    pipeline.xadd(key, fields, id=entry_id)
                end = {"event": "end", "choice": 0, "reason": "length", "text": ""}
                pipeline.xadd(key, end, id="1-9")
                pipeline.execute()
            got += await asyncio.wait_for(chunks_of(stream), 10)
            assert joined(got) == answer(seed, 8)
            assert [chunk.index for chunk in got] == [0, 1, 2, 3, 4, 5, 7, 8]

    asyncio.run(run())


@pytest.mark.parametrize("mode", ["all", "late", "deaf", "cut"])
def test_the_mirror_equals_the_stream(redis_url, redis_client, queue_name, worker, mode):
    worker.steps_allowed = threading.Semaphore(10_000 if mode in ("all", "late") else 0)

    async def run():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            job = await client.submit("hi", max_tokens=30, mirror=mode != "deaf")
            if mode == "late":
                await job.result()
            got = []
            async for chunk in job.subscribe():
                got.append(chunk)
                if mode == "cut" and len(got) % 10 == 0:
                    redis_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                worker.steps_allowed.release(3)
            assert got == await chunks_of(job.stream())
            assert joined(got) == answer(seed_of(job.id), 30)

    subscribing = asyncio.wait_for(run(), 60)
    if mode in ("deaf", "cut"):
        worker.steps_allowed.release(2)
    asyncio.run(_await(subscribing))


def test_the_mirror_publishes_what_the_stream_holds(redis_url, redis_client, queue_name, keys):
    """The raw channel, as a subscriber in another language sees it."""
    import json

    async def submit():
        async with AsyncClient(redis_url, queue=queue_name) as client:
            return await client.submit("hi", id="mirrored", mirror=True)

    asyncio.run(submit())
    with redis_client.pubsub(ignore_subscribe_messages=True) as subscriber:
        subscriber.subscribe(keys.tokens("mirrored"))
        subscriber.get_message(timeout=5)
        with StubWorker(redis_url, queue_name):
            frames = []
            while not frames or frames[-1].get("event") != "end":
                if message := subscriber.get_message(timeout=5):
                    frames.append(json.loads(message["data"]))
    entries = redis_client.xrange(keys.out("mirrored"))[1:]  # `queued` came before we subscribed
    assert [
        {"id": one.decode(), **{k.decode(): v.decode() for k, v in fields.items()}}
        for one, fields in entries
    ] == frames
    assert [decode_entry(*entry).event for entry in entries][-1] == "end"


def test_a_loop_that_ends_with_an_open_client_leaves_no_reader(
    redis_url, queue_name, worker, reader_ids
):
    clients = []

    async def run():
        client = AsyncClient(redis_url, queue=queue_name)
        clients.append(client)
        job = await client.submit("hold")
        reading = asyncio.create_task(job.result())
        while not reader_ids():
            await asyncio.sleep(0.01)
        assert not reading.done()
        await client._store._held.aclose()  # redis-py warns of what it is left to close itself
        await client._store._redis.aclose()

    asyncio.run(run())
    deadline = time.monotonic() + 10  # the server notices a closed socket when it next looks
    while reader_ids():
        assert time.monotonic() < deadline, "the reader's connection is still open"


async def _await(awaitable):
    return await awaitable


def _fields(struct):
    return {name: getattr(struct, name) for name in struct.__struct_fields__}

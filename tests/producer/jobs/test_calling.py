"""arq's functions for services that use arq: what they return and raise, and kills between."""

import signal
import time
import uuid

import pytest
import redis
import redis.asyncio
from jobs_process import JobsProcess
from stub_worker import StubWorker, answer
from waiting import until

from pagestream.producer import InvalidRequest, JobCancelled, JobConflict, JobFailed, UnknownModel
from pagestream.producer.jobs.packing import pack, unpack
from pagestream.producer.jobs.pool import arq_pool
from pagestream.producer.keys import Keys
from pagestream.producer.request import seed_of


@pytest.fixture
async def pool(redis_url, queue, jobs_process):
    one = arq_pool(redis_url)
    yield one
    await one.aclose()


async def test_generate_returns_the_text_of_the_job_with_the_calls_id(pool, queue):
    call_id = f"call-{uuid.uuid4().hex}"
    call = await pool.enqueue_job("generate", "hello", model=queue, max_tokens=4, _job_id=call_id)
    assert await call.result(20, poll_delay=0.05) == answer(seed_of(call_id), 4)[1]
    record = await pool.hgetall(Keys(queue).job(call_id))
    assert record[b"state"] == b"done"
    assert 3_000 < await pool.ttl(f"arq:result:{call_id}") <= 3_600
    assert b"pickle" not in await pool.get(f"arq:result:{call_id}")


async def test_generate_nowait_returns_the_jobs_id(pool, queue):
    call = await pool.enqueue_job("generate_nowait", "hold", model=queue, lane="low")
    job_id = await call.result(20, poll_delay=0.05)
    assert job_id == call.job_id
    record = await pool.hgetall(Keys(queue).job(job_id))
    assert (record[b"state"], record[b"lane"]) != (b"done", b"normal")


async def test_errors_are_raised_as_what_they_are(pool, queue):
    async def raised(prompt, **options):
        call = await pool.enqueue_job("generate", prompt, **{"model": queue} | options)
        return await call.result(20, poll_delay=0.05)

    with pytest.raises(UnknownModel, match="nobody"):
        await raised("x", model="nobody")
    with pytest.raises(JobFailed, match="asked to fail") as failed:
        await raised("fail now")
    assert failed.value.code == "stub_failure"
    with pytest.raises(JobFailed, match="nothing"):
        await (await pool.enqueue_job("nothing")).result(20, poll_delay=0.05)
    first = await raised("a", _job_id="taken")
    assert first
    await pool.delete("arq:result:taken")
    with pytest.raises(JobConflict):
        await raised("b", _job_id="taken")


async def test_a_call_outlives_its_process(own_server, tmp_path):
    """Killed in the middle, and later told to stop: the next process goes on with the same job."""
    server = own_server()
    pool = arq_pool(server.url)
    client = redis.Redis.from_url(server.url)
    client.sadd("ps:queues", "q")
    jobs = JobsProcess(server.url, tmp_path)
    with client, jobs, StubWorker(server.url, "q") as worker:
        call = await pool.enqueue_job("generate", "hold on", model="q", max_tokens=3)
        until(worker.claimed.is_set, "the claim")
        jobs.end(signal.SIGKILL)
        jobs.start()
        began_s = time.monotonic()
        mark = f"arq:in-progress:{call.job_id}"
        until(lambda: client.get(f"arq:retry:{call.job_id}") == b"2", "the second run")
        assert time.monotonic() - began_s < 15
        until(lambda: client.pttl(mark) > 0, "the mark")
        # While it is at it nobody else takes it: its mark is renewed.
        until(lambda: client.pttl(mark) < 8_000, "time that passes")
        until(lambda: client.pttl(mark) > 9_000, "the renewal")
        assert jobs.end(signal.SIGTERM) == 0
        jobs.start()
        until(lambda: client.get(f"arq:retry:{call.job_id}") == b"3", "the third run")
        worker.released.set()
        assert await call.result(20, poll_delay=0.05) == answer(seed_of(call.job_id), 3)[1]
        record = client.hgetall(Keys("q").job(call.job_id))
        assert record[b"epoch"] == b"1", "it ran once"
    await pool.aclose()


def test_errors_are_data_in_any_language():
    for error in (
        JobConflict("taken"),
        UnknownModel("none"),
        InvalidRequest("wrong"),
        JobFailed("x", code="odd"),
    ):
        packed = pack({"r": error})
        assert b"$error" in packed
        again = unpack(packed)["r"]
        assert (type(again), again.code, str(again)) == (type(error), error.code, str(error))
    assert type(unpack(pack({"r": JobCancelled("c")}))["r"]) is JobCancelled
    assert unpack(pack({"r": ValueError("v")}))["r"].code == "ValueError"
    with pytest.raises(NotImplementedError, match="object"):
        pack({"r": object()})

"""The synchronous client: the asyncio one on its own thread, shared by the caller's threads."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from stub_worker import answer

from pagestream.producer import Client, InvalidRequest, JobCancelled, JobFailed, QueueUnavailable
from pagestream.producer.request import seed_of


def client_threads():
    return [one for one in threading.enumerate() if one.name == "pagestream-client"]


def test_it_does_what_the_asyncio_client_does(redis_url, queue_name, worker):
    with Client(redis_url, queue=queue_name) as client:
        job = client.submit("hi", max_tokens=20, seed=3, mirror=True)
        chunks = list(job.stream())
        assert "".join(chunk.text for chunk in chunks) == answer(3, 20)[1]
        assert list(job.subscribe()) == chunks
        assert list(client.job(job.id).stream(after=chunks[4].id)) == chunks[5:]
        assert job.result(timeout_ms=10_000).ids == answer(3, 20)[0]
        assert job.status().state == "done"
        assert job.cancel() == "finished"
        assert [info.name for info in client.models()] == ["stub"]
        good, bad = client.submit_many(["hi", {"prompt": ""}])
        assert good.result().ids == answer(seed_of(good.id))[0]
        assert isinstance(bad, InvalidRequest)
        assert job.delete()
        with pytest.raises(JobFailed):
            client.submit("fail").result()


def test_threads_share_a_client(redis_url, queue_name, worker, reader_ids):
    with Client(redis_url, queue=queue_name) as client:

        def one(seed):
            text = "".join(chunk.text for chunk in client.submit("hi", seed=seed).stream())
            return text == answer(seed)[1]

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(one, range(200)))
        assert len(reader_ids()) == 1
        assert len(client_threads()) == 1


def test_a_cancel_from_another_thread_ends_a_waiting_reader(redis_url, queue_name, worker):
    with Client(redis_url, queue=queue_name) as client, ThreadPoolExecutor(1) as pool:
        job = client.submit("hold")
        reading = pool.submit(lambda: list(job.stream()))
        assert worker.claimed.wait(10)
        job.cancel()
        with pytest.raises(JobCancelled):
            reading.result(20)


def test_leaving_a_stream_early_leaves_the_job_alone(redis_url, queue_name, worker):
    with Client(redis_url, queue=queue_name) as client:
        job = client.submit("hi", max_tokens=50, seed=1)
        for chunk in job.stream():
            assert chunk.ids == answer(1)[0][:1]
            break
        assert job.result().ids == answer(1, 50)[0]


def test_a_closed_client_is_gone(redis_url, queue_name, reader_ids, worker):
    client = Client(redis_url, queue=queue_name)
    job = client.submit("hi")
    job.result()
    client.close()
    client.close()
    assert client_threads() == []
    with pytest.raises(RuntimeError, match="closed"):
        job.status()
    assert reader_ids() == []


def test_a_reader_of_a_client_that_closes_is_told(redis_url, queue_name, worker):
    client = Client(redis_url, queue=queue_name)
    job = client.submit("hold")
    chunks = job.stream()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: list(chunks))
        assert worker.claimed.wait(10)
        while not client._client.reader_connections:
            time.sleep(0.01)
        client.close()
        with pytest.raises(QueueUnavailable, match="closed"):
            reading.result(20)


def test_a_job_keeps_its_client(redis_url, queue_name, worker):
    job = Client(redis_url, queue=queue_name).submit("hi", seed=1)
    gc.collect()
    assert job.result().ids == answer(1)[0]
    del job
    gc.collect()
    assert client_threads() == []


def test_a_forgotten_client_ends_its_thread(redis_url, queue_name):
    client = Client(redis_url, queue=queue_name)
    assert len(client_threads()) == 1
    del client
    gc.collect()
    assert client_threads() == []


def test_what_is_wrong_with_the_arguments_is_said_at_once(redis_url):
    with pytest.raises(InvalidRequest, match="name the model"):
        Client(redis_url)
    with pytest.raises(InvalidRequest, match="queue"):
        Client(redis_url, queue="no queue")
    with pytest.raises(InvalidRequest, match="http"):
        Client("http://example.org", queue="q")
    gc.collect()
    assert client_threads() == []

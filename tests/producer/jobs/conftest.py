"""A jobs process, a gateway and a receiver of webhooks on a server of their own."""

import contextlib

import pytest
import redis
from jobs_process import JobsProcess
from redis_server import RedisServer
from stub_worker import StubWorker
from webhook_receiver import SECRET, receiver

from pagestream.producer.keys import QUEUES

MODEL = "stub"


@pytest.fixture(scope="module")
def server():
    """A Redis that this module has for itself: its jobs process is the only one there."""
    one = RedisServer()
    try:
        one.start()
        yield one
    finally:
        one.remove()


@pytest.fixture(scope="module")
def redis_url(server):
    return server.url


@pytest.fixture(scope="module")
def queue(server):
    """The name of a queue that a stub worker serves."""
    client = redis.Redis.from_url(server.url)
    with contextlib.closing(client), StubWorker(server.url, MODEL):
        client.sadd(QUEUES, MODEL)
        yield MODEL


@pytest.fixture(scope="module")
def jobs_process(server, tmp_path_factory):
    flags = ("--webhook-allow", "127.0.0.0/8")
    folder = tmp_path_factory.mktemp("jobs")
    with JobsProcess(server.url, folder, *flags, PAGESTREAM_WEBHOOK_SECRET=SECRET) as one:
        yield one


@pytest.fixture
def hooked():
    with receiver() as one:
        yield one

"""Fixtures of the client's tests: a stub worker on the test's queue, and connections by name."""

import pytest
from stub_worker import StubWorker


@pytest.fixture
def worker(redis_url, queue_name):
    with StubWorker(redis_url, queue_name) as stub:
        yield stub


@pytest.fixture
def reader_ids(redis_client):
    """A function: ids of the connections that wait for replies now."""

    def ids() -> list[str]:
        clients = redis_client.client_list()
        return [one["id"] for one in clients if one["name"] == "pagestream-client-reader"]

    return ids

"""Fixtures of the client's tests: a stub worker on the test's queue, dead letters, connections."""

import pytest
from stub_worker import StubWorker
from wire_tools import PAYLOAD, Worker, row


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


@pytest.fixture
def bury(wire):
    """`bury(job_id)`: a job that killed its only worker three times."""

    def make(job_id: str, *tokens: int, payload: bytes = PAYLOAD, **options) -> None:
        wire.submit(job_id, payload, **options)
        worker = Worker(wire, f"w-{job_id}")
        claim = worker.claim_one()
        if tokens:
            worker.step(rows=[row(claim, 0, *tokens)])
        for known in range(3):
            worker.lease.crashed([(job_id, 1, known)], "Traceback\nRuntimeError: boom")
        worker.lease.leave()

    return make

"""Fixtures of the tests that run a worker's queue process, on an engine without a model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_engine import StubOptions
from tiny_tokenizer import save_byte_level
from worker_harness import Client, Worker

from pagestream.producer.keys import Keys

STUB = StubOptions()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_level(tmp_path_factory.mktemp("model"))


@pytest.fixture
def client(redis_url: str, keys: Keys) -> Iterator[Client]:
    made = Client(redis_url, keys)
    yield made
    made.redis.close()


@pytest.fixture
def start(redis_url: str, keys: Keys, model: Path) -> Iterator[Callable[..., Worker]]:
    """`start(options, grace_s=…, url=…)`: a worker that is stopped after the test."""
    workers: list[Worker] = []

    def make(options: StubOptions = STUB, url: str = redis_url, **more: Any) -> Worker:
        workers.append(Worker(url, keys, model, options, **more).start())
        return workers[-1]

    yield make
    for worker in workers:
        if worker.thread.is_alive():
            worker.end()

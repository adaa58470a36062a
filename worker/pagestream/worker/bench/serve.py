"""Load through the queue or a gateway: workers, and a client process that reads every token.

Without a `--redis-url` all of them are started for the run and end with it: the embedded server
(AOF everysec), `pagestream worker`, and the client; as in service, each is a process of its own.
With one, the load goes to the workers that serve the queue there, and only the client is ours; so
it is with a gateway's `--base-url`.
Knows no engine and imports no torch: what the workers say in their heartbeats is read from Redis.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console

from pagestream.producer.connection import connect
from pagestream.producer.embedded import EmbeddedRedis
from pagestream.producer.errors import PagestreamError, QueueUnavailable, UnknownModel
from pagestream.producer.keys import Keys
from pagestream.producer.protocol import ModelInfo

from ..messages import Load as EngineLoad
from .arrivals import arrival_times
from .client import Driven, Load, Place, QueuePlace, drive_load
from .datasets import Sample, Workload, fit_to_vocabulary
from .gateway import GatewayPlace, ServedModel
from .metrics import Summary, summarize

QUEUE = "bench"
READY_S = 900
"""How long a worker may load: a first start compiles kernels and captures graphs."""
STOP_S = 60
SETTLE_S = 5
"""How long to wait for the heartbeat that counts a run's last step."""
POLL_S = 0.05
WARM_UP_REQUESTS = 8
LOG_TAIL_CHARACTERS = 4000


class WorkerFailed(PagestreamError):
    """The worker that a run had started did not come up."""

    code = "worker_failed"


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """One run at one rate."""

    rate: float | None
    """Requests a second that were offered; None is all at once."""
    repeat: int
    summary: Summary
    client_cpu: float
    """Share of a core that the client process took."""
    steps: int | None = None
    """Of all workers of the queue, as the figures below; None where nobody could ask them."""
    kv_waste: float | None = None
    """Share of allocated token slots that held no token, over the steps."""
    preemptions: int | None = None
    prefix_hit_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """How requests come."""

    rate: float
    burstiness: float = 1.0
    max_concurrency: int | None = None
    seed: int = 0


class Workers:
    """The workers of a queue: what they serve, and what their engines have done so far."""

    def __init__(self, url: str, queue: str) -> None:
        """Raises: UnknownModel: nobody serves the queue."""
        self.url = url
        self._keys = Keys(queue)
        self._redis: Redis = connect(url, client_name="bench")
        workers = _live_workers(self._redis, self._keys)
        if not workers:
            raise UnknownModel(
                f"no worker serves {queue!r} on this Redis: start one, or name another --model"
            )
        info = msgspec.json.decode(workers[0].info, type=ModelInfo)
        self.model = ServedModel(vocab_size=info.vocab_size, context_tokens=info.context_tokens)

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def load(self, beyond: EngineLoad | None = None) -> EngineLoad:
        """Sum of what the workers' engines say, once they are idle and have stepped `beyond` it.

        Others may use the queue: then what there is after a few heartbeats is taken.
        """
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            beats = [worker.beat for worker in _live_workers(self._redis, self._keys)]
            busy = any(beat.get("jobs") or beat.get("running") for beat in beats)
            total = {
                name: sum(beat.get(name, 0) for beat in beats)
                for name in EngineLoad.__struct_fields__
            }
            load = EngineLoad(**total)
            is_newer = beyond is None or load.step > beyond.step
            if (is_newer and not busy) or time.monotonic() > deadline_s:
                return load
            time.sleep(POLL_S)


class Service:
    """A place that takes requests, its workers where they can be asked, and a client process."""

    def __init__(self, place: Place, model: ServedModel, workers: Workers | None) -> None:
        self.model = model
        self._place = place
        self.workers = workers
        self._client = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def run(
        self,
        workload: Workload,
        traffic: Traffic,
        *,
        repeat: int = 0,
        shift: int = 0,
        objectives_ms: Mapping[str, float] | None = None,
        title: str = "",
    ) -> Served:
        """Send a workload and read it, in a process of its own; ids are moved by `shift`."""
        samples = fit_to_vocabulary(workload, self.model.vocab_size, shift)
        arrivals = arrival_times(len(samples), traffic.rate, traffic.burstiness, traffic.seed)
        before = self.workers.load() if self.workers else None
        driven = self._drive(samples, arrivals, traffic.max_concurrency, title)
        return Served(
            rate=None if traffic.rate == float("inf") else traffic.rate,
            repeat=repeat,
            summary=summarize(samples, driven.timelines, objectives_ms),
            client_cpu=driven.cpu_share,
            **(self._workers_did(before) if before else {}),
        )

    def _workers_did(self, before: EngineLoad) -> dict[str, Any]:
        assert self.workers is not None, "there were some before"
        after = self.workers.load(beyond=before)
        allocated = after.allocated_slot_steps - before.allocated_slot_steps
        used = after.used_slot_steps - before.used_slot_steps
        return {
            "steps": after.step - before.step,
            "kv_waste": round(1 - used / allocated, 5) if allocated else None,
            "preemptions": after.preemptions - before.preemptions,
            "prefix_hit_tokens": after.prefix_hit_tokens - before.prefix_hit_tokens,
        }

    def warm_up(self, workload: Workload) -> None:
        """Run a few short requests, of ids that no run has."""
        few = [Sample(ids, min(tokens, 4)) for ids, tokens in workload[:WARM_UP_REQUESTS]]
        few = fit_to_vocabulary(few, self.model.vocab_size, shift=1)
        before = self.workers.load() if self.workers else None
        self._drive(few, [0.0] * len(few), None, "warming up")
        if self.workers:
            self.workers.load(beyond=before)  # a run's own figures begin after these

    def close(self) -> None:
        """Close the connection and end the client process."""
        self._client.shutdown()
        if self.workers:
            self.workers.close()

    def _drive(
        self, samples: Workload, arrivals_s: list[float], max_concurrency: int | None, title: str
    ) -> Driven:
        load = Load(
            place=self._place,
            workload=samples,
            arrivals_s=arrivals_s,
            max_concurrency=max_concurrency,
            title=title,
        )
        return self._client.submit(drive_load, load).result()


@contextmanager
def started(flags: Mapping[str, Any], report: Console) -> Iterator[tuple[Service, float]]:
    """Start a Redis and a worker for the block; yields (the service, seconds until it was ready).

    `flags` are the worker's; those that are None are left to it.

    Raises:
        WorkerFailed: the worker ended, or did not register in time; its log is in the message.
        QueueUnavailable: there is no server to start.
    """
    with tempfile.TemporaryDirectory(prefix="ps-bench-") as folder, EmbeddedRedis() as redis:
        log = Path(folder) / "worker.log"
        began_s = time.monotonic()
        with log.open("wb") as file:
            worker = subprocess.Popen(
                [sys.executable, "-m", "pagestream.producer.cli", "worker"],
                stdout=file,
                stderr=file,
                env=os.environ | _variables({**flags, "redis_url": redis.url}),
            )
        try:
            with report.status("starting a worker ..."):
                _wait_until_registered(worker, redis.url, log)
            ready_s = time.monotonic() - began_s
            with running(redis.url, QUEUE) as service:
                yield service, ready_s
        finally:
            _stop(worker)


@contextmanager
def running(url: str, queue: str) -> Iterator[Service]:
    """Use the workers that serve `queue` on the Redis at `url`.

    Raises:
        UnknownModel: there is none.
        QueueUnavailable: Redis cannot be reached.
    """
    workers = Workers(url, queue)
    service = Service(QueuePlace(url, queue), workers.model, workers)
    try:
        yield service
    finally:
        service.close()


@contextmanager
def behind_gateway(base_url: str, model: str) -> Iterator[Service]:
    """Use the gateway at `base_url`; what its workers do is not known.

    Raises:
        UnknownModel: it does not serve the model.
        QueueUnavailable: it cannot be reached.
    """
    place = GatewayPlace(base_url, model)
    service = Service(place, place.served_model(), None)
    try:
        yield service
    finally:
        service.close()


def _variables(flags: Mapping[str, Any]) -> dict[str, str]:
    """The worker's flags as the variables of the same names."""
    flags = {**flags, "served_model_name": QUEUE}
    return {
        f"PAGESTREAM_{name.upper()}": str(value)
        for name, value in flags.items()
        if value is not None
    }


def _wait_until_registered(worker: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + READY_S
    with connect(url, client_name="bench") as redis:
        while not _live_workers(redis, Keys(QUEUE)):
            if worker.poll() is not None or time.monotonic() > deadline_s:
                text = log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
                raise WorkerFailed(f"the worker did not come up; its log ends with\n{text}")
            time.sleep(POLL_S)


def _stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(STOP_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


class _Worker(NamedTuple):
    """What a live worker says of itself."""

    info: bytes
    """JSON of its `ModelInfo`."""
    beat: dict[str, Any]
    """Its last heartbeat's counters."""


def _live_workers(redis: Redis, keys: Keys) -> list[_Worker]:
    """Raises: QueueUnavailable: Redis cannot be reached."""
    client: Any = redis  # redis-py types its answers as "perhaps awaitable"
    try:
        infos = client.hgetall(keys.model)
        beats = [client.get(keys.heartbeat(worker.decode())) for worker in infos]
    except RedisError as error:
        raise QueueUnavailable(f"Redis cannot be reached: {error}") from error
    return [
        _Worker(info, msgspec.json.decode(beat))
        for info, beat in zip(infos.values(), beats, strict=True)
        if beat
    ]

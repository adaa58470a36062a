"""A worker to measure the queue: on the demo model, or on an engine that only takes its time."""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from pagestream.worker.config import EngineConfig
from pagestream.worker.messages import Add, Load, Output, Ready, Step, View
from pagestream.worker.service import run_worker
from pagestream.worker.settings import read_settings

MODEL = "demo"


class TimedEngine:
    """Gives every running request a token each `step_s`, with no model and no cache."""

    def __init__(self, slots: int, step_s: float) -> None:
        self._slots = slots
        self._step_s = step_s
        self._left: dict[str, int] = {}
        self._steps = 0

    def ready(self) -> Ready:
        return Ready(
            max_model_tokens=4_096,
            max_running=self._slots,
            num_blocks=self._slots * 256 + 1,
            block_tokens=16,
            vocab_size=32_000,
            device="none",
            weight_bytes=0,
            kv_bytes=0,
        )

    def add(self, request: Add) -> None:
        self._left[request.request_id] = request.sampling.max_tokens - len(request.output_ids)

    def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._left.pop(request_id, None)

    def view(self) -> View:
        return View(step=self._steps, requests=[], idle_blocks=0, block_map="", blocks_per_cell=1)

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    def step(self) -> Step:
        time.sleep(self._step_s)
        self._steps += 1
        running = list(self._left)[: self._slots]
        outputs: list[Output] = []
        for request_id in running:
            self._left[request_id] -= 1
            ends = self._left[request_id] == 0
            outputs.append(Output(request_id, [7], "length" if ends else None))
            if ends:
                del self._left[request_id]
        load = Load(running=len(running), free_blocks=self._slots * 128, step=self._steps)
        return Step(outputs, load)


def build_timed(slots: int, step_s: float, config: EngineConfig) -> TimedEngine:
    """Build the engine in the child process."""
    return TimedEngine(slots, step_s)


def work(url: str, slots: int, step_ms: float | None) -> None:
    """Serve until SIGTERM; a process of its own."""
    settings = read_settings(redis_url=url, max_num_seqs=slots, grace=0)
    if step_ms is None:
        sys.exit(run_worker(settings))
    sys.exit(run_worker(settings, partial(build_timed, slots, step_ms / 1000)))


@contextmanager
def running_worker(url: str, slots: int, step_ms: float | None) -> Iterator[int]:
    """A worker in a process of its own, until the block ends; yields its process id."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=(url, slots, step_ms))
    process.start()
    assert process.pid is not None, "it has started"
    try:
        yield process.pid
    finally:
        process.terminate()
        process.join(30)

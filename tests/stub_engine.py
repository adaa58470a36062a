"""An engine without a model: each token is a hash of the prompt and the position.

Follows the protocol of `process.EngineLike` as the real one does: rows, blocks, prompt before
output, end tokens, `max_tokens`, resume from `output_ids`. Switches make it crash, hang or crawl.
"""

import os
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from pagestream.producer.errors import PagestreamError
from pagestream.worker.config import EngineConfig
from pagestream.worker.errors import OutOfMemory
from pagestream.worker.messages import Add, Load, Output, Ready, RequestView, Sampling, Step, View

BLOCK_TOKENS = 16


@dataclass(frozen=True)
class StubOptions:
    """What the stub is and what goes wrong with it."""

    vocab_size: int = 270
    max_model_tokens: int = 512
    max_running: int = 64
    num_blocks: int = 1025
    step_s: float = 0.0
    crash_file: Path | None = None
    """While this file holds a number above 0, engines crash at `crash_at_step` and lower it."""
    crash_at_step: int = 20
    stall_file: Path | None = None
    """While this file exists, steps do not return."""
    refuse: str = ""
    """The engine cannot be built, and says this."""
    fail: str = ""
    """The engine fails while it is built, with a bug's traceback."""
    poison_token: int | None = None
    """A prompt that begins with it is refused by `add` with an exception."""
    deadly_token: int | None = None
    """A prompt that begins with it kills the engine in the step that gives its third token."""
    hungry_token: int | None = None
    """A prompt that begins with it finds no memory in the step that gives its third token."""
    blocks_file: Path | None = None
    """While this file exists, engines are built with as many blocks as it says."""
    run_ahead_tokens: int = 1
    """Tokens of a request in one step."""


def next_token(prompt_ids: list[int], position: int, vocab_size: int) -> int:
    """The stub's token at `position` of the output."""
    digest = zlib.crc32(b"%d" % position, zlib.crc32(",".join(map(str, prompt_ids)).encode()))
    return digest % vocab_size


def expected_ids(prompt_ids: list[int], sampling: Sampling, vocab_size: int = 270) -> list[int]:
    """What a whole run gives."""
    ids: list[int] = []
    while len(ids) < sampling.max_tokens:
        token_id = next_token(prompt_ids, len(ids), vocab_size)
        ids.append(token_id)
        if token_id in sampling.stop_token_ids and len(ids) > sampling.min_tokens:
            break
    return ids


@dataclass
class _Request:
    add: Add
    ids: list[int] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        return -(-(len(self.add.prompt_ids) + len(self.ids)) // BLOCK_TOKENS)


class StubEngine:
    def __init__(self, options: StubOptions) -> None:
        if options.refuse:
            raise PagestreamError(options.refuse)
        if options.fail:
            raise RuntimeError(options.fail)
        self.options = options
        self.num_blocks = options.num_blocks
        if options.blocks_file and options.blocks_file.exists():
            self.num_blocks = int(options.blocks_file.read_text())
        self.requests: dict[str, _Request] = {}
        self.steps = 0
        self.queried = 0

    def ready(self) -> Ready:
        options = self.options
        return Ready(
            max_model_tokens=min(options.max_model_tokens, (self.num_blocks - 1) * BLOCK_TOKENS),
            max_running=options.max_running,
            num_blocks=self.num_blocks,
            block_tokens=BLOCK_TOKENS,
            vocab_size=options.vocab_size,
            device="cpu",
            weight_bytes=0,
            kv_bytes=0,
        )

    def add(self, request: Add) -> None:
        if request.prompt_ids[0] == self.options.poison_token:
            raise ValueError("poison")
        self.queried += len(request.prompt_ids)
        self.requests[request.request_id] = _Request(request, list(request.output_ids))

    def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.requests.pop(request_id, None)

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def step(self) -> Step:
        self.steps += 1
        self._go_wrong()
        time.sleep(self.options.step_s)
        outputs: list[Output] = []
        for request_id, request in list(self.requests.items())[: self.options.max_running]:
            sampling, ids, finish = request.add.sampling, [], None
            if request.add.prompt_ids[0] == self.options.deadly_token and len(request.ids) == 2:
                raise RuntimeError("device-side assert triggered")
            if request.add.prompt_ids[0] == self.options.hungry_token and len(request.ids) == 2:
                raise OutOfMemory(request_id)
            while len(ids) < self.options.run_ahead_tokens and finish is None:
                position = len(request.ids)
                token_id = self.next_token(request.add.prompt_ids, request.ids)
                request.ids.append(token_id)
                ids.append(token_id)
                if token_id in sampling.stop_token_ids and position >= sampling.min_tokens:
                    finish = "stop"
                elif len(request.ids) >= sampling.max_tokens:
                    finish = "length"
            outputs.append(Output(request_id, ids, finish))
            if finish:
                del self.requests[request_id]
        return Step(outputs, self._load())

    def view(self) -> View:
        views = [
            RequestView(
                request_id,
                "decode" if request.ids else "waiting",
                tokens := len(request.add.prompt_ids) + len(request.ids),
                tokens,
                request.blocks,
                0,
            )
            for request_id, request in self.requests.items()
        ]
        used = sum(request.blocks for request in self.requests.values())
        cells = "u" * used + "." * (self.num_blocks - 1 - used)
        return View(
            step=self.steps, requests=views, idle_blocks=0, block_map=cells, blocks_per_cell=1
        )

    def next_token(self, prompt_ids: list[int], ids: list[int]) -> int:
        return next_token(prompt_ids, len(ids), self.options.vocab_size)

    def _load(self) -> Load:
        running = list(self.requests.values())[: self.options.max_running]
        used = sum(request.blocks for request in running)
        waiting = len(self.requests) - len(running)
        free = max(0, self.num_blocks - 1 - used)
        return Load(
            running=len(running),
            waiting=waiting,
            free_blocks=free,
            used_slots=used * 16,
            allocated_slots=used * 16,
            step=self.steps,
            prefix_query_tokens=self.queried,
            prefill_tokens=self.queried,
        )

    def _go_wrong(self) -> None:
        options = self.options
        while options.stall_file and options.stall_file.exists():
            time.sleep(0.05)
        if options.crash_file and self.steps == options.crash_at_step:
            left = int(options.crash_file.read_text() or "0")
            if left:
                options.crash_file.write_text(str(left - 1))
                os._exit(9)


def build_stub(options: StubOptions, config: EngineConfig | None = None) -> StubEngine:
    """Built in the child process; `functools.partial(build_stub, options)` is picklable."""
    return StubEngine(options)

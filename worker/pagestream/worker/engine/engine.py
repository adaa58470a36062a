"""The engine: requests in, tokens out, one `step()` at a time.

    schedule ─► launch ─► (the step before) commit

On a GPU the next step is launched before the last one's tokens are read, so the device never waits
for the host; on a CPU each step is committed at once. The loop is the same.
Knows no Redis, no text and no processes.
"""

import gc
import os
from collections import deque
from collections.abc import Callable

import torch

from pagestream.kernels import FIXED_SPLITTING, Products

from ..config import BLOCK_TOKENS, EngineConfig
from ..errors import ConfigError
from ..messages import Add, Output, Ready, Step, View
from ..models import Model, load_model
from .batch import Batch
from .blocks import BlockPool
from .memory import allocate_cache, block_bytes, blocks_that_fit
from .plan import Plan
from .request import Request
from .runner import Launched, Runner
from .sampler import MAX_SUPPRESSED_IDS, Sampler
from .scheduler import Scheduler


class Engine:
    """Runs requests on one device. Not thread-safe: one thread adds, aborts and steps."""

    def __init__(self, scheduler: Scheduler, runner: Runner, model: Model, ready: Ready) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._model = model
        self._ready = ready
        self._in_flight: deque[tuple[Plan, Launched]] = deque()
        self._refused: list[Output] = []
        self._steps = 0

    def ready(self) -> Ready:
        """What the engine can take."""
        return self._ready

    def add(self, add: Add) -> None:
        """Queue a request. One that can never run ends with an error in the next step's outputs."""
        if reason := self._refusal(add):
            self._refused.append(Output(add.request_id, [], "error", message=reason))
            return
        salt = add.cache_salt + self._model.cache_salt(len(add.prompt_ids))
        self.scheduler.add(
            Request(add.request_id, add.prompt_ids, add.sampling, add.output_ids, salt)
        )

    def abort(self, request_ids: list[str]) -> None:
        """Forget requests and free their blocks; unknown ids are ignored (they may have ended)."""
        for request_id in request_ids:
            self.scheduler.abort(request_id)

    @property
    def has_work(self) -> bool:
        """True while a step would do something."""
        return self.scheduler.has_work or bool(self._in_flight) or bool(self._refused)

    def step(self) -> Step:
        """Launch the next step, and return the tokens of the oldest one that is due.

        Raises:
            OutOfMemory: not even one token of a request fits; the engine cannot go on.
        """
        plan = self.scheduler.schedule()
        if len(plan):
            self._in_flight.append((plan, self._runner.launch(plan)))
        outputs, self._refused = self._refused, []
        if self._in_flight and (len(self._in_flight) > self._runner.max_in_flight or not len(plan)):
            due, launched = self._in_flight.popleft()
            outputs += self.scheduler.commit(due, launched.token_ids())
        self._steps += 1
        return Step(outputs, self.scheduler.load(self._steps, self._runner.times_out_of_memory))

    def view(self) -> View:
        """What the scheduler holds now; the step in flight counts as computed."""
        return self.scheduler.view(self._steps)

    def _refusal(self, add: Add) -> str | None:
        """Why a request cannot run; intake has checked this, so it is a second line of defence."""
        ready, sampling = self._ready, add.sampling
        total_tokens = len(add.prompt_ids) + sampling.max_tokens
        if not add.prompt_ids:
            return "the prompt is empty"
        if total_tokens > ready.max_model_tokens:
            return f"{total_tokens} tokens are more than the context of {ready.max_model_tokens}"
        if not 0 <= min(add.prompt_ids) <= max(add.prompt_ids) < ready.vocab_size:
            return f"a token id is outside the vocabulary of {ready.vocab_size}"
        if len(sampling.stop_token_ids) > MAX_SUPPRESSED_IDS:
            return f"{len(sampling.stop_token_ids)} stop token ids; at most {MAX_SUPPRESSED_IDS}"
        return None


def build_engine(
    config: EngineConfig, progress: Callable[[int, int], None] | None = None
) -> Engine:
    """Load the model, size and allocate the cache, and compile everything before the first job.

    Python's objects of that moment are frozen (`gc.freeze`): no garbage collection visits them.

    Args:
        config: the settings.
        progress: told (bytes loaded, bytes in all) while weights load.

    Raises:
        ConfigError: settings that do not fit the model or the machine.
        ModelError: the model cannot be loaded.
    """
    device = pick_device(config.device)
    if config.deterministic and device.type == "cuda":
        never_split_sums()
    model = load_model(config, device, progress)
    model.splitting = FIXED_SPLITTING if config.deterministic else None
    if device.type == "cuda" and not config.deterministic:
        model.take_products(Products(device))
    context_tokens = _context(config, model.spec.context_tokens)
    max_step_tokens = config.step_budget_tokens
    batch = Batch(
        max_running=config.max_running,
        max_step_tokens=max_step_tokens,
        max_model_tokens=context_tokens,
        block_tokens=BLOCK_TOKENS,
        device=device,
    )
    sampler = Sampler(batch.num_rows, device)

    def runner_with(num_blocks: int) -> Runner:
        cache = allocate_cache(model.spec, num_blocks, device)
        return Runner(model, cache, batch, sampler)

    num_blocks = config.num_blocks
    if num_blocks is None:
        if device.type == "cuda":
            runner_with(2).warm_up(max_step_tokens)  # the largest step shows what memory is left
        most_blocks = config.max_running * -(-context_tokens // BLOCK_TOKENS) + 1
        num_blocks = blocks_that_fit(model.spec, most_blocks, device, config.gpu_memory_utilization)
    max_model_tokens = min(context_tokens, (num_blocks - 1) * BLOCK_TOKENS)
    runner = runner_with(num_blocks)
    if device.type == "cuda":
        runner.warm_up(max_step_tokens)
        runner.capture_graphs(config.max_running, max_model_tokens, max_step_tokens)
    scheduler = Scheduler(
        BlockPool(num_blocks, BLOCK_TOKENS),
        max_running=config.max_running,
        max_step_tokens=max_step_tokens,
        max_mixed_tokens=config.mixed_budget_tokens,
        prefix_cache=config.prefix_cache,
    )
    ready = Ready(
        max_model_tokens=max_model_tokens,
        max_running=config.max_running,
        num_blocks=num_blocks,
        block_tokens=BLOCK_TOKENS,
        vocab_size=model.spec.vocab_size,
        device=str(device),
        weight_bytes=model.weight_bytes,
        kv_bytes=num_blocks * block_bytes(model.spec),
    )
    # What was loaded stays. A collection that looks at all of it holds a step up for 90 ms.
    gc.collect()
    gc.freeze()
    return Engine(scheduler, runner, model, ready)


def never_split_sums() -> None:
    """Keep cuBLAS from splitting a product's sums between programs, which it does by the batch.

    Without a workspace it cannot. The variables are read at a process's first product on the GPU.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
    os.environ["CUBLASLT_WORKSPACE_SIZE"] = "1"
    torch.backends.cuda.preferred_blas_library("cublaslt")


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes a GPU if there is one.

    Raises:
        ConfigError: `cuda` was asked for and torch sees none.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ConfigError("device=cuda, but torch sees no GPU here; use device=cpu or auto")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


def _context(config: EngineConfig, model_tokens: int) -> int:
    wanted = config.max_model_tokens
    if wanted is None:
        return model_tokens
    if not 1 < wanted <= model_tokens:
        raise ConfigError(
            f"max_model_len={wanted} is outside 2 to {model_tokens}, the context of this model"
        )
    return wanted

"""Runs plans on the device, in order.

A launched step's tokens come back through `Launched.token_ids`. On a CPU they are there at once; on
a GPU the host goes on while the device works, and all but the largest steps replay a graph. Knows
no requests beyond what a plan says of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import OutOfMemory
from ..models import Model
from ..models.inputs import LayerCache
from .batch import Batch, StepShape
from .graphs import StepGraphs
from .plan import Plan
from .sampler import Sampler
from .step_limit import StepLimit


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on its way; `token_ids` are one a work, in batch order."""

    _host_ids: Tensor
    _arrived: torch.cuda.Event | None
    _num_works: int

    def token_ids(self) -> list[int]:
        """Wait for the step and return the ids it drew."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return cast(Any, self._host_ids[: self._num_works]).tolist()


class Runner:
    """The model, its KV cache, and the rows of the running requests."""

    def __init__(
        self,
        model: Model,
        cache: list[LayerCache],
        batch: Batch,
        sampler: Sampler,
    ) -> None:
        self._model = model
        self._cache = cache
        self._batch = batch
        self._sampler = sampler
        self._graphs: StepGraphs | None = None
        self._on_gpu = cache[0].k.device.type == "cuda"
        # One more than can be in flight: a step's ids are read before its buffer is written again.
        self._landings = [
            (
                torch.zeros(batch.num_rows, dtype=torch.int32, pin_memory=self._on_gpu),
                torch.cuda.Event() if self._on_gpu else None,
            )
            for _ in range(self.max_in_flight + 1)
        ]
        self._turn = 0
        self._limit = StepLimit(batch.max_step_tokens)

    @property
    def times_out_of_memory(self) -> int:
        """How often memory was too little for a step or a part of one, since the start."""
        return self._limit.times_lowered

    @property
    def max_in_flight(self) -> int:
        """Steps that may be launched before the oldest one's tokens are read."""
        return 1 if self._on_gpu else 0

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Launched:
        """Start a step; the host does not wait for it.

        Where memory is too little for all of it, it runs in parts, and the host waits for all but
        the last: the plan and its tokens stay the same.

        Raises:
            OutOfMemory: not even one token fits.
        """
        host_ids, arrived = self._landings[self._turn]
        self._turn = (self._turn + 1) % len(self._landings)
        rest = plan
        while len(rest):
            part, after = rest.cut(self._limit.tokens)
            begin = len(plan) - len(rest)
            if self._start(part, host_ids[begin : begin + len(part)]):
                rest = after
            if len(rest) and self._on_gpu:
                torch.cuda.synchronize()  # the host's buffers are about to be filled again
        if arrived is not None:
            arrived.record()
        return Launched(host_ids, arrived, len(plan))

    @torch.inference_mode()
    def warm_up(self, max_step_tokens: int) -> None:
        """Run the largest prefill and a decode: every kernel is compiled before the first job."""
        self._step(self._batch.stage_prefill_of_nobody(max_step_tokens))
        decode = StepShape(1, 1, True, 0, 1)
        self._batch.stage(Plan(), decode)
        self._step(decode)

    @torch.inference_mode()
    def capture_graphs(self, max_running: int, max_model_tokens: int, max_step_tokens: int) -> None:
        """Capture whole steps, model to sampler, for every shape of the graphs."""
        self._graphs = StepGraphs(
            max_running, max_model_tokens, max_step_tokens, self._model.layer_products
        )
        shapes = list(self._graphs.shapes())
        # First each one as it is: kernels compile, libraries set themselves up, products are timed.
        # A few layers do it for all.
        samples = self._model.samples()
        with self._model.learning():
            # Steps full of prefills are of one size, too, even where no graph holds them.
            self._step(self._batch.stage_prefill_of_nobody(max_step_tokens), samples)
            # Nobody's step of the most sequences holds nobody's step of fewer.
            self._batch.stage(Plan(), max(shapes, key=lambda shape: shape.num_seqs))
            for shape in shapes:
                self._step(shape, samples)
        for shape in shapes:
            self._graphs.capture(shape, self._step)

    def _step(self, shape: StepShape, only: Sequence[int] | None = None) -> Tensor:
        """One step on the device: batch, model, head, draw. Returns ids `[seqs]` int32.

        `only` as in `Model.forward`.
        """
        inputs = self._batch.inputs(shape)
        hidden = self._model.forward(inputs, self._cache, only)
        if shape.max_prefills:
            hidden = hidden[inputs.cu_q[1:] - 1]
        logits = self._model.logits(hidden)
        token_ids = self._sampler.draw(logits, inputs.rows, inputs.kv_lens)
        self._batch.keep_drawn(inputs.rows, token_ids)
        return token_ids

    def _start(self, part: Plan, host_ids: Tensor) -> bool:
        """Launch a step or a part of one, and its ids' way to `host_ids`; False: no memory.

        Then it can be launched again, whole or in parts: no id was kept, and keys and values that
        were written are written again. What torch had cached it gave back before it failed.
        """
        try:
            self._admit(part)
            shape = StepShape.of(part)
            captured = self._graphs.fit(shape) if self._graphs is not None else None
            self._batch.stage(part, captured or shape)
            if self._graphs is not None and captured is not None:
                token_ids = self._graphs.replay(captured)
            else:
                token_ids = self._step(shape)
        except torch.OutOfMemoryError as error:
            if part.num_tokens == 1:
                raise OutOfMemory(next(iter(part)).request.request_id) from error
            self._limit.lower(part.num_tokens, str(error))
            return False  # not tried again here: the error holds the step's tensors
        host_ids.copy_(token_ids[: len(part)], non_blocking=True)
        self._limit.fitted()
        return True

    def _admit(self, plan: Plan) -> None:
        if plan.admitted:
            rows = self._batch.admit(plan.admitted)
            self._sampler.admit(
                rows, [(request.sampling, len(request.prompt_ids)) for request in plan.admitted]
            )

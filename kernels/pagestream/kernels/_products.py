"""Products of matrices, each shape by the algorithm that measured fastest on this GPU.

cuBLAS picks an algorithm by rules of its own, and below some 1,000 rows they are often off: 16.4 µs
at 192 x 4096 x 4096 on an H200 where another of its tilings takes 13.1. So shapes that will be
replayed from graphs, and that of the largest step, are measured before the first job; any other
takes what torch takes. For some numbers of rows every tiling is tried, for those between what was
good there. What was chosen is kept with Triton's compiled kernels, so that the next start on this
GPU measures nothing and sums in the same order. The module knows nothing of what the weights mean.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ._cublaslt import Algorithm, CublasLt, Layouts, Shape
from ._product_notes import Notes

_PROPOSALS = 8
_SURVEYED_ROWS = frozenset((8, 16, *range(32, 257, 32), *range(384, 1025, 128)))
"""Rows for which every tiling is tried: some 200 take 0.1 s."""
_SURVEYED_OUTPUTS = 65536
"""With more of them (the LM head's) trying all takes too long."""
_FINALISTS = 3
_ROUNDS = 3
_MAX_WEIGHTS = 2
"""Weights of one shape to measure with, in turn: one alone would come from the L2 cache."""
_SLEEP_CYCLES = 200_000
"""What the GPU waits before each measurement: meanwhile the host launches what is measured."""
_WORTHWHILE = 0.97
"""Share of the usual time that another algorithm may take: less is gained by chance."""


class Products:
    """x @ weight.T for the shapes it has learned. One stream at a time: the workspace is shared."""

    def __init__(self, device: torch.device) -> None:
        """Raises: OSError: this torch came without cuBLASLt."""
        self._library = CublasLt(device)
        self._device = device
        gpu = torch.cuda.get_device_properties(device)
        self._notes = Notes(
            *(gpu.name, gpu.multi_processor_count, torch.__version__, self._library.version)
        )
        self._chosen: dict[Shape, tuple[Layouts, Algorithm] | None] = {}
        """None where torch's own choice was as good."""
        self._seen: dict[Shape, list[Tensor]] | None = None
        """While learning: weights by the shapes asked for and not known yet."""
        # By the shape of a single row:
        self._tilings: dict[Shape, list[Algorithm]] = {}
        self._good: defaultdict[Shape, list[Algorithm]] = defaultdict(list)
        """What was good for the numbers of rows that were surveyed."""

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """Return x @ weight.T, or None where torch may as well.

        Shapes: x [rows, inputs], weight [outputs, inputs] -> [rows, outputs].
        """
        if not CublasLt.takes(x, weight):
            return None
        shape = Shape(x.shape[0], x.shape[1], len(weight), x.dtype)
        if self._seen is not None and shape not in self._chosen:
            weights = self._seen.setdefault(shape, [])
            if len(weights) < _MAX_WEIGHTS:
                weights.append(weight)
        if (chosen := self._chosen.get(shape)) is None:
            return None
        out = torch.empty(shape.rows, shape.outputs, dtype=x.dtype, device=x.device)
        status = self._library.launch(*chosen, x, weight, out)
        assert status == 0, f"cublasLtMatmul of {shape}: status {status}"
        return out

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Choose for the shapes that are asked for inside, when it ends. Waits for the device."""
        self._seen = {}
        try:
            yield
            # Those between take what was found for those surveyed.
            for shape in sorted(self._seen, key=_is_surveyed, reverse=True):
                self._chosen[shape] = self._choose(shape, self._seen[shape])
            self._notes.keep()
        finally:
            self._seen = None

    def _choose(self, shape: Shape, weights: list[Tensor]) -> tuple[Layouts, Algorithm] | None:
        """What the notes say of a shape, or else what is the fastest now."""
        x = torch.randn(shape.rows, shape.inputs, dtype=shape.dtype, device=self._device)
        out = torch.empty(shape.rows, shape.outputs, dtype=shape.dtype, device=self._device)
        layouts = self._library.layouts(shape)
        if shape in self._notes:
            best = self._notes[shape]
            if best is None or self._library.launch(layouts, best, x, weights[0], out) == 0:
                return None if best is None else (layouts, best)
        best = self._notes[shape] = self._fastest(shape, layouts, x, weights, out)
        return None if best is None else (layouts, best)

    def _fastest(
        self, shape: Shape, layouts: Layouts, x: Tensor, weights: list[Tensor], out: Tensor
    ) -> Algorithm | None:
        """Try all candidates once, the best of them again; None if torch's choice is as good."""
        candidates = self._library.proposals(layouts, _PROPOSALS)
        row = shape._replace(rows=1)
        if not _is_surveyed(shape):
            candidates += self._good[row]
        elif candidates:
            if row not in self._tilings:
                self._tilings[row] = self._library.tilings(layouts, candidates[0])
            candidates += self._tilings[row]
        timed: list[tuple[float, int]] = []
        for number, candidate in enumerate(candidates):
            launch = partial(self._library.launch, layouts, candidate, x, out=out)
            # One may ask for what this GPU or these operands do not have.
            if launch(weights[0]) == 0:
                timed.append((_time_us(launch, weights), number))
        finalists = [candidates[number] for _, number in sorted(timed)[:_FINALISTS]]
        if _is_surveyed(shape):
            self._good[row] += finalists
        usual_us = _time_us(partial(F.linear, x), weights, _ROUNDS)
        best, best_us = None, _WORTHWHILE * usual_us
        for finalist in finalists:
            launch = partial(self._library.launch, layouts, finalist, x, out=out)
            if (us := _time_us(launch, weights, _ROUNDS)) < best_us:
                best, best_us = finalist, us
        return best


def _is_surveyed(shape: Shape) -> bool:
    return shape.rows in _SURVEYED_ROWS and shape.outputs < _SURVEYED_OUTPUTS


def _time_us(launch: Callable[[Tensor], object], weights: list[Tensor], rounds: int = 1) -> float:
    """Shortest time of a launch, over rounds of one launch a weight."""
    times_us: list[float] = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_SLEEP_CYCLES)
        begin.record()
        for weight in weights:
            launch(weight)
        end.record()
        end.synchronize()
        times_us.append(begin.elapsed_time(end) * 1000 / len(weights))
    return min(times_us)

"""Products of matrices, each shape by the algorithm that measured fastest on this GPU.

cuBLAS picks an algorithm by rules of its own, and between 64 and 1,024 rows they are sometimes far
off: 293 µs at 448 x 4096 x 28672 on an H100 where another of its algorithms takes 170. So shapes
that will be replayed from graphs are measured once, before they are captured; any other takes what
torch takes. What was chosen is kept with Triton's compiled kernels, so that the next start on this
GPU measures nothing and sums in the same order. The module knows nothing of what the weights mean.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ._cublaslt import Algorithm, CublasLt, Layouts, Shape

logger = logging.getLogger(__name__)

_MAX_CANDIDATES = 8
_MAX_WEIGHTS = 2
"""Weights of one shape to measure with, in turn: one alone would come from the L2 cache."""
_ROUNDS = 2
_MAX_ROWS = 1024
"""With more rows the usual choice is good, and measuring takes long."""
_SLEEP_CYCLES = 200_000
"""What the GPU waits before each measurement: meanwhile the host launches what is measured."""
_HOPELESS = 1.2
"""Times the fastest so far: whoever takes longer in the first round is not measured again."""
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

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """Return x @ weight.T, or None where torch may as well.

        Shapes: x [rows, inputs], weight [outputs, inputs] -> [rows, outputs].
        """
        if len(x) > _MAX_ROWS or not CublasLt.takes(x, weight):
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
            for shape, weights in self._seen.items():
                self._chosen[shape] = self._choose(shape, weights)
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
        best = self._notes[shape] = self._fastest(layouts, x, weights, out)
        return None if best is None else (layouts, best)

    def _fastest(
        self, layouts: Layouts, x: Tensor, weights: list[Tensor], out: Tensor
    ) -> Algorithm | None:
        usual_us = _time_us(partial(F.linear, x), weights)
        best, best_us = None, _WORTHWHILE * usual_us
        for algorithm in self._library.candidates(layouts, _MAX_CANDIDATES):
            launch = partial(self._library.launch, layouts, algorithm, x, out=out)
            if launch(weights[0]) != 0:
                continue  # it asks for what this GPU or these operands do not have
            if (us := _time_us(launch, weights, _HOPELESS * best_us)) < best_us:
                best, best_us = algorithm, us
        return best


def _time_us(
    launch: Callable[[Tensor], object], weights: list[Tensor], most_us: float = float("inf")
) -> float:
    """Shortest time of a launch, over rounds of one launch a weight; one round if `most_us`."""
    launch(weights[0])
    times_us: list[float] = []
    for _ in range(_ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_SLEEP_CYCLES)
        begin.record()
        for weight in weights:
            launch(weight)
        end.record()
        end.synchronize()
        times_us.append(begin.elapsed_time(end) * 1000 / len(weights))
        if times_us[0] > most_us:
            break
    return min(times_us)


class Notes:
    """What was chosen on one kind of GPU with the same libraries, in a file of Triton's cache.

    A file that cannot be read or written costs the measuring, nothing else.
    """

    _FILE = "products.json"
    _FORMAT = 1

    def __init__(self, *identity: object) -> None:
        """`identity`: all that a choice depends on beside the shape."""
        from triton.runtime.cache import get_cache_manager

        key = repr(("pagestream products", self._FORMAT, *identity))
        self._store = get_cache_manager(hashlib.sha256(key.encode()).hexdigest())
        self._algorithms = self._read(self._store.get_file(self._FILE))
        self._changed = False

    def __contains__(self, shape: Shape) -> bool:
        return _name(shape) in self._algorithms

    def __getitem__(self, shape: Shape) -> Algorithm | None:
        noted = self._algorithms[_name(shape)]
        return None if noted is None else Algorithm.from_buffer_copy(bytes.fromhex(noted))

    def __setitem__(self, shape: Shape, algorithm: Algorithm | None) -> None:
        self._algorithms[_name(shape)] = None if algorithm is None else bytes(algorithm).hex()
        self._changed = True

    def keep(self) -> None:
        """Write what is new."""
        if not self._changed:
            return
        try:
            self._store.put(json.dumps(self._algorithms), self._FILE, binary=False)
        except OSError as error:
            logger.warning("the choice of products is not kept for the next start: %s", error)
        self._changed = False

    @staticmethod
    def _read(path: str | None) -> dict[str, str | None]:
        try:
            return json.loads(Path(path).read_text()) if path else {}
        except (OSError, ValueError) as error:
            logger.warning("products are measured anew, %s cannot be read: %s", path, error)
            return {}


def _name(shape: Shape) -> str:
    return f"{shape.rows} x {shape.inputs} x {shape.outputs} {shape.dtype}"

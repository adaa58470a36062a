"""Products by cuBLASLt, each shape by the algorithm that measured fastest on this GPU.

cuBLAS picks an algorithm by rules of its own, and between 64 and 1,024 rows they are sometimes far
off: 293 µs at 448 x 4096 x 28672 on an H100 where another of its algorithms takes 170. So shapes
that will be replayed from graphs are measured once, before they are captured; any other takes what
torch takes. Which algorithm wins may differ from start to start, and with it the last bits of a
sum. The module knows nothing of what the weights mean.

Source: NVIDIA's "cuBLAS" manual, "Using the cuBLASLt API".
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_DATA_TYPES = {torch.float16: 2, torch.bfloat16: 14}
_FP32 = 0
_COMPUTE_IN_FP32 = 68
_TRANSPOSE_A = 3
_TRANSPOSED = 1
_PREFERENCE_WORKSPACE = 1

_WORKSPACE_BYTES = 32 << 20
_ALIGNMENT_BYTES = 256
"""What cuBLASLt takes for granted of operands unless told otherwise."""
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


class _Algorithm(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64 * 8)]


class _Candidate(ctypes.Structure):
    _fields_ = [
        ("algorithm", _Algorithm),
        ("workspace_bytes", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


class _Shape(NamedTuple):
    rows: int
    inputs: int
    outputs: int
    dtype: torch.dtype


class _Layouts(NamedTuple):
    """cuBLASLt's descriptions of the operands; it counts by columns, so a weight comes first."""

    weight: ctypes.c_void_p
    x: ctypes.c_void_p
    out: ctypes.c_void_p


class Products:
    """x @ weight.T for the shapes it has learned. One stream at a time: the workspace is shared."""

    def __init__(self, device: torch.device) -> None:
        """Raises: OSError: this torch came without cuBLASLt."""
        assert torch.version.cuda is not None, "cuBLASLt is NVIDIA's"
        self._lib = ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.partition('.')[0]}")
        self._device = device
        self._workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._handle = self._made("cublasLtCreate")
        self._product = self._made("cublasLtMatmulDescCreate", _COMPUTE_IN_FP32, _FP32)
        self._set("cublasLtMatmulDesc", self._product, _TRANSPOSE_A, ctypes.c_int(_TRANSPOSED))
        self._preference = self._made("cublasLtMatmulPreferenceCreate")
        workspace_bytes = ctypes.c_uint64(_WORKSPACE_BYTES)
        self._set(
            "cublasLtMatmulPreference", self._preference, _PREFERENCE_WORKSPACE, workspace_bytes
        )
        self._chosen: dict[_Shape, tuple[_Layouts, _Algorithm] | None] = {}
        """None where torch's own choice was as good."""
        self._seen: dict[_Shape, list[Tensor]] | None = None
        """While learning: weights by the shapes asked for and not known yet."""

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """Return x @ weight.T, or None where torch may as well.

        Shapes: x [rows, inputs], weight [outputs, inputs] -> [rows, outputs].
        """
        if not _fits(x, weight):
            return None
        shape = _Shape(x.shape[0], x.shape[1], len(weight), x.dtype)
        if self._seen is not None and shape not in self._chosen:
            weights = self._seen.setdefault(shape, [])
            if len(weights) < _MAX_WEIGHTS:
                weights.append(weight)
        if (chosen := self._chosen.get(shape)) is None:
            return None
        out = torch.empty(shape.rows, shape.outputs, dtype=x.dtype, device=x.device)
        status = self._launch(*chosen, x, weight, out)
        assert status == 0, f"cublasLtMatmul of {shape}: status {status}"
        return out

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Measure the shapes that are asked for inside, when it ends. Waits for the device."""
        self._seen = {}
        try:
            yield
            for shape, weights in self._seen.items():
                self._chosen[shape] = self._fastest(shape, weights)
        finally:
            self._seen = None

    # ---- choosing

    def _fastest(self, shape: _Shape, weights: list[Tensor]) -> tuple[_Layouts, _Algorithm] | None:
        x = torch.randn(shape.rows, shape.inputs, dtype=shape.dtype, device=self._device)
        out = torch.empty(shape.rows, shape.outputs, dtype=shape.dtype, device=self._device)
        layouts = self._layouts(shape)
        usual_us = self._time_us(lambda weight: F.linear(x, weight), weights)
        best, best_us = None, _WORTHWHILE * usual_us
        for algorithm in self._candidates(layouts):
            if self._launch(layouts, algorithm, x, weights[0], out) != 0:
                continue  # it asks for what this GPU or these operands do not have
            launch = self._launcher(layouts, algorithm, x, out)
            if (us := self._time_us(launch, weights, _HOPELESS * best_us)) < best_us:
                best, best_us = algorithm, us
        return None if best is None else (layouts, best)

    def _launcher(
        self, layouts: _Layouts, algorithm: _Algorithm, x: Tensor, out: Tensor
    ) -> Callable[[Tensor], int]:
        return lambda weight: self._launch(layouts, algorithm, x, weight, out)

    def _time_us(
        self,
        launch: Callable[[Tensor], object],
        weights: list[Tensor],
        most_us: float = float("inf"),
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

    def _candidates(self, layouts: _Layouts) -> list[_Algorithm]:
        found, count = (_Candidate * _MAX_CANDIDATES)(), ctypes.c_int()
        self._call(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, self._product,
            layouts.weight, layouts.x, layouts.out, layouts.out, self._preference,
            ctypes.c_int(_MAX_CANDIDATES), found, ctypes.byref(count),
        )  # fmt: skip
        return [one.algorithm for one in found[: count.value] if one.status == 0]

    # ---- the library

    def _layouts(self, shape: _Shape) -> _Layouts:
        def layout(length: int, count: int) -> ctypes.c_void_p:
            """`count` rows of ours, each `length` elements: columns of cuBLASLt's."""
            sizes = (ctypes.c_uint64(length), ctypes.c_uint64(count), ctypes.c_int64(length))
            return self._made("cublasLtMatrixLayoutCreate", _DATA_TYPES[shape.dtype], *sizes)

        return _Layouts(
            weight=layout(shape.inputs, shape.outputs),
            x=layout(shape.inputs, shape.rows),
            out=layout(shape.outputs, shape.rows),
        )

    def _launch(
        self, layouts: _Layouts, algorithm: _Algorithm, x: Tensor, weight: Tensor, out: Tensor
    ) -> int:
        """Start out = x @ weight.T; returns cuBLAS's status, 0 if all is well."""
        one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        return self._lib.cublasLtMatmul(
            self._handle, self._product, ctypes.byref(one),
            ctypes.c_void_p(weight.data_ptr()), layouts.weight,
            ctypes.c_void_p(x.data_ptr()), layouts.x, ctypes.byref(zero),
            ctypes.c_void_p(out.data_ptr()), layouts.out,
            ctypes.c_void_p(out.data_ptr()), layouts.out, ctypes.byref(algorithm),
            ctypes.c_void_p(self._workspace.data_ptr()), ctypes.c_size_t(_WORKSPACE_BYTES),
            ctypes.c_void_p(stream),
        )  # fmt: skip

    def _made(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        """What a function of cuBLASLt makes; it lives as long as the process."""
        made = ctypes.c_void_p()
        self._call(function, ctypes.byref(made), *arguments)
        return made

    def _set(self, kind: str, of: ctypes.c_void_p, attribute: int, value: Any) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        self._call(f"{kind}SetAttribute", of, attribute, ctypes.byref(value), size)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._lib, function)(*arguments)
        assert status == 0, f"{function}: status {status}"


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the operands are as the layouts say, and aligned as cuBLASLt expects."""
    return (
        x.is_cuda
        and x.dtype in _DATA_TYPES
        and 0 < len(x) <= _MAX_ROWS
        and x.is_contiguous()
        and weight.is_contiguous()
        and x.data_ptr() % _ALIGNMENT_BYTES == 0
        and weight.data_ptr() % _ALIGNMENT_BYTES == 0
    )

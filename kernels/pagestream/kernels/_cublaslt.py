"""cuBLASLt by ctypes: its algorithms for one product, and a launch by any of them.

torch reaches cuBLASLt too, but takes the first algorithm that it proposes. This module measures
nothing and chooses nothing.

Source: NVIDIA's "cuBLAS" manual, "Using the cuBLASLt API".
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DATA_TYPES = {torch.float16: 2, torch.bfloat16: 14}
_FP32 = 0
_COMPUTE_IN_FP32 = 68
_TRANSPOSE_A = 3
_TRANSPOSED = 1
_PREFERENCE_WORKSPACE = 1
_TILE_IDS = 6
"""Capability of an algorithm: the tiles it can be told to use."""
_TILE, _SPLITS, _REDUCTION, _SWIZZLE, _CUSTOM, _CLUSTER = 1, 2, 3, 4, 5, 8
"""What an algorithm can be told."""
_ONE_BLOCK = 2
"""Cluster shape: 1 x 1 x 1."""

_WORKSPACE_BYTES = 32 << 20
_ALIGNMENT_BYTES = 256
"""What cuBLASLt takes for granted of operands unless told otherwise."""


class Algorithm(ctypes.Structure):
    """One way to compute a product. Its bytes mean the same to every process with this version."""

    _fields_ = [("data", ctypes.c_uint64 * 8)]


class _Candidate(ctypes.Structure):
    _fields_ = [
        ("algorithm", Algorithm),
        ("workspace_bytes", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


class Shape(NamedTuple):
    """A product x [rows, inputs] @ weight [outputs, inputs].T."""

    rows: int
    inputs: int
    outputs: int
    dtype: torch.dtype


class Layouts(NamedTuple):
    """cuBLASLt's descriptions of the operands; it counts by columns, so a weight comes first."""

    weight: ctypes.c_void_p
    x: ctypes.c_void_p
    out: ctypes.c_void_p


class CublasLt:
    """The library on one device. One stream at a time: the workspace is shared."""

    def __init__(self, device: torch.device) -> None:
        """Raises: OSError: this torch came without cuBLASLt."""
        assert torch.version.cuda is not None, "cuBLASLt is NVIDIA's"
        self._lib = ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.partition('.')[0]}")
        self._lib.cublasLtGetVersion.restype = ctypes.c_size_t
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

    @property
    def version(self) -> int:
        """The library's own number."""
        return self._lib.cublasLtGetVersion()

    @staticmethod
    def takes(x: Tensor, weight: Tensor) -> bool:
        """Whether the operands are as the layouts say, and aligned as cuBLASLt expects."""
        return (
            x.is_cuda
            and x.dtype in _DATA_TYPES
            and len(x) > 0
            and x.is_contiguous()
            and weight.is_contiguous()
            and x.data_ptr() % _ALIGNMENT_BYTES == 0
            and weight.data_ptr() % _ALIGNMENT_BYTES == 0
        )

    def proposals(self, layouts: Layouts, most: int) -> list[Algorithm]:
        """Up to `most` algorithms for a product, in the order cuBLASLt believes in."""
        found, count = (_Candidate * most)(), ctypes.c_int()
        self._call(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, self._product,
            layouts.weight, layouts.x, layouts.out, layouts.out, self._preference,
            ctypes.c_int(most), found, ctypes.byref(count),
        )  # fmt: skip
        return [one.algorithm for one in found[: count.value] if one.status == 0]

    def tilings(self, layouts: Layouts, like: Algorithm) -> list[Algorithm]:
        """Algorithms that differ from one in their tile, and are plain in all else."""
        written = ctypes.c_size_t()
        self._call(
            "cublasLtMatmulAlgoCapGetAttribute",
            *(ctypes.byref(like), _TILE_IDS, None, ctypes.c_size_t(0), ctypes.byref(written)),
        )
        tiles = (ctypes.c_uint32 * (written.value // 4))()
        self._call(
            "cublasLtMatmulAlgoCapGetAttribute",
            *(ctypes.byref(like), _TILE_IDS, tiles, written, ctypes.byref(written)),
        )
        tilings = [self._tiling(like, tile) for tile in tiles]
        return [tiling for tiling in tilings if self._can(layouts, tiling)]

    def _tiling(self, like: Algorithm, tile: int) -> Algorithm:
        """A copy with another tile, one block a cluster, and sums in one piece."""
        tiling = Algorithm.from_buffer_copy(like)
        told = {_TILE: tile, _SPLITS: 1, _REDUCTION: 0, _SWIZZLE: 0, _CUSTOM: 0}
        for attribute, value in told.items():
            self._set(
                "cublasLtMatmulAlgoConfig", ctypes.byref(tiling), attribute, ctypes.c_uint32(value)
            )
        cluster = ctypes.c_uint16(_ONE_BLOCK)
        self._set("cublasLtMatmulAlgoConfig", ctypes.byref(tiling), _CLUSTER, cluster)
        return tiling

    def _can(self, layouts: Layouts, algorithm: Algorithm) -> bool:
        """Whether an algorithm serves these operands, with the workspace there is."""
        found = _Candidate()
        status = self._lib.cublasLtMatmulAlgoCheck(
            self._handle, self._product,
            layouts.weight, layouts.x, layouts.out, layouts.out,
            ctypes.byref(algorithm), ctypes.byref(found),
        )  # fmt: skip
        return status == found.status == 0 and found.workspace_bytes <= _WORKSPACE_BYTES

    def layouts(self, shape: Shape) -> Layouts:
        """Describe the operands of a product of this shape."""

        def layout(length: int, count: int) -> ctypes.c_void_p:
            """`count` rows of ours, each `length` elements: columns of cuBLASLt's."""
            sizes = (ctypes.c_uint64(length), ctypes.c_uint64(count), ctypes.c_int64(length))
            return self._made("cublasLtMatrixLayoutCreate", _DATA_TYPES[shape.dtype], *sizes)

        return Layouts(
            weight=layout(shape.inputs, shape.outputs),
            x=layout(shape.inputs, shape.rows),
            out=layout(shape.outputs, shape.rows),
        )

    def launch(
        self, layouts: Layouts, algorithm: Algorithm, x: Tensor, weight: Tensor, out: Tensor
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

    def _set(self, kind: str, of: Any, attribute: int, value: Any) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        self._call(f"{kind}SetAttribute", of, attribute, ctypes.byref(value), size)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._lib, function)(*arguments)
        assert status == 0, f"{function}: status {status}"

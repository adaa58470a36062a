"""The one place that knows whether Triton is here, and which tensors take the kernels.

Triton has no wheel for some machines that serve on their CPU alone; there the references are all
that runs, and the names below only let the modules be imported. This module knows no op.
"""

import ctypes
import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor


class _Absent:
    """Stands in for `triton` and `tl`: any attribute, any call; as a decorator, nothing."""

    def __getattr__(self, name: str) -> "_Absent":
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else self


if TYPE_CHECKING:
    # Triton's own types know neither launch options nor plain values for constants.
    class _AnyName(type):
        def __getattr__(cls, name: str) -> Any: ...

    class tl(metaclass=_AnyName):
        constexpr = Any

    class triton(metaclass=_AnyName): ...

    class TensorDescriptor(metaclass=_AnyName): ...
else:
    try:
        import triton
        import triton.language as tl
        from triton.tools.tensor_descriptor import TensorDescriptor
    except ModuleNotFoundError:
        triton = tl = TensorDescriptor = _Absent()

KERNELS_ON_CPU = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs the kernels on CPU tensors (fp32 and fp16 only: it computes bf16
wrongly).
"""

LOG2E = 1.4426950408889634
"""exp(x) = exp2(x * LOG2E); the hardware's exponential is exp2."""


def runs_kernel(tensor: Tensor) -> bool:
    """Whether ops on this tensor launch their Triton kernel rather than run their reference.

    Raises:
        RuntimeError: the tensor is on a GPU, and Triton is not installed.
    """
    if tensor.is_cuda and isinstance(triton, _Absent):
        raise RuntimeError(
            "tensors on a GPU need Triton, which is not installed: pip install triton"
        )
    return tensor.is_cuda or KERNELS_ON_CPU


def runs_product(x: Tensor, weight: Tensor) -> bool:
    """Whether a kernel can multiply x [rows, inputs] and weight [outputs, inputs].

    On a GPU it is for 16 bits only; fp32 is cuBLAS's.
    """
    if not runs_kernel(x) or not len(x):
        return False
    if x.is_cuda and x.dtype not in (torch.bfloat16, torch.float16):
        return False
    return x.stride(1) == weight.stride(1) == 1


_FEW_ROWS = 512


@functools.cache
def _overlaps() -> bool:
    """Whether a kernel may begin while the one before it ends: from Hopper on."""
    if triton.knobs.runtime.interpret:
        return False
    target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= 90


def overlapping_launch(rows: int) -> dict[str, bool]:
    """Launch options of a kernel that may begin before the kernel in front of it has ended.

    Only up to `_FEW_ROWS`: with more the gap between two kernels is lost among their work (measured
    on one H200: 0.1 ms of a step of 1.2 ms at 1 to 64 rows, 0.01 to 0.02 of 3.3 to 5.4 ms at 128
    and 256).

    Such a kernel takes `PDL: tl.constexpr`, may read what no kernel writes (weights), and calls
    `wait_for_inputs(PDL)` in every program before anything else, writes included: behind it
    everything launched earlier has ended, because those kernels waited too. A program that has
    nothing else to do need not wait, as long as another one of its kernel does. A kernel launched
    without these options begins when all before it have ended, as ever: what was written before
    one of those is settled, and may be read without waiting, too.
    """
    early = rows <= _FEW_ROWS and _overlaps()
    return {"PDL": True, "launch_pdl": True} if early else {"PDL": False}


PREFERRED_SHARED_MEMORY_CARVEOUT = 9
"""Of the CUDA driver's `CUfunction_attribute`."""
_ALL_PERCENT = 100


def _keep_memory_shared(
    module: Any, function: int, name: str, metadata_group: dict[str, str], hash: str
) -> None:
    """Have processors keep all the memory that they can for sharing under an early kernel.

    Triton calls it for every kernel that it has loaded. A processor divides its memory between
    shared memory and L1 cache by what its kernels ask for, and divides it anew only once it is
    idle. A small kernel asks for little; a large one that may begin early behind it then waits for
    its end after all.

    Source: CUDA driver API, cuFuncSetAttribute; CUDA programming guide, "Shared memory", on devices
    of compute capability 9.0.
    """
    metadata = next(path for name, path in metadata_group.items() if name.endswith(".json"))
    if json.loads(Path(metadata).read_bytes()).get("launch_pdl"):
        # A hint: a driver that refuses it costs time and nothing else.
        ctypes.CDLL("libcuda.so.1").cuFuncSetAttribute(
            ctypes.c_void_p(function), PREFERRED_SHARED_MEMORY_CARVEOUT, _ALL_PERCENT
        )


if not isinstance(triton, _Absent):
    triton.knobs.runtime.kernel_load_end_hook.add(_keep_memory_shared)

HOPPER = {"max_shared_mem": 227 << 10, "multiprocessor_count": 132}
"""Of the GPUs that all is tuned for: shared memory that one program may have, and processors. A
consumer's has 99 KiB."""


@functools.cache
def _properties(device: torch.device) -> dict[str, int]:
    """What `HOPPER` says, of this GPU."""
    if device.type != "cuda":
        return HOPPER
    return triton.runtime.driver.active.utils.get_device_properties(device.index)


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of this GPU."""
    return _properties(device)["multiprocessor_count"]


def fitting_tiles(tiles: int, tile_bytes: int, kept_bytes: int, device: torch.device) -> int:
    """At most `tiles` that a program has shared memory for, beside what it keeps; at least one."""
    shared_bytes = _properties(device)["max_shared_mem"]
    return max(min(tiles, (shared_bytes - kept_bytes) // tile_bytes), 1)


@triton.jit
def start_dependents(PDL: tl.constexpr):
    """Let the next kernel take the SMs' free places; it waits for this one by itself."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Wait until the kernels before this one have ended and what they wrote can be read."""
    if PDL:
        tl.extra.cuda.gdc_wait()


__all__ = [
    "KERNELS_ON_CPU",
    "LOG2E",
    "fitting_tiles",
    "overlapping_launch",
    "runs_kernel",
    "start_dependents",
    "tl",
    "triton",
    "wait_for_inputs",
]

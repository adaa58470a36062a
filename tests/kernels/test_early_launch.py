"""What kernels that may begin early ask of a processor's memory."""

import ctypes
import json
from types import SimpleNamespace

import pytest
import torch

from pagestream.kernels import _triton
from pagestream.kernels._triton import PREFERRED_SHARED_MEMORY_CARVEOUT, tl, triton


@triton.jit
def _copy_kernel(out_ptr, in_ptr):
    tl.store(out_ptr, tl.load(in_ptr))


@pytest.mark.gpu
@pytest.mark.parametrize(("begins_early", "percent"), [(True, 100), (False, -1)])
def test_a_loaded_kernel(begins_early: bool, percent: int):
    out, ones = torch.zeros(1, device="cuda"), torch.ones(1, device="cuda")
    kernel = _copy_kernel[(1,)](out, ones, launch_pdl=begins_early)
    assert out.item() == 1
    asked = ctypes.c_int()
    error = ctypes.CDLL("libcuda.so.1").cuFuncGetAttribute(
        ctypes.byref(asked), PREFERRED_SHARED_MEMORY_CARVEOUT, ctypes.c_void_p(kernel.function)
    )
    assert (error, asked.value) == (0, percent)


@pytest.mark.parametrize("begins_early", [True, False, None])
def test_what_triton_calls_when_it_has_loaded_a_kernel(begins_early, tmp_path, monkeypatch):
    """The driver is a list here: there is none without a GPU."""
    asked = []
    driver = SimpleNamespace(cuFuncSetAttribute=lambda *words: asked.append(words))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    metadata = tmp_path / "a_kernel.json"
    metadata.write_text(json.dumps({} if begins_early is None else {"launch_pdl": begins_early}))
    files = {"a_kernel.cubin": str(tmp_path / "a_kernel.cubin"), metadata.name: str(metadata)}
    assert _triton._keep_memory_shared in triton.knobs.runtime.kernel_load_end_hook.calls
    triton.knobs.runtime.kernel_load_end_hook(None, 2**63 + 1, "a_kernel", files, "a hash")
    assert [(function.value, *words) for function, *words in asked] == (
        [(2**63 + 1, PREFERRED_SHARED_MEMORY_CARVEOUT, 100)] if begins_early else []
    )

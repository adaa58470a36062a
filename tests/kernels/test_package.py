import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import pagestream.kernels

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from pagestream.kernels import (
    Splitting, batch_layout, decode_attention, kv_splits, linear, linear_silu_mul,
    prefill_attention, query_tiles, rms_norm, rope_and_cache, silu_mul,
)
assert silu_mul(torch.zeros(2, 8)).shape == (2, 4)
assert linear(torch.zeros(2, 8), torch.zeros(4, 8)).shape == (2, 4)
assert linear_silu_mul(torch.zeros(2, 8), torch.zeros(8, 8)).shape == (2, 4)
assert rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6)[0].shape == (2, 8)
q, k, v, slots = torch.zeros(2, 4, 8), *torch.zeros(2, 3, 16, 2, 8), torch.tensor([16, 17])
assert rope_and_cache(torch.zeros(2, 64), torch.zeros(2, 8), k, v, slots, 4).shape == q.shape
table, ids, cu_q, lens = (torch.tensor(x).int() for x in ([[1]], [0], [0, 2], [2]))
tiles = query_tiles(q, 2, cu_q)
assert prefill_attention(q, k, v, table, ids, cu_q, lens, 0.5, tiles=tiles).shape == q.shape
splits = kv_splits(ids, lens, Splitting.fastest(1, 2, 8), 2)
decoded = decode_attention(q[:1], k, v, table, ids, lens, 0.5, max_kv_len=2, splits=splits)
assert decoded.shape == (1, 4, 8)
assert batch_layout(ids, ids, cu_q, lens.new_zeros(2), ids, ids, table, 16)

from pagestream.kernels._triton import runs_kernel
class OnGpu:
    is_cuda = True
try:
    runs_kernel(OnGpu())
except RuntimeError as error:
    assert "pip install triton" in str(error)
else:
    raise AssertionError("a GPU tensor needs Triton")
"""


def test_the_references_need_no_triton():
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{WITHOUT_TRITON}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_exported_members():
    public = {
        name
        for name, value in vars(pagestream.kernels).items()
        if not name.startswith("_") and not isinstance(value, type(sys))
    }
    assert public == set(pagestream.kernels.__all__)
    assert all(getattr(pagestream.kernels, name).__doc__ for name in public)


def test_the_benchmark_covers_every_op(monkeypatch):
    path = Path(__file__).parents[2] / "benchmarks/kernels.py"
    monkeypatch.syspath_prepend(path.parent)  # where a script finds its neighbours
    spec = importlib.util.spec_from_file_location("kernel_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark  # dataclasses look their module up
    spec.loader.exec_module(benchmark)
    ops = {name for name in pagestream.kernels.__all__ if name.islower()}
    assert {case.op for case in benchmark.cases()} == ops
    with pytest.raises(SystemExit):
        benchmark.main(["no_such_op"])

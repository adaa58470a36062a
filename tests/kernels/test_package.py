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
from pagestream.kernels import silu_mul
assert silu_mul(torch.zeros(2, 8)).shape == (2, 4)

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

import subprocess
import sys

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

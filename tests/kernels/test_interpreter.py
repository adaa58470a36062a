"""Run the tests marked `interpreter`, in a process where Triton interprets its kernels from the
start.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.timeout(600)
def test_the_kernels_in_tritons_interpreter():
    here = Path(__file__).parent
    command = [
        sys.executable, "-m", "pytest", str(here), "-q", "-x", "-p", "no:cacheprovider",
        # What numpy says of the interpreter's own doing.
        "-W", "ignore:Conversion of an array with ndim > 0:DeprecationWarning",
        "-W", "ignore:overflow encountered in exp:RuntimeWarning",
    ]  # fmt: skip
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=here.parent.parent, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout.splitlines()[-1], run.stdout

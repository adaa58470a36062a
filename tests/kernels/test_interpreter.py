"""Run the tests marked `interpreter`, in processes where Triton interprets its kernels from the
start.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
MISTAKES = str(HERE / "test_planted_mistakes.py")
HALVES = [[MISTAKES], [str(HERE), f"--ignore={MISTAKES}"]]
"""What runs at the same time: each takes one core for a minute or two."""


@pytest.mark.timeout(600)
def test_the_kernels_in_tritons_interpreter():
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    options = [
        "-q", "-x", "-p", "no:cacheprovider",
        # What numpy says of the interpreter's own doing.
        "-W", "ignore:Conversion of an array with ndim > 0:DeprecationWarning",
        "-W", "ignore:overflow encountered in exp:RuntimeWarning",
    ]  # fmt: skip
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", *half, *options],
            cwd=HERE.parent.parent, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for half in HALVES
    ]  # fmt: skip
    try:
        for run in runs:
            said, _ = run.communicate()
            assert run.returncode == 0, said
            assert " passed" in said.splitlines()[-1], said
    finally:
        for run in runs:
            run.kill()
            run.wait()
            run.stdout.close()

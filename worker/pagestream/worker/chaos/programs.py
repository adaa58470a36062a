"""Runs another Python program in this process, as `python` would: for what alters it beforehand."""

import runpy
import sys
from collections.abc import Sequence


def run_program(words: Sequence[str]) -> None:
    """Run `-m MODULE …` or `SCRIPT …`; its words become `sys.argv`."""
    is_module = words[0] == "-m"
    sys.argv[:] = words[1:] if is_module else words
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")

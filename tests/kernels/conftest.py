"""Which kernel tests run in this process.

Triton decides when a kernel is decorated whether its interpreter runs it, so tests marked
`interpreter` need TRITON_INTERPRET=1 from the start: test_interpreter.py runs them all in one
process of their own, and every other process leaves them out, as that one leaves out the rest.
"""

import os

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "interpreter: runs Triton kernels on the CPU")
    # Then what a kernel leaves out is NaN, not what its memory held before: that may be right.
    torch.use_deterministic_algorithms(INTERPRETING)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    out = [
        item
        for item in items
        if str(item.path).startswith(here)
        and (item.get_closest_marker("interpreter") is not None) != INTERPRETING
    ]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in set(out)]
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

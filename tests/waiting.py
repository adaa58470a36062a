"""Waiting for what another process or thread does, with an end."""

import time
from collections.abc import Callable


def until(happened: Callable[[], object], what: str = "it", timeout_s: float = 20.0) -> None:
    """Return once `happened()` is true; fail if that takes longer than `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline_s, f"{what} did not happen in {timeout_s:g} s"
        time.sleep(0.02)

"""Waiting for what another process or thread does, with an end."""

import asyncio
import time
from collections.abc import Callable


def until(happened: Callable[[], object], what: str = "it", timeout_s: float = 20.0) -> None:
    """Return once `happened()` is true; fail if that takes longer than `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline_s, f"{what} did not happen in {timeout_s:g} s"
        time.sleep(0.02)


async def is_ended_by_cancel(task: "asyncio.Task[None]", turns: int) -> bool:
    """Cancel a task after some turns of the event loop; return whether that ended it."""
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    return task.cancelled()

"""What the scheduler alone does with a workload: no model and no device, every drawn token is 0.

Its steps and its host time do not depend on the device that runs the model.
"""

import statistics
import time
from collections.abc import Sequence

import msgspec

from ..config import BLOCK_TOKENS
from ..engine.blocks import BlockPool
from ..engine.request import Request
from ..engine.scheduler import Scheduler
from ..messages import Load, Sampling
from .datasets import Sample


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """What it came to."""

    steps: int
    output_tokens: int
    median_us: float
    """Host time of `schedule` and `commit` together, a step."""
    max_us: float
    load: Load


def play_schedule(
    workload: Sequence[Sample],
    *,
    num_blocks: int,
    max_running: int,
    max_step_tokens: int,
    max_mixed_tokens: int | None = None,
    prefix_cache: bool = True,
) -> Schedule:
    """Schedule a workload to its end; everything has arrived before the first step."""
    scheduler = Scheduler(
        BlockPool(num_blocks, BLOCK_TOKENS),
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        max_mixed_tokens=max_mixed_tokens,
        prefix_cache=prefix_cache,
    )
    for index, (prompt_ids, output_tokens) in enumerate(workload):
        scheduler.add(Request(str(index), prompt_ids, Sampling(max_tokens=output_tokens)))
    step_us: list[float] = []
    drawn = 0
    while scheduler.has_work:
        began = time.perf_counter()
        plan = scheduler.schedule()
        drawn += len(scheduler.commit(plan, [0] * len(plan)))
        step_us.append((time.perf_counter() - began) * 1e6)
    return Schedule(
        steps=len(step_us),
        output_tokens=drawn,
        median_us=round(statistics.median(step_us), 1),
        max_us=round(max(step_us), 1),
        load=scheduler.load(len(step_us)),
    )

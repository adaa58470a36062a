"""What the scheduler alone does with a workload: steps, KV waste, and host time a step.

No model and no device: every drawn token is 0. Run it with

    python benchmarks/scheduler.py --workload nano
"""

import argparse
import statistics
import time

from workloads import WORKLOADS

from pagestream.worker.config import BLOCK_TOKENS
from pagestream.worker.engine.blocks import BlockPool
from pagestream.worker.engine.request import Request
from pagestream.worker.engine.scheduler import Scheduler
from pagestream.worker.messages import Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="nano")
    parser.add_argument("--max-running", type=int, default=256)
    parser.add_argument("--max-step-tokens", type=int, default=8192)
    parser.add_argument("--num-blocks", type=int, default=50_000)
    arguments = parser.parse_args()
    scheduler = Scheduler(
        BlockPool(arguments.num_blocks, BLOCK_TOKENS),
        max_running=arguments.max_running,
        max_step_tokens=arguments.max_step_tokens,
    )
    workload = WORKLOADS[arguments.workload]()
    for index, (prompt, output_tokens) in enumerate(workload):
        scheduler.add(Request(f"r{index}", prompt, Sampling(max_tokens=output_tokens)))
    step_us: list[float] = []
    drawn = 0
    while scheduler.has_work:
        began = time.perf_counter()
        plan = scheduler.schedule()
        drawn += len(scheduler.commit(plan, [0] * len(plan)))
        step_us.append((time.perf_counter() - began) * 1e6)
    load = scheduler.load(len(step_us))
    waste = 1 - load.used_slot_steps / load.allocated_slot_steps
    print(f"requests         {len(workload)}")
    print(f"output tokens    {drawn}")
    print(f"steps            {len(step_us)}")
    print(f"preemptions      {load.preemptions}")
    print(f"KV waste         {waste:.2%}")
    print(f"host time a step {statistics.median(step_us):.0f} us median, {max(step_us):.0f} us max")


if __name__ == "__main__":
    main()

"""What the scheduler alone does with a workload: steps, KV waste, and host time a step.

No model and no device: every drawn token is 0. Run it with

    python benchmarks/scheduler.py --workload nano
"""

import argparse

from pagestream.worker.bench.datasets import WORKLOADS
from pagestream.worker.bench.scheduling import play_schedule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="nano")
    parser.add_argument("--max-running", type=int, default=256)
    parser.add_argument("--max-step-tokens", type=int, default=8192)
    parser.add_argument("--num-blocks", type=int, default=50_000)
    arguments = parser.parse_args()
    workload = WORKLOADS[arguments.workload]()
    schedule = play_schedule(
        workload,
        num_blocks=arguments.num_blocks,
        max_running=arguments.max_running,
        max_step_tokens=arguments.max_step_tokens,
    )
    waste = 1 - schedule.load.used_slot_steps / schedule.load.allocated_slot_steps
    print(f"requests         {len(workload)}")
    print(f"output tokens    {schedule.output_tokens}")
    print(f"steps            {schedule.steps}")
    print(f"preemptions      {schedule.load.preemptions}")
    print(f"KV waste         {waste:.2%}")
    print(f"host time a step {schedule.median_us:.0f} us median, {schedule.max_us:.0f} us max")


if __name__ == "__main__":
    main()

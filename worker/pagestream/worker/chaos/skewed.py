"""Runs a Python program as on a host whose clock is wrong by so many seconds: for `chaos`.

python -m pagestream.worker.chaos.skewed SECONDS -m pagestream.producer.cli worker …
python -m pagestream.worker.chaos.skewed SECONDS script.py …
"""

import sys
import time

from .programs import run_program


def skew(seconds: int) -> None:
    """Let the wall clock of this process be off; the monotonic clock is what it is."""
    wall_clock, wall_clock_ns = time.time, time.time_ns
    time.time = lambda: wall_clock() + seconds
    time.time_ns = lambda: wall_clock_ns() + seconds * 1_000_000_000


if __name__ == "__main__":
    skew(int(sys.argv[1]))
    run_program(sys.argv[2:])

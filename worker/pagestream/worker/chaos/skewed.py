"""Runs a Python program as on a host whose clock is wrong by so many seconds: for `chaos`.

python -m pagestream.worker.chaos.skewed SECONDS -m pagestream.producer.cli worker …
python -m pagestream.worker.chaos.skewed SECONDS script.py …
"""

import runpy
import sys
import time


def skew(seconds: int) -> None:
    """Let the wall clock of this process be off; the monotonic clock is what it is."""
    wall_clock, wall_clock_ns = time.time, time.time_ns
    time.time = lambda: wall_clock() + seconds
    time.time_ns = lambda: wall_clock_ns() + seconds * 1_000_000_000


if __name__ == "__main__":
    skew(int(sys.argv[1]))
    del sys.argv[:2]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")

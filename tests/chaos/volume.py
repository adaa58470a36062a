"""Faults by the hundred: the chaos run with reciting workers, until so many rounds are done.

    python tests/chaos/volume.py --rounds 9 --seed 1 "worker killed" "worker killed" "worker paused"

A fault named twice happens twice a round.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from rich.console import Console

from pagestream.worker.chaos.run import choose, run
from pagestream.worker.chaos.stage import Options
from pagestream.worker.chaos.table import Report, show

RECITING = (sys.executable, str(Path(__file__).with_name("reciting_worker.py")))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("faults", nargs="*", help="names of faults; none: all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--in-flight", type=int, default=24)
    parser.add_argument("--fsync", default="everysec", choices=("everysec", "always"))
    parser.add_argument("--server", help="a server binary; PAGESTREAM_TEST_SERVER, else ours")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    options = Options(
        seed=given.seed,
        workers=given.workers,
        in_flight=given.in_flight,
        fsync=given.fsync,
        server=given.server or os.environ.get("PAGESTREAM_TEST_SERVER"),
        worker_command=RECITING,
    )
    chosen = choose(given.faults, options)
    limits = {"seconds": given.seconds, "rounds": given.rounds}
    report: Report = asyncio.run(run(options, chosen, **limits, say=print))
    show(Console(width=110), report)
    if given.json:
        given.json.write_text(json.dumps(report.as_json(), indent=1))
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())

"""The promise under faults: every accepted job one end, every token once, in order, and right.

The quick half does every fault once; `make chaos` does them again and again. Seeds are fixed and
printed: `pagestream chaos --seed` plans the same faults.
"""

import os
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pagestream.worker.chaos.run import FAULTS, choose, run
from pagestream.worker.chaos.stage import Options
from pagestream.worker.chaos.table import Report, show

MAX_S = 210.0
"""No fault begins later in a test: the suite ends within 20 minutes on a busy machine, too."""

RECITING = (sys.executable, str(Path(__file__).with_name("reciting_worker.py")))


async def break_things(names: list[str], rounds: int, **options: Any) -> Report:
    """Run, print the table, and expect that nothing was lost, repeated or wrong."""
    stage = Options(server=os.environ.get("PAGESTREAM_TEST_SERVER"), **options)
    report = await run(stage, choose(names, stage), seconds=MAX_S, rounds=rounds, say=print)
    shown = StringIO()
    show(Console(file=shown, width=110), report)
    print(shown.getvalue())
    assert report.clean, shown.getvalue()
    assert all(row.times > 0 for row in report.rows), shown.getvalue()
    return report


@pytest.mark.timeout(300)
async def test_every_fault_once() -> None:
    report = await break_things([], 1, seed=1, in_flight=12, worker_command=RECITING)
    assert len(report.rows) == len(FAULTS)


@pytest.mark.timeout(300)
async def test_the_real_engine_goes_on_where_another_stopped() -> None:
    names = ["worker killed", "engine killed", "redis rolled back"]
    report = await break_things(names, 1, seed=2, in_flight=8)
    assert report.total.recoveries_s


@pytest.mark.slow
@pytest.mark.timeout(700)
async def test_the_real_engine_under_every_fault() -> None:
    await break_things([], 2, seed=3, workers=3, in_flight=12)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_hundreds_of_faults() -> None:
    names = 8 * ["worker killed"] + 4 * ["worker paused"] + 2 * ["redis killed"]
    report = await break_things(
        [*names, "redis rolled back"], 7, seed=4, workers=3, worker_command=RECITING
    )
    assert report.total.tally.jobs > 1000


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_two_workers_swap_again_and_again() -> None:
    await break_things(["worker killed"], 40, seed=5, workers=2, worker_command=RECITING)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_poison_is_found_again_and_again() -> None:
    await break_things(["poison job"], 6, seed=8, worker_command=RECITING)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_strict_server_forgets_no_accepted_job() -> None:
    """With `appendfsync always`, a SIGKILL of Redis loses nothing that was acknowledged."""
    names = 3 * ["redis killed"] + ["worker killed", "producer killed", "answers lost"]
    report = await break_things(names, 8, seed=6, fsync="always", worker_command=RECITING)
    assert not [note for note in report.notes if "forgotten" in note]

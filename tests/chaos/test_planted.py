"""The suite can fail: with one protection taken out of the workers, the table turns red."""

import sys
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from pagestream.worker.chaos import client_faults
from pagestream.worker.chaos.run import choose, run
from pagestream.worker.chaos.stage import Options
from pagestream.worker.chaos.table import show

PLANTED = Path(__file__).with_name("planted.py")
RECITING = Path(__file__).with_name("reciting_worker.py")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("plant", "fault"),
    [("fence", "worker paused"), ("step-key", "redis rolled back"), ("owner", "worker paused")],
)
async def test_a_missing_protection_turns_the_table_red(plant: str, fault: str) -> None:
    options = Options(
        seed=7,
        in_flight=12,
        patience_s=8,
        worker_command=(sys.executable, str(PLANTED), plant),
    )
    report = await run(options, choose([fault], options), seconds=60, rounds=4, say=print)
    assert report.rows[0].times > 0
    assert not report.total.tally.clean
    shown = StringIO()
    show(Console(file=shown, width=110), report)
    assert "THE PROMISE WAS BROKEN" in shown.getvalue()


@pytest.mark.timeout(120)
async def test_what_killed_readers_were_given_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    read_chunk = client_faults.read_chunk
    monkeypatch.setattr(
        client_faults,
        "read_chunk",
        lambda line: msgspec.structs.replace(chunk := read_chunk(line), ids=chunk.ids[1:]),
    )
    options = Options(seed=9, in_flight=4, worker_command=(sys.executable, str(RECITING)))
    report = await run(options, choose(["reader killed"], options), seconds=60, rounds=1)
    assert report.total.tally.lost > 0
    assert "-watched" in report.problems[0]

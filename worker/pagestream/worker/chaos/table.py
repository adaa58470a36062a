"""The table of a run: what was done, and what came of it.

This module knows numbers only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from .checker import Tally


@dataclass
class Row:
    """One fault: how often it was injected, and how the jobs fared that it happened to."""

    fault: str
    times: int = 0
    tally: Tally = field(default_factory=Tally)
    recoveries_s: list[float] = field(default_factory=list)
    """From the fault's beginning to the next token of each stream that it stopped."""


@dataclass
class Report:
    """What a run found."""

    seed: int
    rows: list[Row]
    total: Row
    problems: list[str]
    """Whatever else is wrong, in sentences."""
    notes: list[str]
    """What the fault list allows and a reader may want to know."""

    @property
    def clean(self) -> bool:
        """Whether the promise was kept."""
        return self.total.tally.clean and not self.problems

    def as_json(self) -> Mapping[str, Any]:
        """Return everything, for a file."""
        rows = [vars(row) | {"tally": vars(row.tally)} for row in [*self.rows, self.total]]
        return {
            "seed": self.seed,
            "clean": self.clean,
            "rows": rows,
            "problems": self.problems,
            "notes": self.notes,
        }


COLUMNS = (
    "fault",
    "times",
    "jobs",
    "tokens",
    "lost",
    "repeated",
    "wrong",
    "ends",
    "p50 s",
    "max s",
)


def cells(row: Row) -> list[str]:
    """Return a row's cells."""
    tally, waits = row.tally, row.recoveries_s
    numbers = (
        *(row.times, tally.jobs, tally.tokens),
        *(tally.lost, tally.repeated, tally.wrong, tally.terminals),
    )
    times = (f"{median(waits):.2f}", f"{max(waits):.2f}") if waits else ("", "")
    return [row.fault, *(f"{number:,}" for number in numbers), *times]


def show(console: Console, report: Report) -> None:
    """Print the table and the verdict."""
    table = Table(title=f"chaos, seed {report.seed}")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "fault" else "right", no_wrap=True)
    for row in report.rows:
        table.add_row(*cells(row), style=None if row.tally.clean else "bold red")
    table.add_section()
    table.add_row(*cells(report.total), style="bold green" if report.clean else "bold red")
    console.print(table)
    for line in _lines("note", report.notes):
        console.print(line, highlight=False, markup=False)
    for line in _lines("problem", report.problems):
        console.print(line, style="bold red", highlight=False, markup=False)
    verdict = "the promise was kept" if report.clean else "THE PROMISE WAS BROKEN"
    console.print(verdict, style="bold green" if report.clean else "bold red")


def _lines(kind: str, texts: Iterable[str]) -> list[str]:
    return [f"{kind}: {text}" for text in texts]

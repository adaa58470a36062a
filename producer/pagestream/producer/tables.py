"""How commands show what they read: tables for people, JSON for programs.

This module knows the terminal: nothing of what is shown.
"""

import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def table(*columns: str) -> Table:
    """Return a table without lines, whose long words are folded."""
    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def print_table(shown: Table) -> None:
    """Print a table, unless it has no row."""
    if shown.row_count:
        Console(markup=False, highlight=False).print(shown)


def as_json(value: Any) -> str:
    """Return a value as JSON."""
    return msgspec.json.encode(value).decode()


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    sys.stdout.write(as_json(value) + "\n")


def when(ms: int) -> str:
    """Return a time in ms since 1970 for people, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(sep=" ", timespec="seconds")[:19]

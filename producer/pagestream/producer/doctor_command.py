"""The command `pagestream doctor`: findings on the terminal, and an exit status that says which.

This module knows the terminal and which GPU is here; what is looked at is `doctor`'s.
"""

import shutil
import subprocess
import sys
import time
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from .commands import RedisUrl, errors_as_sentences
from .doctor import Finding, examine
from .embedded import default_url
from .tables import AsJson

SOMETHING_IS_WRONG = 1
NVIDIA_TIMEOUT_S = 20.0

Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing of what is well.")]


def doctor(redis_url: RedisUrl = None, quiet: Quiet = False, json: AsJson = False) -> None:
    """Look at the server, the queues and this host; each finding comes with its fix.

    Exits with 0 if all is well, 1 if something is wrong, 69 if Redis cannot be reached.
    """
    with errors_as_sentences():
        findings = [*examine(redis_url or default_url(), time.monotonic), _gpu()]
    shown = [one for one in findings if not (quiet and one.level == "ok")]
    if json:
        sys.stdout.write(msgspec.json.encode(shown).decode() + "\n")
    else:
        _show(shown)
    if any(one.level == "wrong" for one in findings):
        raise typer.Exit(SOMETHING_IS_WRONG)


def _show(findings: list[Finding]) -> None:
    console = Console(markup=False, highlight=False)
    styles = {"ok": "green", "note": "yellow", "wrong": "bold red"}
    for one in findings:
        console.print(f"{one.level:5}", style=styles[one.level], end=" ")
        console.print(f"{one.what}: {one.found}")
        if one.fix:
            console.print(f"      {one.fix}")


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding(level="note", what="GPU", found="no NVIDIA driver here: workers use the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        fix = "restart the driver, or the host"
        return Finding(level="wrong", what="GPU", found=f"nvidia-smi: {error}", fix=fix)
    said = [*told.stdout.strip().splitlines(), *told.stderr.strip().splitlines()]
    if told.returncode != 0 or not told.stdout.strip():
        found = said[0] if said else f"nvidia-smi said nothing, exit status {told.returncode}"
        return Finding(level="wrong", what="GPU", found=found, fix="mend the driver")
    return Finding(level="ok", what="GPU", found="; ".join(told.stdout.strip().splitlines()))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)

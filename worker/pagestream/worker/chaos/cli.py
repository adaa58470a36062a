"""The command `pagestream chaos`.

Flags and their help only; what they do is `run`'s.
"""

import asyncio
import json as json_library
import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pagestream.producer.errors import InvalidRequest, PagestreamError, QueueUnavailable

from .run import FAULTS, choose, run
from .stage import Options
from .table import show

TABLE_COLUMNS = 110
NAMES = ", ".join(fault.name for fault in FAULTS)
BROKEN, UNAVAILABLE, BAD_FLAGS = 1, 69, 78


def chaos(
    seconds: Annotated[float, typer.Option(min=1, help="How long faults go on.")] = 60.0,
    redis_url: Annotated[
        str | None,
        typer.Option(
            help="A server of yours: only this command's own processes and connections are harmed, "
            "on a queue that is removed at the end. [default: a server of its own]"
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Only this one; may be repeated. Of: {', '.join(f.name for f in FAULTS)}"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed plans the same faults. [default: random]")
    ] = None,
    workers: Annotated[int, typer.Option(min=2, help="Workers on the queue.")] = 2,
    in_flight: Annotated[int, typer.Option(min=1, help="Jobs submitted and not finished.")] = 24,
    heartbeat_ttl: Annotated[float, typer.Option(min=0.3, help="As of `pagestream worker`.")] = 1.0,
    fsync: Annotated[
        str, typer.Option(help="everysec or always, of the server that is started.")
    ] = "everysec",
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
) -> None:
    """Break things while jobs with known answers run, and check every token.

    Starts workers of the demo model, kills, pauses and cuts off whatever takes part, and prints
    what was lost, repeated or wrong: nothing, as long as Redis keeps what it acknowledged. Exits
    with 1 if there was anything.
    """
    options = Options(
        seed=seed if seed is not None else secrets.randbelow(10**6),
        redis_url=redis_url,
        fsync=fsync,
        workers=workers,
        in_flight=in_flight,
        heartbeat_ttl_s=heartbeat_ttl,
    )
    console = Console(width=TABLE_COLUMNS) if not sys.stdout.isatty() else Console()
    errors = Console(stderr=True, highlight=False, markup=False)
    try:
        if fsync not in ("everysec", "always"):
            raise InvalidRequest(f"--fsync {fsync!r}: everysec or always")
        chosen = choose(fault or [], options)
        report = asyncio.run(run(options, chosen, seconds=seconds, say=errors.print))
    except PagestreamError as error:
        typer.echo(f"error: {error}", err=True)
        unavailable = isinstance(error, QueueUnavailable)
        raise typer.Exit(UNAVAILABLE if unavailable else BAD_FLAGS) from None
    show(console, report)
    if json is not None:
        json.write_text(json_library.dumps(report.as_json(), indent=1) + "\n")
    raise typer.Exit(0 if report.clean else BROKEN)


def register(app: typer.Typer) -> None:
    """Add this room's commands to the command line."""
    app.command()(chaos)

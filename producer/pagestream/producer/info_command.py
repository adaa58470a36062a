"""The command `pagestream info`: how full the queues are and who serves them, once or live.

This module knows the terminal: what is read is `admin`'s.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from .admin import Admin, QueueStatus
from .admin_commands import Queue
from .commands import RedisUrl, errors_as_sentences
from .embedded import default_url
from .errors import QueueUnavailable
from .tables import AsJson, table
from .watching import Interval, watch

Watch = Annotated[
    bool, typer.Option("--watch", help="Draw it again and again; with --json an object a line.")
]


def info(
    redis_url: RedisUrl = None,
    queue: Queue = None,
    json: AsJson = False,
    watched: Watch = False,
    interval: Interval = 1.0,
) -> None:
    """Show the queues: what waits and runs, which workers live, what died.

    With --watch until Ctrl-C; where there is no terminal, once.
    """
    console = Console(markup=False, highlight=False)
    with errors_as_sentences(), Admin(redis_url or default_url()) as admin:
        shown: list[QueueStatus] = []

        def read() -> list[QueueStatus]:
            names = [queue] if queue else admin.queues()
            shown[:] = [admin.status(name) for name in names]
            return shown

        if json and watched:
            _write_lines(lambda: {"at_ms": admin.now_ms(), "queues": read()}, interval)
        elif json:
            sys.stdout.write(msgspec.json.encode(read()).decode() + "\n")
        elif watched and console.is_terminal:
            watch(console, interval, read, lambda trouble: _picture(shown, trouble))
        elif read():
            console.print(_picture(shown))


def _write_lines(read: Callable[[], Mapping[str, object]], interval_s: float) -> None:
    """Write an object a line until interrupted; in an outage it has an `error` alone."""
    try:
        while True:
            try:
                line = read()
            except QueueUnavailable as error:
                line = {"error": str(error)}
            sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
            sys.stdout.flush()
            time.sleep(interval_s)
    except KeyboardInterrupt:
        return


def _picture(found: Sequence[QueueStatus], trouble: str = "") -> RenderableType:
    queues = table("queue", "high", "normal", "low", "running", "suspects", "dead")
    workers = table("queue", "worker", "alive", "jobs", "engine steps", "KV blocks free")
    for one in found:
        counts = [*one.unfinished.values(), one.running, one.suspects, one.dead]
        queues.add_row(one.name, *map(str, counts))
        for worker in one.workers:
            counters = [worker.counters.get(name, "–") for name in ("step", "free_blocks")]
            alive = "yes" if worker.is_alive else "no"
            workers.add_row(one.name, worker.name, alive, str(worker.jobs), *map(str, counters))
    parts: list[RenderableType] = [one for one in (queues, workers) if one.row_count]
    if trouble:
        parts.append(Text(trouble, style="bold red"))
    elif not found:
        parts.append(Text("there is no queue yet"))
    return Group(*parts)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(info)

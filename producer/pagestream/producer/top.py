"""`pagestream top`: queues, workers, batches, KV blocks and slow requests, live in a terminal.

This module knows the terminal: what is read is `live`'s, how it looks is `top_frame`'s.
"""

from collections import deque
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from .commands import RedisUrl, errors_as_sentences
from .embedded import default_url
from .live import Live, QueueLive
from .top_frame import frame
from .watching import Interval, watch

CURVE_FRAMES = 24
"""Frames that a worker's curve of tokens a second shows."""


class Top:
    """What is shown from frame to frame."""

    def __init__(self, live: Live, queue: str | None) -> None:
        """`queue` is the one to show; None shows all."""
        self._live = live
        self._queue = queue
        self._last: Sequence[QueueLive] = ()
        self._rates: dict[str, deque[float]] = {}

    def read(self) -> Sequence[QueueLive]:
        """Read the queues, and remember the workers' rates.

        Raises:
            QueueUnavailable: Redis cannot be reached.
        """
        names = [self._queue] if self._queue else self._live.queues()
        self._last = [self._live.queue(name) for name in names]
        snapshots = {
            worker.name: worker.snapshot
            for queue in self._last
            for worker in queue.workers
            if worker.snapshot is not None
        }
        self._rates = {
            name: self._rates.get(name) or deque(maxlen=CURVE_FRAMES) for name in snapshots
        }
        for name, snapshot in snapshots.items():
            self._rates[name].append(snapshot.decode_tokens_per_s)
        return self._last

    def picture(self, width: int, trouble: str = "") -> RenderableType:
        """Return the frame of what was last read."""
        rates = {name: list(values) for name, values in self._rates.items()}
        return frame(self._last, rates, width=width, trouble=trouble)


def top(
    redis_url: RedisUrl = None,
    queue: Annotated[
        str | None, typer.Option(help="Show this queue only.", envvar="PAGESTREAM_QUEUE")
    ] = None,
    interval: Interval = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
) -> None:
    """Watch queues and workers: batches, KV blocks, tokens a second, the slowest requests.

    Ctrl-C ends it. Where there is no terminal one frame is printed.
    """
    console = Console(highlight=False, markup=False)
    with errors_as_sentences(), Live(redis_url or default_url()) as live:
        shown = Top(live, queue)
        if once or not console.is_terminal:
            shown.read()
            console.print(shown.picture(console.width))
        else:
            watch(
                console, interval, shown.read, lambda trouble: shown.picture(console.width, trouble)
            )


def register(app: typer.Typer) -> None:
    """Add `top` to the command line."""
    app.command()(top)

"""A progress bar on standard error: requests ended, tokens a second. Knows numbers only."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

REFRESH_PER_S = 4
"""Drawing takes time from what is measured: this often is plenty."""


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while the block runs; what it yields is called with (ended, tokens so far)."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    progress = Progress(
        *columns,
        console=console,
        transient=True,
        refresh_per_second=REFRESH_PER_S,
        disable=not console.is_terminal,
    )
    began_s = next_s = time.monotonic()
    with progress:
        task = progress.add_task(title, total=total, rate="")

        def told(ended: int, tokens: int) -> None:
            nonlocal next_s
            now_s = time.monotonic()
            if now_s < next_s and ended < total:
                return
            next_s = now_s + 1 / REFRESH_PER_S
            rate = f"{tokens / max(now_s - began_s, 1e-9):,.0f} tok/s"
            progress.update(task, completed=ended, rate=rate)

        yield told

"""Draws something again and again: what `pagestream top` and `info --watch` share.

This module knows the terminal and time: not what is drawn.
"""

import time
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live as Screen

from .errors import QueueUnavailable

Interval = Annotated[
    float,
    typer.Option(min=0.1, metavar="SECONDS", help="Between frames; workers report once a second."),
]


def watch(
    console: Console,
    interval_s: float,
    read: Callable[[], object],
    picture: Callable[[str], RenderableType],
) -> None:
    """Draw frames on the whole screen until interrupted.

    Args:
        console: a terminal.
        interval_s: between frames.
        read: reads what is to be shown; an outage of Redis is shown, and waited for.
        picture: draws what was last read, and the words it gets: what is wrong now, or nothing.
    """
    with Screen(console=console, screen=True, auto_refresh=False) as screen:
        try:
            while True:
                screen.update(picture(_trouble(read)), refresh=True)
                time.sleep(interval_s)
        except KeyboardInterrupt:
            return


def _trouble(read: Callable[[], object]) -> str:
    try:
        read()
    except QueueUnavailable as error:
        return str(error)
    return ""

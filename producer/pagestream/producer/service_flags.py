"""Flags that gateways and jobs processes share, and how theirs are written. Help only."""

from typing import Annotated, Any

import typer

REDIS = "Redis and logs"


def flag(group: str, unit: str, help: str) -> Any:
    """Return a flag that stands under a heading, and takes a value of a unit."""
    return typer.Option(help=help, metavar=unit, rich_help_panel=group)


Url = Annotated[
    str | None,
    flag(
        *(REDIS, "URL"),
        "redis://, rediss://, unix:// or redis+sentinel://. "
        "[default: the server of `pagestream up`, else redis://localhost:6379/0]",
    ),
]
Format = Annotated[
    str | None,
    flag(REDIS, "FORMAT", "pretty, or json: one object a line. [default: pretty]"),
]

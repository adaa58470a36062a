"""The command `pagestream usage`. Flags, and how it is shown: what was used is `usage`'s."""

import asyncio
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from .calls import Calls
from .commands import TIMEOUT_MS, RedisUrl, errors_as_sentences
from .connection import connect_async
from .embedded import default_url
from .usage import DAYS_KEPT, UsageStore, Used


def usage(
    redis_url: RedisUrl = None,
    days: Annotated[
        int, typer.Option(help="The last days, today included.", min=1, max=DAYS_KEPT)
    ] = 7,
    month: Annotated[str | None, typer.Option(help="A month instead: 2026-11.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what tenants used: jobs and tokens by model and UTC day."""
    with errors_as_sentences():
        used = asyncio.run(_read(redis_url or default_url(), days, month))
    if json:
        typer.echo(msgspec.json.encode(used).decode())
        return
    table = Table("period", "model", "tenant", box=None, pad_edge=False)
    for column in ("requests", "prompt tokens", "cached", "output tokens"):
        table.add_column(column, justify="right")
    for one in used:
        counts = (one.requests, one.prompt_tokens, one.cached_tokens, one.completion_tokens)
        table.add_row(one.period, one.queue, one.tenant, *(f"{count:,}" for count in counts))
    if used:
        Console(markup=False, highlight=False).print(table)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(usage)


async def _read(url: str, days: int, month: str | None) -> list[Used]:
    redis = connect_async(url, client_name="pagestream-usage")
    try:
        store = UsageStore(Calls(redis, url, TIMEOUT_MS))
        return await (store.days(days) if month is None else store.month(month))
    finally:
        await redis.aclose()

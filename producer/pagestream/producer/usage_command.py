"""The command `pagestream usage`. Flags, and how it is shown: what was used is `usage`'s."""

from typing import Annotated

import typer

from .calls import Calls
from .commands import RedisUrl, asked
from .tables import AsJson, print_json, print_table, table
from .usage import DAYS_KEPT, UsageStore, Used


def usage(
    redis_url: RedisUrl = None,
    days: Annotated[
        int, typer.Option(help="The last days, today included.", min=1, max=DAYS_KEPT)
    ] = 7,
    month: Annotated[str | None, typer.Option(help="A month instead: 2026-11.")] = None,
    json: AsJson = False,
) -> None:
    """Show what tenants used: jobs and tokens by model and UTC day."""

    async def read(calls: Calls) -> list[Used]:
        store = UsageStore(calls)
        return await (store.days(days) if month is None else store.month(month))

    used = asked(redis_url, "pagestream-usage", read)
    if json:
        print_json(used)
        return
    shown = table("period", "model", "tenant")
    for column in ("requests", "prompt tokens", "cached", "output tokens"):
        shown.add_column(column, justify="right")
    for one in used:
        counts = (one.requests, one.prompt_tokens, one.cached_tokens, one.completion_tokens)
        shown.add_row(one.period, one.queue, one.tenant, *(f"{count:,}" for count in counts))
    print_table(shown)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(usage)

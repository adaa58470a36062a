"""`pagestream tenants`: what an operator allows each tenant of a queue, and how they stand.

Exit codes as of `commands`. This module knows the terminal: what the values mean is `tenants`'.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from .commands import TIMEOUT_MS, RedisUrl, errors_as_sentences, only_queue
from .embedded import default_url
from .errors import InvalidRequest
from .keys import Keys, check_name
from .store import JobStore
from .tenants import EVERYBODY, LIMITS, Tenants, TenantUse

T = TypeVar("T")

Queue = Annotated[
    str | None,
    typer.Option(help="The queue. [default: the only one served]", envvar="PAGESTREAM_QUEUE"),
]
Tenant = Annotated[str, typer.Argument(help=f"The tenant, or '{EVERYBODY}' for all others.")]

_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Weights, bounds and rates of tenants: who gets how much, and how they stand.",
)


@_app.command("show")
def show(
    queue: Queue = None,
    redis_url: RedisUrl = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Show every tenant: its jobs, the tokens it was served, and what is set for it."""
    found = _run(queue, redis_url, lambda tenants: tenants.use())
    if json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        Console().print(_table(found))


@_app.command("set")
def set_(
    tenant: Tenant,
    weight: Annotated[
        float | None, typer.Option(help="Its share beside others'. [default: 1]")
    ] = None,
    queue_limit: Annotated[int | None, typer.Option(help="Unfinished jobs at most.")] = None,
    jobs_per_s: Annotated[
        float | None, typer.Option(help="Jobs accepted a second, ten seconds' worth at once.")
    ] = None,
    tokens_per_s: Annotated[
        float | None, typer.Option(help="Tokens computed a second, prompts and outputs.")
    ] = None,
    queue: Queue = None,
    redis_url: RedisUrl = None,
) -> None:
    """Set what a tenant may have; it holds from the next call on."""
    given = {
        "weight": weight,
        "queue_limit": queue_limit,
        "jobs_per_s": jobs_per_s,
        "tokens_per_s": tokens_per_s,
    }
    changes = {name: value for name, value in given.items() if value is not None}

    async def change(tenants: Tenants) -> None:
        if not changes:
            flags = ", ".join("--" + name.replace("_", "-") for name in LIMITS)
            raise InvalidRequest(f"nothing to set: give one of {flags}")
        await tenants.set(tenant, changes)

    _run(queue, redis_url, change)


@_app.command("unset")
def unset(tenant: Tenant, queue: Queue = None, redis_url: RedisUrl = None) -> None:
    """Remove everything set for a tenant: the defaults hold again."""
    _run(queue, redis_url, lambda tenants: tenants.unset(tenant))


def register(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    app.add_typer(_app, name="tenants")


def _run(queue: str | None, redis_url: str | None, ask: Callable[[Tenants], Awaitable[T]]) -> T:
    with errors_as_sentences():
        url = redis_url or default_url()
        name = check_name("queue", queue) if queue else only_queue(url)

        async def run() -> T:
            store = JobStore(url, Keys(name), timeout_ms=TIMEOUT_MS, reconnect_ms=TIMEOUT_MS)
            try:
                return await ask(store.tenants)
            finally:
                await store.aclose()

        return asyncio.run(run())


def _table(found: Sequence[TenantUse]) -> Table:
    table = Table("tenant", "jobs", "served tokens", *(name.replace("_", " ") for name in LIMITS))
    for one in found:
        values = [getattr(one.limits, name) for name in LIMITS]
        cells = ["–" if value is None else f"{value:g}" for value in values]
        table.add_row(one.tenant, str(one.unfinished_jobs), f"{one.served_tokens:,.0f}", *cells)
    return table

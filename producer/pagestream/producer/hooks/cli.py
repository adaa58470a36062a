"""The commands `pagestream hooks …`: webhooks that were given up.

This module knows the terminal: what is done is `store`'s.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from ..batch.due import Due
from ..commands import RedisUrl, asked
from ..errors import InvalidRequest
from ..tables import AsJson, print_json, print_table, table, when
from .store import HookStore, Pending

T = TypeVar("T")

Names = Annotated[
    list[str] | None,
    typer.Argument(help="Ids of events, jobs or batches.", show_default=False),
]
Everything = Annotated[bool, typer.Option("--all", help="Every dead webhook.")]

hooks = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Webhooks that nobody took: look at them, send them again, or remove them.",
)


@hooks.command("list")
def list_hooks(redis_url: RedisUrl = None, json: AsJson = False) -> None:
    """List the dead webhooks, oldest first."""
    found = _asked(redis_url, lambda store: store.dead())
    if json:
        print_json([_shown(one) for one in found])
        return
    shown = table("of", "event", "given up (UTC)", "attempts", "error")
    for one in found:
        shown.add_row(*(one.hook.about, one.hook.type, _died(one), str(one.attempts), one.error))
    print_table(shown)


@hooks.command("show")
def show_hook(
    name: Annotated[str, typer.Argument(help="The id of the event, the job or the batch.")],
    redis_url: RedisUrl = None,
) -> None:
    """Show a dead webhook as JSON: where it goes, what it tells, and why it failed."""
    print_json(_shown(_asked(redis_url, lambda store: store.find(name))))


@hooks.command("retry")
def retry_hooks(names: Names = None, redis_url: RedisUrl = None, every: Everything = False) -> None:
    """Send dead webhooks again, as if they were new."""
    _each(redis_url, names, every, HookStore.retry, "sent again")


@hooks.command("purge")
def purge_hooks(names: Names = None, redis_url: RedisUrl = None, every: Everything = False) -> None:
    """Remove dead webhooks."""
    _each(redis_url, names, every, HookStore.forget, "removed")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(hooks, name="hooks")


def _each(
    redis_url: str | None,
    names: Sequence[str] | None,
    every: bool,
    act: Callable[[HookStore, str], Awaitable[None]],
    done: str,
) -> None:
    async def act_on_all(store: HookStore) -> None:
        if bool(names) == every:
            raise InvalidRequest("name the dead webhooks, or say --all")
        wanted = await store.dead() if every else [await store.find(name) for name in names or ()]
        for one in wanted:
            await act(store, one.hook.id)
            typer.echo(f"{one.hook.about}: {done}")

    _asked(redis_url, act_on_all)


def _asked(redis_url: str | None, ask: Callable[[HookStore], Awaitable[T]]) -> T:
    return asked(redis_url, "pagestream-hooks", lambda calls: ask(HookStore(calls, Due(calls))))


def _shown(one: Pending) -> dict[str, Any]:
    return {
        "event": msgspec.json.decode(one.hook.body),
        "of": one.hook.about,
        "url": one.hook.url,
        "tenant": one.hook.tenant,
        "attempts": one.attempts,
        "error": one.error,
        "died": _died(one),
    }


def _died(one: Pending) -> str:
    return "" if one.died_ms is None else when(one.died_ms)

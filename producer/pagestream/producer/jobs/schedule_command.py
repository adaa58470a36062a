"""The commands `pagestream schedule …`: prompts that are submitted later, or again and again.

This module knows the terminal: schedules are `schedules`', their times `cron`'s.
"""

import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from ..commands import MaxTokens, RedisUrl, asked
from ..errors import InvalidRequest, JobNotFound
from ..keys import DEFAULT_TENANT, check_name
from ..request import QUEUE_LIMIT_JOBS
from ..schedules import Planned, ScheduleStore, build_scheduled, check_delay
from ..tables import AsJson, print_json, print_table, table, when
from .cron import next_ms

T = TypeVar("T")

schedule = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Prompts that a jobs process submits later, or again and again.",
)


@schedule.command("add")
def add_schedule(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    model: Annotated[str, typer.Option(help="The name it is served by.")],
    cron: Annotated[
        str | None, typer.Option(help="Minute, hour, day, month, weekday, in UTC: '0 7 * * 1-5'.")
    ] = None,
    delay_ms: Annotated[int | None, typer.Option(help="Once, after so long.")] = None,
    schedule_id: Annotated[
        str | None, typer.Option("--id", help="The schedule's id; adding it again does nothing.")
    ] = None,
    max_tokens: MaxTokens = None,
    lane: Annotated[str | None, typer.Option(help="high, normal or low.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose job it is.")] = DEFAULT_TENANT,
    webhook: Annotated[str | None, typer.Option(help="A URL to tell of each end.")] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Add a schedule and print its id. What recurs makes jobs `<id>.<ms since 1970>`."""
    given = {
        "prompt": sys.stdin.read() if prompt == "-" else prompt,
        "id": schedule_id,
        "max_tokens": max_tokens,
        "lane": lane,
        "webhook": webhook,
    }

    async def add(store: ScheduleStore) -> str:
        if (cron is None) == (delay_ms is None):
            raise InvalidRequest("say when: --cron, or --delay-ms")
        scheduled = build_scheduled(
            {name: value for name, value in given.items() if value is not None},
            queue=check_name("queue", model),
            model=model,
            tenant=check_name("tenant", tenant),
            queue_limit=QUEUE_LIMIT_JOBS,
            cron=cron,
        )
        now_ms = await store.now_ms()
        at_ms = now_ms + check_delay(delay_ms or 0) if cron is None else next_ms(cron, now_ms)
        await store.put(scheduled, at_ms)
        return scheduled.id

    typer.echo(_asked(redis_url, add))


@schedule.command("list")
def list_schedules(
    redis_url: RedisUrl = None,
    json: AsJson = False,
) -> None:
    """List the schedules, the next one first."""

    async def read(store: ScheduleStore) -> list[Planned]:
        return sorted([one async for one in store.all()], key=lambda one: one.next_ms)

    found: list[Planned] = _asked(redis_url, read)
    if json:
        print_json(found)
        return
    shown = table("id", "next (UTC)", "cron", "model", "tenant", "prompt")
    for planned in found:
        one = planned.scheduled
        prompt = str(one.spec.get("prompt") or one.spec.get("messages") or "(token ids)")
        shown.add_row(
            one.id, when(planned.next_ms), one.cron or "once", one.queue, one.tenant, prompt[:60]
        )
    print_table(shown)


@schedule.command("cancel")
def cancel_schedule(
    schedule_id: Annotated[str, typer.Argument(help="The schedule's id.")],
    redis_url: RedisUrl = None,
) -> None:
    """Remove a schedule; jobs it has submitted go on."""

    async def remove(store: ScheduleStore) -> None:
        if not await store.remove(schedule_id):
            raise JobNotFound(f"there is no schedule {schedule_id!r}")

    _asked(redis_url, remove)
    typer.echo(f"{schedule_id}: removed")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(schedule, name="schedule")


def _asked(redis_url: str | None, ask: Callable[[ScheduleStore], Awaitable[T]]) -> T:
    return asked(redis_url, "pagestream-schedule", lambda calls: ask(ScheduleStore(calls)))

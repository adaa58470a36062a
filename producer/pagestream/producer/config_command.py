"""The command `pagestream config check`: what a process would take for its settings, and why.

This module knows which process has which class of settings: nothing of what they mean.
"""

import sys
from importlib import import_module
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from .cli import MISSING_EXTRA, build, missing_extra
from .commands import BAD_SETTINGS, WRONG
from .tables import AsJson, table

SERVICES = {
    "worker": ("pagestream.worker.settings", "WorkerSettings"),
    "gateway": ("pagestream.producer.gateway.settings", "GatewaySettings"),
    "jobs": ("pagestream.producer.jobs.settings", "JobsSettings"),
}

config = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What a process would take for its settings, and where each comes from.",
)


# A callback keeps the only command a subcommand.
@config.callback()
def overview() -> None:
    """Take settings as a process would."""


overview.__doc__ = config.info.help


@config.command(
    "check", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def check(
    context: typer.Context,
    service: Annotated[str, typer.Argument(help=f"{', '.join(SERVICES)}; then any of its flags.")],
    json: AsJson = False,
) -> None:
    """Show each setting of a process, its value, and whether a flag or a variable gave it.

    Starts nothing. Exits with 0, or 78 if the process would refuse its settings.
    """
    if service not in SERVICES:
        typer.echo(f"error: {service!r} is not one of {', '.join(SERVICES)}", err=True)
        raise typer.Exit(WRONG)
    flags = _flags(service, context.args)
    # It needs an extra of its own, which is known to be there only now.
    from .settings import examine, explain

    module, kind = SERVICES[service]
    settings, problems = examine(getattr(import_module(module), kind), flags)
    shown = explain(settings, flags) if settings is not None else []
    if json:
        answer = {"settings": shown, "problems": problems}
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    elif shown:
        rows = table("setting", "value", "from")
        for one in shown:
            source = one.variable if one.source == "variable" else one.source
            rows.add_row(f"--{one.name}", one.value, source)
        Console(markup=False, highlight=False).print(rows)
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(BAD_SETTINGS if problems else 0)


def _flags(service: str, arguments: list[str]) -> dict[str, Any]:
    """Parse flags as the process's own command does."""
    if missing := missing_extra(service):
        typer.echo(missing, err=True)
        raise typer.Exit(MISSING_EXTRA)
    group: Any = typer.main.get_command(build([service]))
    context = group.commands[service].make_context(service, arguments)
    return {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name).name == "COMMANDLINE"
    }


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.add_typer(config, name="config")

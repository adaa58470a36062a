"""The `pagestream` command: finds each room's commands and says what is missing for them.

How a room adds commands: it is listed in `ROOMS` with the module that holds them, the names of the
commands, the modules they need and the extra that installs those. The module has a function

    def register(app: typer.Typer) -> None

that adds exactly these commands. It is imported only when one of them (or the overview) is asked
for, and has to be quick: what is heavy (torch, a model) is imported inside the command. When a
needed module is absent, `find_spec` shows it without an import, and the command is a sentence that
names the extra.
This module knows names and modules only: no Redis, no commands' bodies.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

MISSING_EXTRA = 78
"""Exit code of a command that is not installed; see the list in `commands`."""


@dataclass(frozen=True)
class Room:
    """Where some of the commands are, and what they need."""

    module: str
    commands: tuple[str, ...]
    needs: tuple[str, ...]
    extra: str

    def missing(self) -> str | None:
        """Name a module this room's commands need and cannot have, or None."""
        for name in self.needs:
            if find_spec(name) is None:
                return name
        return None


_WORKER_NEEDS = ("torch", "transformers", "safetensors", "pydantic", "pydantic_settings")

_SETTINGS_NEEDS = ("typer", "rich", "pydantic_settings")

_GATEWAY_NEEDS = ("typer", "rich", "fastapi", "uvicorn", "pydantic_settings")
_JOBS_NEEDS = (*_GATEWAY_NEEDS, "arq", "httpx2", "cronsim")

ROOMS = (
    Room("pagestream.producer.commands", ("generate", "chat"), ("typer", "rich"), "cli"),
    Room(
        "pagestream.producer.admin_commands",
        ("show", "delete", "drain", "acl", "dead"),
        ("typer", "rich"),
        "cli",
    ),
    Room("pagestream.producer.info_command", ("info",), ("typer", "rich"), "cli"),
    Room("pagestream.producer.job_commands", ("ls", "tail", "cancel"), ("typer", "rich"), "cli"),
    Room("pagestream.producer.doctor_command", ("doctor",), ("typer", "rich"), "cli"),
    Room("pagestream.producer.top", ("top",), ("typer", "rich"), "cli"),
    Room("pagestream.producer.plan_command", ("plan",), ("typer", "rich"), "cli"),
    Room("pagestream.producer.tenant_commands", ("tenants",), ("typer", "rich"), "cli"),
    Room("pagestream.producer.config_command", ("config",), _SETTINGS_NEEDS, "gateway"),
    Room("pagestream.producer.gateway.cli", ("gateway",), _GATEWAY_NEEDS, "gateway"),
    Room("pagestream.producer.jobs.batch_command", ("batch",), _GATEWAY_NEEDS, "gateway"),
    Room("pagestream.producer.jobs.cli", ("jobs",), _JOBS_NEEDS, "jobs"),
    Room("pagestream.producer.usage_command", ("usage",), ("typer", "rich"), "cli"),
    Room(
        "pagestream.producer.jobs.schedule_command",
        ("schedule",),
        ("typer", "rich", "cronsim"),
        "jobs",
    ),
    Room("pagestream.producer.hooks.cli", ("hooks",), ("typer", "rich"), "cli"),
    Room("pagestream.worker.cli", ("worker", "up"), _WORKER_NEEDS, "worker"),
    Room("pagestream.worker.bench.cli", ("bench",), _WORKER_NEEDS, "bench"),
    Room("pagestream.worker.chaos.cli", ("chaos",), _WORKER_NEEDS, "worker"),
)


def sentence(command: str, missing: str, extra: str) -> str:
    """Say what to do about a command that is not installed."""
    return f"`{command}` needs {missing}, which is not installed: pip install 'pagestream[{extra}]'"


def missing_extra(command: str) -> str:
    """Say what to do about a command that is not installed; nothing about one that is."""
    (room,) = [one for one in ROOMS if command in one.commands]
    missing = room.missing()
    return "" if missing is None else sentence(f"pagestream {command}", missing, room.extra)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for name in ("typer", "rich"):
        if find_spec(name) is None:
            sys.stderr.write(sentence("pagestream", name, "cli") + "\n")
            sys.exit(MISSING_EXTRA)
    build(arguments)(args=arguments, prog_name="pagestream")


def build(arguments: list[str]) -> Any:
    """Return a typer app with the commands that `arguments` may mean."""
    import typer

    from .help_groups import WIDTH_MAX, Overview

    app = typer.Typer(
        cls=Overview,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": WIDTH_MAX},
        rich_markup_mode=None,  # it would take "[default: …]" for markup
        help="LLM jobs over Redis Streams: enqueue prompts, read tokens, run workers.",
    )

    # A callback keeps a single registered command a subcommand.
    @app.callback()
    def overview() -> None:  # pyright: ignore[reportUnusedFunction]
        """Show what there is."""

    overview.__doc__ = app.info.help
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    for room in [one for one in ROOMS if wanted in one.commands] or ROOMS:
        if (missing := room.missing()) is None:
            import_module(room.module).register(app)
        else:
            for command in room.commands:
                _add_absent(app, f"pagestream {command}", missing, room.extra)
    return app


def _add_absent(app: Any, command: str, missing: str, extra: str) -> None:
    """Add a command that says how to install it, whatever follows it on the line."""
    import typer

    @app.command(
        command.split()[-1],
        help=f"(not installed: pip install 'pagestream[{extra}]')",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def absent() -> None:  # pyright: ignore[reportUnusedFunction]
        typer.echo(sentence(command, missing, extra), err=True)
        raise typer.Exit(MISSING_EXTRA)


if __name__ == "__main__":
    main()

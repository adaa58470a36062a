"""Help in groups of commands and of flags, as plain text.

Typer's own groups come with its markup, which would take the `[default: …]` of a help text for a
style. This module knows headings: a command's from `COMMANDS`, a flag's from its `rich_help_panel`.
"""

from typing import Any

from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "Use it": ("generate", "chat", "batch", "schedule", "tail", "cancel"),
    "Run it": ("up", "worker", "gateway", "jobs"),
    "Look at it": ("info", "top", "ls", "show", "usage", "doctor", "plan"),
    "Operate it": (
        "config",
        "drain",
        "delete",
        "dead",
        "hooks",
        "tenants",
        "acl",
        "bench",
        "chaos",
    ),
}
"""Heading -> commands, in the order in which they are shown."""

WIDTH_MAX = 100
"""Columns of help, in a terminal that has them."""


class GroupedCommand(TyperCommand):
    """A command whose flags stand under the headings that their `rich_help_panel` names."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the flags, groups in the order of their first flags."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (shown := param.get_help_record(ctx)) is not None:
                heading = getattr(param, "rich_help_panel", None) or "Options"
                groups.setdefault(heading, []).append(shown)
        for heading, rows in groups.items():
            _write(formatter, heading, rows)


class Overview(TyperGroup):
    """All commands, under the headings of `COMMANDS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a line for each command there is."""
        left = self.list_commands(ctx)
        name_columns = max(map(len, left), default=0)
        help_columns = formatter.width - name_columns - 6
        groups: dict[str, list[str]] = {}
        for heading, names in COMMANDS.items():
            groups[heading] = [name for name in names if name in left]
            left = [name for name in left if name not in names]
        groups["More"] = left
        for heading, names in groups.items():
            rows = [
                (name.ljust(name_columns), self.commands[name].get_short_help_str(help_columns))
                for name in names
            ]
            _write(formatter, heading, rows)


def _write(formatter: Any, heading: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(heading):
            formatter.write_dl(rows)

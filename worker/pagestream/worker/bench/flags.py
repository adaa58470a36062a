"""Flags that several benchmarks share, each declared once.

A command names the groups it takes and gets their values as keyword arguments. The engine's flags
are those of `pagestream worker`: what that command learns, these learn. Knows no benchmark.
"""

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from ..cli import worker
from ..errors import ConfigError
from .datasets import DATASETS, Dataset

Result = TypeVar("Result")
Command = Callable[..., Any]

SERVICE_FLAGS = ("served_model_name", "redis_url", "name", "grace", "redis_patience")
"""The worker's flags that are about its queue, not its engine."""


def engine_flags(**flags: Any) -> dict[str, Any]:
    """The worker's flags about its engine, by name; None where one was not given."""
    return flags


engine_flags.__signature__ = Signature(  # pyright: ignore[reportFunctionMemberAccess]
    [one for name, one in signature(worker).parameters.items() if name not in SERVICE_FLAGS]
)


def dataset_flags(
    dataset: Annotated[str, typer.Option(help=f"{', '.join(DATASETS)}.")] = "small",
    requests: Annotated[
        int | None, typer.Option(min=1, help="The first so many. [default: all; 256 random ones]")
    ] = None,
    dataset_path: Annotated[
        Path | None, typer.Option(help="sharegpt: its JSON file of conversations.")
    ] = None,
    input_len: Annotated[
        int, typer.Option(min=1, help="random: prompt tokens; prefix-repetition: of the suffix.")
    ] = 512,
    output_len: Annotated[
        int, typer.Option(min=1, help="random, prefix-repetition: output tokens.")
    ] = 128,
    range_ratio: Annotated[
        float, typer.Option(min=0, max=1, help="random: lengths vary by this share, both ways.")
    ] = 0.0,
    num_prefixes: Annotated[
        int, typer.Option(min=1, help="prefix-repetition: different prefixes.")
    ] = 10,
    prefix_len: Annotated[
        int, typer.Option(min=1, help="prefix-repetition: tokens of a prefix.")
    ] = 256,
    max_output_len: Annotated[
        int | None, typer.Option(min=1, help="Cut every output at so many tokens.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random requests and of arrivals.")] = 0,
) -> Dataset:
    """Which requests to make."""
    return Dataset(
        name=dataset,
        requests=requests,
        path=dataset_path,
        input_tokens=input_len,
        output_tokens=output_len,
        range_ratio=range_ratio,
        prefixes=num_prefixes,
        prefix_tokens=prefix_len,
        max_output_tokens=max_output_len,
        seed=seed,
    )


def takes(*groups: Command) -> Callable[[Command], Command]:
    """Give a command that ends in `**flags` the parameters of `groups` as flags of its own."""

    def decorate(command: Command) -> Command:
        own = [
            one
            for one in signature(command).parameters.values()
            if one.kind is not Parameter.VAR_KEYWORD
        ]
        shared = [one for group in groups for one in signature(group).parameters.values()]
        parameters = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in (*own, *shared)]
        command.__signature__ = Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def of(group: Callable[..., Result], flags: dict[str, Any]) -> Result:
    """Call a group with its own of the flags."""
    return group(**{name: flags[name] for name in signature(group).parameters})


def one_of(flag: str, value: str, choices: tuple[str, ...]) -> str:
    """Check a flag that names one of several things.

    Raises:
        ConfigError: it names none of them.
    """
    if value not in choices:
        raise ConfigError(f"{flag} {value!r} is not one of {', '.join(choices)}")
    return value


class ManyValues(TyperCommand):
    """Lets a flag that may be repeated take its values in a row: `--rate 1 2 4`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the flag before each further value; these commands have no other words."""
        many = {name for one in self.params if getattr(one, "multiple", False) for name in one.opts}
        spread: list[str] = []
        flag = ""
        for word in args:
            is_value = not word.startswith("-")
            if is_value and flag in many and spread[-1] != flag:
                spread.append(flag)
            flag = flag if is_value else word
            spread.append(word)
        return super().parse_args(ctx, spread)

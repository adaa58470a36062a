"""Settings from flags and from `PAGESTREAM_…` variables; a flag wins over a variable.

This module knows no setting: each service has a class with its own.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from .errors import PagestreamError

Settings = TypeVar("Settings", bound=BaseSettings)


def read(
    kind: type[Settings], flags: Mapping[str, Any], *, error: type[PagestreamError]
) -> Settings:
    """Return the settings: flags that are not None, then variables, then defaults.

    Raises:
        PagestreamError: an `error`: a value is missing or out of range; the message names the flag.
    """
    try:
        return kind(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as invalid:
        raise error("; ".join(_sentence(dict(line)) for line in invalid.errors())) from invalid


def _sentence(line: dict[str, Any]) -> str:
    name = str(line["loc"][0]).replace("_", "-") if line["loc"] else "settings"
    return f"--{name}: {line['msg']} (got {line['input']!r})"

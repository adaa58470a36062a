"""Settings from flags and from `PAGESTREAM_…` variables; a flag wins over a variable.

Every process refuses a variable that nobody knows: a misspelt one would change nothing and say
nothing. But one `.env` may serve several processes, so what any of them knows is known to all. This
module knows names, and of what they mean the Redis URL alone: each service has a class of its own.
"""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

import msgspec
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from .calls import mask_password
from .connection import connect
from .errors import InvalidRequest, PagestreamError

PREFIX = "PAGESTREAM_"
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

WORKER = """
    MODEL REVISION SERVED_MODEL_NAME REDIS_URL NAME GRACE REDIS_PATIENCE HEARTBEAT_TTL STEP_STALL
    WORK_STALL
    MAX_CRASHES DURABILITY HEALTH_PORT MAX_MODEL_LEN MAX_NUM_SEQS MAX_NUM_BATCHED_TOKENS
    MAX_MIXED_TOKENS DTYPE DEVICE LOAD_FORMAT NUM_BLOCKS GPU_MEMORY_UTILIZATION
    ENABLE_PREFIX_CACHING DETERMINISTIC LOG_FORMAT LOG_JOBS LOG_PROMPTS
"""
GATEWAY = "REDIS_URL HOST PORT API_KEYS DISCONNECT_GRACE FIRST_ENTRY_WAIT QUEUE_LIMIT LOG_FORMAT"
JOBS = "REDIS_URL BATCH_IN_FLIGHT QUEUE_LIMIT WEBHOOK_SECRET WEBHOOK_ALLOW HEALTH_PORT LOG_FORMAT"
COMMANDS = "REDIS_URL QUEUE LOG_LEVEL"
COMPOSE = "GPU_MODEL PRODUCER_MODEL REDIS_PORT GATEWAY_PORT PROMETHEUS_PORT GRAFANA_PORT"
TESTS = "TEST_SERVER FUZZ_EXAMPLES MACHINE_EXAMPLES SOAK_JOBS BATCH_LINES"
KNOWN = frozenset(
    PREFIX + name
    for names in (WORKER, GATEWAY, JOBS, COMMANDS, COMPOSE, TESTS)
    for name in names.split()
)
"""Every variable; written down, because a process may lack what another's settings import."""

# Kubernetes sets these in every container for a Service whose name begins with `pagestream`.
_OF_A_SERVICE = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_.+)?)")
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")

Settings = TypeVar("Settings", bound=BaseSettings)


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of a process, and why it is so."""

    name: str
    """Its flag, without dashes before it."""
    value: str
    """As it may be shown: without passwords."""
    source: Literal["flag", "variable", "default"]
    variable: str


def read(
    kind: type[Settings], flags: Mapping[str, Any], *, error: type[PagestreamError]
) -> Settings:
    """Return the settings: flags that are not None, then variables, then defaults.

    Raises:
        PagestreamError: an `error`: a value is missing or out of range, two contradict each other,
            or a variable is unknown; the message names each and the fix.
    """
    settings, problems = examine(kind, flags)
    if settings is None or problems:
        raise error("; ".join(problems))
    return settings


def examine(kind: type[Settings], flags: Mapping[str, Any]) -> tuple[Settings | None, list[str]]:
    """Return the settings, None where they cannot be made, and everything that is wrong."""
    problems = [*_unknown_variables(kind), *_log_level()]
    try:
        settings = kind(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as invalid:
        return None, [*problems, *(_sentence(dict(line)) for line in invalid.errors())]
    return settings, [*problems, *_bad_url(settings.model_dump()["redis_url"])]


def explain(settings: BaseSettings, flags: Mapping[str, Any]) -> list[Setting]:
    """Return each setting, its value, and where that comes from."""
    variables = {name.upper() for name in os.environ}
    return [
        Setting(
            name=name.replace("_", "-"),
            value=_shown(getattr(settings, name)),
            source=(
                "flag"
                if flags.get(name) is not None
                else "variable"
                if PREFIX + name.upper() in variables
                else "default"
            ),
            variable=PREFIX + name.upper(),
        )
        for name in type(settings).model_fields
    ]


def _unknown_variables(kind: type[BaseSettings]) -> list[str]:
    known = KNOWN | {PREFIX + name.upper() for name in kind.model_fields}
    return [
        f"{name} is no setting: {_advice(name.upper(), known)}"
        for name, value in sorted(os.environ.items())
        if name.upper().startswith(PREFIX)
        and name.upper() not in known
        and not _OF_A_SERVICE.fullmatch(name)
        and not _ADDRESS.match(value)
    ]


def _advice(name: str, known: frozenset[str]) -> str:
    words = [
        one.removeprefix(PREFIX) for one in sorted(known)
    ]  # all begin alike: that says nothing
    nearest = get_close_matches(name.removeprefix(PREFIX), words, n=1)
    return f"did you mean {PREFIX}{nearest[0]}?" if nearest else "unset it"


def _bad_url(url: str) -> list[str]:
    try:
        connect(url, client_name="pagestream-settings").close()  # it connects at its first command
    except InvalidRequest as error:
        return [f"--redis-url: {error}"]
    return []


def _log_level() -> list[str]:
    level = os.environ.get(f"{PREFIX}LOG_LEVEL", "INFO")
    if level.upper() in LOG_LEVELS:
        return []
    return [f"{PREFIX}LOG_LEVEL {level!r} is not one of {', '.join(LOG_LEVELS)}"]


def _sentence(line: dict[str, Any]) -> str:
    if not line["loc"]:  # what a settings class says of its values together
        return str(line["msg"]).removeprefix("Value error, ")
    name, value = str(line["loc"][0]).replace("_", "-"), line["input"]
    shown = repr(mask_password(value) if isinstance(value, str) else value)
    sentence = f"--{name}: {line['msg']} (got {shown})"
    if isinstance(value, str) and _ADDRESS.match(value):
        sentence += "; Kubernetes set it for a Service: say enableServiceLinks: false"
    return sentence


def _shown(value: object) -> str:
    if value is None:
        return "–"
    return mask_password(value) if isinstance(value, str) else str(value)

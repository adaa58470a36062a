"""The gateway's settings.

This module checks values one by one and knows nothing of how they are used.
"""

from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from ..embedded import default_url
from ..errors import BadSettings
from ..logs import LogFormat
from ..settings import read


class GatewaySettings(BaseSettings):
    """Everything a gateway can be told; each field is a flag and a variable of the same name."""

    model_config = SettingsConfigDict(env_prefix="PAGESTREAM_", extra="ignore", frozen=True)

    redis_url: str = Field(default_factory=default_url)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    api_keys: Path | None = None
    """A JSON file, `{"key": "tenant"}` or `{"key": {"tenant": …, "queue_limit": …}}`; without it
    every request is the tenant `default`'s."""
    disconnect_grace: float = Field(default=5.0, ge=1.0)
    """Seconds after which a job that nobody reads any more is cancelled."""
    first_entry_wait: float = Field(default=5.0, ge=0.0)
    """Seconds a stream's HTTP headers wait, so that an early error has its status."""
    queue_limit: int = Field(default=10_000, ge=1)
    """Unfinished jobs a tenant may have on a queue before 429."""
    log_format: LogFormat = "pretty"


def read_settings(**flags: Any) -> GatewaySettings:
    """Return the settings: flags that are not None, then variables, then defaults.

    Raises:
        BadSettings: a value is out of range, or a variable unknown; the message names it.
    """
    return read(GatewaySettings, flags, error=BadSettings)

"""The settings of a jobs process.

This module checks values one by one and knows nothing of how they are used.
"""

from typing import Any

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from ..embedded import default_url
from ..errors import BadSettings
from ..logs import LogFormat
from ..settings import read


class JobsSettings(BaseSettings):
    """Everything a jobs process can be told; each field is a flag and a variable of that name."""

    model_config = SettingsConfigDict(env_prefix="PAGESTREAM_", extra="ignore", frozen=True)

    redis_url: str = Field(default_factory=default_url)
    batch_in_flight: int = Field(default=512, ge=1, le=16_384)
    """Lines of batches that wait for their answers at a time."""
    queue_limit: int = Field(default=10_000, ge=1)
    """Unfinished jobs a tenant may have on a queue; lines beyond it wait."""
    webhook_secret: SecretStr | None = None
    """What webhooks are signed with, `whsec_…`; several with commas while it is changed."""
    webhook_allow: str = ""
    """Hosts and networks that webhooks may go to beside the open internet, with commas."""
    health_port: int | None = Field(default=None, ge=1, le=65535)
    log_format: LogFormat = "pretty"


def read_settings(**flags: Any) -> JobsSettings:
    """Return the settings: flags that are not None, then variables, then defaults.

    Raises:
        BadSettings: a value is out of range, or a variable unknown; the message names it.
    """
    return read(JobsSettings, flags, error=BadSettings)

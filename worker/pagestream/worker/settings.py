"""The worker's settings.

This module checks values one by one; what depends on the model or the machine is checked where it
is known. It builds the engine's `EngineConfig` and knows nothing of how the settings are used.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pagestream.producer.errors import InvalidRequest
from pagestream.producer.keys import CRASH_CAP, HEARTBEAT_TTL_MS, check_name
from pagestream.producer.logs import LogFormat
from pagestream.producer.settings import read

from .config import BLOCK_TOKENS, EngineConfig
from .errors import ConfigError
from .models.hub import DEMO, local_directory

DEFAULT_REDIS_URL = "redis://localhost:6379/0"


class WorkerSettings(BaseSettings):
    """Everything a worker can be told; each field is a flag and a variable of the same name."""

    model_config = SettingsConfigDict(
        env_prefix="PAGESTREAM_", extra="forbid", frozen=True, protected_namespaces=()
    )

    model: str = DEMO
    revision: str | None = None
    served_model_name: str | None = None
    redis_url: str = DEFAULT_REDIS_URL
    name: str | None = None
    grace: float = Field(default=30.0, ge=0)
    redis_patience: float = Field(default=600.0, gt=0)
    heartbeat_ttl: float = Field(default=HEARTBEAT_TTL_MS / 1000, ge=0.3)
    step_stall: float = Field(default=30.0, gt=0)
    work_stall: float = Field(default=60.0, ge=1, le=3600)
    max_crashes: int = Field(default=CRASH_CAP, ge=1)
    durability: Literal["server", "strict"] = "server"
    health_port: int | None = Field(default=None, ge=1, le=65535)
    max_model_len: int | None = Field(default=None, ge=2)
    max_num_seqs: int = Field(default=1024, ge=1)
    max_num_batched_tokens: int = Field(default=8192, ge=1)
    max_mixed_tokens: int | None = Field(default=None, ge=1)
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    num_blocks: int | None = Field(default=None, ge=2)
    gpu_memory_utilization: float = Field(default=0.92, gt=0, le=1)
    enable_prefix_caching: bool = True
    deterministic: bool = False
    log_format: LogFormat = "pretty"
    log_jobs: bool = False
    log_prompts: bool = False

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        """Refuse a name that no queue can have, and values that contradict each other."""
        try:  # that of a model is looked at once the model is
            _ = self.queue if self.served_model_name is not None else ""
        except ConfigError as error:
            raise ValueError(str(error)) from error
        budget_tokens = max(self.max_num_batched_tokens, self.max_num_seqs)
        if self.max_mixed_tokens is not None and self.max_mixed_tokens > budget_tokens:
            raise ValueError(
                f"--max-mixed-tokens {self.max_mixed_tokens} is more than any step's budget, "
                f"{budget_tokens}: lower it, or raise --max-num-batched-tokens"
            )
        if self.num_blocks is not None and self.max_model_len is not None:
            held_tokens = (self.num_blocks - 1) * BLOCK_TOKENS  # block 0 is never given out
            if held_tokens < self.max_model_len:
                raise ValueError(
                    f"--num-blocks {self.num_blocks} hold {held_tokens} tokens, not one request of "
                    f"--max-model-len {self.max_model_len}: raise the one, or lower the other"
                )
        return self

    @property
    def queue(self) -> str:
        """The queue the worker serves: the name clients ask for.

        Raises:
            ConfigError: the name cannot be a queue's.
            ModelNotFound: the queue is called after a model's directory, and there is none.
        """
        name = self.served_model_name
        if name is None:
            directory = None if self.model == DEMO else local_directory(self.model)
            name = self.model if directory is None else directory.resolve().name
        try:
            return check_name("queue", name)
        except InvalidRequest as error:
            raise ConfigError(f"{error}; choose another with --served-model-name") from error

    def engine_config(self) -> EngineConfig:
        """Return what the engine needs of this."""
        return EngineConfig(
            model=self.model,
            revision=self.revision,
            dtype=self.dtype,
            device=self.device,
            load_format=self.load_format,
            max_model_tokens=self.max_model_len,
            max_running=self.max_num_seqs,
            max_step_tokens=self.max_num_batched_tokens,
            max_mixed_tokens=self.max_mixed_tokens,
            num_blocks=self.num_blocks,
            gpu_memory_utilization=self.gpu_memory_utilization,
            prefix_cache=self.enable_prefix_caching,
            deterministic=self.deterministic,
        )


def read_settings(**flags: Any) -> WorkerSettings:
    """Return the settings: flags that are not None, then variables, then defaults.

    Raises:
        ConfigError: a value is missing or out of range, two contradict each other, or a variable
            is unknown; the message names them.
    """
    return read(WorkerSettings, flags, error=ConfigError)

"""The commands of the worker room: `pagestream worker` and `pagestream up`.

What the flags are is `flags`', what is done with them `service`'s. Every flag is also a
`PAGESTREAM_…` variable.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from pagestream.producer.embedded import EmbeddedRedis, default_directory
from pagestream.producer.errors import PagestreamError
from pagestream.producer.help_groups import GroupedCommand
from pagestream.producer.logs import log_to_stderr

from .flags import (
    Deterministic,
    Device,
    Dtype,
    Durability,
    GpuMemory,
    Grace,
    HealthPort,
    HeartbeatTtl,
    LoadFormat,
    LogFormat,
    LogJobs,
    LogPrompts,
    MaxBatched,
    MaxCrashes,
    MaxMixed,
    MaxModelLen,
    MaxNumSeqs,
    Model,
    Name,
    NumBlocks,
    PrefixCaching,
    RedisPatience,
    RedisUrl,
    Revision,
    ServedName,
    StepStall,
    WorkStall,
)
from .service import BAD_CONFIG, REDIS_UNAVAILABLE, run_worker
from .settings import read_settings

STORAGE = "Storage"

Data = Annotated[
    Path | None,
    typer.Option(
        help="Where the jobs are kept between runs. [default: ~/.local/state/pagestream/redis]",
        metavar="DIR",
        rich_help_panel=STORAGE,
    ),
]


def worker(
    model: Model = None,
    revision: Revision = None,
    served_model_name: ServedName = None,
    redis_url: RedisUrl = None,
    name: Name = None,
    grace: Grace = None,
    redis_patience: RedisPatience = None,
    heartbeat_ttl: HeartbeatTtl = None,
    step_stall: StepStall = None,
    work_stall: WorkStall = None,
    max_crashes: MaxCrashes = None,
    durability: Durability = None,
    health_port: HealthPort = None,
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxBatched = None,
    max_mixed_tokens: MaxMixed = None,
    dtype: Dtype = None,
    device: Device = None,
    load_format: LoadFormat = None,
    num_blocks: NumBlocks = None,
    gpu_memory_utilization: GpuMemory = None,
    enable_prefix_caching: PrefixCaching = None,
    deterministic: Deterministic = None,
    log_format: LogFormat = None,
    log_jobs: LogJobs = None,
    log_prompts: LogPrompts = None,
) -> None:
    """Serve a model's queue until stopped.

    SIGTERM or Ctrl-C once: take no new job and let the running ones finish; twice: hand them back.
    """
    raise typer.Exit(_run(dict(locals())))


def up(
    model: Model = None,
    revision: Revision = None,
    served_model_name: ServedName = None,
    name: Name = None,
    grace: Grace = None,
    step_stall: StepStall = None,
    work_stall: WorkStall = None,
    max_crashes: MaxCrashes = None,
    health_port: HealthPort = None,
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxBatched = None,
    max_mixed_tokens: MaxMixed = None,
    dtype: Dtype = None,
    device: Device = None,
    load_format: LoadFormat = None,
    num_blocks: NumBlocks = None,
    gpu_memory_utilization: GpuMemory = None,
    enable_prefix_caching: PrefixCaching = None,
    deterministic: Deterministic = None,
    log_format: LogFormat = None,
    log_jobs: LogJobs = None,
    log_prompts: LogPrompts = None,
    data: Data = None,
) -> None:
    """Start an embedded Redis server and a worker on it, in one command."""
    flags = dict(locals())
    try:
        with EmbeddedRedis(flags.pop("data") or default_directory()) as server:
            typer.echo(f"Redis is at {server.url}", err=True)
            status = _run({**flags, "redis_url": server.url})
    except PagestreamError as error:  # no server binary, or one runs already
        typer.echo(f"error: {error}", err=True)
        status = REDIS_UNAVAILABLE
    raise typer.Exit(status)


def _run(flags: dict[str, Any]) -> int:
    try:
        settings = read_settings(**flags)
        log_to_stderr(settings.log_format)
        return run_worker(settings)
    except PagestreamError as error:
        typer.echo(f"error: {error}", err=True)
        return BAD_CONFIG


def register(app: typer.Typer) -> None:
    """Add this room's commands to the command line."""
    app.command(cls=GroupedCommand)(worker)
    app.command(cls=GroupedCommand)(up)

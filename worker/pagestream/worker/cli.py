"""The commands of the worker room: `pagestream worker` and `pagestream up`.

What the flags are is `flags`', what is done with them `service`'s. Every flag is also a
`PAGESTREAM_…` variable.
"""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext

import typer

from pagestream.producer.cli import missing_extra
from pagestream.producer.commands import INTERRUPTED
from pagestream.producer.embedded import EmbeddedRedis, default_directory
from pagestream.producer.errors import PagestreamError, QueueUnavailable
from pagestream.producer.help_groups import GroupedCommand
from pagestream.producer.logs import log_to_stderr
from pagestream.producer.owned import owned_process

from .flags import (
    Data,
    Deterministic,
    Device,
    Dtype,
    Durability,
    GpuMemory,
    Grace,
    HasGateway,
    HasJobs,
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
    Port,
    PrefixCaching,
    RedisPatience,
    RedisUrl,
    Revision,
    ServedName,
    StepStall,
    WorkStall,
)
from .service import BAD_CONFIG, REDIS_UNAVAILABLE, run_worker
from .settings import WorkerSettings, read_settings


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
    try:
        settings = read_settings(**dict(locals()))
        log_to_stderr(settings.log_format)
        status = run_worker(settings)
    except PagestreamError as error:
        typer.echo(f"error: {error}", err=True)
        status = BAD_CONFIG
    raise typer.Exit(status)


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
    gateway: HasGateway = True,
    port: Port = None,
    jobs: HasJobs = True,
) -> None:
    """Start an embedded Redis server, a worker, a gateway and a jobs process, in one command.

    Ctrl-C once: the worker lets its running jobs finish, then all of it ends.
    """
    flags = dict(locals())
    has_gateway, port, has_jobs = flags.pop("gateway"), flags.pop("port"), flags.pop("jobs")
    try:
        with EmbeddedRedis(flags.pop("data") or default_directory()) as server:
            typer.echo(f"Redis is at {server.url}", err=True)
            settings = read_settings(**flags, redis_url=server.url)
            log_to_stderr(settings.log_format)
            with (
                _gateway(settings, port) if has_gateway else nullcontext(),
                _jobs(settings) if has_jobs else nullcontext(),
            ):
                status = run_worker(settings)
    except QueueUnavailable as error:  # no server binary, or one runs already
        typer.echo(f"error: {error}", err=True)
        status = REDIS_UNAVAILABLE
    except PagestreamError as error:
        typer.echo(f"error: {error}", err=True)
        status = BAD_CONFIG
    except KeyboardInterrupt:  # before the worker takes it for a request to drain
        status = INTERRUPTED
    raise typer.Exit(status)


@contextmanager
def _gateway(settings: WorkerSettings, port: int | None) -> Generator[None]:
    """Run a gateway beside the worker and say where, or say that it is not installed."""
    if missing := missing_extra("gateway"):
        typer.echo(f"no gateway: {missing}", err=True)
        yield
        return

    from pagestream.producer.gateway.owned import owned_gateway
    from pagestream.producer.gateway.settings import read_settings as read_gateway

    asked = read_gateway(redis_url=settings.redis_url, port=port, log_format=settings.log_format)
    with owned_gateway(asked) as url:
        typer.echo(f"OpenAI's API is at {url}/v1, a dashboard at {url}/dashboard; try", err=True)
        body = f'{{"model": "{settings.queue}", "prompt": "def", "max_tokens": 32, "stream": true}}'
        typer.echo(
            f"  curl -N {url}/v1/completions -H 'Content-Type: application/json' -d '{body}'",
            err=True,
        )
        yield


@contextmanager
def _jobs(settings: WorkerSettings) -> Generator[None]:
    """Run a jobs process beside the worker, or say that it is not installed."""
    if missing := missing_extra("jobs"):
        typer.echo(f"no batches and no webhooks: {missing}", err=True)
        yield
        return

    told = {"redis_url": settings.redis_url, "log_format": settings.log_format}
    with owned_process("jobs", {**told, "health_port": None}):  # that port is the worker's
        yield


def register(app: typer.Typer) -> None:
    """Add this room's commands to the command line."""
    app.command(cls=GroupedCommand)(worker)
    app.command(cls=GroupedCommand)(up)

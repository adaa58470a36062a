"""The commands of the worker room: `pagestream worker` and `pagestream up`.

Flags and their help only; what they do is `service`'s. Every flag is also a `PAGESTREAM_…`
variable.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from pagestream.producer.commands import LogFormat
from pagestream.producer.embedded import EmbeddedRedis, default_directory
from pagestream.producer.errors import PagestreamError
from pagestream.producer.logs import log_to_stderr

from .service import BAD_CONFIG, REDIS_UNAVAILABLE, run_worker
from .settings import read_settings

Model = Annotated[
    str | None,
    typer.Option(help="A Hugging Face directory or hub id. [default: demo, which comes along]"),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
ServedName = Annotated[
    str | None,
    typer.Option(help="The name clients ask for, and the queue's. [default: the model's]"),
]
RedisUrl = Annotated[
    str | None, typer.Option(help="redis://, rediss://, unix:// or redis+sentinel:// URL.")
]
Name = Annotated[
    str | None,
    typer.Option(
        help="This worker's name; a second live one is refused. [default: host and random]"
    ),
]
Grace = Annotated[
    float | None, typer.Option(help="Seconds that running jobs get to finish after SIGTERM.")
]
RedisPatience = Annotated[
    float | None, typer.Option(help="Seconds Redis may be away before the worker gives up.")
]
HeartbeatTtl = Annotated[
    float | None,
    typer.Option(help="Seconds of silence after which the others take this worker for dead."),
]
StepStall = Annotated[
    float | None,
    typer.Option(help="Seconds after which a step that does not end is a dead engine."),
]
MaxCrashes = Annotated[
    int | None, typer.Option(help="Deaths of its worker or engine that make a job a dead letter.")
]
Durability = Annotated[
    str | None,
    typer.Option(help="server, or strict: refuse a Redis that does not sync before it answers."),
]
HealthPort = Annotated[
    int | None, typer.Option(help="Answer /livez and /readyz here. [default: do not]")
]
MaxModelLen = Annotated[
    int | None, typer.Option(help="Prompt and output tokens together. [default: the model's]")
]
MaxNumSeqs = Annotated[int | None, typer.Option(help="Requests that run at once.")]
MaxBatched = Annotated[int | None, typer.Option(help="Token budget of one step.")]
MaxMixed = Annotated[
    int | None,
    typer.Option(
        help="Token budget of a step in which requests decode: less keeps their latency even. "
        "[default: that of any step]"
    ),
]
Dtype = Annotated[
    str | None, typer.Option(help="auto, float32, float16 or bfloat16; auto: float32 on a CPU.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
LoadFormat = Annotated[
    str | None, typer.Option(help="auto, or dummy: random weights from a config.json alone.")
]
NumBlocks = Annotated[
    int | None, typer.Option(help="KV blocks of 16 tokens. [default: what memory allows]")
]
GpuMemory = Annotated[float | None, typer.Option(help="Share of the GPU's memory to use, 0 to 1.")]
PrefixCaching = Annotated[
    bool | None,
    typer.Option(
        "--enable-prefix-caching/--no-enable-prefix-caching", help="Reuse shared prefixes."
    ),
]
Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic/--no-deterministic",
        help="A request's tokens do not depend on the batch it runs in.",
    ),
]
LogJobs = Annotated[
    bool | None, typer.Option("--log-jobs/--no-log-jobs", help="Log each job's claim and end.")
]
LogPrompts = Annotated[
    bool | None,
    typer.Option("--log-prompts/--no-log-prompts", help="Log what was asked, too. [default: no]"),
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
    data: Annotated[Path | None, typer.Option(help="Where the jobs are kept between runs.")] = None,
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
    app.command()(worker)
    app.command()(up)

"""The flags of `pagestream worker` and `pagestream up`: their groups, units and words.

Defaults are read from the settings. This module knows no commands.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from .settings import WorkerSettings

MODEL, BATCH, QUEUE, FAULTS, LOGS, GATEWAY = (
    *("Model", "Batch and memory", "Queue and Redis", "Faults and stopping"),
    *("Logs and health", "Gateway"),
)


def _flag(
    group: str,
    field: str,
    help: str,
    *,
    unit: str | None = None,
    default: str = "",
    switch: str = "",
) -> Any:
    """Return an option: `unit` stands in place of its type, `default` for a default of None."""
    value = WorkerSettings.model_fields[field].default
    if value is not None:
        words = {True: "yes", False: "no"} if isinstance(value, bool) else {}
        default = words.get(value) or (f"{value:g}" if isinstance(value, float) else str(value))
    assert default, f"--{field} has no default to show"
    names = [f"--{switch}/--no-{switch}"] if switch else []
    return typer.Option(
        *names, help=f"{help} [default: {default}]", metavar=unit, rich_help_panel=group
    )


Model = Annotated[
    str | None,
    _flag(MODEL, "model", "A Hugging Face directory or hub id; demo comes along.", unit="DIR|ID"),
]
Revision = Annotated[
    str | None,
    _flag(*(MODEL, "revision", "Branch, tag or commit of a hub id."), unit="NAME", default="main"),
]
Dtype = Annotated[
    str | None,
    _flag(
        *(MODEL, "dtype", "auto, float32, float16 or bfloat16; auto: float32 on a CPU."),
        unit="DTYPE",
    ),
]
Device = Annotated[str | None, _flag(MODEL, "device", "auto, cpu or cuda.", unit="DEVICE")]
LoadFormat = Annotated[
    str | None,
    _flag(
        *(MODEL, "load_format", "auto, or dummy: random weights from a config.json alone."),
        unit="FORMAT",
    ),
]
MaxModelLen = Annotated[
    int | None,
    _flag(
        *(MODEL, "max_model_len", "Prompt and output together."),
        unit="TOKENS",
        default="the model's",
    ),
]
Deterministic = Annotated[
    bool | None,
    _flag(
        *(MODEL, "deterministic", "A request's tokens do not depend on the batch it runs in."),
        switch="deterministic",
    ),
]
MaxNumSeqs = Annotated[
    int | None, _flag(BATCH, "max_num_seqs", "Requests that run at once.", unit="REQUESTS")
]
MaxBatched = Annotated[
    int | None, _flag(BATCH, "max_num_batched_tokens", "Budget of one step.", unit="TOKENS")
]
MaxMixed = Annotated[
    int | None,
    _flag(
        BATCH,
        "max_mixed_tokens",
        "Budget of a step in which requests decode: less keeps their latency even.",
        unit="TOKENS",
        default="that of any step",
    ),
]
NumBlocks = Annotated[
    int | None,
    _flag(
        *(BATCH, "num_blocks", "KV blocks of 16 tokens."),
        unit="BLOCKS",
        default="what memory allows",
    ),
]
GpuMemory = Annotated[
    float | None,
    _flag(BATCH, "gpu_memory_utilization", "Share of the GPU's memory to use.", unit="0…1"),
]
PrefixCaching = Annotated[
    bool | None,
    _flag(
        *(BATCH, "enable_prefix_caching", "Reuse shared prefixes."),
        switch="enable-prefix-caching",
    ),
]
ServedName = Annotated[
    str | None,
    _flag(
        *(QUEUE, "served_model_name", "The name clients ask for, and the queue's."),
        unit="NAME",
        default="the model's",
    ),
]
RedisUrl = Annotated[
    str | None,
    _flag(*(QUEUE, "redis_url", "redis://, rediss://, unix:// or redis+sentinel://."), unit="URL"),
]
Name = Annotated[
    str | None,
    _flag(
        *(QUEUE, "name", "This worker's name; a second live one is refused."),
        unit="NAME",
        default="host and random",
    ),
]
Durability = Annotated[
    str | None,
    _flag(
        QUEUE,
        "durability",
        "server, or strict: refuse a Redis that does not sync before it answers.",
        unit="KIND",
    ),
]
Grace = Annotated[
    float | None,
    _flag(FAULTS, "grace", "What running jobs get to finish after SIGTERM.", unit="SECONDS"),
]
RedisPatience = Annotated[
    float | None,
    _flag(
        *(FAULTS, "redis_patience", "How long Redis may be away before the worker gives up."),
        unit="SECONDS",
    ),
]
HeartbeatTtl = Annotated[
    float | None,
    _flag(
        *(FAULTS, "heartbeat_ttl", "Silence after which the others take this worker for dead."),
        unit="SECONDS",
    ),
]
StepStall = Annotated[
    float | None,
    _flag(
        *(FAULTS, "step_stall", "A step that does not end by then is a dead engine."),
        unit="SECONDS",
    ),
]
WorkStall = Annotated[
    float | None,
    _flag(
        *(FAULTS, "work_stall", "A worker that leaves its work undone for so long exits with 75."),
        unit="SECONDS",
    ),
]
MaxCrashes = Annotated[
    int | None,
    _flag(
        FAULTS,
        "max_crashes",
        "Deaths of its worker or engine that make a job a dead letter.",
        unit="DEATHS",
    ),
]
HealthPort = Annotated[
    int | None,
    _flag(
        LOGS,
        "health_port",
        "Answer /livez, /readyz, /metrics and /debug here.",
        unit="PORT",
        default="nowhere",
    ),
]
LogFormat = Annotated[
    str | None,
    _flag(LOGS, "log_format", "pretty, or json: one object a line.", unit="FORMAT"),
]
LogJobs = Annotated[
    bool | None, _flag(LOGS, "log_jobs", "Log each job's claim and end.", switch="log-jobs")
]
LogPrompts = Annotated[
    bool | None, _flag(LOGS, "log_prompts", "Log what was asked, too.", switch="log-prompts")
]

# Of `pagestream up` alone.

Data = Annotated[
    Path | None,
    typer.Option(
        help="Where the jobs are kept between runs. [default: ~/.local/state/pagestream/redis]",
        metavar="DIR",
        rich_help_panel=QUEUE,
    ),
]
HasGateway = Annotated[
    bool,
    typer.Option(
        "--gateway/--no-gateway",
        help="Serve OpenAI's API, where that is installed. [default: yes]",
        show_default=False,
        rich_help_panel=GATEWAY,
    ),
]
HasJobs = Annotated[
    bool,
    typer.Option(
        "--jobs/--no-jobs",
        help="Run batches and send webhooks, where that is installed. [default: yes]",
        show_default=False,
        rich_help_panel=GATEWAY,
    ),
]
Port = Annotated[
    int | None,
    typer.Option(help="The gateway's. [default: 8000]", metavar="PORT", rich_help_panel=GATEWAY),
]

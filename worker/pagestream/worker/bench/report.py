"""Results as people and programs read them: tables on standard output, and a JSON file.

Knows results, not how they came about.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from ..config import EngineConfig
from ..messages import Ready
from .facts import Machine, machine
from .latency import BatchLatency
from .metrics import Spread, Summary
from .offline import Played
from .serve import Served

LATENCIES = {
    "ttft_ms": "TTFT",
    "tpot_ms": "TPOT",
    "itl_ms": "ITL",
    "e2el_ms": "E2EL",
    "queue_ms": "queue wait",
}

PERCENTILES = ("mean", "std", "p50", "p90", "p99")
FILE_COLUMNS = 200


class PeerRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run on transformers."""

    summary: Summary
    """Of the requests that ended within the time limit."""
    offered_requests: int
    batching: str
    batch_size: int | None
    """None where transformers sizes its batches itself."""


Result = Played | PeerRun | Served | BatchLatency


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes."""

    command: str
    taken_at: str
    """UTC."""
    arguments: dict[str, Any]
    machine: Machine
    engine: EngineConfig | None
    """As it was built in this process; None where it ran elsewhere."""
    ready: Ready | None
    worker_ready_s: float | None
    """Until a worker that was started for the run had registered."""
    results: list[Any]


def write_json(
    path: Path,
    command: str,
    arguments: Mapping[str, Any],
    results: Sequence[Result],
    *,
    engine: EngineConfig | None = None,
    ready: Ready | None = None,
    worker_ready_s: float | None = None,
) -> None:
    """Write the results with everything they depend on."""
    report = Report(
        command=command,
        taken_at=datetime.now(UTC).isoformat(timespec="seconds"),
        arguments={name: _plain(one) for name, one in _flat(arguments) if one is not None},
        machine=machine(),
        engine=engine,
        ready=ready,
        worker_ready_s=worker_ready_s,
        results=list(results),
    )
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def _flat(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A command's own arguments, and those of the groups it takes."""
    for name, value in arguments.items():
        yield from value.items() if isinstance(value, dict) else [(name, value)]


def _plain(value: Any) -> Any:
    """As JSON has it: infinity, the rate of all at once, is a word."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Path | Enum) or value == float("inf"):
        return str(value)
    return value


def device_name() -> str:
    """The machine's GPU, or its CPU, in a few words."""
    here = machine()
    return here.gpus[0].name if here.gpus else f"{here.cpus} cores of {here.cpu}"


def stdout() -> Console:
    """Standard output; where it is no terminal, wide enough that nothing is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_COLUMNS)


def show_runs(console: Console, title: str, runs: Sequence[Played | PeerRun], shown: int) -> None:
    """Print a column a run, and the latencies of run number `shown`."""
    marks = ["*" if len(runs) > 1 and place == shown else "" for place in range(len(runs))]
    table = _table(title, "", *(f"run {place}{mark}" for place, mark in enumerate(marks)))
    for name, row in {**_THROUGHPUT, **(_ENGINE if isinstance(runs[0], Played) else {})}.items():
        table.add_row(name, *(row(run) for run in runs))
    console.print(table)
    latencies = _table(f"run {shown}" if len(runs) > 1 else "", "ms", *PERCENTILES)
    summary = runs[shown].summary
    for name, label in LATENCIES.items():
        spread: Spread | None = getattr(summary, name)
        if spread is not None:
            latencies.add_row(label, *(f"{getattr(spread, one):,.2f}" for one in PERCENTILES))
    console.print(latencies)
    if summary.goodput_requests_per_s is not None:
        console.print(f"goodput {summary.goodput_requests_per_s:,.2f} requests/s")


def show_reservations(console: Console, run: Played) -> None:
    """Print what each way to hold the running requests would have wasted."""
    title = "KV cache, average over the steps"
    table = _table(title, "held as", "waste", "tokens a request", "fit at once")
    names = {
        "paged": "paged blocks (the engine)",
        "own": "contiguous, prompt + output",
        "context": "contiguous, whole context",
    }
    for name, held in (run.kv or {}).items():
        cells = (f"{held.waste:.1%}", f"{held.tokens_a_request:,.1f}", f"{held.fit_at_once:,}")
        table.add_row(names[name], *cells)
    console.print(table)


def show_batches(console: Console, title: str, results: Sequence[BatchLatency]) -> None:
    """Print a row a batch size."""
    names = ("first tokens p50", "short p50", "long p50", "long p99", "decode step", "tok/s")
    table = _table(title, "batch", *names)
    for one in results:
        table.add_row(
            f"{one.batch_size}",
            f"{one.first_tokens_ms.p50:,.2f}",
            f"{one.short_ms.p50:,.2f}",
            f"{one.long_ms.p50:,.2f}",
            f"{one.long_ms.p99:,.2f}",
            f"{one.decode_step_ms:,.3f}",
            f"{one.decode_tokens_per_s:,.1f}",
        )
    console.print(table)


def show_served(console: Console, title: str, results: Sequence[Served]) -> None:
    """Print a column a run."""
    rates = ("all at once" if run.rate is None else f"{run.rate:g} req/s" for run in results)
    table = _table(title, "offered", *rates)
    for name, row in {**_THROUGHPUT, **_SERVED}.items():
        table.add_row(name, *(row(run) for run in results))
    for name, label in LATENCIES.items():
        table.add_section()
        for percentile in PERCENTILES:
            spreads = [getattr(run.summary, name) for run in results]
            cells = ("–" if one is None else f"{getattr(one, percentile):,.2f}" for one in spreads)
            table.add_row(f"{label} {percentile}, ms", *cells)
    console.print(table)


Rows = dict[str, Callable[[Any], str]]
"""What a row shows of a run, by the row's name."""

_THROUGHPUT: Rows = {
    "requests completed": lambda run: f"{run.summary.completed}",
    "output tokens/s": lambda run: f"{run.summary.output_tokens_per_s:,.1f}",
    "total tokens/s": lambda run: f"{run.summary.total_tokens_per_s:,.1f}",
    "requests/s": lambda run: f"{run.summary.requests_per_s:,.2f}",
    "seconds": lambda run: f"{run.summary.duration_s:,.2f}",
}

_ENGINE: Rows = {
    "steps": lambda run: f"{run.steps:,}",
    "running, mean": lambda run: f"{run.running_mean:,.1f}",
    "idle seats": lambda run: _or_dash(run.idle_seats, "{:.1%}"),
    "KV waste": lambda run: _or_dash(run.kv_waste, "{:.2%}"),
    "preemptions": lambda run: f"{run.preemptions:,}",
    "prefix hits, tokens": lambda run: f"{run.prefix_hit_tokens:,}",
    "scheduler, µs a step": lambda run: _or_dash(run.scheduler_us, "{:,.0f}"),
}

_SERVED: Rows = {
    "failed": lambda run: f"{run.summary.failed}",
    "goodput, requests/s": lambda run: _or_dash(run.summary.goodput_requests_per_s, "{:,.2f}"),
    "tokens an arrival": lambda run: _or_dash(run.summary.tokens_an_arrival_mean, "{:.2f}"),
    "KV waste": lambda run: _or_dash(run.kv_waste, "{:.2%}"),
    "steps": lambda run: _or_dash(run.steps, "{:,}"),
    "preemptions": lambda run: _or_dash(run.preemptions, "{:,}"),
    "prefix hits, tokens": lambda run: _or_dash(run.prefix_hit_tokens, "{:,}"),
    "client CPU, of a core": lambda run: f"{run.client_cpu:.0%}",
}


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    return table

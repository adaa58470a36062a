"""`pagestream bench throughput`: a dataset on our engine, or on transformers, in this process.

Checks how the flags go together, runs the repeats, and reports the median one.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..settings import WorkerSettings
from . import report
from .arrivals import arrival_times
from .batching import RULES
from .datasets import Dataset, Workload, check_lengths, fit_to_vocabulary, shift_of
from .metrics import summarize
from .offline import Played, Player, prepare, with_scheduler_time
from .progress import progress_bar

ENGINES = ("pagestream", "transformers")
KV_WAYS = ("paged", "contiguous")

Told = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What was asked for, one flag a field."""

    settings: WorkerSettings
    dataset: Dataset
    workload: Workload
    engine: str
    batching: str
    batch_size: int | None
    kv: str
    rate: float
    burstiness: float
    objectives_ms: dict[str, float]
    repeats: int
    time_limit_s: float | None
    json: Path | None
    arguments: dict[str, Any]

    @property
    def title(self) -> str:
        """What the table is of."""
        model = Path(self.settings.model).name
        return f"{model}, {self.dataset.name}, {self.batching} batching on {self.engine}"

    def check(self) -> None:
        """Check what goes together.

        Raises:
            ConfigError: something does not.
        """
        if self.batching == "continuous" and self.batch_size is not None:
            raise ConfigError("--batch-size is for --batching static and dynamic")
        if self.engine == "transformers":
            if self.rate != inf or self.kv != "paged" or self.objectives_ms:
                raise ConfigError("--rate, --kv and --goodput are not for --engine transformers")
            return
        if self.time_limit_s is not None:
            raise ConfigError("--time-limit is for --engine transformers; use --requests")
        most = self.settings.max_num_seqs
        if self.batch_size is not None and self.batch_size > most:
            raise ConfigError(f"--batch-size {self.batch_size} is above --max-num-seqs {most}")


def run_throughput(asked: Throughput) -> None:
    """Run it, print it, and write it where that was asked for.

    Raises:
        PagestreamError: the flags, the model, the dataset or the machine do not go together.
    """
    asked.check()
    if asked.engine == "transformers":
        _on_transformers(asked)
    else:
        _on_our_engine(asked)


def _on_our_engine(asked: Throughput) -> None:
    from ..engine.engine import build_engine
    from ..loading import LoadingBar

    config = asked.settings.engine_config()
    player = Player(build_engine(config, LoadingBar()))
    prepare(player, asked.workload)
    count, seed = len(asked.workload), asked.dataset.seed
    arrivals_s = arrival_times(count, asked.rate, asked.burstiness, seed)

    def run(workload: Workload, told: Told) -> Played:
        played, _ = player.play(
            workload,
            arrivals_s,
            rule=RULES[asked.batching],
            batch_size=asked.batch_size,
            reservations=asked.kv == "contiguous",
            objectives_ms=asked.objectives_ms,
            told=told,
        )
        return with_scheduler_time(played, workload, config, player.ready)

    runs = _repeat(asked, player.ready.vocab_size, run)
    shown = _show(asked, runs)
    if asked.kv == "contiguous":
        report.show_reservations(report.stdout(), runs[shown])
    if asked.json:
        report.write_json(
            asked.json, "throughput", asked.arguments, runs, engine=config, ready=player.ready
        )


def _on_transformers(asked: Throughput) -> None:
    from .peers import Peer, load_peer

    config = asked.settings.engine_config()
    batch_size = asked.batch_size or config.max_running
    peer = Peer(load_peer(config), asked.time_limit_s)
    check_lengths(asked.workload, peer.context_tokens)
    warm_up = fit_to_vocabulary(asked.workload[:2], peer.vocab_size, shift=1)
    peer.play(warm_up, asked.batching, batch_size)

    def run(workload: Workload, told: Told) -> report.PeerRun:
        done, lines = peer.play(workload, asked.batching, batch_size, told)
        return report.PeerRun(
            summary=summarize(done, lines, streamed=False),
            offered_requests=len(workload),
            batching=asked.batching,
            batch_size=batch_size if asked.batching == "static" else None,
        )

    runs = _repeat(asked, peer.vocab_size, run)
    _show(asked, runs)
    if asked.json:
        report.write_json(asked.json, "throughput", asked.arguments, runs, engine=config)


def _repeat(asked: Throughput, vocab_size: int, run: Callable[[Workload, Told], Any]) -> list[Any]:
    """Run every repeat on ids of its own."""
    runs: list[Any] = []
    for repeat in range(asked.repeats):
        workload = fit_to_vocabulary(asked.workload, vocab_size, shift_of(repeat))
        with progress_bar(f"run {repeat}", len(workload)) as told:
            runs.append(run(workload, told))
    return runs


def _show(asked: Throughput, runs: list[Any]) -> int:
    """Print the runs; returns the number of the median one."""
    figures = [run.summary.output_tokens_per_s for run in runs]
    shown = figures.index(statistics.median_low(figures))
    report.show_runs(report.stdout(), asked.title, runs, shown)
    return shown

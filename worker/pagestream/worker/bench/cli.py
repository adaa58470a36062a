"""The commands of `pagestream bench`: `throughput`, `latency` and `serve`.

Flags and their help, and the order of things; what is measured is in the modules beside this one.
torch and transformers are imported by the commands that run a model in this process.
"""

from collections.abc import Generator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pagestream.producer.errors import PagestreamError, QueueUnavailable

from ..errors import ConfigError
from ..models.hub import resolve
from ..settings import WorkerSettings, read_settings
from .batching import RULES
from .datasets import Dataset, Workload, check_lengths, shift_of
from .flags import ManyValues, dataset_flags, engine_flags, of, one_of, takes
from .metrics import read_objectives
from .progress import progress_bar

if TYPE_CHECKING:
    from .serve import Service

FAILED, UNAVAILABLE, BAD_CONFIG = 1, 69, 78


def _in_a_folder(path: Path | None) -> Path | None:
    """Refuse a file that could not be written once everything has been measured."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"{path}: there is no folder {path.parent}; make it first")
    if path is not None and path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a file")
    return path


Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        help="Write figures, arguments and machine to this file.",
        callback=_in_a_folder,
    ),
]
Goodput = Annotated[
    list[str] | None,
    typer.Option(help="Objectives in ms, as ttft:200 tpot:50 e2el:5000; counts who meets all."),
]
Burstiness = Annotated[
    float, typer.Option(help="Shape of the gaps' gamma distribution; 1: Poisson, less: bursts.")
]


@takes(dataset_flags, engine_flags)
def throughput(
    engine: Annotated[str, typer.Option(help="pagestream, or transformers.")] = "pagestream",
    batching: Annotated[
        str, typer.Option(help="static, dynamic or continuous; transformers: not dynamic.")
    ] = "continuous",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Of static and dynamic. [default: --max-num-seqs]")
    ] = None,
    kv: Annotated[
        str, typer.Option(help="contiguous: account for contiguous reservation beside paging.")
    ] = "paged",
    rate: Annotated[float, typer.Option(help="Requests a second; inf: all at once.")] = inf,
    burstiness: Burstiness = 1.0,
    goodput: Goodput = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs, each with new token ids.")] = 1,
    time_limit: Annotated[
        float | None, typer.Option(help="transformers: seconds after which nothing more starts.")
    ] = None,
    json: Json = None,
    **flags: Any,
) -> None:
    """Run a dataset through an engine in this process: tokens a second, and what batching buys."""
    arguments = dict(locals())
    with _errors_as_sentences():
        from .throughput import ENGINES, KV_WAYS, Throughput, run_throughput

        _check_arrivals(rate, burstiness)
        settings, dataset = read_settings(**of(engine_flags, flags)), of(dataset_flags, flags)
        run_throughput(
            Throughput(
                settings=settings,
                dataset=dataset,
                workload=_load(dataset, settings),
                engine=one_of("--engine", engine, ENGINES),
                batching=one_of("--batching", batching, tuple(RULES)),
                batch_size=batch_size,
                kv=one_of("--kv", kv, KV_WAYS),
                rate=rate,
                burstiness=burstiness,
                objectives_ms=read_objectives(goodput or []),
                repeats=repeats,
                time_limit_s=time_limit,
                json=json,
                arguments=arguments,
            )
        )


@takes(engine_flags)
def latency(
    batch_sizes: Annotated[list[int] | None, typer.Option(help="[default: 1 8 32]")] = None,
    context: Annotated[int, typer.Option(min=1, help="Prompt tokens of each request.")] = 512,
    output_lens: Annotated[
        list[int] | None,
        typer.Option(help="Two output lengths; their difference is the decode. [default: 32 160]"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measured pairs of runs a batch size.")] = 5,
    warmups: Annotated[int, typer.Option(min=0, help="Pairs before them, at that size.")] = 1,
    json: Json = None,
    **flags: Any,
) -> None:
    """Run fixed batches in this process: how long they take, and one decode step of each."""
    arguments = dict(locals())
    with _errors_as_sentences():
        sizes, lens = batch_sizes or [1, 8, 32], output_lens or [32, 160]
        if len(lens) != 2:
            raise ConfigError(f"--output-lens takes two lengths, not {len(lens)}")
        settings = read_settings(**of(engine_flags, flags))
        config = settings.engine_config()

        from ..engine.engine import build_engine
        from ..loading import LoadingBar
        from . import report
        from .latency import measure_batches
        from .offline import Player

        player = Player(build_engine(config, LoadingBar()))
        done = 0
        with progress_bar("batches", len(sizes) * (repeats + warmups)) as told:

            def count(batch_size: int) -> None:
                nonlocal done
                done += 1
                told(done, 0)

            results = measure_batches(
                player,
                sizes,
                context_tokens=context,
                output_lens=(lens[0], lens[1]),
                repeats=repeats,
                warmups=warmups,
                told=count,
            )
        title = f"{Path(settings.model).name}, context {context}, outputs {lens[0]}/{lens[1]}; ms"
        report.show_batches(report.stdout(), title, results)
        if json:
            report.write_json(
                json, "latency", arguments, results, engine=config, ready=player.ready
            )


@takes(dataset_flags, engine_flags)
def serve(
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Requests a second, one run each; inf: all at once. [default: inf]"),
    ] = None,
    burstiness: Burstiness = 1.0,
    max_concurrency: Annotated[
        int | None, typer.Option(min=1, help="Unanswered requests at most. [default: no bound]")
    ] = None,
    goodput: Goodput = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs a rate, each with new token ids.")] = 1,
    redis_url: Annotated[
        str | None,
        typer.Option(help="Load the workers there. [default: a Redis and a worker of its own]"),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="Load a gateway, as http://host:8000/v1. OPENAI_API_KEY is its key."),
    ] = None,
    json: Json = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw latencies against load: a PNG.", callback=_in_a_folder),
    ] = None,
    **flags: Any,
) -> None:
    """Send requests as they would arrive, and watch every token come back."""
    arguments = dict(locals())
    with _errors_as_sentences():
        rates = rate or [inf]
        for one in rates:
            _check_arrivals(one, burstiness)
        objectives = read_objectives(goodput or [])
        worker, dataset = of(engine_flags, flags), of(dataset_flags, flags)
        settings = read_settings(**worker)

        from . import report
        from .plot import plot_latencies, require_matplotlib
        from .serve import Traffic

        if plot:
            require_matplotlib()
        workload = _load(dataset, settings)
        results = []
        with _service(redis_url, base_url, worker, settings) as (service, ready_s):
            check_lengths(workload, service.model.context_tokens)
            service.warm_up(workload)
            for place, (one, repeat) in enumerate((o, r) for o in rates for r in range(repeats)):
                results.append(
                    service.run(
                        workload,
                        Traffic(
                            rate=one,
                            burstiness=burstiness,
                            max_concurrency=max_concurrency,
                            seed=dataset.seed,
                        ),
                        repeat=repeat,
                        shift=shift_of(place),
                        objectives_ms=objectives,
                        title=f"rate {one:g}",
                    )
                )
        title = f"{Path(settings.model).name}, {dataset.name} ({len(workload)} requests)"
        title += ", through a gateway" if base_url else ", through Redis"
        report.show_served(report.stdout(), title, results)
        if json:
            report.write_json(json, "serve", arguments, results, worker_ready_s=ready_s)
        if plot:
            plot_latencies(results, f"{title}, on {report.device_name()}", plot)
        if errors := sorted({error for one in results for error in one.summary.errors}):
            typer.echo(f"error: requests failed: {'; '.join(errors[:5])}", err=True)
            raise typer.Exit(FAILED)


@contextmanager
def _service(
    redis_url: str | None, base_url: str | None, worker: dict[str, Any], settings: WorkerSettings
) -> Generator[tuple["Service", float | None]]:
    """Yields who takes the requests, and how long it took to start if we did that."""
    from .serve import behind_gateway, running, started

    if redis_url is None and base_url is None:
        with started(worker, Console(stderr=True)) as (service, ready_s):
            yield service, ready_s
        return
    if redis_url is not None and base_url is not None:
        raise ConfigError("--redis-url and --base-url: requests go to one of them")
    _refuse_engine_flags(worker)
    if base_url is not None:
        place = behind_gateway(base_url, settings.queue)
    else:
        place = running(redis_url or "", settings.queue)
    with place as service:
        yield service, None


def _load(dataset: Dataset, settings: WorkerSettings) -> Workload:
    """Make the requests, with the model's tokenizer where the dataset is text."""
    if dataset.name != "sharegpt":
        return dataset.load()

    from ..queue.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(resolve(settings.model, settings.revision, weights=False))
    return dataset.load(tokenizer.encode_prompt if tokenizer else None)


def _check_arrivals(rate: float, burstiness: float) -> None:
    for flag, value in (("--rate", rate), ("--burstiness", burstiness)):
        if not value > 0:
            raise ConfigError(f"{flag} {value:g} is not above 0")


def _refuse_engine_flags(worker: dict[str, Any]) -> None:
    given = [name for name, value in worker.items() if value is not None]
    if others := [name for name in given if name not in ("model", "revision")]:
        raise ConfigError(f"--{others[0].replace('_', '-')} is the worker's, and that runs already")


@contextmanager
def _errors_as_sentences() -> Generator[None, None, None]:
    """Turn what a user can do something about into one line and an exit code."""
    try:
        yield
    except PagestreamError as error:
        typer.echo(f"error: {error}", err=True)
        code = UNAVAILABLE if isinstance(error, QueueUnavailable) else BAD_CONFIG
        raise typer.Exit(code) from None


def register(app: typer.Typer) -> None:
    """Add this room's commands to the command line."""
    bench = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Measure the engine and the whole path, and what paging and batching buy.",
    )
    for command in (throughput, latency, serve):
        bench.command(cls=ManyValues)(command)
    app.add_typer(bench, name="bench")

"""The commands from end to end, on this CPU with the demo model and few tokens."""

import json
import os
import sys

import pytest
import typer
from gateway_process import GatewayProcess
from stub_worker import StubWorker
from typer.testing import CliRunner

from pagestream.worker.bench import cli, facts, serve
from pagestream.worker.cli import worker

ENGINE = ("--device", "cpu", "--num-blocks", "64", "--max-num-seqs", "4", "--max-model-len", "300")
FEW = ("--dataset", "small", "--requests", "6", "--max-output-len", "5")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Run a command; returns (exit code, output, what --json wrote)."""
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")

    def run(*arguments):
        path = tmp_path / "figures.json"
        result = CliRunner().invoke(
            app, ["bench", arguments[0], "--json", str(path), *arguments[1:]]
        )
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        written = json.loads(path.read_bytes()) if path.exists() else None
        return result.exit_code, result.output, written

    return run


def test_throughput_with_every_way_to_batch(bench):
    code, output, figures = bench(
        *("throughput", *FEW, *ENGINE, "--kv", "contiguous", "--repeats", "2")
    )
    assert code == 0, output
    assert "whole context" in output
    assert figures["command"] == "throughput"
    assert figures["arguments"]["dataset"] == "small"
    assert figures["arguments"]["rate"] == "inf"
    assert figures["engine"]["max_running"] == figures["ready"]["max_running"] == 4
    assert figures["machine"]["versions"]["torch"]
    first, second = figures["results"]
    for run in (first, second):
        assert run["summary"]["completed"] == 6
        assert run["summary"]["output_tokens"] == 30
        assert run["prefix_hit_tokens"] == 0  # a repeat's ids are new
        assert run["scheduler_us"] > 0
        assert 0 < run["kv"]["paged"]["waste"] < run["kv"]["context"]["waste"] < 1
        assert run["kv"]["paged"]["waste"] == pytest.approx(run["kv_waste"], abs=1e-4)
    # 6 requests of 5 tokens on 4 seats: continuous batching refills them, static does not.
    assert first["steps"] == 10
    code, output, figures = bench("throughput", *FEW, *ENGINE, "--batching", "static")
    assert code == 0, output
    assert figures["results"][0]["idle_seats"] == 0.0
    code, output, figures = bench(
        *("throughput", *FEW, *ENGINE, "--batching", "dynamic", "--rate", "200"),
        *("--goodput", "ttft:100000", "e2el:0.001"),
    )
    assert code == 0, output
    assert figures["results"][0]["summary"]["goodput_requests_per_s"] == 0.0


def test_repeated_prefixes_are_found_in_the_cache(bench):
    flags = ("--dataset", "prefix-repetition", "--num-prefixes", "1", "--prefix-len", "64")
    code, output, figures = bench(
        *("throughput", *flags, *ENGINE, "--requests", "8", "--input-len", "8"),
        *("--output-len", "2", "--repeats", "2"),
    )
    assert code == 0, output
    # The first computes the prefix; the others find it, also those that start in the same step.
    assert [run["prefix_hit_tokens"] for run in figures["results"]] == [7 * 64] * 2


def test_latency_takes_several_sizes_in_a_row(bench):
    code, output, figures = bench(
        *("latency", "--batch-sizes", "1", "3", "--context", "20", "--output-lens", "2", "5"),
        *("--repeats", "2", *ENGINE),
    )
    assert code == 0, output
    one, three = figures["results"]
    assert (one["batch_size"], three["batch_size"]) == (1, 3)
    assert len(one["decode_steps_ms"]) == 2
    assert one["long_ms"]["p50"] > one["first_tokens_ms"]["p50"] > 0


def test_serve_starts_what_it_needs_and_draws(bench, tmp_path):
    picture = tmp_path / "load.png"
    code, output, figures = bench(
        *("serve", *FEW, *ENGINE, "--rate", "50", "inf", "--goodput", "ttft:60000", "tpot:60000"),
        *("--burstiness", "0.5", "--plot", str(picture)),
    )
    assert code == 0, output
    offered, at_once = figures["results"]
    assert (offered["rate"], at_once["rate"]) == (50.0, None)
    for run in (offered, at_once):
        summary = run["summary"]
        assert (summary["completed"], summary["output_tokens"]) == (6, 30)
        assert summary["goodput_requests_per_s"] == summary["requests_per_s"] > 0
        assert summary["ttft_ms"]["p50"] <= summary["e2el_ms"]["p50"]
        assert summary["queue_ms"]["p50"] >= 0
        assert 0 < run["kv_waste"] < 1
        assert run["steps"] >= 9  # two fillings of four seats, five tokens each, less an overlap
        assert run["prefix_hit_tokens"] == 0
    assert figures["worker_ready_s"] > 0
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_serve_loads_workers_that_run_already(bench, redis_url, queue_name, monkeypatch):
    monkeypatch.setattr(serve, "SETTLE_S", 0)  # the stub counts no steps
    with StubWorker(redis_url, queue_name):
        place = ("serve", *FEW, "--redis-url", redis_url, "--model", queue_name)
        code, output, figures = bench(*place, "--max-concurrency", "2", "--repeats", "2")
        assert code == 0, output
        assert [run["summary"]["output_tokens"] for run in figures["results"]] == [30, 30]
        assert figures["results"][0]["summary"]["queue_ms"]["p99"] == 1.0
        assert figures["worker_ready_s"] is None
        code, output, _ = bench(*place, "--max-num-seqs", "3")
        assert (code, "--max-num-seqs is the worker's" in output) == (78, True)


def test_serve_loads_a_gateway(bench, redis_url, queue_name, tmp_path, monkeypatch):
    keys = tmp_path / "keys.json"
    keys.write_text('{"sk-bench": "bench"}')
    flags = ("--api-keys", str(keys))
    with (
        GatewayProcess(redis_url, tmp_path, *flags) as gateway,
        StubWorker(redis_url, queue_name),
    ):
        place = ("serve", *FEW, "--base-url", f"{gateway.url}/v1")
        code, output, _ = bench(*place, "--model", queue_name)
        assert (code, "401 Unauthorized" in output) == (69, True)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-bench")
        code, output, figures = bench(
            *(*place, "--model", queue_name, "--rate", "100", "inf", "--max-concurrency", "2")
        )
        assert code == 0, output
        assert "through a gateway" in " ".join(output.split())
        for run in figures["results"]:
            summary = run["summary"]
            assert (summary["completed"], summary["output_tokens"]) == (6, 30)
            assert summary["tokens_an_arrival_mean"] == 1.0  # as the stub gives them
            assert 0 < summary["ttft_ms"]["p50"] <= summary["e2el_ms"]["p50"]
            assert run["steps"] is None
        code, output, _ = bench(*place, "--model", "nobody")
        assert (code, "no worker serves 'nobody'" in output) == (78, True)
        code, output, _ = bench(*place, "--model", queue_name, "--redis-url", redis_url)
        assert (code, "requests go to one of them" in output) == (78, True)


# On a CPU transformers fills most of the memory with its cache, twice: that takes half a minute.
@pytest.mark.parametrize("batching", ["static", pytest.param("continuous", marks=pytest.mark.slow)])
def test_transformers_runs_the_same_requests(bench, batching):
    code, output, figures = bench(
        *("throughput", "--engine", "transformers", *FEW, "--device", "cpu"),
        *("--batching", batching, "--max-num-seqs", "4", "--load-format", "dummy"),
    )
    assert code == 0, output
    (run,) = figures["results"]
    assert (run["summary"]["completed"], run["summary"]["output_tokens"]) == (6, 30)
    assert run["summary"]["ttft_ms"] is None
    assert run["batch_size"] == (4 if batching == "static" else None)


def test_a_time_limit_counts_what_ended(bench):
    code, output, figures = bench(
        *("throughput", "--engine", "transformers", *FEW, "--device", "cpu"),
        *("--batching", "static", "--batch-size", "2", "--time-limit", "0.000001"),
    )
    assert code == 0, output
    (run,) = figures["results"]
    assert (run["summary"]["completed"], run["offered_requests"]) == (2, 6)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("throughput", "--batching", "sometimes"), "--batching 'sometimes' is not one of static"),
        (("throughput", "--engine", "other"), "--engine"),
        (("throughput", "--kv", "other"), "--kv"),
        (("throughput", "--rate", "0"), "--rate 0 is not above 0"),
        (("throughput", "--burstiness", "-1"), "--burstiness"),
        (("throughput", "--time-limit", "3"), "--requests"),
        (("throughput", "--batch-size", "3"), "static and dynamic"),
        (("throughput", "--batch-size", "3000", "--batching", "static"), "--max-num-seqs 1024"),
        (("throughput", "--engine", "transformers", "--batching", "dynamic"), "transformers' ways"),
        (("throughput", "--engine", "transformers", "--kv", "contiguous"), "are not for"),
        (("throughput", "--dtype", "int3"), "--dtype"),
        (("throughput", "--dataset", "sharegpt"), "--dataset-path"),
        (("throughput", "--dataset", "nano", *ENGINE), "more than the context of 300"),
        (("serve", "--rate", "1", "0"), "--rate 0 is not above 0"),
        (("serve", "--goodput", "itl:3"), "--goodput"),
        (("latency", "--output-lens", "3"), "two lengths"),
    ],
)
def test_mistakes_are_sentences(bench, arguments, reason):
    code, output, figures = bench(*arguments)
    assert code in (2, 78), output
    assert figures is None
    assert reason in " ".join(output.split())


def test_nobody_serves_or_nothing_answers(bench, redis_url, queue_name):
    code, output, _ = bench("serve", *FEW, "--redis-url", redis_url, "--model", queue_name)
    assert (code, "no worker serves" in output) == (78, True)
    code, output, _ = bench("serve", *FEW, "--base-url", "http://127.0.0.1:1/v1")
    assert (code, "http://127.0.0.1:1/v1 does not answer" in output) == (69, True)
    nowhere = "unix:///nowhere/socket"
    code, output, _ = bench("serve", *FEW, "--redis-url", nowhere, "--model", queue_name)
    assert (code, "Redis cannot be reached" in output) == (69, True)


def test_a_worker_that_does_not_come_up_says_why(bench):
    code, output, _ = bench("serve", *FEW, "--model", "./absent")
    assert code == 78
    assert "did not come up" in output
    assert "there is no directory './absent'" in output


def test_the_engines_flags_are_the_workers():
    from inspect import signature

    from pagestream.worker.bench.flags import SERVICE_FLAGS, engine_flags

    own = set(signature(engine_flags).parameters)
    assert own | set(SERVICE_FLAGS) == set(signature(worker).parameters)
    for command in (cli.throughput, cli.latency, cli.serve):
        assert own < set(signature(command).parameters)


def test_facts_of_this_machine():
    here = facts.machine()
    assert here.cpus >= 1
    assert here.versions["torch"]
    assert here.python == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize(
    ("path", "said"), [("/no/folder/x.json", "no folder /no/folder"), ("/", "is a folder")]
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(bench, path, said):
    code, output, _ = bench("throughput", *FEW, *ENGINE, "--json", path)
    assert code == 2
    assert said in " ".join(output.replace("│", " ").split())  # a frame may fold the sentence

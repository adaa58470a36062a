"""The worker room's commands: flags reach the settings, mistakes are sentences."""

import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from loopback import free_port
from typer.testing import CliRunner

from pagestream.producer import cli as producer_cli
from pagestream.worker import cli
from pagestream.worker.settings import WorkerSettings


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    cli.register(made)
    return made


def test_flags_reach_the_settings(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[WorkerSettings] = []

    def run(settings: WorkerSettings) -> int:
        seen.append(settings)
        return 75

    monkeypatch.setattr(cli, "run_worker", run)
    monkeypatch.setenv("PAGESTREAM_LOG_FORMAT", "pretty")  # which the flag sets for the engine
    flags = "--model m --max-model-len 100 --max-num-seqs 3 --max-num-batched-tokens 64 --grace 2"
    more = "--served-model-name s --revision r --dtype float32 --num-blocks 9 --name n"
    rest = "--gpu-memory-utilization 0.5 --load-format dummy --redis-url redis://h/1"
    faults = (
        "--heartbeat-ttl 2 --step-stall 8 --max-crashes 4 --health-port 8001 --durability strict"
    )
    last = "--no-enable-prefix-caching --device cpu --redis-patience 7 --deterministic"
    logs = "--log-format json --log-jobs --log-prompts --work-stall 9"
    result = CliRunner().invoke(
        app,
        ["worker", *f"{flags} {more} {rest} {last} {faults} {logs} --max-mixed-tokens 9".split()],
    )
    assert result.exit_code == 75, result.output
    wanted: dict[str, Any] = {
        "model": "m", "max_model_len": 100, "max_num_seqs": 3, "max_num_batched_tokens": 64,
        "grace": 2.0, "served_model_name": "s", "revision": "r", "dtype": "float32",
        "num_blocks": 9, "name": "n", "gpu_memory_utilization": 0.5, "load_format": "dummy",
        "redis_url": "redis://h/1", "enable_prefix_caching": False, "device": "cpu",
        "redis_patience": 7.0, "deterministic": True, "max_mixed_tokens": 9,
        "heartbeat_ttl": 2.0, "step_stall": 8.0, "max_crashes": 4, "health_port": 8001,
        "durability": "strict", "log_format": "json", "log_jobs": True, "log_prompts": True,
        "work_stall": 9.0,
    }  # fmt: skip
    assert seen[0].model_dump() == wanted


@pytest.fixture
def up(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """`up(serve, *flags)`: `pagestream up` with `serve` in place of a worker."""

    def run(serve: Callable[[WorkerSettings], int], *flags: str) -> tuple[int, str]:
        monkeypatch.setattr(cli, "run_worker", serve)
        arguments = ["up", "--model", "m", "--data", str(tmp_path / "data"), *flags]
        done = CliRunner().invoke(app, arguments)
        return done.exit_code, done.output

    return run


def test_up_starts_a_server_for_the_worker(up: Callable[..., tuple[int, str]]) -> None:
    seen: list[str] = []
    status, said = up(
        lambda settings: seen.append(settings.redis_url) or 0, "--no-gateway", "--no-jobs"
    )
    assert (status, "gateway" in said) == (0, False), said
    assert seen[0].startswith("unix://")


def test_up_starts_a_gateway_for_as_long_as_the_worker(up: Callable[..., tuple[int, str]]) -> None:
    port = free_port()
    seen: list[int] = []

    def serve(settings: WorkerSettings) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10) as answer:
            seen.append(answer.status)
        return 75

    status, said = up(serve, "--port", str(port))
    assert (status, seen) == (75, [200]), said
    assert f"OpenAI's API is at http://127.0.0.1:{port}/v1" in said
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10)


def test_up_goes_on_without_what_is_not_installed(
    up: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = producer_cli.find_spec
    monkeypatch.setattr(
        producer_cli, "find_spec", lambda name: None if name == "fastapi" else found(name)
    )
    status, said = up(lambda settings: 0)
    assert status == 0
    assert said.splitlines()[1:] == [
        "no gateway: `pagestream gateway` needs fastapi, which is not installed: "
        "pip install 'pagestream[gateway]'",
        "no batches and no webhooks: `pagestream jobs` needs fastapi, which is not installed: "
        "pip install 'pagestream[jobs]'",
    ]


def test_up_says_that_a_port_is_taken(up: Callable[..., tuple[int, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, said = up(lambda settings: 0, "--port", str(port))
    assert status == 78
    assert f"cannot listen on 127.0.0.1 port {port}" in said
    assert "choose another --host or --port, or leave it out by --no-gateway" in said


def test_bad_settings_are_a_sentence(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["worker", "--model", "m", "--dtype", "int3"])
    assert result.exit_code == 78
    assert "--dtype" in result.output
    result = CliRunner().invoke(app, ["worker", "--served-model-name", "a b"])
    assert (result.exit_code, "choose another with --served-model-name" in result.output) == (
        78,
        True,
    )
    assert CliRunner().invoke(app, ["worker", "--nonsense"]).exit_code == 2

"""The worker room's commands: flags reach the settings, mistakes are sentences."""

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

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


def test_up_starts_a_server_for_the_worker(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(cli, "run_worker", lambda settings: seen.append(settings.redis_url) or 0)
    result = CliRunner().invoke(app, ["up", "--model", "m", "--data", str(tmp_path / "data")])
    assert result.exit_code == 0, result.output
    assert seen[0].startswith("unix://")


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

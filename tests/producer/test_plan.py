"""The planner's arithmetic, against the published worked example and the real models' sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pagestream.producer.errors import InvalidRequest
from pagestream.producer.plan import GPUS, Shape, plan

MODELS = Path(__file__).resolve().parents[2] / "benchmarks" / "models"
LLAMA_2_7B = Shape(params=7e9, layers=32, kv_heads=32, head_dim=128, context_tokens=4096)


@pytest.mark.parametrize(("gpu", "free_gb"), [("rtx-4090", 8.0), ("a6000", 32.0)])
def test_the_published_example(gpu, free_gb):
    """Llama 2 7B in fp16: 14 GB of weights, 2 GB beside them, half a MB of KV a token."""
    planned = plan(LLAMA_2_7B, GPUS[gpu], lengths_tokens=[1000, 2000])
    assert planned.weights_gb == 14.0
    assert planned.overhead_gb == 2.0
    assert planned.free_gb == free_gb
    assert planned.kv_bytes_per_pair_and_head == 512
    assert planned.kv_bytes_per_token == 512 * 32 * 32 == 2**19
    assert planned.kv_tokens == int(free_gb * 1e9 / 2**19)
    # requests = free / (length x KV of a token), but for half a block each.
    for row in planned.rows:
        assert row.requests == int(planned.kv_tokens / (row.length_tokens + 8))
    assert planned.reserved_requests == planned.kv_tokens // 4096


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("llama-2-7b", 6.738),
        ("llama-3.1-8b", 8.030),
        ("llama-3.2-3b", 3.213),
        ("qwen3-0.6b", 0.596),
    ],
)
def test_parameters_are_counted_as_published(model, billions):
    config = json.loads((MODELS / model / "config.json").read_text())
    assert Shape.of_config(config).params / 1e9 == pytest.approx(billions, abs=5e-4)


def test_ceilings_are_the_slower_of_memory_and_compute():
    few = plan(LLAMA_2_7B, GPUS["h200"], lengths_tokens=[100_000])
    step_s = (14 + few.rows[0].requests * 1e5 * 2**19 / 1e9) / 4800
    assert few.rows[0].decode_tokens_per_s == pytest.approx(few.rows[0].requests / step_s)
    many = plan(LLAMA_2_7B, GPUS["h200"], lengths_tokens=[8], kv_bytes=0.01)
    assert many.rows[0].decode_tokens_per_s == pytest.approx(989e12 / 14e9)
    assert many.prefill_tokens_per_s == pytest.approx(989e12 / 14e9)


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(InvalidRequest, match="weights and 2 GB beside them leave no room"):
        plan(LLAMA_2_7B, GPUS["rtx-4090"], weight_bytes=4.0)


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pagestream.producer.cli", "plan", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command():
    model = str(MODELS / "llama-2-7b")
    told = run("--model", model, "--params", "7B", "--gpu", "rtx-4090", "--json")
    assert (told.returncode, told.stderr) == (0, "")
    planned = json.loads(told.stdout)
    assert (planned["weights_gb"], planned["free_gb"]) == (14.0, 8.0)
    shown = run("--model", model, "--params", "7B", "--gpu", "rtx-4090", "--length", "2048")
    assert "8.00 GB = 15,258 tokens" in shown.stdout
    assert "0.5 MiB (512 bytes a layer and head)" in shown.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "name the model"),
        (["--model", "{m}", "--gpu", "gtx-1080"], "--gpu gtx-1080 is not one of rtx-3090"),
        (["--model", "{m}", "--gpu-memory", "12"], "--bandwidth is missing"),
        (["--model", "{m}", "--params", "many"], "--params many is not a number"),
        (["--model", "{m}", "--dtype", "fp7"], "--dtype fp7 is not one of"),
        (["--model", "{m}", "--length", "0"], "should be tokens, 1 or more"),
    ],
)
def test_wrong_flags_are_sentences(flags, said):
    told = run(*(flag.format(m=MODELS / "llama-2-7b") for flag in flags))
    assert told.returncode == 2
    assert said in told.stderr
    assert "Traceback" not in told.stderr

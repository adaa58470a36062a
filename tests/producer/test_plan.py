"""The planner's arithmetic, against the published worked example and the real models' sizes."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pagestream.producer.errors import InvalidRequest
from pagestream.producer.plan import GPUS, Shape, plan

MODELS = Path(__file__).resolve().parents[2] / "benchmarks" / "models"
LLAMA_2_7B = Shape(params=7e9, layers=32, kv_heads=32, head_dim=128, context_tokens=4096)


@pytest.mark.parametrize(
    ("gpu", "memory_gb", "free_gb", "ideal", "in_blocks"),
    [("rtx-4090", 24, 8.0, (15, 7), (15, 7)), ("a6000", 48, 32.0, (61, 30), (60, 30))],
)
def test_the_published_example(gpu, memory_gb, free_gb, ideal, in_blocks):
    """Llama 2 7B in fp16: 14 GB of weights, 2 GB beside them, half a MB of KV a token.

    requests = free / (length x KV of a token), for 1,000 and 2,000 tokens. Paging comes close to
    it: it wastes half a block a request, where reserving the context of 4,096 wastes most of it.
    """
    assert GPUS[gpu].memory_gb == memory_gb
    planned = plan(LLAMA_2_7B, GPUS[gpu], overhead_gb=2.0, lengths_tokens=[1000, 2000])
    assert planned.weights_gb == 14.0
    assert planned.free_gb == free_gb
    assert planned.kv_bytes_per_pair_and_head == 512
    assert planned.kv_bytes_per_token == 512 * 32 * 32 == 2**19
    assert tuple(row.ideal_requests for row in planned.rows) == ideal
    assert tuple(row.requests for row in planned.rows) == in_blocks
    assert planned.reserved_requests == {"rtx-4090": 3, "a6000": 14}[gpu]


MIXTRAL = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 32000,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_30B_A3B = {
    "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "vocab_size": 151936,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "decoder_sparse_step": 1,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    "mlp_only_layers": [], "max_position_embeddings": 40960, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "billions", "active_billions"),
    [(MIXTRAL, 46.703, 12.880), (QWEN3_30B_A3B, 30.532, 3.353)],
    ids=["mixtral-8x7b", "qwen3-30b-a3b"],
)
def test_experts_are_counted_as_published(config, billions, active_billions):
    shape = Shape.of_config(config)
    assert shape.params / 1e9 == pytest.approx(billions, abs=1e-3)
    assert shape.active_params / 1e9 == pytest.approx(active_billions, abs=1e-3)
    assert plan(shape, GPUS["b200"]).weights_gb == pytest.approx(2 * billions, abs=2e-3)


def test_a_step_reads_the_experts_its_tokens_are_sent_to():
    shape = Shape.of_config(MIXTRAL)
    dense = shape.params - shape.expert_params
    assert shape.read_params(1) == pytest.approx(dense + shape.expert_params * 2 / 8)
    assert shape.read_params(2) == pytest.approx(dense + shape.expert_params * (1 - 0.75**2))
    assert shape.read_params(1000) == pytest.approx(shape.params)
    planned = plan(shape, GPUS["b200"], lengths_tokens=[600_000])
    (row,) = planned.rows
    assert row.requests == 1
    bytes_read = 2 * shape.active_params + 600_000 * planned.kv_bytes_per_token
    assert row.decode_tokens_per_s == pytest.approx(8000e9 / bytes_read)
    assert planned.prefill_tokens_per_s == pytest.approx(2250e12 / (2 * shape.active_params))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"n_routed_experts": 64}, "n_routed_experts=64"),
        ({"shared_expert_intermediate_size": 2048}, "shared_expert_intermediate_size=2048"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        ({"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\]"),
        ({"interleave_moe_layer_step": 2}, "interleave_moe_layer_step=2"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok=None"),
        ({"num_experts_per_tok": 200}, "num_experts_per_tok=200, more than num_experts=128"),
        ({"num_experts": None}, "num_experts_per_tok=8"),
        ({"kv_lora_rank": 512}, "kv_lora_rank=512"),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0"),
    ],
)
def test_what_cannot_be_counted_is_refused(changed, named):
    with pytest.raises(InvalidRequest, match=named):
        Shape.of_config({**QWEN3_30B_A3B, **changed})


def test_fewer_parameters_than_the_experts_have():
    shape = msgspec.structs.replace(Shape.of_config(MIXTRAL), params=7e9)
    with pytest.raises(InvalidRequest, match="fewer than the experts'"):
        plan(shape, GPUS["b200"])


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
    shown = run(
        *("--model", model, "--params", "7B", "--gpu", "a6000"),
        *("--length", "1000", "--length", "2000"),
    )
    lines = [line.replace("│", " ").split() for line in shown.stdout.splitlines()]
    assert [line[:3] for line in lines if line[:1] in (["1,000"], ["2,000"])] == [
        ["1,000", "61", "60"],
        ["2,000", "30", "30"],
    ]


OWN_GPU = ["--model", "{m}", "--bandwidth", "100", "--tflops"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "name the model"),
        (["--model", "{m}", "--gpu", "gtx-1080"], "--gpu gtx-1080 is not one of rtx-3090"),
        (["--model", "{m}", "--gpu-memory", "12"], "--bandwidth is missing"),
        (["--model", "{m}", "--params", "many"], "--params many is not a number"),
        (["--model", "{m}", "--params", "nanB"], "--params nanB is not a number"),
        (["--model", "{m}", "--params", "infB"], "--params infB is not a number"),
        (["--model", "{m}", "--overhead", "-1"], "--overhead -1 should be a number from 0"),
        (["--model", "{m}", "--overhead", "nan"], "--overhead nan should be a number"),
        ([*OWN_GPU, "1", "--gpu-memory", "nan"], "--gpu-memory nan should be a number"),
        ([*OWN_GPU, "1", "--gpu-memory", "inf"], "--gpu-memory inf should be a number"),
        ([*OWN_GPU, "nan", "--gpu-memory", "9"], "--tflops nan should be a number"),
        ([*OWN_GPU, "-2", "--gpu-memory", "9"], "--tflops -2 should be a number"),
        (["--model", "{m}", "--length", "-5"], "should be tokens, 1 or more"),
        (["--model", "{m}", "--length", f"{10**400}"], "1,000,000,000 at most"),
        (["--model", "{m}", "--dtype", "fp7"], "--dtype fp7 is not one of"),
        (["--model", "{m}", "--length", "0"], "should be tokens, 1 or more"),
    ],
)
def test_wrong_flags_are_sentences(flags, said):
    told = run(*(flag.format(m=MODELS / "llama-2-7b") for flag in flags))
    assert told.returncode == 2
    assert said in told.stderr
    assert "Traceback" not in told.stderr

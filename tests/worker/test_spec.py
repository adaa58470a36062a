"""What is read from a config, and what is refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, make_checkpoint
from transformers import AutoConfig

from pagestream.worker.models.decoder import Model
from pagestream.worker.models.errors import BadCheckpoint, UnsupportedModel
from pagestream.worker.models.rope import make_rope
from pagestream.worker.models.spec import ModelSpec, read_spec, spec_from_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "models"
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}

LONGROPE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
}


def _spec(model_type: str, **values: Any) -> ModelSpec:
    return spec_from_config(AutoConfig.for_model(model_type, **{**SHAPE, **values}))


def test_shape_and_switches_of_each_family() -> None:
    llama = _spec("llama", num_key_value_heads=2)
    assert (llama.num_layers, llama.hidden_size, llama.intermediate_size) == (4, 64, 96)
    assert (llama.num_heads, llama.num_kv_heads, llama.head_dim) == (4, 2, 16)
    assert (llama.q_size, llama.kv_size) == (64, 32)
    assert (llama.qkv_bias, llama.o_bias, llama.mlp_bias, llama.qk_norm) == (False,) * 4
    qwen2 = _spec("qwen2", num_key_value_heads=4)
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm) == (True, False, False)
    qwen3 = _spec("qwen3", head_dim=32, num_key_value_heads=1)
    assert (qwen3.qkv_bias, qwen3.o_bias, qwen3.qk_norm, qwen3.head_dim) == (False, False, True, 32)


def test_switches_of_the_config() -> None:
    biased = _spec("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    switches = (biased.qkv_bias, biased.o_bias, biased.mlp_bias, biased.tied_embeddings)
    assert switches == (True,) * 4
    assert biased.num_kv_heads == biased.num_heads, (
        "without num_key_value_heads every head has its own"
    )
    assert _spec("qwen3", num_key_value_heads=4, attention_bias=True).o_bias
    assert _spec("llama", head_dim=24).q_size == 96


def test_windows_by_family() -> None:
    assert _spec("llama").windows == (None,) * 4
    assert _spec("mistral", num_key_value_heads=2, sliding_window=8).windows == (8,) * 4
    assert _spec("mistral", num_key_value_heads=2, sliding_window=None).windows == (None,) * 4
    window = {"sliding_window": 8, "max_window_layers": 3, "num_key_value_heads": 2}
    assert _spec("qwen2", **window).windows == (None,) * 4
    assert _spec("qwen2", use_sliding_window=True, **window).windows == (None, None, None, 8)
    kinds = ["sliding_attention", "full_attention"] * 2
    qwen3 = _spec("qwen3", use_sliding_window=True, layer_types=kinds, **window)
    assert qwen3.windows == (8, None, 8, None)


@pytest.mark.parametrize(
    ("rope", "context_tokens"),
    [
        (None, 512),
        ({"rope_type": "linear", "factor": 4.0}, 2048),
        ({"rope_type": "dynamic", "factor": 2.0}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            512,
        ),
    ],
)
def test_context_follows_the_rope(rope: dict[str, Any] | None, context_tokens: int) -> None:
    assert (
        _spec("llama", max_position_embeddings=512, rope_parameters=rope).context_tokens
        == context_tokens
    )


def test_rope_of_older_configs(tmp_path: Path) -> None:
    old = SHAPE | {
        "model_type": "llama",
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    spec = read_spec(tmp_path)
    assert spec.rope_parameters["rope_type"] == "linear"
    assert (spec.rope_parameters["factor"], spec.rope_parameters["rope_theta"]) == (2.0, 5e5)
    assert spec.dtype == torch.bfloat16
    assert read_spec(tmp_path, torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("model_type", "values", "named"),
    [
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("llama", {"rope_parameters": LONGROPE}, "longrope"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        (
            "llama",
            {"architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification",
        ),
        (
            "qwen3",
            {"num_key_value_heads": 4, "layer_types": ["full_attention", "chunked_attention"] * 2},
            "chunked_attention",
        ),
        (
            "mistral",
            {"num_key_value_heads": 2, "layer_types": ["full_attention"] * 4},
            "layer_types",
        ),
        ("gemma2", {}, "gemma2"),
    ],
)
def test_what_is_not_implemented_is_named(
    model_type: str, values: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        _spec(model_type, **values)


def test_an_unknown_architecture_says_what_is_supported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "brand_new"}')
    with pytest.raises(UnsupportedModel, match="brand_new") as error:
        read_spec(tmp_path)
    for name in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"model_type": "llama", "hidden_size": "wide"}']
)
def test_a_broken_config_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        read_spec(tmp_path)


def test_every_tiny_checkpoint_can_be_read(tmp_path: Path) -> None:
    for family in FAMILIES:
        make_checkpoint(family, tmp_path / family)
        assert read_spec(tmp_path / family).family == FAMILIES[family][0]


@pytest.mark.parametrize(
    ("name", "billions", "context_tokens"),
    [
        ("llama-2-7b", 6.738, 4096),
        ("llama-3.1-8b", 8.030, 131072),
        ("llama-3.2-3b", 3.213, 131072),
        ("qwen3-0.6b", 0.596, 40960),
    ],
)
def test_benchmark_shapes_have_the_published_size(
    name: str, billions: float, context_tokens: int
) -> None:
    spec = read_spec(BENCHMARKS / name)
    attention = (
        spec.hidden_size * (2 * spec.q_size + 2 * spec.kv_size) + spec.qk_norm * 2 * spec.head_dim
    )
    layer = attention + 3 * spec.hidden_size * spec.intermediate_size + 2 * spec.hidden_size
    embeddings = spec.vocab_size * spec.hidden_size * (1 if spec.tied_embeddings else 2)
    parameters = spec.num_layers * layer + embeddings + spec.hidden_size
    assert round(parameters / 1e9, 3) == billions
    assert (spec.context_tokens, spec.dtype) == (context_tokens, torch.bfloat16)


@pytest.mark.parametrize(
    ("windows", "samples"),
    [
        ((None,) * 4, [0, 1]),
        ((8, None, 8, None, 8), [0, 1, 2, 3]),
        ((None, None, None, 8), [0, 1, 3]),
    ],
)
def test_a_few_layers_stand_for_every_kind(windows, samples) -> None:
    spec = replace(_spec("llama"), windows=windows)
    device = torch.device("cpu")
    assert Model(spec, make_rope(spec, 64, device), device).samples() == samples

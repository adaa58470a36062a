"""What a decoder is made of, read once from a transformers config.

One `ModelSpec` describes every supported family, so the decoder asks for features ("has qk-norm"),
never for names. What a config asks for beyond that is refused here, by name, before anything is
loaded. This module knows no weights and no devices.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from .errors import BadCheckpoint, UnsupportedModel

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True, slots=True)
class _Family:
    """What a family has by construction; None leaves it to the config's own switch."""

    architecture: str
    qkv_bias: bool | None = False
    o_bias: bool | None = False
    qk_norm: bool = False


_FAMILIES = {
    "llama": _Family("LlamaForCausalLM", qkv_bias=None, o_bias=None),
    "mistral": _Family("MistralForCausalLM"),
    "qwen2": _Family("Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": _Family("Qwen3ForCausalLM", qkv_bias=None, o_bias=None, qk_norm=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The shape and the switches of a decoder."""

    family: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    context_tokens: int
    """Prompt and output together that the model is meant for, its rope scaling included."""
    windows: tuple[int | None, ...]
    """For each layer, how many last tokens attention sees (the query's own included); None: all."""
    norm_eps: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """Each head's query and key go through an RMS norm before the rotation."""
    tied_embeddings: bool
    """The output head is the embedding matrix."""
    rope_parameters: Mapping[str, Any]
    """As transformers standardises them: `rope_type`, `rope_theta`, and what the type needs."""
    rope_trained_tokens: int
    """`max_position_embeddings`: where dynamic scaling sets in."""
    dtype: torch.dtype

    @property
    def q_size(self) -> int:
        """Columns of the fused projection that are queries."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of the fused projection that are keys (and as many values)."""
        return self.num_kv_heads * self.head_dim


def read_spec(directory: Path, dtype: torch.dtype | None = None) -> ModelSpec:
    """Read `config.json` in `directory`.

    Args:
        directory: holds a `config.json`.
        dtype: of the weights and activations; None takes the checkpoint's (float32 where it
            names none).

    Raises:
        UnsupportedModel: the architecture, or a feature the config switches on, is not implemented.
        BadCheckpoint: the file is not a usable model configuration.
    """
    try:
        model_type = json.loads((directory / "config.json").read_text(encoding="utf-8")).get(
            "model_type"
        )
    except (OSError, ValueError, AttributeError) as error:
        raise BadCheckpoint(f"{directory}/config.json cannot be read: {error}") from error
    if model_type not in _FAMILIES:
        # Before transformers sees it: it may not know the type, or want remote code for it.
        raise UnsupportedModel(
            f"{directory}: model_type {model_type!r} is not supported; {_supported()}"
        )
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers raises its validators' many kinds
        raise BadCheckpoint(
            f"{directory}/config.json is not a valid {model_type} config: {error}"
        ) from error
    return spec_from_config(config, dtype)


def spec_from_config(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> ModelSpec:
    """Read a transformers config.

    Raises:
        UnsupportedModel: the architecture, or a feature the config switches on, is not implemented.
    """
    _check_supported(config)
    family = _FAMILIES[config.model_type]
    attention_bias = bool(getattr(config, "attention_bias", False))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = dict(config.rope_parameters)
    return ModelSpec(
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        context_tokens=_context_tokens(rope, config.max_position_embeddings),
        windows=_windows(config),
        norm_eps=config.rms_norm_eps,
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=attention_bias if family.o_bias is None else family.o_bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        qk_norm=family.qk_norm,
        tied_embeddings=bool(config.tie_word_embeddings),
        rope_parameters=MappingProxyType(rope),
        rope_trained_tokens=config.max_position_embeddings,
        dtype=dtype or (config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32),
    )


def _check_supported(config: PreTrainedConfig) -> None:
    """Refuse, by name, what the decoder would otherwise compute wrongly."""
    model_type = config.model_type
    if model_type not in _FAMILIES:
        raise UnsupportedModel(f"model_type {model_type!r} is not supported; {_supported()}")
    architectures = config.architectures or []
    if architectures and _FAMILIES[model_type].architecture not in architectures:
        raise UnsupportedModel(
            f"the architecture {', '.join(architectures)} is not supported; {_supported()}"
        )
    if getattr(config, "quantization_config", None) is not None:
        method = dict(config.quantization_config).get("quant_method", "unknown")
        raise UnsupportedModel(
            f"quantised weights (quant_method {method!r}) are not supported; use the float16, "
            "bfloat16 or float32 checkpoint"
        )
    if config.hidden_act != "silu":
        raise UnsupportedModel(f"hidden_act {config.hidden_act!r} is not supported; only 'silu' is")
    if config.num_attention_heads % config.num_key_value_heads:
        raise UnsupportedModel(
            f"num_attention_heads {config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {config.num_key_value_heads}"
        )
    _check_rope(config.rope_parameters or {})


def _check_rope(rope: Mapping[str, Any]) -> None:
    rope_type = rope.get("rope_type")
    if rope_type is None:
        raise UnsupportedModel(
            f"rope parameters by layer type ({', '.join(rope) or 'none'}) are not supported; "
            "one set for all layers is"
        )
    if rope_type not in ROPE_TYPES:
        raise UnsupportedModel(
            f"rope_type {rope_type!r} is not supported; {', '.join(ROPE_TYPES)} are"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel(
            f"partial_rotary_factor {rope['partial_rotary_factor']} is not supported; only 1.0 is"
        )


def _windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    """Each layer's sliding window, by the rule of its family."""
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    unknown = set(layer_types or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedModel(
            f"layer_types {', '.join(sorted(unknown))} are not supported; full_attention and "
            "sliding_attention are"
        )
    if config.model_type == "mistral":
        if layer_types:
            raise UnsupportedModel(
                "layer_types in a mistral config are not supported; one sliding_window for all is"
            )
        return (window,) * config.num_hidden_layers
    if layer_types is None:
        return (None,) * config.num_hidden_layers
    if len(layer_types) != config.num_hidden_layers:
        raise UnsupportedModel(
            f"layer_types names {len(layer_types)} layers, num_hidden_layers is "
            f"{config.num_hidden_layers}"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _context_tokens(rope: Mapping[str, Any], trained_tokens: int) -> int:
    """How far the rope reaches; linear and dynamic go beyond `max_position_embeddings`."""
    factor = float(rope.get("factor") or 1.0)
    match rope["rope_type"]:
        case "linear" | "dynamic":
            return int(trained_tokens * factor)
        case "yarn":
            return max(trained_tokens, int(rope["original_max_position_embeddings"] * factor))
        case _:
            return trained_tokens


def _supported() -> str:
    names = (f"{family.architecture} ({name})" for name, family in _FAMILIES.items())
    return "supported: " + ", ".join(names)

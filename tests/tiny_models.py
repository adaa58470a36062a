"""Tiny random checkpoints of every supported family, made by transformers itself.

`make_checkpoint("qwen3", path)` saves one as a user would have it: config, safetensors, generation
config. Weights are larger than an initialiser's, so that attention is not near uniform and a
mistake in the rope, the window or a norm moves the logits far beyond the tolerance of a test.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

_ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_ROPE_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}

# name -> (model_type, what differs from _SHAPE). Trained lengths and windows are 24 to 32 tokens,
# so that prompts of 50 and more exceed them.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-head-dim": ("llama", {"head_dim": 32}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama3-rope": ("llama", {"rope_parameters": _ROPE_LLAMA3}),
    "llama-linear": (
        "llama",
        {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        },
    ),
    "llama-dynamic": (
        "llama",
        {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
        },
    ),
    "llama-yarn": ("llama", {"max_position_embeddings": 128, "rope_parameters": _ROPE_YARN}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 24, "head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "qwen2-yarn": ("qwen2", {"max_position_embeddings": 128, "rope_parameters": _ROPE_YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-tied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-biases": ("qwen3", {"head_dim": 32, "attention_bias": True}),
    "qwen3-window": (
        "qwen3",
        {"head_dim": 32, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
    ),
}


def make_checkpoint(
    family: str,
    path: Path,
    *,
    seed: int = 0,
    max_shard_size: str = "5GB",
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> PreTrainedModel:
    """Save a tiny random model to `path` and return it, in evaluation mode.

    Args:
        family: a key of `FAMILIES`.
        path: directory to write; made if it does not exist.
        seed: of the weights.
        max_shard_size: as `save_pretrained` takes it; a small one ("40KB") shards the file.
        dtype: of the saved weights.
        overrides: config values that replace the family's.
    """
    model_type, values = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **{**_SHAPE, **values, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
        _randomise(model)
    model.eval()
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return model


@torch.no_grad()
def _randomise(model: PreTrainedModel) -> None:
    """Give every parameter, biases and norm weights too, a size at which it matters."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
        elif name.endswith(".bias") or "embed_tokens" in name:
            parameter.normal_(0.0, 0.3)
        else:
            parameter.normal_(0.0, 1.5 * parameter.shape[1] ** -0.5)

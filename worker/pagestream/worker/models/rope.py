"""Rotary position embeddings: the angles of every token of a step, made once for all layers.

Frequencies come from transformers' own functions, so a scaled checkpoint means here what it means
there. Static ropes are one table lookup. Dynamic NTK changes its frequencies with the length of the
sequence; here each token is rotated for the length it would have when its request ran alone, so
neither the batch nor the chunking nor a resume changes it. This module knows no attention and no
cache.

Source: RoFormer (arXiv 2104.09864); the scalings are transformers.modeling_rope_utils.
"""

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .spec import ModelSpec


class Rope(Protocol):
    """The angles of a step's tokens."""

    by_prompt: bool
    """Whether `cos_sin` needs `rope_lens`."""

    def cos_sin(self, positions: Tensor, rope_lens: Tensor | None = None) -> Tensor:
        """Return cosines, then sines, scaled as the rope says. No host sync; can be captured.

        Shapes: positions [tokens] integer, absolute; rope_lens [tokens] integer, the prompt length
        of each token's request -> [tokens, head_dim] fp32.
        """
        ...

    def cache_salt(self, prompt_tokens: int) -> str:
        """Return what a request's cached prefix depends on beside its tokens.

        Requests may share keys and values only under the same salt; "" is what most requests have.
        """
        ...


def make_rope(spec: ModelSpec, max_tokens: int, device: torch.device) -> Rope:
    """Build the model's rope for positions below `max_tokens`."""
    if spec.rope_parameters["rope_type"] == "dynamic":
        return DynamicRope(spec, max_tokens, device)
    return StaticRope(spec, max_tokens, device)


class StaticRope:
    """Frequencies that are the same for every sequence: default, linear, yarn, llama3."""

    by_prompt = False

    def __init__(self, spec: ModelSpec, max_tokens: int, device: torch.device) -> None:
        if spec.rope_parameters["rope_type"] == "default":
            inv_freq, scaling = _default_inv_freq(spec, device), 1.0
        else:
            config = _rope_config(spec)
            inv_freq, scaling = ROPE_INIT_FUNCTIONS[spec.rope_parameters["rope_type"]](
                config, device
            )
        angles = torch.arange(max_tokens, device=device).float()[:, None] * inv_freq
        self._table = torch.cat((angles.cos(), angles.sin()), dim=-1).mul_(scaling)

    def cos_sin(self, positions: Tensor, rope_lens: Tensor | None = None) -> Tensor:
        """See `Rope`; `rope_lens` is not read."""
        return self._table.index_select(0, positions)

    def cache_salt(self, prompt_tokens: int) -> str:
        """See `Rope`; a static rope adds nothing."""
        return ""


class DynamicRope:
    """Dynamic NTK: beyond the trained length, the base grows with the sequence's own length.

    A model that generates one request alone rotates its whole prompt for the prompt's length, and
    each later token for the length it brings the sequence to. So a token's effective length is
    max(prompt, position + 1), whatever else is in the batch. Keys of a prompt longer than the
    trained length therefore depend on that prompt's length: `cache_salt` keeps such prefixes apart.
    """

    by_prompt = True

    def __init__(self, spec: ModelSpec, max_tokens: int, device: torch.device) -> None:
        self._trained_tokens = spec.rope_trained_tokens
        dynamic, config = ROPE_INIT_FUNCTIONS["dynamic"], _rope_config(spec)
        trained, self._scaling = dynamic(config, device)
        longest = max(max_tokens, self._trained_tokens)
        beyond = torch.arange(self._trained_tokens + 1, longest + 1, device=device)
        scaled, _ = dynamic(config, device, seq_len=beyond[:, None])  # pyright: ignore[reportArgumentType]
        # Row i: the frequencies of a sequence that is i tokens longer than the trained length.
        self._inv_freq = torch.cat((trained[None], scaled))

    def cos_sin(self, positions: Tensor, rope_lens: Tensor | None = None) -> Tensor:
        """See `Rope`; `rope_lens` is needed."""
        assert rope_lens is not None, (
            "a dynamic rope needs the prompt length of each token's request"
        )
        lengths = torch.maximum(rope_lens, positions + 1)
        excess = (lengths - self._trained_tokens).clamp_(0, len(self._inv_freq) - 1)
        angles = positions.float()[:, None] * self._inv_freq.index_select(0, excess)
        return torch.cat((angles.cos(), angles.sin()), dim=-1).mul_(self._scaling)

    def cache_salt(self, prompt_tokens: int) -> str:
        """See `Rope`: the prompt's length, once it exceeds the trained length."""
        return f"rope:{prompt_tokens}" if prompt_tokens > self._trained_tokens else ""


def _default_inv_freq(spec: ModelSpec, device: torch.device) -> Tensor:
    """1 / theta^(2i / head_dim), in the order of operations of transformers' models."""
    exponents = torch.arange(0, spec.head_dim, 2, device=device).float() / spec.head_dim
    return 1.0 / (spec.rope_parameters["rope_theta"] ** exponents)


def _rope_config(spec: ModelSpec) -> PreTrainedConfig:
    """The part of a config that transformers' rope functions read."""
    config = PreTrainedConfig()
    config.rope_parameters = dict(spec.rope_parameters)
    config.head_dim = spec.head_dim
    config.hidden_size = spec.hidden_size
    config.num_attention_heads = spec.num_heads
    config.max_position_embeddings = spec.rope_trained_tokens
    return config

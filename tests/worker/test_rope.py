"""Angles against transformers' own rotary embeddings; what dynamic scaling does to each token."""

import dataclasses
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pagestream.worker.models.rope import Rope, make_rope
from pagestream.worker.models.spec import spec_from_config

CPU = torch.device("cpu")
STATIC = ["llama", "llama3-rope", "llama-linear", "llama-yarn"]
TRAINED = 32  # of llama-dynamic
MAX_TOKENS = 120


def _config(family: str) -> Any:
    shape = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 256}
    return AutoConfig.for_model("llama", **{**shape, **FAMILIES[family][1]})


def _rope(family: str) -> Rope:
    return make_rope(spec_from_config(_config(family)), MAX_TOKENS, CPU)


def _theirs(family: str, positions: list[int]) -> torch.Tensor:
    """[positions, head_dim]: a fresh module's cosines and sines (their two halves are equal)."""
    cos, sin = LlamaRotaryEmbedding(_config(family))(torch.zeros(1), torch.tensor([positions]))
    half = cos.shape[-1] // 2
    return torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=-1)


@pytest.mark.parametrize("family", STATIC)
def test_static_ropes_equal_transformers(family: str) -> None:
    positions = [0, 1, 31, 32, 33, 77, MAX_TOKENS - 1, 5]
    ours = _rope(family).cos_sin(torch.tensor(positions, dtype=torch.int32))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, _theirs(family, positions), rtol=0, atol=1e-6)


def test_the_types_differ() -> None:
    position = torch.tensor([20])
    tables = [_rope(family).cos_sin(position) for family in STATIC]
    for index, table in enumerate(tables):
        assert all((table - other).abs().max() > 1e-3 for other in tables[:index])


@pytest.mark.parametrize("prompt_tokens", [1, TRAINED - 1, TRAINED, TRAINED + 1, 70])
def test_dynamic_rope_equals_generating_alone(prompt_tokens: int) -> None:
    """A fresh module sees the prompt at once, then one token after another."""
    theirs = LlamaRotaryEmbedding(_config("llama-dynamic"))
    calls = [list(range(prompt_tokens)), *([p] for p in range(prompt_tokens, MAX_TOKENS))]
    rope = _rope("llama-dynamic")
    for positions in calls:
        cos, sin = theirs(torch.zeros(1), torch.tensor([positions]))
        expected = torch.cat((cos[0, :, :8], sin[0, :, :8]), dim=-1)
        lens = torch.full((len(positions),), prompt_tokens, dtype=torch.int32)
        ours = rope.cos_sin(torch.tensor(positions, dtype=torch.int32), lens)
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


def test_dynamic_rope_knows_no_batch() -> None:
    rope = _rope("llama-dynamic")
    positions = torch.tensor([3, 3, 40, 40, 90], dtype=torch.int32)
    lens = torch.tensor([10, 80, 10, 80, 10], dtype=torch.int32)
    together = rope.cos_sin(positions, lens)
    for token in range(len(positions)):
        alone = rope.cos_sin(positions[token : token + 1], lens[token : token + 1])
        assert torch.equal(together[token : token + 1], alone)
    assert not torch.equal(together[0], together[1]), (
        "a long prompt's first tokens turn more slowly"
    )
    assert not torch.equal(together[2], together[3])


def test_salt_keeps_prefixes_apart_exactly_where_keys_differ() -> None:
    rope = _rope("llama-dynamic")
    positions = torch.arange(TRAINED, dtype=torch.int32)

    def angles(prompt_tokens: int) -> torch.Tensor:
        return rope.cos_sin(positions, torch.full_like(positions, prompt_tokens))

    for first in (1, TRAINED, TRAINED + 1, 60):
        for second in (1, TRAINED, TRAINED + 1, 60):
            same_keys = torch.equal(angles(first), angles(second))
            assert (rope.cache_salt(first) == rope.cache_salt(second)) == same_keys
    assert rope.cache_salt(TRAINED) == ""
    assert all(_rope(family).cache_salt(10_000) == "" for family in STATIC)


def test_a_context_below_the_trained_length_is_plain() -> None:
    spec = spec_from_config(_config("llama-dynamic"))
    positions = torch.arange(16)
    short = make_rope(spec, 16, CPU).cos_sin(positions, torch.full_like(positions, 16))
    plain = dataclasses.replace(
        spec, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}
    )
    torch.testing.assert_close(short, make_rope(plain, 16, CPU).cos_sin(positions))

"""Checkpoints streamed into fused parameters, what is said of bad ones, and dummy weights."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from paged_run import PagedRun
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, make_checkpoint

from pagestream.worker.config import EngineConfig
from pagestream.worker.models import load_model
from pagestream.worker.models.decoder import Model
from pagestream.worker.models.errors import BadCheckpoint
from pagestream.worker.models.weights import checkpoint_targets

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: on a busy machine a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _load(path: Path, **settings: str) -> Model:
    return load_model(EngineConfig(model=str(path), **settings), CPU)  # pyright: ignore[reportArgumentType]


def _same(first: Model, second: Model) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "llama-biases", "qwen2", "qwen3-biases"])
def test_every_tensor_lands_in_its_place(family: str, tmp_path: Path) -> None:
    saved = dict(make_checkpoint(family, tmp_path).named_parameters())
    model = _load(tmp_path)
    targets = checkpoint_targets(model)
    assert targets.keys() == saved.keys()
    for name, tensor in targets.items():
        assert torch.equal(tensor, saved[name]), name
    assert sum(t.numel() for t in targets.values()) == sum(p.numel() for p in model.parameters())
    assert model.weight_bytes == sum(p.nbytes for p in saved.values())
    assert (model.head is model.embed) == FAMILIES[family][1].get("tie_word_embeddings", False)


def test_shards_equal_one_file(tmp_path: Path) -> None:
    make_checkpoint("qwen3", tmp_path / "one")
    make_checkpoint("qwen3", tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert _same(_load(tmp_path / "one"), _load(tmp_path / "sharded"))


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, max_shard_size="60KB")
    calls: list[tuple[int, int]] = []
    load_model(
        EngineConfig(model=str(tmp_path)), CPU, lambda done, total: calls.append((done, total))
    )
    total = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert {all_bytes for _, all_bytes in calls} == {total}
    done = [done for done, _ in calls]
    assert done == sorted(done)
    assert done[-1] == total


def test_the_dtype_is_the_one_asked_for(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, dtype=torch.bfloat16)
    assert _load(tmp_path).embed.dtype == torch.float32, "auto is float32 on a CPU"
    half = _load(tmp_path, dtype="bfloat16")
    assert half.embed.dtype == torch.bfloat16
    assert torch.equal(half.embed.float(), _load(tmp_path).embed)


def _edit(path: Path, **changes: torch.Tensor | None) -> None:
    """Set (or with None, drop) tensors of the checkpoint; `__` in a name stands for a dot."""
    file = path / "model.safetensors"
    tensors: dict[str, torch.Tensor | None] = {**load_file(file)}
    tensors.update({name.replace("__", "."): tensor for name, tensor in changes.items()})
    save_file({name: t for name, t in tensors.items() if t is not None}, file, {"format": "pt"})


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    _edit(
        tmp_path,
        model__layers__1__mlp__up_proj__weight=None,
        model__layers__7__extra=torch.zeros(2),
        model__norm__weight=torch.zeros(65),
    )
    with pytest.raises(BadCheckpoint) as error:
        _load(tmp_path)
    message = str(error.value)
    assert "missing model.layers.1.mlp.up_proj.weight" in message
    assert "unexpected model.layers.7.extra" in message
    assert "wrong shape: model.norm.weight [65] instead of [64]" in message


def test_a_long_list_of_tensors_is_cut(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    _edit(tmp_path, **{f"extra{i}": torch.zeros(1) for i in range(20)})
    with pytest.raises(BadCheckpoint, match="and 12 more"):
        _load(tmp_path)


def test_tensors_the_model_derives_are_ignored(tmp_path: Path) -> None:
    make_checkpoint("llama-tied", tmp_path)
    expected = _load(tmp_path)
    _edit(
        tmp_path,
        lm_head__weight=torch.zeros(128, 64),
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8),
    )
    assert _same(_load(tmp_path), expected)


def test_an_untied_model_needs_its_head(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    _edit(tmp_path, lm_head__weight=None)
    with pytest.raises(BadCheckpoint, match=r"missing lm_head\.weight"):
        _load(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, max_shard_size="60KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(BadCheckpoint, match=shard.name):
        _load(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors is damaged"):
        _load(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', '{"metadata": {}}'])
def test_a_broken_index_is_named(index: str, tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BadCheckpoint, match=r"index\.json"):
        _load(tmp_path)


def test_other_formats_are_named(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match=r"pytorch_model\.bin would have to be converted"):
        _load(tmp_path)


@pytest.mark.parametrize("family", ["llama-biases", "qwen3-tied"])
def test_dummy_weights_need_a_config_alone(family: str, tmp_path: Path) -> None:
    make_checkpoint(family, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model = _load(tmp_path, load_format="dummy", dtype="bfloat16")
    logits = PagedRun(model, 1, 64).prefill({0: list(range(60))})[0]
    assert logits.isfinite().all()
    assert len(logits.argmax(-1).unique()) > 10, "the logits depend on the tokens"
    assert _same(model, _load(tmp_path, load_format="dummy", dtype="bfloat16"))


def test_dummy_weights_look_like_an_initialiser(tmp_path: Path) -> None:
    shape = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "vocab_size": 8192,
    }
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    model = _load(tmp_path, load_format="dummy")
    first, second = (layer.mlp.gate_up.weight for layer in model.layers)
    for weight in (first, second, model.embed):
        assert abs(weight.std().item() - 0.02) < 2e-4
        assert abs(weight.mean().item()) < 2e-4
    assert not torch.equal(first, second)
    assert torch.linalg.matrix_rank(model.embed) == 256
    assert torch.equal(model.norm, torch.ones(256))


def test_positions_reach_the_end_of_the_last_block(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    model = load_model(EngineConfig(model=str(tmp_path), max_model_tokens=50), CPU)
    assert model.rope.cos_sin(torch.tensor([63])).isfinite().all()
    with pytest.raises(IndexError):
        model.rope.cos_sin(torch.tensor([64]))

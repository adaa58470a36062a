"""Fills a decoder's parameters: from safetensors, or with random numbers.

A checkpoint is streamed tensor by tensor into the (fused) parameters where they lie, so loading
needs the model's own memory and one tensor more. The names are those transformers saves; a tensor
that is missing, unexpected or of the wrong shape is an error that names it, found before anything
is read. This module knows no hub and no kernels.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .decoder import Layer, Model
from .errors import BadCheckpoint
from .linear import Linear

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) after each tensor."""

_NAMED_AT_MOST = 8
_DUMMY_STD = 0.02
_NOISE_NUMBERS = 1_048_573  # prime: repeats of it line up with no matrix


def load_weights(model: Model, directory: Path, progress: Progress | None = None) -> None:
    """Fill every parameter of `model` from the safetensors files in `directory`, cast to its dtype.

    Raises:
        BadCheckpoint: there are no safetensors, a file is missing or damaged, or the tensors are
            not exactly those the model needs.
    """
    files = _weight_files(directory)
    targets = checkpoint_targets(model)
    total_bytes = sum(file.stat().st_size for file in files)
    done_bytes = 0
    _check_tensors(files, targets, model)
    for file in files:
        start_bytes = done_bytes
        with _open(file, model.embed.device) as tensors:
            names = tensors.keys()
            for name in names:
                if name not in targets:
                    continue  # _check_tensors let it through: the model has no use for it
                tensor = tensors.get_tensor(name)
                targets[name].copy_(tensor)
                done_bytes += tensor.nbytes
                if progress is not None:
                    progress(done_bytes, total_bytes)
        done_bytes = start_bytes + file.stat().st_size
    if progress is not None:
        progress(total_bytes, total_bytes)


def dummy_weights(model: Model, progress: Progress | None = None) -> None:
    """Fill every parameter of `model` with random numbers made on its device; always the same.

    As checkpoints are initialised: matrices N(0, 0.02), norm weights 1, biases 0, so that
    activations stay finite in any dtype.
    """
    device = model.embed.device
    generator = torch.Generator(device).manual_seed(0)
    noise = torch.empty(_NOISE_NUMBERS, dtype=model.spec.dtype, device=device)
    noise.normal_(0.0, _DUMMY_STD, generator=generator)
    norms = {id(norm) for norm in _norms(model)}
    total_bytes, done_bytes, offset = model.weight_bytes, 0, 0
    for parameter in model.parameters():
        if parameter.dim() == 2:
            offset = _fill_from(noise, parameter, offset)
        else:
            parameter.fill_(1.0 if id(parameter) in norms else 0.0)
        done_bytes += parameter.nbytes
        if progress is not None:
            progress(done_bytes, total_bytes)


def checkpoint_targets(model: Model) -> dict[str, Tensor]:
    """Where each tensor of a checkpoint goes: by name, the parameter or the part of a fused one."""
    targets = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.norm}
    if not model.spec.tied_embeddings:
        targets["lm_head.weight"] = model.head
    for index, layer in enumerate(model.layers):
        for name, tensor in _layer_targets(layer, model):
            targets[f"model.layers.{index}.{name}"] = tensor
    return targets


def _layer_targets(layer: Layer, model: Model) -> Iterator[tuple[str, Tensor]]:
    spec, attention, mlp = model.spec, layer.attention, layer.mlp
    yield "input_layernorm.weight", layer.attention_norm
    yield "post_attention_layernorm.weight", layer.mlp_norm
    qkv = {"q_proj": spec.q_size, "k_proj": spec.kv_size, "v_proj": spec.kv_size}
    yield from _parts(attention.qkv, "self_attn", qkv)
    yield from _parts(attention.out, "self_attn", {"o_proj": spec.hidden_size})
    yield from _parts(
        mlp.gate_up, "mlp", {"gate_proj": spec.intermediate_size, "up_proj": spec.intermediate_size}
    )
    yield from _parts(mlp.down, "mlp", {"down_proj": spec.hidden_size})
    if attention.q_norm is not None and attention.k_norm is not None:
        yield "self_attn.q_norm.weight", attention.q_norm
        yield "self_attn.k_norm.weight", attention.k_norm


def _parts(projection: Linear, prefix: str, sizes: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's projections that this one fuses, as views of its rows in order."""
    parts = list(sizes.values())
    for name, weight in zip(sizes, projection.weight.split(parts), strict=True):
        yield f"{prefix}.{name}.weight", weight
    if projection.bias is not None:
        for name, bias in zip(sizes, projection.bias.split(parts), strict=True):
            yield f"{prefix}.{name}.bias", bias


def _weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights: those the index names, or the single one."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadCheckpoint(f"{index} is not a weight index: {error!r}") from error
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (directory / name).is_file()]
    if not missing:
        return [directory / name for name in names]
    others = sorted(path.name for path in directory.glob("*.bin")) + sorted(
        path.name for path in directory.glob("*.pt*")
    )
    hint = f"; {_listed(others)} would have to be converted to safetensors first" if others else ""
    raise BadCheckpoint(
        f"{directory} lacks {_listed(missing)}{hint}; download the model again, or start with "
        "random weights (load_format=dummy)"
    )


def _check_tensors(files: list[Path], targets: dict[str, Tensor], model: Model) -> None:
    """Compare all names and shapes with what the model needs, reading only the files' headers."""
    found: set[str] = set()
    unexpected: list[str] = []
    wrong: list[str] = []
    for file in files:
        with _open(file, torch.device("cpu")) as tensors:
            names = tensors.keys()
            for name in names:
                if name not in targets:
                    if not _is_ignorable(name, model):
                        unexpected.append(name)
                    continue
                found.add(name)
                shape, wanted = list(tensors.get_slice(name).get_shape()), list(targets[name].shape)
                if shape != wanted:
                    wrong.append(f"{name} {shape} instead of {wanted}")
    missing = [name for name in targets if name not in found]
    problems = [
        f"{what} {_listed(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape:", wrong),
        )
        if names
    ]
    if problems:
        raise BadCheckpoint(
            f"{files[0].parent}: the weights do not fit config.json ({model.spec.family}): "
            + "; ".join(problems)
        )


def _is_ignorable(name: str, model: Model) -> bool:
    """Whether checkpoints carry this tensor although the model computes it from something else."""
    return name.endswith(".rotary_emb.inv_freq") or (
        name == "lm_head.weight" and model.spec.tied_embeddings
    )


def _open(file: Path, device: torch.device) -> Any:
    try:
        return safe_open(file, framework="pt", device=str(device))
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(
            f"{file} is damaged or not safetensors ({error}); download it again"
        ) from error


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _norms(model: Model) -> Iterator[Tensor]:
    yield model.norm
    for layer in model.layers:
        yield from (layer.attention_norm, layer.mlp_norm)
        if layer.attention.q_norm is not None and layer.attention.k_norm is not None:
            yield from (layer.attention.q_norm, layer.attention.k_norm)


def _fill_from(noise: Tensor, parameter: Tensor, offset: int) -> int:
    """Lay the noise end to end over the parameter, from `offset` into it; return where it stopped.

    Drawing each number afresh takes a minute a billion on a CPU; copying is bound by memory alone.
    """
    flat = parameter.view(-1)
    rolled = noise.roll(-offset)
    whole = len(flat) // len(noise)
    flat[: whole * len(noise)].view(whole, len(noise)).copy_(rolled.expand(whole, -1))
    rest = len(flat) - whole * len(noise)
    flat[whole * len(noise) :].copy_(rolled[:rest])
    return (offset + rest) % len(noise)

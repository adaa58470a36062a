"""Random sampling tables, and what a table lets a row draw, by a plain sort in fp64."""

from typing import Any

import torch
from torch import Tensor

from pagestream.kernels import SamplingTable


def table(rows: int, device: str = "cpu", **columns: Any) -> SamplingTable:
    """A table whose rows draw from the whole vocabulary, but for the columns given."""
    neutral = {
        "temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, "seed": 0,
        "min_position": 0, "num_suppressed": 0,
    }  # fmt: skip
    dtypes = dict.fromkeys(("temperature", "top_p", "min_p"), torch.float32) | {"seed": torch.int64}
    ids = torch.as_tensor(columns.pop("suppressed_ids", [[0]] * rows), dtype=torch.int32)
    made = {
        name: torch.as_tensor(columns.pop(name, value))
        .to(device, dtypes.get(name, torch.int32))
        .expand(rows)
        .contiguous()
        for name, value in neutral.items()
    }
    assert not columns, f"no such columns: {columns}"
    return SamplingTable(**made, suppressed_ids=ids.to(device))


def shares(
    logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """The probability [vocab] of each token by the definition; 0 for what is cut off."""
    order = logits.argsort(descending=True)
    x = logits.double()[order]
    keep = torch.ones(len(x), dtype=torch.bool)
    if 0 < top_k < len(x):
        keep &= x >= x[top_k - 1]
    p = (x / temperature).masked_fill(~keep, float("-inf")).softmax(-1)
    before = p.cumsum(-1) - p
    keep &= (before < top_p) & (p >= min_p * p[0])
    kept = (x / temperature).masked_fill(~keep, float("-inf")).softmax(-1)
    return torch.zeros_like(kept).scatter(0, order, kept)


def check_sample(op: Any, device: str, dtype: torch.dtype, rows: int = 40, vocab: int = 60) -> None:
    """Every mixture of options, each draw being the reference's own.

    The logits are flat, the cuts are low and the suppressed ids are the best ones, so that each
    matters.
    """
    from pagestream.kernels.sample import sample_reference

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocab, generator=generator).to(dtype)
    order = torch.randperm(rows, generator=generator)
    some = torch.rand(8, rows, generator=generator)
    best = torch.empty(rows, 3, dtype=torch.int32)
    best[order] = logits.float().topk(3).indices.int()
    columns = {
        "temperature": [0.0 if i % 6 == 0 else 0.3 + 4 * float(x) for i, x in enumerate(some[0])],
        "top_k": (1 + some[1] * 4).int() * (some[2] < 0.6),
        "top_p": torch.where(some[3] < 0.3, 0.05 + 0.7 * some[4], 1.0),
        "min_p": torch.where(some[5] < 0.2, some[6], 0.0),
        "seed": (some[7] * 2**62).long(),
        "min_position": torch.arange(rows) % 18,
        "num_suppressed": torch.arange(rows) % 4,
        "suppressed_ids": best,
    }
    positions = torch.full((rows,), 9)
    on_device = [t.to(device, torch.int32) for t in (order, positions)]
    ids = op(logits.to(device), *on_device, table(rows, device, **columns))
    expected = sample_reference(logits, order.int(), positions.int(), table(rows, **columns))
    assert ids.dtype == torch.int32
    assert ids.tolist() == expected.tolist()

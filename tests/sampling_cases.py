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


def check_deep_thresholds(op: Any, device: str, dtype: torch.dtype) -> None:
    """Thresholds that keep more than a chunk sends on, next to others that keep few.

    Half the rows are coarse, so that whole crowds of tokens tie at the cut.
    """
    from pagestream.kernels.sample import sample_reference

    rows, vocab = 8, 9001
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, vocab, generator=generator)
    logits[::2] = (logits[::2] * 2).round() / 2
    logits = logits.to(dtype)
    columns = {
        "temperature": torch.linspace(0.4, 8.0, rows),
        "top_k": [0, 0, 200, 3000, 700, 0, 2000, 257],
        "top_p": [0.9, 0.5, 1.0, 1.0, 0.7, 0.02, 0.3, 1.0],
        "min_p": [0.0, 0.1, 0.0, 0.0, 0.0, 0.2, 0.0, 0.5],
        "seed": range(rows),
        "min_position": [0, 9] * 4,
        "num_suppressed": 3,
        "suppressed_ids": logits.float().topk(3).indices.int(),
    }
    order, positions = torch.arange(rows, dtype=torch.int32), torch.full((rows,), 5).int()
    ids = op(
        logits.to(device), order.to(device), positions.to(device), table(rows, device, **columns)
    )
    expected = sample_reference(logits, order, positions, table(rows, **columns))
    assert ids.tolist() == expected.tolist()


def check_chunks_agree(op: Any, device: str, dtype: torch.dtype) -> None:
    """The best is found in any chunk, the lowest id of a tie, and never a suppressed one."""
    vocab = 9001
    logits = torch.zeros(5, vocab)
    logits[0, [8999, 5130, 1030, 2100]] = 3.0  # by chunks the order is another
    logits[1, vocab - 1] = 1.0
    logits[2, [vocab - 1, 4096]] = torch.tensor([2.0, 1.0])
    logits[3] = float("-inf")
    logits[3, 6000] = -9.0
    every = torch.arange(0, vocab, 700)
    logits[4, every] = 5.0
    logits[4, 8990] = 4.0
    columns = {
        "num_suppressed": [0, 0, 1, 0, len(every)],
        "min_position": 1,
        "suppressed_ids": every.int().repeat(5, 1),
    }
    columns["suppressed_ids"][2, 0] = vocab - 1
    order = torch.arange(5, dtype=torch.int32, device=device)
    for limits in ({"temperature": 0.0}, {"top_k": 1, "temperature": 1e-4}, {"temperature": 1e-4}):
        made = table(5, device, **columns, **limits)
        ids = op(logits.to(device, dtype), order, order * 0, made).tolist()
        assert ids[1:] == [vocab - 1, 4096, 6000, 8990], limits
        assert ids[0] == 1030 or (limits["temperature"] and ids[0] in (8999, 5130, 2100)), limits

"""What the kernel tests share: random paged caches, an independent oracle in fp64, and one check an
op.

A check takes the op as an argument and says nothing if it is right, so that the planted mistakes
are judged by the very comparison that passes the op.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pagestream.kernels import Splitting, kv_splits, rope_and_cache
from pagestream.kernels._paged import cache_slots
from pagestream.kernels._triton import (
    overlapping_launch,
    start_dependents,
    tl,
    triton,
    wait_for_inputs,
)

Op = Callable[..., Any]

TOLERANCE = {
    torch.float32: {"atol": 2e-5, "rtol": 2e-5},
    torch.float16: {"atol": 5e-3, "rtol": 1e-2},
    torch.bfloat16: {"atol": 2e-2, "rtol": 2e-2},
}

# A test of these two arguments runs on the reference, on the kernel in Triton's interpreter (a
# process of its own: test_interpreter.py), and on the kernel on a GPU. The interpreter computes
# bf16 wrongly.
on_every_path = pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param("cpu", torch.float32, id="reference"),
        pytest.param("cpu", torch.float32, id="fp32", marks=pytest.mark.interpreter),
        pytest.param("cpu", torch.float16, id="fp16", marks=pytest.mark.interpreter),
        pytest.param("cuda", torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
    ],
)

on_every_kernel = pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param("cpu", torch.float32, id="fp32", marks=pytest.mark.interpreter),
        pytest.param("cpu", torch.float16, id="fp16", marks=pytest.mark.interpreter),
        pytest.param("cuda", torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
    ],
)

on_every_device = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", id="reference"),
        pytest.param("cpu", id="interpreted", marks=pytest.mark.interpreter),
        pytest.param("cuda", id="gpu", marks=pytest.mark.gpu),
    ],
)


def assert_matches(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare with the oracle, at what `dtype` can hold."""
    assert actual.dtype == dtype, f"{actual.dtype} instead of {dtype}"
    torch.testing.assert_close(actual.double().cpu(), expected.double().cpu(), **TOLERANCE[dtype])


def randn(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    """The same numbers on every device, rounded to `dtype`."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


class Paged(NamedTuple):
    """A paged cache whose every element nobody wrote is NaN."""

    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    rows: Tensor
    kv_lens: Tensor
    keys: list[Tensor]  # of each sequence, fp64 [kv_len, kv_heads, head_dim]
    values: list[Tensor]


def paged(
    kv_lens: Sequence[int],
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    block_size: int = 16,
    seed: int = 0,
) -> Paged:
    """Sequences in shuffled blocks and shuffled rows; the table is longer than they need."""
    generator = torch.Generator().manual_seed(seed)
    blocks_of = [-(-n // block_size) for n in kv_lens]
    order = torch.randperm(sum(blocks_of), generator=generator) + 1
    caches = torch.full((2, len(order) + 1, block_size, kv_heads, head_dim), float("nan"))
    rows = torch.randperm(len(kv_lens) + 3, generator=generator)[: len(kv_lens)]
    table = torch.zeros(len(kv_lens) + 3, max(blocks_of) + 5, dtype=torch.int32)
    content: tuple[list[Tensor], list[Tensor]] = ([], [])
    for row, kv_len, own in zip(rows, kv_lens, order.split(blocks_of), strict=True):
        table[row, : len(own)] = own.int()
        for cache, kept in zip(caches, content, strict=True):
            drawn = torch.randn(kv_len, kv_heads, head_dim, generator=generator).to(dtype)
            kept.append(drawn.double())
            for begin in range(0, kv_len, block_size):
                part = drawn[begin : begin + block_size]
                cache[own[begin // block_size], : len(part)] = part.float()
    lens = torch.tensor(kv_lens, dtype=torch.int32, device=device)
    on_device = [t.to(device) for t in (*caches.to(dtype), table, rows.int())]
    return Paged(*on_device, lens, *content)


def attention(q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
    """Oracle: causal attention of a sequence's newest tokens, fp64, head by head.

    Shapes: q [q_len, heads, head_dim], keys and values [kv_len, kv_heads, head_dim] -> like q.
    """
    (q_len, heads, _), (kv_len, kv_heads, _) = q.shape, keys.shape
    out = torch.empty_like(q, dtype=torch.float64)
    position = torch.arange(kv_len - q_len, kv_len)[:, None]
    key = torch.arange(kv_len)
    seen = (key <= position) & (key > position - (window or kv_len))
    for head in range(heads):
        own = head * kv_heads // heads
        scores = (q[:, head].double() @ keys[:, own].T) * scale
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        out[:, head] = weights @ values[:, own]
    return out


def check_decode(
    op: Op,
    kv_lens: Sequence[int],
    heads: int,
    kv_heads: int,
    head_dim: int,
    device: str,
    dtype: torch.dtype,
    window: int | None = None,
) -> None:
    """Decode attention against the oracle; the batch is padded with a sequence of length 0."""
    cache = paged(kv_lens, kv_heads, head_dim, dtype, device)
    seqs = len(kv_lens)
    q = randn(seqs + 2, heads, head_dim, dtype=dtype, device=device, seed=1)
    rows = torch.cat([cache.rows, cache.rows[:1]])
    lens = torch.cat([cache.kv_lens, cache.kv_lens[:1] * 0])
    out = torch.full_like(q, 7.0)
    got = op(q, *cache[:3], rows, lens, 0.3, window=window, max_kv_len=max(kv_lens) + 5, out=out)
    assert got is out, "the result is written to `out`"
    for i in range(seqs):
        expected = attention(q[i : i + 1].cpu(), cache.keys[i], cache.values[i], 0.3, window)
        assert_matches(out[i : i + 1], expected, dtype)
    assert (out[seqs] == 7).all(), "an empty sequence is skipped"
    assert (out[seqs + 1] == 7).all(), "tokens past the sequences are left alone"


def settled(op: Op) -> Op:
    """Decode attention as the layers of a step call it: with the pieces and all that is settled."""

    def decode(q: Tensor, *args: Any, **options: Any) -> Tensor:
        splitting, (rows, kv_lens) = Splitting(128, 20), args[3:5]
        splits = kv_splits(rows, kv_lens, splitting, options["max_kv_len"], options["window"])
        return op(q, *args, splitting=splitting, splits=splits, settled=True, **options)

    return decode


NEWEST_LENS = [1, 17, 64, 129, 192, 193, 257, 320, 513, 1500]
PAUSE_NS = 30_000
"""A program has begun, looked up its piece and loaded its first tiles by then."""


@triton.jit
def _pausing_kernel(PAUSE_NS: tl.constexpr, PDL: tl.constexpr):
    """Hold up the kernels behind, which have begun by then, where they wait."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    begin = tl.extra.cuda.globaltimer()
    now = begin
    while now - begin < PAUSE_NS:
        now = tl.extra.cuda.globaltimer()


def check_decode_behind_a_kernel(op: Op, kv_lens: Sequence[int], splitting: Splitting) -> None:
    """Queries and newest keys come of the kernel in front, and are NaN until it has ended.

    That one is held up; programs of `op`, which has its pieces settled, begin all the same. On a
    GPU alone, where kernels overlap.
    """
    (heads, kv_heads, head_dim), dtype = (32, 8, 128), torch.bfloat16
    cache = paged(kv_lens, kv_heads, head_dim, dtype, "cuda")
    copies = [(cache.k_cache.clone(), cache.v_cache.clone()) for _ in range(3)]
    seqs, table, lens = len(kv_lens), cache.block_table, cache.kv_lens[:, None]
    slots = cache_slots(table[cache.rows.long()], lens - 1, lens, 16)[:, 0]
    qkv = randn(seqs, (heads + 2 * kv_heads) * head_dim, dtype=dtype, device="cuda")
    angles = randn(seqs, head_dim, dtype=torch.float32, device="cuda")
    # What serves all layers is made once: no kernel runs between for its sake.
    options = {
        "max_kv_len": max(kv_lens),
        "splitting": splitting,
        "splits": kv_splits(cache.rows, cache.kv_lens, splitting, max(kv_lens)),
        "settled": True,
        "arrivals": torch.zeros(seqs * kv_heads, dtype=torch.int32, device="cuda"),
    }

    def layers(between: Callable[[], None]) -> list[tuple[Tensor, Tensor]]:
        """Queries and result of each copy of the cache."""
        results = []
        for k, v in copies:
            _pausing_kernel[(1,)](PAUSE_NS, num_warps=1, **overlapping_launch(seqs))
            q = rope_and_cache(qkv, angles, k, v, slots, heads)
            between()
            out = op(q, k, v, table, cache.rows, cache.kv_lens, 0.1, **options)
            between()
            results.append((q, out))
        return results

    expected = [out.clone() for _, out in layers(torch.cuda.synchronize)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = layers(lambda: None)
    for _ in range(3):
        for (k, v), (q, out) in zip(copies, results, strict=True):
            for one in (k, v):
                one.view(-1, kv_heads, head_dim)[slots] = float("nan")
            q.fill_(float("nan"))
            out.fill_(float("nan"))
        graph.replay()
        for (_, out), right in zip(results, expected, strict=True):
            assert torch.equal(out, right)


def check_merge_pieces(
    op: Op, counts: Sequence[int], heads: int, head_dim: int, device: str
) -> None:
    """Pieces merged against the softmax of all; a sequence with one piece is not touched."""
    splits = torch.tensor(counts, dtype=torch.int32, device=device)
    places = torch.stack([splits.cumsum(0) - splits, splits], dim=1).int()
    shape = (int(splits.sum()), heads)
    partial = randn(*shape, head_dim, dtype=torch.float32, device=device)
    lse = randn(*shape, dtype=torch.float32, device=device, seed=1) * 5
    out = torch.full((len(counts) + 1, heads, head_dim), 7.0, device=device)
    op(out, partial, lse, places)
    for seq, (place, count) in enumerate(places.tolist()):
        own = slice(place, place + count)
        weights = (lse[own].double() * math.log(2)).softmax(0)
        merged = (partial[own].double() * weights[:, :, None]).sum(0)
        expected = merged if count > 1 else torch.full_like(merged, 7.0)
        assert_matches(out[seq], expected, torch.float32)
    assert (out[len(counts)] == 7).all(), "tokens past the sequences are left alone"


def check_prefill(
    op: Op,
    lens: Sequence[tuple[int, int]],  # (new tokens, all tokens) of each sequence
    heads: int,
    kv_heads: int,
    head_dim: int,
    device: str,
    dtype: torch.dtype,
    window: int | None = None,
) -> None:
    """Prefill attention against the oracle, behind 3 tokens of others and before 2."""
    cache = paged([kv for _, kv in lens], kv_heads, head_dim, dtype, device)
    bounds = torch.tensor([3, *[new for new, _ in lens]]).cumsum(0)
    q = randn(int(bounds[-1]) + 2, heads, head_dim, dtype=dtype, device=device, seed=1)
    out = torch.full_like(q, 7.0)
    cu_q = bounds.int().to(device)
    op(q, *cache[:4], cu_q, cache.kv_lens, 0.3, window=window, out=out)
    for i in range(len(lens)):
        own = slice(int(bounds[i]), int(bounds[i + 1]))
        expected = attention(q[own].cpu(), cache.keys[i], cache.values[i], 0.3, window)
        assert_matches(out[own], expected, dtype)
    assert (out[:3] == 7).all(), "tokens before cu_q[0] are left alone"
    assert (out[-2:] == 7).all(), "tokens past cu_q[-1] are left alone"


def check_rms_norm(
    op: Op, tokens: int, hidden: int, device: str, dtype: torch.dtype, *, residual: bool
) -> None:
    """RMS norm against eq. 4; the input is a slice of a wider tensor."""
    x = randn(tokens, hidden + 8, dtype=dtype, device=device)[:, :hidden]
    weight = randn(hidden, dtype=dtype, device=device, seed=1)
    other = randn(tokens, hidden, dtype=dtype, device=device, seed=2) if residual else None
    x_before = x.clone()
    normed, summed = op(x, weight, 0.1, other)
    total = x.cpu() if other is None else x.cpu() + other.cpu()
    wide = total.double()
    expected = weight.cpu().double() * wide / (wide.square().mean(-1, keepdim=True) + 0.1).sqrt()
    assert_matches(normed, expected, dtype)
    assert torch.equal(summed.cpu(), total), "the residual stream is exact"
    assert torch.equal(x, x_before), "the input is left alone"


def check_silu_mul(op: Op, tokens: int, intermediate: int, device: str, dtype: torch.dtype) -> None:
    """The gated activation against eq. 5, far tails included."""
    gate_up = randn(tokens, 2 * intermediate, dtype=dtype, device=device) * 8
    gate_up[0, :2] = torch.tensor([-200.0, 200.0])
    gate, up = gate_up.cpu().double().chunk(2, dim=-1)
    assert_matches(op(gate_up), gate * torch.sigmoid(gate) * up, dtype)


def check_linear(
    op: Op, rows: int, inputs: int, outputs: int, bias: bool, device: str, dtype: torch.dtype
) -> None:
    """A product, and a bias, against fp64."""
    x, weight, b = _linear_operands(rows, inputs, outputs, bias, device, dtype)
    assert_matches(op(x, weight, b), _linear_oracle(x, weight, b), dtype)


def check_linear_silu_mul(
    op: Op, rows: int, inputs: int, intermediate: int, bias: bool, device: str, dtype: torch.dtype
) -> None:
    """A gated product, and a bias, against fp64."""
    x, weight, b = _linear_operands(rows, inputs, 2 * intermediate, bias, device, dtype)
    gate, up = _linear_oracle(x, weight, b).chunk(2, dim=-1)
    assert_matches(op(x, weight, b), gate * torch.sigmoid(gate) * up, dtype)


def _linear_operands(
    rows: int, inputs: int, outputs: int, bias: bool, device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Operands of a linear layer, x with rows apart; outputs are of the size of 1."""
    x = randn(rows, 2 * inputs, dtype=dtype, device=device, seed=1)[:, :inputs]
    weight = randn(outputs, inputs, dtype=dtype, device=device, seed=2) / inputs**0.5
    b = randn(outputs, dtype=dtype, device=device, seed=3)
    return x, weight, b if bias else None


def _linear_oracle(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x.cpu().double() @ weight.cpu().double().T
    return out if bias is None else out + bias.cpu().double()


def check_rope_and_cache(
    op: Op,
    heads: int,
    kv_heads: int,
    head_dim: int,
    device: str,
    dtype: torch.dtype,
    *,
    rotary_dim: int | None = None,
    norm: bool = False,
    tokens: int = 5,
) -> None:
    """Rotation as a product of complex numbers, and every element of the cache."""
    rotary_dim = rotary_dim or head_dim
    qkv = randn(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype, device=device)
    angles = torch.rand(tokens, rotary_dim // 2, generator=torch.Generator().manual_seed(3)) * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1).to(device)
    weights = [
        randn(head_dim, dtype=dtype, device=device, seed=s) if norm else None for s in (4, 5)
    ]
    caches = [torch.full((4, 16, kv_heads, head_dim), 7.0, dtype=dtype, device=device)] * 2
    caches = [cache.clone() for cache in caches]
    slots = torch.tensor([17, 63, 30, 31, 2, 48, 49])[:tokens]
    assert len(slots) == tokens, f"{tokens} tokens for {len(slots)} slots"
    q = op(qkv, cos_sin, *caches, slots.to(device), heads, *weights, 0.1)

    split = qkv.cpu().double().view(tokens, -1, head_dim).split([heads, kv_heads, kv_heads], dim=1)
    turned: list[Tensor] = []
    for x, weight in zip(split[:2], weights, strict=True):
        if weight is not None:
            x = weight.cpu().double() * x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
        half = rotary_dim // 2
        pairs = torch.complex(x[..., :half].contiguous(), x[..., half:rotary_dim].contiguous())
        pairs = pairs * torch.polar(torch.ones_like(angles), angles).to(pairs.dtype)[:, None]
        turned.append(torch.cat([pairs.real, pairs.imag, x[..., rotary_dim:]], dim=-1))
    assert q.shape == (tokens, heads, head_dim)
    assert_matches(q, turned[0], dtype)
    for cache, written in zip(caches, (turned[1], split[2]), strict=True):
        expected = torch.full((64, kv_heads, head_dim), 7.0, dtype=torch.float64)
        expected[slots] = written
        assert_matches(cache.view(expected.shape), expected, dtype)


def check_batch_layout(op: Op, device: str) -> None:
    """Decodes in a new block and in their last, prompt chunks, and padding behind.

    A decode's id is on the device alone, and so is the table, but for the block that it brings.
    """
    starts, q_lens = [36, 0, 16, 5, 40], [1, 20, 33, 1, 1]
    rows, table = [4, 0, 2, 5, 1], torch.arange(1, 6 * 4 + 1).flip(0).view(6, 4)
    decode_blocks = [99, 0, 0, 0, int(table[1, 40 // 16])]
    on_device = table.to(device, torch.int32)
    table[4, 36 // 16] = 99
    last_token = torch.arange(900, 906)
    bounds = torch.tensor([0, *q_lens]).cumsum(0)
    used, padding = int(bounds[-1]), 3
    host_ids = torch.arange(100, 100 + used + padding)

    def ints(values: Any) -> Tensor:
        return torch.as_tensor(values).to(device, torch.int32)

    layout = op(
        ints(rows), ints(starts), ints(bounds), ints(host_ids),
        ints(decode_blocks), ints(last_token), on_device, 16,
    )  # fmt: skip
    tokens = [
        (
            int(last_token[row]) if decode_block else int(host_ids[begin + i]),
            start + i,
            int(table[row, (start + i) // 16]) * 16 + (start + i) % 16,
        )
        for row, start, q_len, decode_block, begin in zip(
            rows, starts, q_lens, decode_blocks, bounds.tolist(), strict=False
        )
        for i in range(q_len)
    ] + [(0, 0, 0)] * padding
    assert list(zip(*(t.tolist() for t in layout[:3]), strict=True)) == tokens
    assert on_device.tolist() == table.tolist()
    assert layout.kv_lens.tolist() == [s + n for s, n in zip(starts, q_lens, strict=True)]
    assert layout.decode_lens.tolist() == [37, 0, 0, 0, 41]
    assert [t.dtype for t in layout[:3]] == [torch.int32, torch.int32, torch.int64]
    assert layout.kv_lens.dtype == layout.decode_lens.dtype == torch.int32

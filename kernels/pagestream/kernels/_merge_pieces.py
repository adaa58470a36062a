"""The end of decode attention where contexts are cut: a sequence's pieces become its output.

Either the program that ends last merges them, or a kernel of its own: there, all heads of all
sequences are merged at the same time, and nobody has counted who has ended. The module knows no
keys and no values.

Source: Dao et al., "Flash-Decoding for long-context inference" (2023).
"""

from torch import Tensor

from ._triton import overlapping_launch, start_dependents, tl, triton, wait_for_inputs

_DIMS = 64
_AT_ONCE = 32
"""Pieces that a program of the kernel of its own holds at a time, of so many elements."""


def merge_pieces(
    out: Tensor, partial: Tensor, lse: Tensor, places: Tensor, *, settled: bool = False
) -> None:
    """Write the outputs of the sequences that have several pieces; those of others are there.

    Shapes: out [>= seqs, heads, head_dim], partial [pieces, heads, head_dim] fp32, each divided by
    its own sum of weights, lse [pieces, heads] fp32, the sums' logarithms to base 2, places [seqs,
    2] int32 as in `KvSplits`; they may be `settled`, as `decode_attention` says.
    """
    (_, heads, head_dim), seqs = partial.shape, len(places)
    dims_block = min(_DIMS, triton.next_power_of_2(head_dim))
    _merge_pieces_kernel[(heads, triton.cdiv(head_dim, dims_block), seqs)](
        out,
        partial,
        lse,
        places,
        out.stride(0),
        HEADS=heads,
        HEAD_DIM=head_dim,
        DIMS_BLOCK=dims_block,
        AT_ONCE=_AT_ONCE,
        SETTLED=settled,
        num_warps=1,
        **overlapping_launch(len(out)),
    )


@triton.jit
def merge_into(
    out_ptr,  # [HEADS, HEAD_DIM], the sequence's
    partial_ptr,  # [pieces, HEADS, HEAD_DIM] fp32, from the sequence's first piece on
    lse_ptr,  # [pieces, HEADS] fp32, log2, the same
    pieces,
    head,  # [heads]
    dims,  # [dims]
    in_out,  # [heads, dims]: which of them there are
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Write a sequence's output: its pieces, weighed by their shares of the softmax.

    Other processors may have written them just now, so the loads bypass this one's L1 cache.
    """
    in_heads = tl.max(in_out.to(tl.int32), axis=1) > 0
    within = head[:, None] * HEAD_DIM + dims[None, :]
    top = tl.full(head.shape, -1e30, tl.float32)  # finite, for heads that are none
    total = tl.zeros(head.shape, tl.float32)
    acc = tl.zeros(in_out.shape, tl.float32)
    for at in range(0, pieces, AT_ONCE):
        piece = at + tl.arange(0, AT_ONCE)
        inside = piece < pieces
        lse = tl.load(
            lse_ptr + piece[:, None] * HEADS + head[None, :],
            mask=inside[:, None] & in_heads[None, :],
            other=float("-inf"),
            cache_modifier=".cg",
        )
        partial = tl.load(
            partial_ptr + piece[:, None, None] * HEADS * HEAD_DIM + within[None, :, :],
            mask=inside[:, None, None] & in_out[None, :, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_top = tl.maximum(top, tl.max(lse, axis=0))
        shrink, weights = tl.exp2(top - new_top), tl.exp2(lse - new_top[None, :])
        acc = acc * shrink[:, None] + tl.sum(partial * weights[:, :, None], axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        top = new_top
    merged = acc / tl.where(in_heads, total, 1.0)[:, None]
    tl.store(out_ptr + within, merged.to(out_ptr.dtype.element_ty), mask=in_out)


@triton.jit
def _merge_pieces_kernel(
    out_ptr,  # [seqs, heads, head_dim]
    partial_ptr,  # [pieces, heads, head_dim] fp32
    lse_ptr,  # [pieces, heads] fp32, log2
    places_ptr,  # [seqs, 2]
    out_stride,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS_BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
    SETTLED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a head, DIMS_BLOCK elements and sequence."""
    start_dependents(PDL)
    if not SETTLED:
        wait_for_inputs(PDL)
    seq = tl.program_id(2).to(tl.int64)
    place, pieces = tl.load(places_ptr + seq * 2).to(tl.int64), tl.load(places_ptr + seq * 2 + 1)
    if SETTLED:
        wait_for_inputs(PDL)
    if pieces < 2:
        return
    head = tl.program_id(0) + tl.arange(0, 1)
    dims = tl.program_id(1) * DIMS_BLOCK + tl.arange(0, DIMS_BLOCK)
    in_out = ((head < HEADS)[:, None]) & (dims < HEAD_DIM)[None, :]
    merge_into(
        out_ptr + seq * out_stride, partial_ptr + place * HEADS * HEAD_DIM, lse_ptr + place * HEADS,
        pieces, head, dims, in_out, HEADS, HEAD_DIM, AT_ONCE,
    )  # fmt: skip

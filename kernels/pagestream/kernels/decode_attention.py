"""Attention of one new token a sequence over its paged cache: bound by bandwidth.

Split-KV, one program a (sequence, kv head, split): the query heads that share a kv head are packed
in the M axis of one matrix product, page ids are gathered once a tile, and a second kernel merges
the splits' partial results. Tiles are aligned to position 0 and a split's length follows from its
own sequence's length, so a sequence's bits know neither the batch nor `max_kv_len`. The module
knows nothing of prompts (prefill_attention.py) nor of how blocks are given out.

Why these constants: on an H200, tile 64 with 4 warps reads at 97 % of copy bandwidth from 64
sequences on, while few programs want more loads in flight (5 stages); splits of 512 tokens cost 7 %
at 64 x 2k, splits of 2,048 leave most of the machine idle at 1 x 2k. Tile and warps are one for all
batches: they set the order of summation, stages do not.

Source: Dao et al., "Flash-Decoding for long-context inference" (2023); Kwon et al.,
"PagedAttention", arXiv:2309.06180; GQA packing as in "The Anatomy of a Triton Attention Kernel",
§4.4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._paged import cache_offsets, cache_slots, check_cache, sampled_product
from ._triton import LOG2E, runs_kernel, tl, triton

_TILE = 64
_MIN_SPLIT_TOKENS = 1024
_MAX_SPLITS = 16
_FEW_PROGRAMS = 264
"""Two for each of an H200's 132 SMs: below that, latency counts and not occupancy."""


def decode_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    rows: Tensor,
    kv_lens: Tensor,
    scale: float,
    *,
    window: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`decode_attention` in plain torch; also what serves on the CPU.

    A (sequence, head) is a row of a sparse matrix whose columns are the cache's rows it attends to:
    scores and sums read K and V in place. Each sequence is padded to a width that follows from its
    own length, and its sums know no other row: a sequence's bits depend on itself alone.
    """
    out = torch.empty_like(q) if out is None else out
    seqs, (heads, head_dim), kv_heads = len(rows), q.shape[1:], k_cache.shape[2]
    out[:seqs] = 0
    k, v = k_cache.view(-1, head_dim), v_cache.view(-1, head_dim)
    kv_head = torch.arange(heads, dtype=torch.int32)[:, None] // (heads // kv_heads)
    spans = kv_lens if window is None else kv_lens.clamp(max=window)
    # A sparse row has no more columns than the cache has rows.
    widths = [min(_padded(span), len(k)) for span in spans.tolist()]
    for width in sorted(set(widths) - {0}):
        members = torch.tensor([i for i in range(seqs) if widths[i] == width])
        lens, blocks = kv_lens[members, None], block_table[rows[members].long()]
        positions = lens - spans[members, None] + torch.arange(width, dtype=torch.int32)
        slots = cache_slots(blocks, positions, lens, k_cache.shape[1])
        attended = (slots.int()[:, None] * kv_heads + kv_head).view(-1)  # [seqs * heads * width]
        missing = (positions >= lens)[:, None]
        out[members] = _attend_rows(q[members].flatten(0, 1), k, v, attended, missing, scale)
    return out


def _attend_rows(
    q: Tensor, k: Tensor, v: Tensor, attended: Tensor, missing: Tensor, scale: float
) -> Tensor:
    """Attend q [seqs * heads, head_dim] to `width` rows each of k and v [cache rows, head_dim]."""
    seqs, _, width = missing.shape
    if k.dtype != torch.float32:  # the sparse product is fp32's: widen what is read
        k, v = (cache.index_select(0, attended).float() for cache in (k, v))
        attended = torch.arange(len(attended), dtype=torch.int32)
    begins = torch.arange(0, len(attended) + 1, width, dtype=torch.int32)
    scores = sampled_product(q.float(), k, begins, attended, scale).view(seqs, -1, width)
    weights = scores.masked_fill_(missing, float("-inf")).softmax(-1).view(-1)
    summed = F.embedding_bag(attended, v, begins[:-1], mode="sum", per_sample_weights=weights)
    return summed.view(seqs, -1, q.shape[1]).to(q.dtype)


def _padded(span: int) -> int:
    """Round a context up to a multiple of 64 and of an eighth of its size: few widths."""
    step = max(64, (1 << span.bit_length()) // 8)
    return -(-span // step) * step


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    rows: Tensor,
    kv_lens: Tensor,
    scale: float,
    *,
    window: int | None = None,
    max_kv_len: int,
    out: Tensor | None = None,
) -> Tensor:
    """Attend each sequence's one new token, already in the cache, to the whole of its context.

    Shapes: q [>= seqs, heads, head_dim], k_cache and v_cache [blocks, block_size, kv_heads,
    head_dim], block_table [rows, max_blocks] int32, rows [seqs] int32, kv_lens [seqs] int32 (the
    new token counted) -> out like q, of which the first `seqs` tokens are written. A sequence of
    length 0 gives zeros. softmax(q k * scale) in fp32; with a window, the newest `window` keys
    only.

    `max_kv_len` is an upper bound that sizes the grid and, past 1,024 tokens, two fp32 buffers of
    at most seqs * heads * 16 * (head_dim + 1); nothing depends on device values, so a CUDA graph
    can capture it.
    """
    check_cache(q, k_cache, v_cache)
    if not runs_kernel(q):
        return decode_attention_reference(
            q, k_cache, v_cache, block_table, rows, kv_lens, scale, window=window, out=out
        )
    out = torch.empty_like(q) if out is None else out
    assert out.stride()[1:] == q.stride()[1:], "out must be contiguous"
    seqs, (heads, head_dim), kv_heads = len(rows), q.shape[1:], k_cache.shape[2]
    splits = min(triton.cdiv(max_kv_len, _MIN_SPLIT_TOKENS), _MAX_SPLITS)
    if window is not None:
        splits = min(splits, triton.cdiv(window, _MIN_SPLIT_TOKENS) + 1)
    partial = lse = q
    if splits > 1:
        partial = torch.empty((seqs, heads, splits, head_dim), dtype=torch.float32, device=q.device)
        lse = torch.empty((seqs, heads, splits), dtype=torch.float32, device=q.device)
    shared = {
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "DIM_BLOCK": triton.next_power_of_2(head_dim),
        "WINDOW": window,
        "TILE": _TILE,
        "MIN_SPLIT_TOKENS": _MIN_SPLIT_TOKENS,
        "MAX_SPLITS": _MAX_SPLITS,
    }
    programs = seqs * kv_heads * splits
    if programs:
        _decode_attention_kernel[(seqs, kv_heads, splits)](
            out,
            partial,
            lse,
            q,
            k_cache,
            v_cache,
            block_table,
            rows,
            kv_lens,
            scale * LOG2E,
            out.stride(0),
            q.stride(0),
            *k_cache.stride()[:3],
            block_table.stride(0),
            GROUP=heads // kv_heads,
            GROUP_BLOCK=max(16, triton.next_power_of_2(heads // kv_heads)),
            BLOCK_SIZE=k_cache.shape[1],
            num_warps=4,
            num_stages=5 if programs <= _FEW_PROGRAMS else 2,
            **shared,
        )
    if splits > 1 and seqs:
        _merge_kernel[(seqs, heads)](
            out, partial, lse, kv_lens, out.stride(0), splits, num_warps=4, **shared
        )
    return out


@triton.jit
def _own_splits(
    kv_len,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    MIN_SPLIT_TOKENS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """(first key, first split, splits, tokens a split) of a sequence, from its length alone."""
    tokens = tl.maximum(tl.cdiv(tl.cdiv(kv_len, MAX_SPLITS), TILE) * TILE, MIN_SPLIT_TOKENS)
    first_key = 0
    if WINDOW is not None:
        first_key = tl.maximum(kv_len - WINDOW, 0)
    first = first_key // tokens
    return first_key, first, tl.maximum(tl.cdiv(kv_len, tokens) - first, 1), tokens


@triton.jit(do_not_specialize=["scale_log2e"])
def _decode_attention_kernel(
    out_ptr,  # [seqs, heads, head_dim]
    partial_ptr,  # [seqs, heads, splits, head_dim] fp32
    lse_ptr,  # [seqs, heads, splits] fp32, log2
    q_ptr,  # [seqs, heads, head_dim]
    k_cache_ptr,  # [blocks, block_size, kv_heads, head_dim]
    v_cache_ptr,  # [blocks, block_size, kv_heads, head_dim]
    block_table_ptr,  # [rows, max_blocks]
    rows_ptr,  # [seqs]
    kv_lens_ptr,  # [seqs]
    scale_log2e,
    out_stride,
    q_stride,
    block_stride,
    token_stride,
    head_stride,
    block_table_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    MIN_SPLIT_TOKENS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """One program a (sequence, kv head, split); an only split writes the output itself."""
    seq, kv_head, at_split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    kv_len = tl.load(kv_lens_ptr + seq)
    first_key, first, splits, split_tokens = _own_splits(
        kv_len, WINDOW, TILE, MIN_SPLIT_TOKENS, MAX_SPLITS
    )
    if at_split >= splits:
        return
    begin = tl.maximum((first + at_split) * split_tokens, first_key // TILE * TILE)
    end = tl.minimum((first + at_split + 1) * split_tokens, kv_len)

    group = tl.arange(0, GROUP_BLOCK)
    head = kv_head * GROUP + group
    dims = tl.arange(0, DIM_BLOCK)
    in_dim = dims < HEAD_DIM
    in_out = (group < GROUP)[:, None] & in_dim[None, :]
    q_at = seq * q_stride + head[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(q_ptr + q_at, mask=in_out, other=0.0)
    block_table_ptr += tl.load(rows_ptr + seq).to(tl.int64) * block_table_stride
    k_cache_ptr += kv_head * head_stride
    v_cache_ptr += kv_head * head_stride

    top = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_BLOCK], tl.float32)
    acc = tl.zeros([GROUP_BLOCK, DIM_BLOCK], tl.float32)
    for at in range(begin, end, TILE):
        keys = at + tl.arange(0, TILE)
        inside = keys < end
        offsets = cache_offsets(
            block_table_ptr, keys, inside, block_stride, token_stride, BLOCK_SIZE
        )
        in_tile = inside[:, None] & in_dim[None, :]
        k = tl.load(k_cache_ptr + offsets[:, None] + dims[None, :], mask=in_tile, other=0.0)
        v = tl.load(v_cache_ptr + offsets[:, None] + dims[None, :], mask=in_tile, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2e
        seen = inside
        if WINDOW is not None:
            seen = inside & (keys >= first_key)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        # Every tile holds a key that is seen, so the new maximum is finite.
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
        top = new_top

    attended = acc / tl.where(total == 0.0, 1.0, total)[:, None]  # an empty sequence gives zeros
    if splits == 1:
        out_at = seq * out_stride + head[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out_ptr + out_at, attended.to(out_ptr.dtype.element_ty), mask=in_out)
    else:
        place = (seq * HEADS + head) * tl.num_programs(2) + at_split
        partial_at = place[:, None] * HEAD_DIM + dims[None, :]
        tl.store(partial_ptr + partial_at, attended, mask=in_out)
        tl.store(lse_ptr + place, top + tl.log2(total), mask=group < GROUP)


@triton.jit(do_not_specialize=["grid_splits"])
def _merge_kernel(
    out_ptr,  # [seqs, heads, head_dim]
    partial_ptr,  # [seqs, heads, splits, head_dim] fp32
    lse_ptr,  # [seqs, heads, splits] fp32, log2
    kv_lens_ptr,  # [seqs]
    out_stride,
    grid_splits,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    MIN_SPLIT_TOKENS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """One program a (sequence, head): all splits at once, by their share of the softmax."""
    seq, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _, _, splits, _ = _own_splits(
        tl.load(kv_lens_ptr + seq), WINDOW, TILE, MIN_SPLIT_TOKENS, MAX_SPLITS
    )
    if splits == 1:
        return
    split, dims = tl.arange(0, MAX_SPLITS), tl.arange(0, DIM_BLOCK)
    place = (seq * HEADS + head) * grid_splits + split
    inside = (split < splits)[:, None] & (dims < HEAD_DIM)[None, :]
    lse = tl.load(lse_ptr + place, mask=split < splits, other=float("-inf"))
    partial_at = place[:, None] * HEAD_DIM + dims[None, :]
    partial = tl.load(partial_ptr + partial_at, mask=inside, other=0.0)
    weights = tl.exp2(lse - tl.max(lse, axis=0))
    merged = tl.sum(partial * weights[:, None], axis=0) / tl.sum(weights, axis=0)
    out_at = seq * out_stride + head * HEAD_DIM + dims
    tl.store(out_ptr + out_at, merged.to(out_ptr.dtype.element_ty), mask=dims < HEAD_DIM)

"""Causal attention of prompts, or pieces of them, over the paged cache: bound by compute.

A ragged batch: each sequence brings some of its newest tokens, whose K and V are in the cache
already, and attends to everything before them. One program a (tile of queries, kv head), with the
query heads of the kv head packed beside the queries in the M axis; which sequence a tile is of
stands in a table that is made once a step, so that the grid depends on numbers of tokens alone.
Key tiles are aligned to position 0, whatever the queries: a token's bits do not depend on how its
prompt was cut in chunks, nor on what was cached. A first loop runs over the tiles that every query
of the program sees whole, without masks; a second one over the diagonal. With a window all tiles
take the second.
The module knows nothing of decoding (decode_attention.py): a prompt's one-token tail belongs here
too.

Source: Dao, "FlashAttention-2", arXiv:2307.08691, alg. 1; GQA packing as in "The Anatomy of a
Triton Attention Kernel", §4.4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._paged import cache_offsets, cache_slots, check_cache, gather
from ._triton import (
    LOG2E,
    overlapping_launch,
    runs_kernel,
    start_dependents,
    tl,
    triton,
    wait_for_inputs,
)

_TILE = 64
_BLOCK_M = 64
_WIDE_BLOCK_M = 128
"""Of wide heads: with few rows the reading of keys and values is what takes the time."""
_SEQS_BLOCK = 256


def prefill_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    rows: Tensor,
    cu_q: Tensor,
    kv_lens: Tensor,
    scale: float,
    *,
    window: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`prefill_attention` in plain torch; also what serves on the CPU.

    Queries go in tiles of fixed shape at absolute positions, so a token's bits depend on its own
    sequence alone and not on its chunk.
    """
    out = torch.empty_like(q) if out is None else out
    for row, q_begin, q_end, kv_len in zip(
        rows.tolist(), cu_q[:-1].tolist(), cu_q[1:].tolist(), kv_lens.tolist(), strict=True
    ):
        if q_begin == q_end:
            continue
        start = kv_len - (q_end - q_begin)
        keys = torch.arange(kv_len + -kv_len % _TILE)
        slots = cache_slots(
            block_table[row, None], keys[None], torch.tensor([[kv_len]]), k_cache.shape[1]
        )
        k, v = gather(k_cache, slots), gather(v_cache, slots)
        for begin in range(start // _TILE * _TILE, kv_len, _TILE):
            low, high = max(begin, start), min(begin + _TILE, kv_len)
            here = slice(q_begin + low - start, q_begin + high - start)
            tile = q.new_zeros(_TILE, *q.shape[1:])
            tile[low - begin : high - begin] = q[here]
            first_key = 0 if window is None else max(begin - window + 1, 0) // _TILE * _TILE
            span = slice(first_key, begin + _TILE)
            attended = _attend_tile(tile, k[:, :, span], v[:, :, span], keys[span], scale, window)
            out[here] = attended[low - begin : high - begin]
    return out


def _attend_tile(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, scale: float, window: int | None
) -> Tensor:
    """Attend the queries of a tile [tile, heads, head_dim] to keys that end where the tile ends."""
    tile, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    distance = keys[-tile:, None] - keys
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    bias = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, float("-inf"))
    # A kv head's query heads are more queries of it: [kv_heads, tile * group, head_dim].
    packed = q.view(tile, kv_heads, -1, head_dim).transpose(0, 1).reshape(1, kv_heads, -1, head_dim)
    bias = bias.repeat_interleave(heads // kv_heads, dim=0)
    attended = F.scaled_dot_product_attention(packed, k, v, attn_mask=bias, scale=scale)
    return attended.view(kv_heads, tile, -1, head_dim).transpose(0, 1).reshape(q.shape)


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    rows: Tensor,
    cu_q: Tensor,
    kv_lens: Tensor,
    scale: float,
    *,
    window: int | None = None,
    tiles: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attend each sequence's newest tokens, in the cache already, to all up to themselves.

    Shapes: q [tokens, heads, head_dim], k_cache and v_cache [blocks, block_size, kv_heads,
    head_dim], block_table [rows, max_blocks] int32, rows [seqs] int32, cu_q [seqs + 1] int32
    (sequence i has tokens cu_q[i] to cu_q[i + 1]; it may begin above 0), kv_lens [seqs] int32 ->
    out like q, of which the tokens cu_q[0] to cu_q[-1] are written. Token i of a sequence sits at
    position kv_len - q_len + i and sees the positions up to its own; with a window, the newest
    `window` of them. Softmax in fp32. `tiles` are `query_tiles` of the same q and cu_q, which serve
    all layers of a step.
    """
    check_cache(q, k_cache, v_cache)
    assert len(cu_q) == len(rows) + 1, f"cu_q has {len(cu_q)} entries for {len(rows)} sequences"
    if not runs_kernel(q):
        return prefill_attention_reference(
            q, k_cache, v_cache, block_table, rows, cu_q, kv_lens, scale, window=window, out=out
        )
    out = torch.empty_like(q) if out is None else out
    assert out.stride()[1:] == q.stride()[1:], "out must be contiguous"
    (heads, head_dim), kv_heads = q.shape[1:], k_cache.shape[2]
    tiles = query_tiles(q, kv_heads, cu_q) if tiles is None else tiles
    block_m, block_q = _query_blocks(q, kv_heads)
    if len(tiles):
        _prefill_attention_kernel[(len(tiles), kv_heads)](
            out,
            q,
            k_cache,
            v_cache,
            block_table,
            tiles,
            rows,
            cu_q,
            kv_lens,
            scale * LOG2E,
            out.stride(0),
            q.stride(0),
            block_table.stride(0),
            KV_HEADS=kv_heads,
            GROUP=heads // kv_heads,
            BLOCK_M=block_m,
            BLOCK_Q=block_q,
            HEAD_DIM=head_dim,
            DIM_BLOCK=triton.next_power_of_2(head_dim),
            BLOCK_SIZE=k_cache.shape[1],
            WINDOW=window,
            TILE=_TILE,
            num_warps=8 if _is_wide(q) else 4,
            num_stages=2,
            **overlapping_launch(len(q)),
        )
    return out


def query_tiles(q: Tensor, kv_heads: int, cu_q: Tensor, *, max_seqs: int | None = None) -> Tensor:
    """Cut every sequence's queries in tiles, the units of `prefill_attention`'s grid.

    Shapes: q [tokens, heads, head_dim], cu_q [seqs + 1] int32 -> [tiles, 2] int32: the sequence,
    and its first query in the tile. There are as many as tokens in at most `max_seqs` sequences
    (all, unless given) can need; those left over begin behind every query.
    """
    if not runs_kernel(q):
        return cu_q.new_empty(0, 2)  # the reference makes its own
    seqs = len(cu_q) - 1
    _, block_q = _query_blocks(q, kv_heads)
    count = len(q) // block_q + (seqs if max_seqs is None else max_seqs) if seqs else 0
    tiles = torch.empty((count, 2), dtype=torch.int32, device=q.device)
    if count:
        _query_tiles_kernel[(seqs + 1,)](
            tiles,
            cu_q,
            seqs,
            count,
            BLOCK_Q=block_q,
            BLOCK=_SEQS_BLOCK,
            num_warps=1,
            **overlapping_launch(len(q)),
        )
    return tiles


def _query_blocks(q: Tensor, kv_heads: int) -> tuple[int, int]:
    """Rows of a program, and queries: a query has a row for each head that shares its kv head."""
    group = q.shape[1] // kv_heads
    # In fp32 so many rows of wide heads do not fit into a processor's shared memory.
    rows = _WIDE_BLOCK_M if _is_wide(q) and q.element_size() == 2 else _BLOCK_M
    block_m = max(rows, triton.next_power_of_2(group))
    return block_m, block_m // group


def _is_wide(q: Tensor) -> bool:
    """Whether a head takes more than the registers of 4 warps."""
    return q.shape[2] * q.element_size() > 256


@triton.jit(do_not_specialize=["seqs", "count"], do_not_specialize_on_alignment=["cu_q_ptr"])
def _query_tiles_kernel(
    tiles_ptr,  # [count, 2]
    cu_q_ptr,  # [seqs + 1]
    seqs,
    count,
    BLOCK_Q: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a sequence, behind the tiles of those before it; one for what is left over."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    seq = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    begin = 0
    for at in range(0, seq, BLOCK):
        other = at + lane
        low = tl.load(cu_q_ptr + other, mask=other < seq, other=0)
        high = tl.load(cu_q_ptr + other + 1, mask=other < seq, other=0)
        begin += tl.sum(tl.cdiv(high - low, BLOCK_Q), axis=0)
    end, first_step = count, 0
    first_query = 1 << 30
    if seq < seqs:
        q_len = tl.load(cu_q_ptr + seq + 1) - tl.load(cu_q_ptr + seq)
        end, first_step, first_query = begin + tl.cdiv(q_len, BLOCK_Q), BLOCK_Q, 0
    for at in range(begin, end, BLOCK):
        tile = at + lane
        query = first_query + (tile - begin) * first_step
        tl.store(tiles_ptr + tile * 2, tl.where(seq < seqs, seq, 0), mask=tile < end)
        tl.store(tiles_ptr + tile * 2 + 1, query, mask=tile < end)


@triton.jit
def _attend(
    state,  # (top [BLOCK_M], total [BLOCK_M], acc [BLOCK_M, DIM_BLOCK])
    q,  # [BLOCK_M, DIM_BLOCK]
    positions,  # [BLOCK_M]
    at,
    kv_len,
    k_cache_ptr,
    v_cache_ptr,
    block_table_ptr,
    scale_log2e,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Fold the tile of keys at `at` into the running softmax."""
    top, total, acc = state
    keys = at + tl.arange(0, TILE)
    dims = tl.arange(0, DIM_BLOCK)
    inside = keys < kv_len
    offsets = cache_offsets(block_table_ptr, keys, inside, KV_HEADS * HEAD_DIM, BLOCK_SIZE)
    in_tile = (dims < HEAD_DIM)[None, :]
    if MASKED:
        in_tile = in_tile & inside[:, None]
    k = tl.load(k_cache_ptr + offsets[:, None] + dims[None, :], mask=in_tile, other=0.0)
    v = tl.load(v_cache_ptr + offsets[:, None] + dims[None, :], mask=in_tile, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2e
    if MASKED:
        seen = keys[None, :] <= positions[:, None]
        if WINDOW is not None:
            seen = seen & (keys[None, :] > positions[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    base = new_top
    if MASKED:  # a query may have seen no key yet
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_top, total, acc


@triton.jit(
    do_not_specialize=["scale_log2e"],
    do_not_specialize_on_alignment=["rows_ptr", "cu_q_ptr", "kv_lens_ptr"],
)
def _prefill_attention_kernel(
    out_ptr,  # [tokens, heads, head_dim]
    q_ptr,  # [tokens, heads, head_dim]
    k_cache_ptr,  # [blocks, block_size, kv_heads, head_dim]
    v_cache_ptr,  # [blocks, block_size, kv_heads, head_dim]
    block_table_ptr,  # [rows, max_blocks]
    tiles_ptr,  # [tiles, 2]
    rows_ptr,  # [seqs]
    cu_q_ptr,  # [seqs + 1]
    kv_lens_ptr,  # [seqs]
    scale_log2e,
    out_stride,
    q_stride,
    block_table_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a (tile of queries, kv head); a sequence's last, which see most, first."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    tile, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    seq, first_query = tl.load(tiles_ptr + tile * 2), tl.load(tiles_ptr + tile * 2 + 1)
    q_begin = tl.load(cu_q_ptr + seq)
    q_len = tl.load(cu_q_ptr + seq + 1) - q_begin
    if first_query >= q_len:
        return
    kv_len = tl.load(kv_lens_ptr + seq)
    packed = tl.arange(0, BLOCK_M)
    query = first_query + packed // GROUP
    head = kv_head * GROUP + packed % GROUP
    dims = tl.arange(0, DIM_BLOCK)
    in_out = ((packed < BLOCK_Q * GROUP) & (query < q_len))[:, None] & (dims < HEAD_DIM)[None, :]
    token = (q_begin + query).to(tl.int64)
    within = head[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(q_ptr + token[:, None] * q_stride + within, mask=in_out, other=0.0)

    first_position = kv_len - q_len + first_query
    positions = kv_len - q_len + query
    end = tl.minimum(first_position + BLOCK_Q, kv_len)
    begin, masked_from = 0, (first_position + 1) // TILE * TILE
    if WINDOW is not None:
        begin = tl.maximum(first_position + 1 - WINDOW, 0) // TILE * TILE
        masked_from = begin
    block_table_ptr += tl.load(rows_ptr + seq).to(tl.int64) * block_table_stride
    k_cache_ptr += kv_head * HEAD_DIM
    v_cache_ptr += kv_head * HEAD_DIM

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM_BLOCK], tl.float32)
    for at in range(begin, masked_from, TILE):
        top, total, acc = _attend(
            (top, total, acc), q, positions, at, kv_len, k_cache_ptr, v_cache_ptr, block_table_ptr,
            scale_log2e, KV_HEADS, HEAD_DIM, DIM_BLOCK, BLOCK_SIZE, WINDOW, TILE, MASKED=False,
        )  # fmt: skip
    for at in range(masked_from, end, TILE):
        top, total, acc = _attend(
            (top, total, acc), q, positions, at, kv_len, k_cache_ptr, v_cache_ptr, block_table_ptr,
            scale_log2e, KV_HEADS, HEAD_DIM, DIM_BLOCK, BLOCK_SIZE, WINDOW, TILE, MASKED=True,
        )  # fmt: skip

    attended = acc / tl.where(total == 0.0, 1.0, total)[:, None]  # padding rows see nothing
    out_at = token[:, None] * out_stride + within
    tl.store(out_ptr + out_at, attended.to(out_ptr.dtype.element_ty), mask=in_out)

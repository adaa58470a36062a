"""Causal attention of prompts, or pieces of them, over the paged cache: bound by compute.

A ragged batch: each sequence brings some of its newest tokens, whose K and V are in the cache
already, and attends to everything before them. One program a (tile of queries, kv head), with the
query heads of the kv head packed beside the queries in the M axis; which sequence a tile is of
stands in a table that is made once a step, so that the grid depends on numbers of tokens alone.
Key tiles are aligned to position 0, whatever the queries: a token's bits do not depend on how its
prompt was cut in chunks, nor on what was cached. Keys and values are on their way two tiles ahead,
and the ids of their blocks one more: looked up in place they would hold up the loop every time.
Masks are for tiles that some query does not see whole: the diagonal, and where a window ends.
The module knows nothing of decoding (decode_attention.py): a prompt's one-token tail belongs here
too.

Source: Dao, "FlashAttention-2", arXiv:2307.08691, alg. 1; GQA packing as in "The Anatomy of a
Triton Attention Kernel", §4.4.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ._paged import block_ids, cache_slots, check_cache, gather
from ._triton import (
    LOG2E,
    fitting_tiles,
    overlapping_launch,
    runs_kernel,
    start_dependents,
    tl,
    triton,
    wait_for_inputs,
)

_TILE = 64
"""Keys that are attended to at a time: a token's bits hang on it, so it is the same for all."""
_SEQS_BLOCK = 256


class Program(NamedTuple):
    """What a program of the kernel takes at a time, and with how much."""

    rows: int
    """Queries times the heads that share a kv head, rounded up."""
    queries: int
    warps: int
    stages: int

    @classmethod
    def fastest(cls, q: Tensor, kv_heads: int, max_seqs: int) -> Self:
        """Half as many rows for narrow heads and for few queries; fewer tiles ahead for wide heads.

        Which it is changes no bit of the result.
        """
        tokens, heads, head_dim = q.shape
        group = heads // kv_heads
        few, wide = tokens * group < 512 * max_seqs, head_dim * q.element_size() > 256
        if q.element_size() > 2:  # more does not fit into a processor's shared memory
            rows, warps, stages = 64, 8 if wide else 4, 2
        elif head_dim <= 64 or (few and not wide):
            rows, warps, stages = 64, 4, 3
        else:
            rows, warps, stages = 128, 8, 2 if wide else 3
        row_bytes = triton.next_power_of_2(head_dim) * q.element_size()
        tile_bytes = 2 * _TILE * row_bytes
        if fitting_tiles(2, tile_bytes, rows * row_bytes, q.device) < 2:
            rows = 64
        rows = max(rows, triton.next_power_of_2(group))
        stages = fitting_tiles(stages, tile_bytes, rows * row_bytes, q.device)
        return cls(rows, rows // group, warps, stages)


class QueryTiles(NamedTuple):
    """The units of `prefill_attention`'s grid."""

    first: Tensor
    """[tiles, 2] int32: the sequence, and its first query in the tile."""
    program: Program | None
    """None where the reference serves, which makes its own tiles."""


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
    tiles: QueryTiles | None = None,
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
    assert scale > 0, f"scale {scale}"
    if not runs_kernel(q):
        return prefill_attention_reference(
            q, k_cache, v_cache, block_table, rows, cu_q, kv_lens, scale, window=window, out=out
        )
    out = torch.empty_like(q) if out is None else out
    assert out.stride()[1:] == q.stride()[1:], "out must be contiguous"
    (heads, head_dim), kv_heads = q.shape[1:], k_cache.shape[2]
    tiles = query_tiles(q, kv_heads, cu_q) if tiles is None else tiles
    (first, program), count = tiles, len(tiles.first)
    assert program is not None, "tiles that were made for the reference"
    assert _TILE % k_cache.shape[1] == 0, f"blocks of {k_cache.shape[1]} tokens in tiles of {_TILE}"
    if count:
        _prefill_attention_kernel[(count, kv_heads)](
            out,
            q,
            k_cache,
            v_cache,
            block_table,
            first,
            rows,
            cu_q,
            kv_lens,
            scale * LOG2E,
            out.stride(0),
            q.stride(0),
            block_table.stride(0),
            KV_HEADS=kv_heads,
            GROUP=heads // kv_heads,
            BLOCK_M=program.rows,
            BLOCK_Q=program.queries,
            HEAD_DIM=head_dim,
            DIM_BLOCK=triton.next_power_of_2(head_dim),
            BLOCK_SIZE=k_cache.shape[1],
            WINDOW=window,
            TILE=_TILE,
            num_warps=program.warps,
            num_stages=program.stages,
            **overlapping_launch(len(q)),
        )
    return out


def query_tiles(
    q: Tensor, kv_heads: int, cu_q: Tensor, *, max_seqs: int | None = None
) -> QueryTiles:
    """Cut every sequence's queries in tiles.

    Shapes: q [tokens, heads, head_dim], cu_q [seqs + 1] int32. There are as many tiles as tokens in
    at most `max_seqs` sequences (all, unless given) can need; those left over begin behind every
    query.
    """
    if not runs_kernel(q):
        return QueryTiles(cu_q.new_empty(0, 2), None)
    seqs = len(cu_q) - 1
    max_seqs = seqs if max_seqs is None else max_seqs
    program = Program.fastest(q, kv_heads, max_seqs)
    count = len(q) // program.queries + max_seqs if seqs else 0
    tiles = torch.empty((count, 2), dtype=torch.int32, device=q.device)
    if count:
        _query_tiles_kernel[(seqs + 1,)](
            tiles,
            cu_q,
            seqs,
            count,
            BLOCK_Q=program.queries,
            BLOCK=_SEQS_BLOCK,
            num_warps=1,
            **overlapping_launch(len(q)),
        )
    return QueryTiles(tiles, program)


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
    scores,  # [BLOCK_M, TILE] fp32, not scaled, -inf where a query must not look
    v,  # [TILE, DIM_BLOCK]
    scale_log2e,
    SEES_SOME: tl.constexpr,
):
    """Fold a tile of keys into the running softmax."""
    top, total, acc = state
    new_top = tl.maximum(top, tl.max(scores, axis=1) * scale_log2e)
    base = new_top
    if not SEES_SOME:  # a query may have seen no key yet
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores * scale_log2e - base[:, None])
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
    begin, seen_by_all, diagonal = 0, 0, (first_position + 1) // TILE
    if WINDOW is not None:
        begin = tl.maximum(first_position + 1 - WINDOW, 0) // TILE
        seen_by_all = tl.cdiv(tl.maximum(end - WINDOW, 0), TILE)
    block_table_ptr += tl.load(rows_ptr + seq).to(tl.int64) * block_table_stride
    k_cache_ptr += kv_head * HEAD_DIM
    v_cache_ptr += kv_head * HEAD_DIM

    lane = tl.arange(0, TILE)
    in_dim = (dims < HEAD_DIM)[None, :]
    within_block = (lane % BLOCK_SIZE * (KV_HEADS * HEAD_DIM))[:, None] + dims[None, :]
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM_BLOCK], tl.float32)
    # The lanes' part of a position is divided apart from the tile's: that is done once a program.
    blocks_ptr = block_table_ptr + begin * (TILE // BLOCK_SIZE)
    block = block_ids(blocks_ptr, lane, begin * TILE + lane < kv_len, BLOCK_SIZE)
    for step in range(begin, tl.cdiv(end, TILE)):
        keys = step * TILE + lane
        # int64, for a large cache passes 2^31 elements.
        block_at = block.to(tl.int64) * (BLOCK_SIZE * KV_HEADS * HEAD_DIM)
        at = block_at[:, None] + within_block
        blocks_ptr = block_table_ptr + (step + 1) * (TILE // BLOCK_SIZE)
        block = block_ids(blocks_ptr, lane, (step + 1) * TILE + lane < kv_len, BLOCK_SIZE)
        k = tl.load(k_cache_ptr + at, mask=in_dim, other=0.0)
        # Past the last key stands what was there before: even NaN, of weight 0, must not count.
        v = tl.load(v_cache_ptr + at, mask=in_dim & (keys < kv_len)[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        has_unseen = step >= diagonal
        if WINDOW is not None:
            has_unseen = has_unseen | (step < seen_by_all)
        if has_unseen:
            seen = keys[None, :] <= positions[:, None]
            if WINDOW is not None:
                seen = seen & (keys[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        top, total, acc = _attend(
            (top, total, acc), scores, v, scale_log2e, SEES_SOME=WINDOW is None
        )

    attended = acc / tl.where(total == 0.0, 1.0, total)[:, None]  # padding rows see nothing
    out_at = token[:, None] * out_stride + within
    tl.store(out_ptr + out_at, attended.to(out_ptr.dtype.element_ty), mask=in_out)

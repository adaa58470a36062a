"""Attention of one new token a sequence over its paged cache: bound by bandwidth.

Split-KV, one program a (piece of a context, kv head): the query heads that share a kv head are
packed in the M axis of one matrix product. Keys and values are on their way some tiles ahead, the
first ones even while the kernels in front still run, and the ids of their blocks one more. A
sequence's only piece is its output; several are merged in their order. The module knows nothing of
prompts (prefill_attention.py), of how contexts are cut (kv_splits.py) nor of how blocks are given
out.

Source: Dao et al., "Flash-Decoding for long-context inference" (2023); Kwon et al.,
"PagedAttention", arXiv:2309.06180; GQA packing as in "The Anatomy of a Triton Attention Kernel",
§4.4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._merge_pieces import merge_into, merge_pieces
from ._paged import block_ids, cache_slots, check_cache, sampled_product
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
from .kv_splits import ALIGN_TOKENS, KvSplits, Splitting, kv_splits

_TILE_BYTES = 64 << 10
"""Of a tile of keys and values, at most: one has to find room on every GPU."""
_MERGED = 1024
"""Elements of pieces that a program merges at a time: more took longer for two or three pieces."""


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
    splitting: Splitting | None = None,
    splits: KvSplits | None = None,
    settled: bool = False,
    arrivals: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attend each sequence's one new token, already in the cache, to the whole of its context.

    Shapes: q [>= seqs, heads, head_dim], k_cache and v_cache [blocks, block_size, kv_heads,
    head_dim], block_table [rows, max_blocks] int32, rows [seqs] int32, kv_lens [seqs] int32 (the
    new token counted) -> out like q, of which the first `seqs` tokens are written. A sequence of
    length 0 is skipped. softmax(q k * scale) in fp32; with a window, the newest `window` keys only.

    `max_kv_len` is an upper bound that sizes the grid; nothing depends on device values, so a CUDA
    graph can capture it. `splitting` is the fastest for the batch unless given, and `splits` are
    `kv_splits` of the same, which serve every layer of a step. They, the block table and all keys
    and values but each sequence's newest are `settled` in the sense of `overlapping_launch`, or
    not: where they are, programs read them while the kernel in front still runs. `arrivals` [>=
    seqs * kv_heads] int32 must be zeros, and is zeros again afterwards: one serves all layers, too.
    """
    check_cache(q, k_cache, v_cache)
    if not runs_kernel(q):
        return decode_attention_reference(
            q, k_cache, v_cache, block_table, rows, kv_lens, scale, window=window, out=out
        )
    out = torch.empty_like(q) if out is None else out
    assert out.stride()[1:] == q.stride()[1:], "out must be contiguous"
    seqs, (heads, head_dim), kv_heads = len(rows), q.shape[1:], k_cache.shape[2]
    splitting = splitting or Splitting.fastest(seqs, kv_heads, head_dim)
    assert splits is not None or not settled, "what is settled is given"
    if splits is None:
        splits = kv_splits(rows, kv_lens, splitting, max_kv_len, window)
    pieces, dim_block = len(splits.pieces), triton.next_power_of_2(head_dim)
    group = triton.next_power_of_2(heads // kv_heads)
    row_bytes = dim_block * q.element_size()
    tile = min(splitting.tile, _TILE_BYTES // (2 * row_bytes))
    tiles = fitting_tiles(splitting.stages - 1, 2 * tile * row_bytes, 64 * row_bytes, q.device)
    are_cut = pieces > seqs
    places = (pieces if are_cut else 0, heads)
    partial = torch.empty((*places, head_dim), dtype=torch.float32, device=q.device)
    lse = torch.empty(places, dtype=torch.float32, device=q.device)
    if arrivals is None:
        arrivals = torch.zeros(seqs * kv_heads, dtype=torch.int32, device=q.device)
    assert arrivals.numel() >= seqs * kv_heads, f"{arrivals.numel()} arrivals"
    assert tile % k_cache.shape[1] == 0, f"blocks of {k_cache.shape[1]} tokens in tiles of {tile}"
    if pieces:
        _decode_attention_kernel[(kv_heads, pieces)](
            out,
            partial,
            lse,
            arrivals,
            q,
            k_cache,
            v_cache,
            block_table,
            splits.pieces,
            splits.places,
            scale * LOG2E,
            out.stride(0),
            q.stride(0),
            block_table.stride(0),
            KV_HEADS=kv_heads,
            GROUP=heads // kv_heads,
            GROUP_BLOCK=max(16, group),
            HEAD_DIM=head_dim,
            DIM_BLOCK=dim_block,
            BLOCK_SIZE=k_cache.shape[1],
            WINDOWED=window is not None,
            ALIGN=ALIGN_TOKENS,
            TILE=tile,
            MERGE_GROUP=group,
            MERGED_AT_ONCE=max(1, _MERGED // (group * dim_block)),
            MERGES_APART=splitting.merges_apart,
            # Queries that come later take registers from all turns: fp32 has none left.
            READS_AHEAD=settled and q.element_size() == 2,
            TILES_AHEAD=tiles,
            num_warps=splitting.warps,
            num_stages=1 + tiles,
            **overlapping_launch(len(q)),
        )
    if are_cut and splitting.merges_apart:
        merge_pieces(out, partial, lse, splits.places, settled=settled)
    return out


@triton.jit(
    do_not_specialize=["scale_log2e"],
    do_not_specialize_on_alignment=["arrivals_ptr"],
)
def _decode_attention_kernel(
    out_ptr,  # [seqs, heads, head_dim]
    partial_ptr,  # [pieces, heads, head_dim] fp32
    lse_ptr,  # [pieces, heads] fp32, log2
    arrivals_ptr,  # [seqs, kv_heads], zeros before and after
    q_ptr,  # [seqs, heads, head_dim]
    k_cache_ptr,  # [blocks, block_size, kv_heads, head_dim]
    v_cache_ptr,  # [blocks, block_size, kv_heads, head_dim]
    block_table_ptr,  # [rows, max_blocks]
    pieces_ptr,  # [pieces, 6]
    places_ptr,  # [seqs, 2]
    scale_log2e,
    out_stride,
    q_stride,
    block_table_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOWED: tl.constexpr,
    ALIGN: tl.constexpr,
    TILE: tl.constexpr,
    MERGE_GROUP: tl.constexpr,
    MERGED_AT_ONCE: tl.constexpr,
    MERGES_APART: tl.constexpr,
    READS_AHEAD: tl.constexpr,
    TILES_AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a (piece, kv head); an only piece of a sequence writes the output itself.

    The kv heads of a piece are neighbours: what they read at a time is in one place.
    """
    kv_head, piece = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start_dependents(PDL)
    if not READS_AHEAD:
        wait_for_inputs(PDL)
    pieces_ptr += piece * 6
    seq = tl.load(pieces_ptr).to(tl.int64)
    row = tl.load(pieces_ptr + 1).to(tl.int64)
    begin, end = tl.load(pieces_ptr + 2), tl.load(pieces_ptr + 3)
    if not WINDOWED:
        begin = tl.multiple_of(begin, ALIGN)
    splits, has_newest = tl.load(pieces_ptr + 4), tl.load(pieces_ptr + 5)
    block_table_ptr += row * block_table_stride
    k_cache_ptr += kv_head * HEAD_DIM
    v_cache_ptr += kv_head * HEAD_DIM
    lane = tl.arange(0, TILE)
    # Tiles begin with a block: where a lane's key lies in its block is known once and for all.
    first_tile = begin // BLOCK_SIZE * BLOCK_SIZE
    blocks_ptr = block_table_ptr + first_tile // BLOCK_SIZE
    block = block_ids(blocks_ptr, lane, first_tile + lane < end, BLOCK_SIZE)
    # The loop loads so many tiles before its first turn waits: the newest key must not be there.
    is_loaded_early = end - first_tile <= TILES_AHEAD * TILE
    # Who has no piece leaves at once and makes room for the next kernel, except where nobody has
    # one: a kernel must not end before the one in front. (On an H200 none was seen to; nothing says
    # that none can.)
    if ((splits == 0) & (piece == 0)) | ((has_newest != 0) & is_loaded_early):
        wait_for_inputs(PDL)
    if splits == 0:
        return

    group = tl.arange(0, GROUP_BLOCK)
    head = kv_head * GROUP + group
    dims = tl.arange(0, DIM_BLOCK)
    in_dim = (dims < HEAD_DIM)[None, :]
    in_out = (group < GROUP)[:, None] & in_dim
    q_at = seq * q_stride + head[:, None] * HEAD_DIM + dims[None, :]
    q = _queries(q_ptr + q_at, in_out, READS_AHEAD)

    within_block = (lane % BLOCK_SIZE * (KV_HEADS * HEAD_DIM))[:, None] + dims[None, :]
    top = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
    # Each lane sums on its own until the end: adding them up takes all warps.
    totals = tl.zeros([GROUP_BLOCK, TILE], tl.float32)
    acc = tl.zeros([GROUP_BLOCK, DIM_BLOCK], tl.float32)
    for tile in range(first_tile, end, TILE):
        keys = tile + lane
        inside = keys < end
        if WINDOWED:
            inside = inside & (keys >= begin)
        # int64, for a large cache passes 2^31 elements.
        block_at = block.to(tl.int64) * (BLOCK_SIZE * KV_HEADS * HEAD_DIM)
        at = block_at[:, None] + within_block
        blocks_ptr = block_table_ptr + (tile + TILE) // BLOCK_SIZE
        block = block_ids(blocks_ptr, lane, keys + TILE < end, BLOCK_SIZE)
        k = tl.load(k_cache_ptr + at, mask=in_dim, other=0.0)
        # Past the last key stands what was there before: even NaN, of weight 0, must not count.
        v = tl.load(v_cache_ptr + at, mask=in_dim & inside[:, None], other=0.0)
        if READS_AHEAD and tile == first_tile:
            # Here, for in front of the loop it would hold up the first tiles' loads, too.
            wait_for_inputs(PDL)
            q = _queries(q_ptr + q_at, in_out, False)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = tl.where(inside[None, :], scores, float("-inf"))
        # Every tile holds a key, so the new maximum is finite.
        new_top = tl.maximum(top, tl.max(scores, axis=1) * scale_log2e)
        weights = tl.exp2(scores * scale_log2e - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        totals = totals * shrink[:, None] + weights
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
        top = new_top

    total = tl.sum(totals, axis=1)
    attended = acc / total[:, None]
    if splits == 1:
        out_at = seq * out_stride + head[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out_ptr + out_at, attended.to(out_ptr.dtype.element_ty), mask=in_out)
    else:
        place = piece * KV_HEADS * GROUP + head
        partial_at = place[:, None] * HEAD_DIM + dims[None, :]
        tl.store(partial_ptr + partial_at, attended, mask=in_out)
        tl.store(lse_ptr + place, top + tl.log2(total), mask=group < GROUP)
        if not MERGES_APART:
            _merge_if_last(
                out_ptr + seq * out_stride, partial_ptr, lse_ptr,
                arrivals_ptr + seq * KV_HEADS + kv_head, places_ptr + seq * 2, splits, kv_head,
                KV_HEADS, GROUP, MERGE_GROUP, HEAD_DIM, DIM_BLOCK, MERGED_AT_ONCE,
            )  # fmt: skip


@triton.jit
def _queries(q_ptr, inside, COME_LATER: tl.constexpr):
    """Load queries [heads, dims], or zeros in their place."""
    q = tl.zeros(inside.shape, q_ptr.dtype.element_ty)
    if not COME_LATER:
        q = tl.load(q_ptr, mask=inside, other=0.0)
    return q


@triton.jit
def _merge_if_last(
    out_ptr,  # [heads, HEAD_DIM], the sequence's
    partial_ptr,  # [pieces, heads, HEAD_DIM] fp32
    lse_ptr,  # [pieces, heads] fp32, log2
    arrived_ptr,  # of the sequence's kv head
    place_ptr,  # of the sequence's first piece
    splits,
    kv_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    MERGE_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    MERGED_AT_ONCE: tl.constexpr,
):
    """Merge a sequence's pieces in the program that ends last, for the heads of a kv head."""
    # All threads' stores come before the one that says so; who comes last sees them all.
    tl.debug_barrier()
    if tl.atomic_add(arrived_ptr, 1, sem="acq_rel") == splits - 1:
        tl.store(arrived_ptr, 0)
        first = tl.load(place_ptr).to(tl.int64) * KV_HEADS * GROUP
        member, dims = tl.arange(0, MERGE_GROUP), tl.arange(0, DIM_BLOCK)
        in_out = (member < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
        merge_into(
            out_ptr, partial_ptr + first * HEAD_DIM, lse_ptr + first, splits,
            kv_head * GROUP + member, dims, in_out, KV_HEADS * GROUP, HEAD_DIM,
            MERGED_AT_ONCE,
        )  # fmt: skip

"""A step's token ids, positions and cache slots, made on the device from the sequences' rows.

The host knows which sequences run and how many tokens each; where a token's K and V go follows from
the block table, and the id of a sequence's newest token may not have reached the host yet. So the
host sends four small arrays and one kernel writes the rest, with nothing to wait for. A block table
grows here too: each decode brings the block of its token. The module does not know why a sequence
runs: prompt chunk and recomputation look the same.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ._triton import (
    overlapping_launch,
    runs_kernel,
    start_dependents,
    tl,
    triton,
    wait_for_inputs,
)

_BLOCK = 1024


class Layout(NamedTuple):
    """What a forward pass needs to know about each token and each sequence's context."""

    input_ids: Tensor  # [tokens] int32
    positions: Tensor  # [tokens] int32, absolute
    slot_mapping: Tensor  # [tokens] int64: block * block_size + offset
    kv_lens: Tensor  # [seqs] int32: tokens in the cache once this step has written its own
    decode_lens: Tensor  # [seqs] int32: the same of sequences whose id is on the device, else 0


def batch_layout_reference(
    rows: Tensor,
    starts: Tensor,
    cu_q: Tensor,
    host_ids: Tensor,
    decode_blocks: Tensor,
    last_token: Tensor,
    block_table: Tensor,
    block_size: int,
) -> Layout:
    """`batch_layout` in plain torch; also what serves on the CPU."""
    decodes = decode_blocks != 0
    block_table[rows[decodes].long(), starts[decodes] // block_size] = decode_blocks[decodes]
    q_lens = cu_q.diff()
    seq = torch.repeat_interleave(q_lens)
    used, row = len(seq), rows[seq].long()
    positions, slots = torch.zeros_like(host_ids), torch.zeros_like(host_ids, dtype=torch.int64)
    input_ids = torch.zeros_like(host_ids)
    at = starts[seq] + torch.arange(used, dtype=torch.int32) - cu_q[seq]
    positions[:used] = at
    slots[:used] = block_table[row, at // block_size].long() * block_size + at % block_size
    input_ids[:used] = torch.where(decodes[seq], last_token[row], host_ids[:used])
    kv_lens = starts + q_lens
    return Layout(input_ids, positions, slots, kv_lens, kv_lens * decodes)


def batch_layout(
    rows: Tensor,
    starts: Tensor,
    cu_q: Tensor,
    host_ids: Tensor,
    decode_blocks: Tensor,
    last_token: Tensor,
    block_table: Tensor,
    block_size: int,
) -> Layout:
    """Lay out the tokens of a step: cu_q[i] to cu_q[i + 1] are sequence i's, from starts[i] on.

    Shapes: rows [seqs] int32, starts [seqs] int32 (tokens computed before this step), cu_q [seqs +
    1] int32 beginning at 0, host_ids [tokens] int32, decode_blocks [seqs] int32 (the sequence's one
    token is last_token[row], whatever host_ids says, and goes to this block, which is entered into
    the block table; 0: not a decode), last_token [rows] int32, block_table [rows, max_blocks]
    int32. Tokens past cu_q[-1] are padding: id 0, position 0, slot 0.
    """
    seqs, tokens = len(rows), len(host_ids)
    assert len(cu_q) == seqs + 1, f"cu_q has {len(cu_q)} entries for {seqs} sequences"
    assert len(starts) == len(decode_blocks) == seqs, (
        "starts and decode_blocks have one entry a sequence"
    )
    if not runs_kernel(host_ids):
        return batch_layout_reference(
            rows, starts, cu_q, host_ids, decode_blocks, last_token, block_table, block_size
        )
    layout = Layout(
        torch.empty_like(host_ids),
        torch.empty_like(host_ids),
        torch.empty_like(host_ids, dtype=torch.int64),
        torch.empty_like(starts),
        torch.empty_like(starts),
    )
    _batch_layout_kernel[(seqs + 1,)](
        *layout,
        rows,
        starts,
        cu_q,
        host_ids,
        decode_blocks,
        last_token,
        block_table,
        block_table.stride(0),
        seqs,
        tokens,
        BLOCK_SIZE=block_size,
        BLOCK=_BLOCK,
        **overlapping_launch(tokens),
    )
    return layout


@triton.jit(
    do_not_specialize=["seqs", "tokens"],
    do_not_specialize_on_alignment=[
        "rows_ptr", "starts_ptr", "cu_q_ptr", "host_ids_ptr", "decode_blocks_ptr"
    ],
)  # fmt: skip
def _batch_layout_kernel(
    input_ids_ptr,  # [tokens]
    positions_ptr,  # [tokens]
    slot_mapping_ptr,  # [tokens]
    kv_lens_ptr,  # [seqs]
    decode_lens_ptr,  # [seqs]
    rows_ptr,  # [seqs]
    starts_ptr,  # [seqs]
    cu_q_ptr,  # [seqs + 1]
    host_ids_ptr,  # [tokens]
    decode_blocks_ptr,  # [seqs]
    last_token_ptr,  # [rows]
    block_table_ptr,  # [rows, max_blocks]
    block_table_stride,
    seqs,
    tokens,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a sequence, and one for the padding behind the last."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    seq = tl.program_id(0)
    begin = tl.load(cu_q_ptr + seq)
    if seq == seqs:
        for at in range(begin, tokens, BLOCK):
            token = at + tl.arange(0, BLOCK)
            inside = token < tokens
            tl.store(input_ids_ptr + token, 0, mask=inside)
            tl.store(positions_ptr + token, 0, mask=inside)
            tl.store(slot_mapping_ptr + token, 0, mask=inside)
    else:
        end = tl.load(cu_q_ptr + seq + 1)
        row = tl.load(rows_ptr + seq).to(tl.int64)
        start = tl.load(starts_ptr + seq)
        newest = tl.load(last_token_ptr + row)
        decode_block = tl.load(decode_blocks_ptr + seq)
        is_decode = decode_block != 0
        block_table_ptr += row * block_table_stride
        tl.store(block_table_ptr + start // BLOCK_SIZE, decode_block, mask=is_decode)
        kv_len = start + end - begin
        tl.store(kv_lens_ptr + seq, kv_len)
        tl.store(decode_lens_ptr + seq, tl.where(is_decode, kv_len, 0))
        for at in range(begin, end, BLOCK):
            token = at + tl.arange(0, BLOCK)
            inside = token < end
            position = start + token - begin
            host_id = tl.load(host_ids_ptr + token, mask=inside, other=0)
            block = tl.load(block_table_ptr + position // BLOCK_SIZE, mask=inside, other=0)
            block = tl.where(is_decode, decode_block, block).to(tl.int64)
            tl.store(input_ids_ptr + token, tl.where(is_decode, newest, host_id), mask=inside)
            tl.store(positions_ptr + token, position, mask=inside)
            slot = block * BLOCK_SIZE + position % BLOCK_SIZE
            tl.store(slot_mapping_ptr + token, slot, mask=inside)

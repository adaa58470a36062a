"""Reading the paged KV cache, for both attention ops: gathers in plain torch, page addresses in Triton.

The module knows the cache's layout, [blocks, block_size, kv_heads, head_dim], and nothing of attention.
"""

import torch
from torch import Tensor

from ._triton import tl, triton


def gather_kv(
    k_cache: Tensor, v_cache: Tensor, blocks: Tensor, positions: Tensor, kv_lens: Tensor
) -> tuple[Tensor, Tensor]:
    """Return K and V of some positions of some sequences.

    Shapes: blocks [seqs, max_blocks], positions [seqs, width], kv_lens [seqs] -> two transposed views
    [seqs, kv_heads, width, head_dim]. Where a position is at kv_len or later the last token's K and V
    stand in, so that what the unwritten tail of a block holds (an earlier owner's NaN) is never read.
    """
    block_size, kv_heads, head_dim = k_cache.shape[1:]
    positions = torch.minimum(positions, kv_lens[:, None] - 1).long()
    slots = blocks.long().gather(1, positions // block_size) * block_size + positions % block_size

    def gather(cache: Tensor) -> Tensor:
        flat = cache.view(-1, kv_heads * head_dim).index_select(0, slots.view(-1))
        return flat.view(*slots.shape, kv_heads, head_dim).transpose(1, 2)

    return gather(k_cache), gather(v_cache)


def check_cache(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """Assert what both attention ops ask of their tensors."""
    heads, head_dim = q.shape[1:]
    assert k_cache.shape == v_cache.shape, f"{tuple(k_cache.shape)} and {tuple(v_cache.shape)}"
    assert k_cache.shape[3] == head_dim, f"head_dim {head_dim}, cache {tuple(k_cache.shape)}"
    assert heads % k_cache.shape[2] == 0, f"{heads} heads on {k_cache.shape[2]} kv heads"
    assert k_cache.stride() == v_cache.stride() and k_cache.stride(3) == 1, "odd cache strides"
    assert q.stride()[1:] == (head_dim, 1), f"q must be contiguous, its strides are {q.stride()}"


@triton.jit
def cache_offsets(
    block_table_ptr,  # [max_blocks], this sequence's
    keys,  # [tile], absolute positions
    inside,  # [tile], which of them exist
    block_stride,
    token_stride,
    BLOCK_SIZE: tl.constexpr,
):
    """Element offsets [tile] of keys' rows in the cache; int64, because a large cache passes 2^31."""
    block = tl.load(block_table_ptr + keys // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
    return block * block_stride + (keys % BLOCK_SIZE) * token_stride

"""Reading the paged KV cache, for both attention ops: in plain torch, and from Triton.

The module knows the cache's layout, [blocks, block_size, kv_heads, head_dim], and nothing of
attention.
"""

import warnings

import torch
from torch import Tensor

from ._triton import tl, triton


def cache_slots(blocks: Tensor, positions: Tensor, kv_lens: Tensor, block_size: int) -> Tensor:
    """Return the slot of each position: block * block_size + offset.

    Shapes: blocks [seqs, max_blocks], positions [seqs, width], kv_lens [seqs, 1] -> [seqs, width]
    int64. A position at kv_len or later gets the last token's slot, so that what the unwritten tail
    of a block holds (an earlier owner's NaN, say) is never read.
    """
    positions = torch.minimum(positions, kv_lens - 1)
    block = blocks.gather(1, (positions // block_size).long())
    return block.long() * block_size + positions % block_size


def gather(cache: Tensor, slots: Tensor) -> Tensor:
    """Return the cache at slots [seqs, width] as a view [seqs, kv_heads, width, head_dim]."""
    kv_heads, head_dim = cache.shape[2:]
    flat = cache.view(-1, kv_heads * head_dim).index_select(0, slots.view(-1))
    return flat.view(*slots.shape, kv_heads, head_dim).transpose(1, 2)


with warnings.catch_warnings():
    # torch says once a process that CSR tensors are in beta; let it say so here, unheard.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], torch.zeros(0), (1, 1), check_invariants=False)


def sampled_product(x: Tensor, y: Tensor, begins: Tensor, columns: Tensor, scale: float) -> Tensor:
    """Return scale * x @ y.T at some columns of each row.

    Shapes: x [n, head_dim], y [m, head_dim], begins [n + 1] int32 (row i has columns begins[i] to
    begins[i + 1]), columns [nonzeros] int32 -> [nonzeros]; fp32.
    """
    pattern = torch.sparse_csr_tensor(
        begins, columns, torch.zeros(len(columns)), (len(x), len(y)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, x, y.t(), beta=0, alpha=scale).values()


def check_layout(k_cache: Tensor, v_cache: Tensor) -> None:
    """Assert what every op that touches the cache counts on."""
    assert k_cache.shape == v_cache.shape, f"{tuple(k_cache.shape)} and {tuple(v_cache.shape)}"
    for cache in (k_cache, v_cache):
        assert cache.is_contiguous(), (
            f"a cache must be contiguous, its strides are {cache.stride()}"
        )


def check_cache(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """Assert what both attention ops ask of their tensors."""
    check_layout(k_cache, v_cache)
    heads, head_dim = q.shape[1:]
    assert k_cache.shape[3] == head_dim, f"head_dim {head_dim}, cache {tuple(k_cache.shape)}"
    assert heads % k_cache.shape[2] == 0, f"{heads} heads on {k_cache.shape[2]} kv heads"
    assert q.stride()[1:] == (head_dim, 1), f"q must be contiguous, its strides are {q.stride()}"


@triton.jit
def block_ids(block_table_ptr, keys, inside, BLOCK_SIZE: tl.constexpr):
    """Ids of the blocks that keys [tile] are in, 0 for those that are not `inside`.

    A loop looks them up a tile before it loads keys: in place they would hold up the loads, of
    which only one tile's could be on its way then.
    """
    return tl.load(block_table_ptr + keys // BLOCK_SIZE, mask=inside, other=0)

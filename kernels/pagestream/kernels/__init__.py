"""The operations of a transformer's step that are worth a kernel: tensors in, tensors out.

    rms_norm           RMS norm, with the residual addition before it
    rope_and_cache     qk-norm, rotary embedding, and the write of K and V to the paged cache
    decode_attention   one new token a sequence over its cache: split-KV, bound by bandwidth
    prefill_attention  prompts and pieces of prompts over their cache: bound by compute
    silu_mul           the gated activation of the MLP
    linear             a matrix product whose rows do not depend on the batch
    linear_silu_mul    the MLP's fused projection and its activation at once
    batch_layout       a step's token ids, positions and cache slots, made on the device
    sample             the next token of each sequence

`Products` is what `linear` may know of cuBLAS's algorithms.

One file an op: what it computes and its source, a reference in plain torch, the op, its Triton
kernel. An op takes its kernel on a GPU and its reference on a CPU, where the reference is also what
serves; on both a sequence's result does not depend on the batch it is in. The package knows no
requests and no Redis, and imports nothing else of ours.

Axes, by name, everywhere:

    tokens      of all sequences of a step, one behind the other
    seqs        sequences of a step; `cu_q [seqs + 1]` says where each one's tokens begin
    rows        of the device's tables, one a running request; `rows [seqs]` says which
    heads       query heads; `group` = heads / kv_heads of them share a kv head
    kv_heads    key and value heads
    head_dim    elements of a head
    hidden      elements of the residual stream
    intermediate  elements of the MLP's inner layer
    blocks      of the KV cache, `block_size` tokens each; block 0 is for padding and never read
    vocab       token ids
"""

from ._products import Products
from .batch_layout import Layout, batch_layout
from .decode_attention import decode_attention
from .kv_splits import FIXED_SPLITTING, KvSplits, Splitting, kv_splits
from .linear import linear
from .linear_silu_mul import linear_silu_mul
from .prefill_attention import QueryTiles, prefill_attention, query_tiles
from .rms_norm import rms_norm
from .rope_and_cache import rope_and_cache
from .sample import SamplingTable, sample
from .silu_mul import silu_mul

__all__ = [
    "FIXED_SPLITTING",
    "KvSplits",
    "Layout",
    "Products",
    "QueryTiles",
    "SamplingTable",
    "Splitting",
    "batch_layout",
    "decode_attention",
    "kv_splits",
    "linear",
    "linear_silu_mul",
    "prefill_attention",
    "query_tiles",
    "rms_norm",
    "rope_and_cache",
    "sample",
    "silu_mul",
]

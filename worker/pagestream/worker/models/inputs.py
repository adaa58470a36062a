"""What a model's forward pass takes: one flat batch of tokens of many sequences.

The model knows no requests: sequences are row numbers into tables that live on the device.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ForwardInputs:
    """One step's tokens, decode sequences first.

    A decode brings one token and takes the decode kernel; the others are prompts, or pieces of
    prompts, and take the prefill kernel. A sequence's kind is its phase, not its length: a prompt's
    one-token tail is still a prefill, so its bits do not depend on chunking. Which is which stands
    on the device, so that steps of one shape can replay one graph: `decode_lens` is 0 and
    `prefill_cu_q` is empty where the other kernel is at work, and both for padding.
    """

    input_ids: Tensor  # [tokens] int32
    positions: Tensor  # [tokens] int32, absolute
    slot_mapping: Tensor  # [tokens] int64: block * block_size + offset, where K and V are written
    rows: Tensor  # [seqs] int32: each sequence's row in the tables
    cu_q: Tensor  # [seqs + 1] int32: where each sequence's tokens begin
    kv_lens: Tensor  # [seqs] int32: tokens in the cache once this step has written its own
    decode_lens: Tensor  # [seqs] int32: kv_lens of the decodes, 0 of the others
    prefill_cu_q: Tensor  # [seqs + 1] int32: cu_q with the decodes' tokens left out
    block_table: Tensor  # [rows, max_blocks] int32
    prompt_lens: Tensor  # [rows] int32: tokens each request came with (dynamic rope depends on it)
    has_decodes: bool
    max_prefills: int
    """Most sequences that are prefills: 0 means that none is."""
    max_kv_len: int
    """Longest context of the step; an upper bound is enough."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The paged K and V of one layer: `[blocks, block_size, kv_heads, head_dim]` each."""

    k: Tensor
    v: Tensor

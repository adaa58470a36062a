"""Drawing each sequence's next token from its logits.

    suppress -> temperature (0: the largest, lowest id on ties) -> top_k -> top_p of what top_k kept -> min_p

What is left is a threshold on the raw logit, and the draw is the largest of logit / temperature plus Gumbel
noise. The noise is a hash of (seed, position, token id): a request draws the same token alone, in any
batch, and after a resume, and the reference hashes as the kernel does. Tokens that tie with the last one
kept are kept. The kernel finds a threshold without a sort: a binary search over the bits of the logits,
exact, and only for the rows that ask. The module knows nothing of requests or of stop conditions.

Source: Gumbel-max, Maddison et al., arXiv:1411.0030, §2; hash: the finalizer of MurmurHash3 (Appleby).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._triton import LOG2E, runs_kernel, tl, triton

_GREEDY_BELOW = tl.constexpr(1e-5)
"""Temperatures below this are greedy: dividing by them says nothing that fp32 can hold."""
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class SamplingTable:
    """How each row of the device tables draws its tokens."""

    temperature: Tensor  # [rows] fp32, 0 is greedy
    top_p: Tensor  # [rows] fp32, 1 keeps all
    min_p: Tensor  # [rows] fp32, 0 keeps all
    top_k: Tensor  # [rows] int32, 0 keeps all
    seed: Tensor  # [rows] int64
    min_position: Tensor  # [rows] int32: before this position suppressed ids are not drawn
    suppressed_ids: Tensor  # [rows, K] int32, num_suppressed of them in use
    num_suppressed: Tensor  # [rows] int32

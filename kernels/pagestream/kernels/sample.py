"""Drawing each sequence's next token from its logits.

    suppress -> temperature (0: the largest, lowest id on ties) -> top_k -> top_p of what top_k kept
    -> min_p

What these keep is what lies above a threshold on the raw logit (tokens that tie with the last one
kept are kept), and the draw is the largest of logit / temperature plus Gumbel noise. The noise is a
hash of (seed, position, token id): a request draws the same token alone, in any batch, and after a
resume, and the reference hashes as the kernel does. The kernel finds its threshold without a sort,
by a binary search over the logits' bits: exact, and only for rows that ask. The module knows
nothing of requests or stops.

Source: Gumbel-max as in Maddison et al., "A* Sampling", arXiv:1411.0030, §2; the hash is the
finalizer of MurmurHash3 (Appleby, public domain).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._triton import LOG2E, runs_kernel, tl, triton

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: fp32 could not tell the quotients apart."""
_BLOCK = 2048
_SORTED = (64, 512)
"""Tokens the reference sorts before it sorts them all: most nuclei are smaller."""


@dataclass(frozen=True, slots=True)
class SamplingTable:
    """How each row of the device tables draws its tokens."""

    temperature: Tensor  # [rows] fp32; 0 is greedy
    top_p: Tensor  # [rows] fp32; 1 keeps all
    min_p: Tensor  # [rows] fp32; 0 keeps all
    top_k: Tensor  # [rows] int32; 0 keeps all
    seed: Tensor  # [rows] int64
    min_position: Tensor  # [rows] int32: before this position the suppressed ids are not drawn
    suppressed_ids: Tensor  # [rows, K] int32, the first num_suppressed of them in use
    num_suppressed: Tensor  # [rows] int32


def sample_reference(
    logits: Tensor, rows: Tensor, positions: Tensor, table: SamplingTable
) -> Tensor:
    """`sample` in plain torch; also what serves on the CPU. Greedy rows skip the random work."""
    rows, logits = rows.long(), logits.float()
    early = (positions < table.min_position[rows]).nonzero().view(-1).tolist()
    if early:
        logits = logits.clone()
        for seq in early:
            used = int(table.num_suppressed[rows[seq]])
            logits[seq, table.suppressed_ids[rows[seq], :used].long()] = float("-inf")
    drawn = table.temperature[rows] >= GREEDY_BELOW
    if not drawn.any():
        return logits.argmax(-1).int()
    ids = torch.empty(len(rows), dtype=torch.int32)
    ids[~drawn] = logits[~drawn].argmax(-1).int()
    rows, logits = rows[drawn], logits[drawn]
    temperature = table.temperature[rows]
    low = _lowest_kept(logits, temperature, table.top_k[rows], table.top_p[rows], table.min_p[rows])
    scores = logits * (1.0 / temperature)[:, None]
    scores += _gumbel(table.seed[rows], positions[drawn], logits.shape[1])
    if (low > float("-inf")).any():
        scores.masked_fill_(logits < low[:, None], float("-inf"))
    ids[drawn] = scores.argmax(-1).int()
    return ids


def _lowest_kept(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """The smallest logit [seqs] that top_k, top_p and min_p leave in."""
    vocab = logits.shape[1]
    low = logits.amax(-1) + temperature * min_p.log()
    limit = torch.where(top_k < vocab, top_k, 0).long()
    todo = ((limit > 0) | (top_p < 1)).nonzero().view(-1)
    for depth in (*(d for d in _SORTED if d < vocab), vocab):
        if not len(todo):
            break
        x, k, p = logits[todo], limit[todo], top_p[todo]
        best, order = x.topk(depth, dim=-1)
        kth = best.gather(1, (k - 1).clamp(0, depth - 1)[:, None])[:, 0]
        kth.masked_fill_(k == 0, float("-inf"))
        known = (k <= depth) | (depth == vocab)
        if (p < 1).any():
            shares = (x / temperature[todo, None]).masked_fill_(x < kth[:, None], float("-inf"))
            mass = shares.softmax(-1).gather(1, order).cumsum(-1)
            # The nucleus ends with the token that brings the mass to p.
            inside = (mass < p[:, None]).sum(-1).masked_fill_(p >= 1, 0)
            last = best.gather(1, inside.clamp(max=depth - 1)[:, None])[:, 0]
            kth = torch.where(p < 1, torch.maximum(last, kth), kth)
            known &= (inside < depth) | (depth == vocab)
        low[todo[known]] = torch.maximum(low[todo[known]], kth[known])
        todo = todo[~known]  # once more, with everything sorted
    return low


def _mix_reference(h: Tensor) -> Tensor:
    """MurmurHash3's finalizer, in place on int32, whose products wrap."""
    h ^= (h >> 16) & 0xFFFF
    h *= -0x7A143595  # 0x85EBCA6B
    h ^= (h >> 13) & 0x7FFFF
    h *= -0x3D4D51CB  # 0xC2B2AE35
    h ^= (h >> 16) & 0xFFFF
    return h


def _gumbel(seed: Tensor, position: Tensor, vocab: int) -> Tensor:
    """Standard Gumbel noise [seqs, vocab] fp32, a function of (seed, position, token id) alone."""
    low = (seed & 0xFFFFFFFF).to(torch.int32)
    high = (seed >> 32).to(torch.int32)
    first = _mix_reference(low ^ _mix_reference(position + 0x3C6EF372))
    second = _mix_reference(high ^ _mix_reference(first + 0x165667B1))
    h = torch.arange(vocab, dtype=torch.int32) * -0x61C8864F + first[:, None]
    h = _mix_reference(h ^ second[:, None])
    # Uniform in (0, 1), finest near 0, where the largest draws come from.
    u = ((h >> 1) & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return u.neg_().log1p_().neg_().log_().neg_()


def sample(logits: Tensor, rows: Tensor, positions: Tensor, table: SamplingTable) -> Tensor:
    """Draw one token id a sequence.

    Shapes: logits [seqs, vocab] of any float dtype (fp32 inside), rows [seqs] int32 into the table,
    positions [seqs] int32 (the position in its sequence of the token being drawn) -> ids [seqs]
    int32.
    """
    seqs, vocab = logits.shape
    assert len(rows) == len(positions) == seqs, f"{len(rows)} rows for {seqs} sequences"
    if not runs_kernel(logits):
        return sample_reference(logits, rows, positions, table)
    assert logits.stride(1) == 1, "vocab must be the contiguous axis"
    ids = torch.empty(seqs, dtype=torch.int32, device=logits.device)
    if seqs:
        _sample_kernel[(seqs,)](
            ids,
            logits,
            rows,
            positions,
            table.temperature,
            table.top_p,
            table.min_p,
            table.top_k,
            table.seed,
            table.min_position,
            table.suppressed_ids,
            table.num_suppressed,
            logits.stride(0),
            table.suppressed_ids.stride(0),
            VOCAB=vocab,
            # A bf16 or fp16 logit differs from its neighbours in the leading bits of its fp32 form.
            BITS={torch.bfloat16: 16, torch.float16: 19}.get(logits.dtype, 32),
            GREEDY=GREEDY_BELOW,
            LOG2E=LOG2E,
            BLOCK=min(_BLOCK, triton.next_power_of_2(vocab)),
            num_warps=16,
        )
    return ids


@triton.jit
def _mix(h):
    """MurmurHash3's finalizer, on uint32."""
    h ^= h >> 16
    h *= 0x85EBCA6B
    h ^= h >> 13
    h *= 0xC2B2AE35
    return h ^ (h >> 16)


@triton.jit
def _gumbel_of(ids, first, second):
    """Gumbel noise of token ids; the same bits of u as the reference, and its log1p to 3e-6."""
    h = _mix((ids.to(tl.uint32) * 0x9E3779B1 + first) ^ second) >> 1
    u = (h.to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10
    u = tl.minimum(u, 1 - 5.960464477539063e-08)
    waiting = tl.where(u < 0.01, u * (1.0 + u * (0.5 + u * 0.33333333)), -tl.log(1.0 - u))
    return -tl.log(waiting)


@triton.jit
def _key(x):
    """Integers in the order of the floats; -0 counts as 0."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _load_logits(
    logits_ptr, suppressed_ptr, num_suppressed, at, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):
    """(ids, logits) of the block of the vocabulary at `at`, suppressed and missing ones at -inf."""
    ids = at + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + ids, mask=ids < VOCAB, other=float("-inf")).to(tl.float32)
    for i in range(0, num_suppressed):
        x = tl.where(ids == tl.load(suppressed_ptr + i), float("-inf"), x)
    return ids, x


@triton.jit
def _search(
    logits_ptr,
    suppressed_ptr,
    num_suppressed,
    low,  # key below which nothing counts
    target,
    top,
    scale_log2e,
    BY_MASS: tl.constexpr,
    VOCAB: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest key above which there are `target` tokens, or `target` of the softmax mass."""
    found = tl.full((), -(2**31), tl.int64)
    if BY_MASS:
        share = 0.0
        for at in range(0, VOCAB, BLOCK):
            _, x = _load_logits(logits_ptr, suppressed_ptr, num_suppressed, at, VOCAB, BLOCK)
            share += tl.sum(tl.where(_key(x) >= low, tl.exp2((x - top) * scale_log2e), 0.0), axis=0)
        target *= share
    for bit in range(0, BITS):
        candidate = found + (tl.full((), 1, tl.int64) << (31 - bit))
        reached = 0.0
        for at in range(0, VOCAB, BLOCK):
            _, x = _load_logits(logits_ptr, suppressed_ptr, num_suppressed, at, VOCAB, BLOCK)
            weight = 1.0
            if BY_MASS:
                weight = tl.exp2((x - top) * scale_log2e)
            key = _key(x)
            reached += tl.sum(tl.where((key >= candidate) & (key >= low), weight, 0.0), axis=0)
        found = tl.where(reached >= target, candidate, found)
    return found


@triton.jit
def _sample_kernel(
    ids_ptr,  # [seqs]
    logits_ptr,  # [seqs, vocab]
    rows_ptr,  # [seqs]
    positions_ptr,  # [seqs]
    temperature_ptr,  # [rows], and so are the next five
    top_p_ptr,
    min_p_ptr,
    top_k_ptr,
    seed_ptr,
    min_position_ptr,
    suppressed_ids_ptr,  # [rows, K]
    num_suppressed_ptr,  # [rows]
    logits_stride,
    suppressed_stride,
    VOCAB: tl.constexpr,
    BITS: tl.constexpr,
    GREEDY: tl.constexpr,
    LOG2E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a sequence: its threshold if it has one, then one pass for the best score."""
    seq = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + seq).to(tl.int64)
    position = tl.load(positions_ptr + seq)
    early = position < tl.load(min_position_ptr + row)
    num_suppressed = tl.where(early, tl.load(num_suppressed_ptr + row), 0)
    logits_ptr += seq * logits_stride
    suppressed_ptr = suppressed_ids_ptr + row * suppressed_stride

    temperature = tl.load(temperature_ptr + row)
    greedy = temperature < GREEDY
    scale = 1.0 / tl.where(greedy, 1.0, temperature)
    top_k = tl.load(top_k_ptr + row)
    top_p, min_p = tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
    by_k = (top_k > 0) & (top_k < VOCAB)
    low = tl.full((), -(2**31), tl.int64)
    if (not greedy) & (by_k | (top_p < 1.0) | (min_p > 0.0)):
        top = float("-inf")
        for at in range(0, VOCAB, BLOCK):
            _, x = _load_logits(logits_ptr, suppressed_ptr, num_suppressed, at, VOCAB, BLOCK)
            top = tl.maximum(top, tl.max(x, axis=0))
        if by_k:
            low = _search(
                logits_ptr, suppressed_ptr, num_suppressed, low, top_k.to(tl.float32), top,
                scale * LOG2E, False, VOCAB, BITS, BLOCK,
            )  # fmt: skip
        if top_p < 1.0:
            low = _search(
                logits_ptr, suppressed_ptr, num_suppressed, low, top_p, top,
                scale * LOG2E, True, VOCAB, BITS, BLOCK,
            )  # fmt: skip
        if min_p > 0.0:
            low = tl.maximum(low, _key(top + temperature * tl.log(min_p)).to(tl.int64))

    seed = tl.load(seed_ptr + row)
    first = _mix(position.to(tl.uint32) + 0x3C6EF372)
    first = _mix((seed & 0xFFFFFFFF).to(tl.uint32) ^ first)
    second = _mix((seed >> 32).to(tl.uint32) ^ _mix(first + 0x165667B1))
    best = float("-inf")
    best_id = 0
    for at in range(0, VOCAB, BLOCK):
        ids, x = _load_logits(logits_ptr, suppressed_ptr, num_suppressed, at, VOCAB, BLOCK)
        scores = x
        if not greedy:
            scores = x * scale + _gumbel_of(ids, first, second)
            scores = tl.where(_key(x) >= low, scores, float("-inf"))
        block_best, block_id = tl.max(
            scores, axis=0, return_indices=True, return_indices_tie_break_left=True
        )
        best_id = tl.where(block_best > best, at + block_id, best_id)
        best = tl.maximum(best, block_best)
    tl.store(ids_ptr + seq, best_id)

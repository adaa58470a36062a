"""Drawing each sequence's next token from its logits.

    suppress -> temperature (0: the largest, lowest id on ties) -> top_k -> top_p of what top_k kept
    -> min_p

What these keep is what lies above a threshold on the raw logit (tokens that tie with the last one
kept are kept), and the draw is the largest of logit / temperature plus Gumbel noise. The noise is a
hash of (seed, position, token id): a request draws the same token alone, in any batch, and after a
resume, and the reference hashes as the kernel does.

On a GPU it takes two launches. The first cuts the vocabulary in chunks, one program each, that find
their best score, or, for a row that asks for a threshold, their largest logits. The second has one
program a row, which takes the best of the best, or searches what the chunks sent for the threshold,
bit by bit and without a sort. Where the threshold lies deeper than every chunk could send, that
program searches the whole row: slower, and as exact. The module knows nothing of requests or stops.

Source: Gumbel-max as in Maddison et al., "A* Sampling", arXiv:1411.0030, §2; the hash is the
finalizer of MurmurHash3 (Appleby, public domain).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ._triton import LOG2E, runs_kernel, tl, triton

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: fp32 could not tell the quotients apart."""
_CHUNK = 4096
_KEPT = 128
"""The largest logits of a chunk that are sent on for a row that asks for a threshold."""
_CHUNK_WARPS = 8
_ROW_WARPS = 16
_SORTED = (64, 512)
"""Tokens the reference sorts before it sorts them all: most nuclei are smaller."""


class SamplingTable(NamedTuple):
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
    int32. Launches follow from the shapes alone, so a CUDA graph can capture them.
    """
    seqs, vocab = logits.shape
    assert len(rows) == len(positions) == seqs, f"{len(rows)} rows for {seqs} sequences"
    if not runs_kernel(logits):
        return sample_reference(logits, rows, positions, table)
    assert logits.stride(1) == 1, "vocab must be the contiguous axis"
    ids = torch.empty(seqs, dtype=torch.int32, device=logits.device)
    # Nothing of this may follow from the batch: a row's sums are the same in any.
    chunk = min(_CHUNK, max(triton.next_power_of_2(vocab), 16))
    chunks, kept = triton.cdiv(vocab, chunk), min(_KEPT, chunk)
    found = torch.empty(seqs, chunks, kept, dtype=torch.int64, device=logits.device)
    tops, masses = torch.empty(2, seqs, chunks, dtype=torch.float32, device=logits.device)
    cuts = torch.empty(seqs, chunks, dtype=torch.int32, device=logits.device)
    if seqs:
        shared = {
            "VOCAB": vocab,
            "CHUNKS": chunks,
            "CHUNK": chunk,
            "KEPT": kept,
            # A bf16 or fp16 logit differs from its neighbours in the leading bits of its fp32 form.
            "BITS": {torch.bfloat16: 16, torch.float16: 19}.get(logits.dtype, 32),
            "GREEDY": GREEDY_BELOW,
            "LOG2E": LOG2E,
        }
        inputs = (logits, rows, positions, table)
        strides = (logits.stride(0), table.suppressed_ids.stride(0))
        _sample_chunk_kernel[(seqs, chunks)](
            found, tops, masses, cuts, *inputs, *strides, **shared, num_warps=_CHUNK_WARPS
        )
        _sample_row_kernel[(seqs,)](
            ids, found, tops, masses, cuts, *inputs, *strides, **shared,
            CHUNKS_BLOCK=triton.next_power_of_2(chunks), num_warps=_ROW_WARPS,
        )  # fmt: skip
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
def _noise_keys(seed, position):
    """The two words that a row's noise is hashed with."""
    first = _mix(position.to(tl.uint32) + 0x3C6EF372)
    first = _mix((seed & 0xFFFFFFFF).to(tl.uint32) ^ first)
    return first, _mix((seed >> 32).to(tl.uint32) ^ _mix(first + 0x165667B1))


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
def _pack(key, ids):
    """A key and an id as one integer: the order is the larger key, then the lower id."""
    return (key.to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)


@triton.jit
def _unpack(packed):
    """(keys, ids) again."""
    return (packed >> 32).to(tl.int32), 0x7FFFFFFF - (packed & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def _nothing():
    """What loses to any token, and packed as token 0, which is drawn if none is possible."""
    return _pack(_key(tl.full((), float("-inf"), tl.float32)), tl.full((), 0, tl.int32))


@triton.jit
def _row_of(seq, rows_ptr, positions_ptr, table, VOCAB: tl.constexpr, GREEDY: tl.constexpr):
    """(row, position, ids to suppress, temperature or 0 if greedy, asks for a threshold)."""
    row = tl.load(rows_ptr + seq).to(tl.int64)
    position = tl.load(positions_ptr + seq)
    early = position < tl.load(table.min_position + row)
    num_suppressed = tl.where(early, tl.load(table.num_suppressed + row), 0)
    temperature = tl.load(table.temperature + row)
    temperature = tl.where(temperature < GREEDY, 0.0, temperature)
    top_k = tl.load(table.top_k + row)
    limited = ((top_k > 0) & (top_k < VOCAB)) | (tl.load(table.top_p + row) < 1.0)
    limited |= tl.load(table.min_p + row) > 0.0
    return row, position, num_suppressed, temperature, limited & (temperature > 0.0)


@triton.jit
def _id_at(place, chunk, CHUNKS: tl.constexpr, CHUNK: tl.constexpr):
    """The id at a place in a chunk, rising.

    A chunk is four runs of ids spread over the vocabulary: frequent tokens are neighbours in most,
    and no chunk should have them all.
    """
    RUN: tl.constexpr = CHUNK // 4
    return (place // RUN * CHUNKS + chunk) * RUN + place % RUN


@triton.jit
def _logits_of(line, ids, VOCAB: tl.constexpr):
    """A row's logits in fp32; those of suppressed and missing ids are -inf."""
    logits_ptr, suppressed_ptr, num_suppressed = line
    x = tl.load(logits_ptr + ids, mask=ids < VOCAB, other=float("-inf")).to(tl.float32)
    for i in range(0, num_suppressed):
        x = tl.where(ids == tl.load(suppressed_ptr + i), float("-inf"), x)
    return x


@triton.jit
def _search(key, weight, target, BITS: tl.constexpr):
    """The largest key whose own weight and that of all above it reach `target`; or the lowest."""
    found = tl.full((), -(2**31), tl.int32)
    for bit in range(0, BITS):
        candidate = found ^ (tl.full((), 1, tl.int32) << (31 - bit))
        reached = tl.sum(tl.where(key >= candidate, weight, 0.0), axis=0)
        found = tl.where(reached >= target, candidate, found)
    return found


@triton.jit
def _send(
    found_ptr, line, cut, chunk,
    VOCAB: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Write a chunk's tokens from `cut` on, and fill up. Part by part, which spares registers."""
    count = 0
    for part in tl.static_range(4):
        place = part * (CHUNK // 4) + tl.arange(0, CHUNK // 4)
        ids = _id_at(place, chunk, CHUNKS, CHUNK)
        x = _logits_of(line, ids, VOCAB)
        sent = (_key(x) >= cut) & (x > float("-inf"))
        slot = count + tl.cumsum(sent.to(tl.int32), axis=0) - 1
        tl.store(found_ptr + slot, _pack(_key(x), ids), mask=sent)
        count += tl.sum(sent.to(tl.int32), axis=0)
    slot = tl.arange(0, KEPT)
    tl.store(found_ptr + slot, _nothing(), mask=slot >= count)


@triton.jit(do_not_specialize_on_alignment=["rows_ptr", "positions_ptr"])
def _sample_chunk_kernel(
    found_ptr,  # [seqs, chunks, kept] int64: the best score first, or all that is sent on
    tops_ptr,  # [seqs, chunks] fp32: the largest logit
    masses_ptr,  # [seqs, chunks] fp32: softmax mass, in units of the largest logit's
    cuts_ptr,  # [seqs, chunks] int32: every token with this key or a larger one is sent on
    logits_ptr,  # [seqs, vocab]
    rows_ptr,  # [seqs]
    positions_ptr,  # [seqs]
    table,
    logits_stride,
    suppressed_stride,
    VOCAB: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    KEPT: tl.constexpr,
    BITS: tl.constexpr,
    GREEDY: tl.constexpr,
    LOG2E: tl.constexpr,
):
    """One program a (sequence, chunk): its best score, or what the row's threshold may need."""
    seq, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, position, num_suppressed, temperature, limited = _row_of(
        seq, rows_ptr, positions_ptr, table, VOCAB, GREEDY
    )
    suppressed_ptr = table.suppressed_ids + row * suppressed_stride
    line = (logits_ptr + seq * logits_stride, suppressed_ptr, num_suppressed)
    ids = _id_at(tl.arange(0, CHUNK), chunk, CHUNKS, CHUNK)
    x = _logits_of(line, ids, VOCAB)
    at = seq * CHUNKS + chunk
    found_ptr += at * KEPT
    if limited:
        top = tl.maximum(tl.max(x, axis=0), -1e30)  # finite: -inf less it is -inf
        weight = tl.exp2((x - top) * (LOG2E / temperature))
        tl.store(tops_ptr + at, top)
        tl.store(masses_ptr + at, tl.sum(weight, axis=0))
        key = tl.where(x > float("-inf"), _key(x), -(2**31))
        cut = _search(key, 1.0, KEPT + 1, BITS)
        if cut > -(2**31):  # more than KEPT from there on: only what lies above
            cut += 1 << (32 - BITS)
        tl.store(cuts_ptr + at, cut)
        _send(found_ptr, line, cut, chunk, VOCAB, CHUNKS, CHUNK, KEPT)
    else:
        if temperature > 0.0:
            first, second = _noise_keys(tl.load(table.seed + row), position)
            x = x * (1.0 / temperature) + _gumbel_of(ids, first, second)
        best, place = tl.max(x, axis=0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(found_ptr, _pack(_key(best), _id_at(place, chunk, CHUNKS, CHUNK)))


@triton.jit
def _reached(
    line, low, top, scale_log2e, BY_MASS: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):
    """How many tokens of a whole row, or how much softmax mass, `low` leaves in."""
    total = tl.zeros([BLOCK], tl.float32)
    for at in range(0, VOCAB, BLOCK):
        x = _logits_of(line, at + tl.arange(0, BLOCK), VOCAB)
        weight = 1.0
        if BY_MASS:
            weight = tl.exp2((x - top) * scale_log2e)
        total += tl.where(_key(x) >= low, weight, 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _search_row(
    line, target, top, scale_log2e,
    BY_MASS: tl.constexpr, VOCAB: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`_search` of all tokens of a row."""
    found = tl.full((), -(2**31), tl.int32)
    for bit in range(0, BITS):
        candidate = found ^ (tl.full((), 1, tl.int32) << (31 - bit))
        reached = _reached(line, candidate, top, scale_log2e, BY_MASS, VOCAB, BLOCK)
        found = tl.where(reached >= target, candidate, found)
    return found


@triton.jit
def _draw_from_sent(
    packed, cut, mass, top_k, top_p, min_low, top, temperature, first, second,
    BITS: tl.constexpr, LOG2E: tl.constexpr,
):  # fmt: skip
    """(best of what the chunks sent, whether all tokens above the threshold are among that)."""
    key, ids = _unpack(packed)
    x = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    weight = tl.exp2((x - top) * (LOG2E / temperature))
    low = tl.full((), -(2**31), tl.int32)
    enough = True
    if top_k > 0:
        low = _search(key, 1.0, top_k, BITS)
        mass = tl.sum(tl.where(key >= low, weight, 0.0), axis=0)
        enough = low >= cut
    if top_p < 1.0:
        low = tl.maximum(low, _search(key, weight, top_p * mass, BITS))
    low = tl.maximum(low, min_low)
    score = x * (1.0 / temperature) + _gumbel_of(ids, first, second)
    score = tl.where(key >= low, score, float("-inf"))
    return tl.max(_pack(_key(score), ids), axis=0), enough & (low >= cut)


@triton.jit
def _draw_from_row(
    line, mass, top_k, top_p, min_low, top, temperature, first, second,
    VOCAB: tl.constexpr, CHUNK: tl.constexpr, BITS: tl.constexpr, LOG2E: tl.constexpr,
):  # fmt: skip
    """The best of the whole row, read once for each bit of the threshold."""
    WIDE: tl.constexpr = 2 * CHUNK
    scale_log2e = LOG2E / temperature
    low = tl.full((), -(2**31), tl.int32)
    if top_k > 0:
        low = _search_row(line, top_k, top, scale_log2e, False, VOCAB, BITS, WIDE)
        mass = _reached(line, low, top, scale_log2e, True, VOCAB, WIDE)
    if top_p < 1.0:
        target = top_p * mass
        found = _search_row(line, target, top, scale_log2e, True, VOCAB, BITS, WIDE)
        low = tl.maximum(low, found)
    low = tl.maximum(low, min_low)
    best = _nothing()
    for at in range(0, VOCAB, CHUNK):
        ids = at + tl.arange(0, CHUNK)
        x = _logits_of(line, ids, VOCAB)
        score = x * (1.0 / temperature) + _gumbel_of(ids, first, second)
        score = tl.where(_key(x) >= low, score, float("-inf"))
        best = tl.maximum(best, tl.max(_pack(_key(score), ids), axis=0))
    return best


@triton.jit(do_not_specialize_on_alignment=["rows_ptr", "positions_ptr"])
def _sample_row_kernel(
    ids_ptr,  # [seqs]
    found_ptr,  # [seqs, chunks, kept] int64, and so on as the chunks wrote them
    tops_ptr,
    masses_ptr,
    cuts_ptr,
    logits_ptr,  # [seqs, vocab]
    rows_ptr,  # [seqs]
    positions_ptr,  # [seqs]
    table,
    logits_stride,
    suppressed_stride,
    VOCAB: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    KEPT: tl.constexpr,
    BITS: tl.constexpr,
    GREEDY: tl.constexpr,
    LOG2E: tl.constexpr,
    CHUNKS_BLOCK: tl.constexpr,
):
    """One program a sequence: the best of its chunks' best, or the draw above its threshold."""
    seq = tl.program_id(0).to(tl.int64)
    row, position, num_suppressed, temperature, limited = _row_of(
        seq, rows_ptr, positions_ptr, table, VOCAB, GREEDY
    )
    at = tl.arange(0, CHUNKS_BLOCK)
    real = at < CHUNKS
    found_ptr += seq * CHUNKS * KEPT
    if limited:
        own = seq * CHUNKS + at
        tops = tl.load(tops_ptr + own, mask=real, other=float("-inf"))
        masses = tl.load(masses_ptr + own, mask=real, other=0.0)
        cut = tl.max(tl.load(cuts_ptr + own, mask=real, other=-(2**31)), axis=0)
        top = tl.max(tops, axis=0)
        mass = tl.sum(masses * tl.exp2((tops - top) * (LOG2E / temperature)), axis=0)
        top_k = tl.load(table.top_k + row)
        top_k = tl.where(top_k < VOCAB, top_k, 0)
        top_p = tl.load(table.top_p + row)
        min_p = tl.load(table.min_p + row)
        min_low = tl.full((), -(2**31), tl.int32)
        if min_p > 0.0:
            min_low = _key(top + temperature * tl.log(min_p))
        first, second = _noise_keys(tl.load(table.seed + row), position)
        slot = tl.arange(0, CHUNKS_BLOCK * KEPT)
        sent = tl.load(found_ptr + slot, mask=slot < CHUNKS * KEPT, other=_nothing())
        best, enough = _draw_from_sent(
            sent, cut, mass, top_k, top_p, min_low, top, temperature, first, second, BITS, LOG2E
        )
        if not enough:
            suppressed_ptr = table.suppressed_ids + row * suppressed_stride
            line = (logits_ptr + seq * logits_stride, suppressed_ptr, num_suppressed)
            best = _draw_from_row(
                line, mass, top_k, top_p, min_low, top, temperature, first, second,
                VOCAB, CHUNK, BITS, LOG2E,
            )  # fmt: skip
    else:
        best = tl.max(tl.load(found_ptr + at * KEPT, mask=real, other=_nothing()), axis=0)
    _, drawn = _unpack(best)
    tl.store(ids_ptr + seq, drawn)

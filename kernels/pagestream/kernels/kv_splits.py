"""How the contexts of a step's sequences are cut in pieces: the work list of decode attention.

A program of decode attention reads one piece of one sequence's keys and values. Pieces of much the
same length keep the device full to the end, whatever the lengths of the contexts; a list of them,
made once a step on the device, wastes no program on what a sequence does not have. The module does
not know what is done with a piece.

Source: the load balancing of Ye et al., "FlashInfer", arXiv:2501.01005, §3.3; here it is the device
that shares out, since only it knows the lengths when a captured step runs.
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

ALIGN_TOKENS = 128
"""A piece has a multiple of so many tokens, as the tiles that are read do; but for the last."""

_SEQS_BLOCK = 1024


class KvSplits(NamedTuple):
    """The pieces of a step's contexts, on the device."""

    pieces: Tensor
    """[pieces, 6] int32: its sequence, that one's row, the first key and the one behind the last,
    how many pieces the sequence has, and whether this one holds its newest key (1 or 0); from the
    third on 0 of those that are left over, which hold no key."""
    places: Tensor
    """[seqs, 2] int32: a sequence's first piece, and how many it has."""


class Splitting(NamedTuple):
    """How contexts are cut, and how a piece is read.

    The longest piece is what there is to read in the whole batch divided by `parts`: then there are
    no more than `parts` pieces beyond one a sequence. With `by_sequence` it is a sequence's own
    context divided by them, so that its bits depend on nothing else of the batch.
    """

    min_tokens: int
    """No context is cut for less."""
    parts: int
    by_sequence: bool = False
    tile: int = 64
    """Keys read at a time."""
    warps: int = 4
    stages: int = 2
    """One more than the tiles that are on their way at a time, the first before the kernel in front
    has ended: many hide the latency of a program alone, few let more programs run beside it, the
    next layer's too."""
    merges_apart: bool = False
    """Whether a kernel of its own merges a sequence's pieces: quicker where contexts are cut. Else
    the program that ends last does, which costs nothing where none is."""

    @classmethod
    def fastest(cls, seqs: int, kv_heads: int, head_dim: int) -> "Splitting":
        """Return the splitting that measured fastest for a batch, over contexts of all lengths.

        Few sequences are cut, so that all processors read, and about as much as each other. Where
        there are many, a piece mostly costs its own beginning and end: only long contexts are cut.
        """
        programs, (fewer, most) = seqs * kv_heads, _splittings(head_dim)
        splittings = (splitting for limit, splitting in fewer if programs <= limit)
        return next(splittings, most).fitted(seqs, kv_heads)

    @classmethod
    def for_many(cls, kv_heads: int, head_dim: int) -> "Splitting":
        """Return one splitting for every batch of many sequences: one kernel to compile."""
        most = _splittings(head_dim).most
        return most.fitted(most.parts, kv_heads)

    def fitted(self, seqs: int, kv_heads: int) -> "Splitting":
        """Return this for a batch of `seqs`: `parts` are times kv heads here, and not there."""
        # Rounding gives each sequence but one up to one piece more than its share: leave room.
        rounding = min((seqs - 1) * kv_heads, self.parts // 3)
        return self._replace(parts=max((self.parts - rounding) // kv_heads, 1))

    def most(self, seqs: int, max_kv_len: int) -> int:
        """Pieces that `seqs` sequences of at most `max_kv_len` tokens can have."""
        each = max(-(-max_kv_len // self.min_tokens), 1)
        if self.by_sequence:
            return seqs * min(each, self.parts)
        return min(seqs * each, seqs + self.parts)


FIXED_SPLITTING = Splitting(512, 16, by_sequence=True, stages=3)
"""For any batch: what a sequence gives alone it gives among others."""


class _Splittings(NamedTuple):
    """Those that measured fastest for heads of a size on an H200, which has 132 processors.

    `parts` is times kv heads here: the programs that run at once, or a multiple. Above half of
    these, what decides is which splitting leaves fewer processors idle at the end, so they take
    turns.
    """

    fewer: tuple[tuple[int, Splitting], ...]
    """With the most programs (sequences times kv heads) that each is for, the fewest first."""
    most: Splitting
    """For more programs."""


_HEADS_TO_64 = _Splittings(
    (
        (24, Splitting(128, 264, tile=128, stages=3, merges_apart=True)),
        (200, Splitting(128, 528, stages=4, merges_apart=True)),
        (264, Splitting(256, 528, stages=4)),
        (400, Splitting(256, 660, stages=3)),
    ),
    Splitting(512, 396, stages=4),
)
_HEADS_BELOW_128 = _Splittings(
    (
        (100, Splitting(128, 264, stages=4, merges_apart=True)),
        (200, Splitting(128, 396, stages=3, merges_apart=True)),
    ),
    Splitting(512, 792, stages=3),
)
_WHOLE_128 = Splitting(512, 396, stages=3)
_HEADS_OF_128 = _Splittings(
    (
        (16, Splitting(128, 132, tile=128, stages=3, merges_apart=True)),
        (100, Splitting(128, 264, stages=4, merges_apart=True)),
        (200, Splitting(128, 396, stages=3, merges_apart=True)),
        (264, Splitting(512, 264, stages=4)),
        (320, Splitting(512, 792, stages=3)),
        (400, _WHOLE_128),
        (528, Splitting(512, 528, stages=4)),
    ),
    _WHOLE_128,
)
_WHOLE_256 = Splitting(512, 264, tile=32, stages=4)
_EIGHT_WARPS_256 = Splitting(512, 132, warps=8, stages=3)
_HEADS_OF_256 = _Splittings(
    (
        (100, Splitting(128, 264, tile=32, stages=4, merges_apart=True)),
        (150, _EIGHT_WARPS_256),
        (264, _WHOLE_256),
        (400, _EIGHT_WARPS_256),
    ),
    _WHOLE_256,
)
_UNALIGNED_HEADS = _Splittings(
    ((200, Splitting(128, 396, tile=32, stages=3, merges_apart=True)),),
    Splitting(512, 792, tile=32, stages=3),
)
"""Of no multiple of 16 bytes: they come in smaller runs, which cost registers."""


def _splittings(head_dim: int) -> _Splittings:
    if head_dim % 8:
        return _UNALIGNED_HEADS
    if head_dim <= 64:
        return _HEADS_TO_64
    if head_dim <= 128:
        return _HEADS_OF_128 if head_dim == 128 else _HEADS_BELOW_128
    return _HEADS_OF_256


def kv_splits_reference(
    rows: Tensor, kv_lens: Tensor, splitting: Splitting, max_kv_len: int, window: int | None = None
) -> KvSplits:
    """`kv_splits` in plain torch."""
    first = torch.zeros_like(kv_lens) if window is None else (kv_lens - window).clamp(min=0)
    span = kv_lens - first
    shared = span if splitting.by_sequence else span.sum()
    least = (-(-shared // splitting.parts)).clamp(min=splitting.min_tokens)
    splits = -(-span // least)
    tokens = -(-span // (splits.clamp(min=1) * ALIGN_TOKENS)) * ALIGN_TOKENS
    splits = -(-span // tokens.clamp(min=1))
    place = splits.cumsum(0) - splits
    most = splitting.most(len(rows), max_kv_len)
    pieces = torch.zeros(most, 6, dtype=torch.int32, device=rows.device)
    seq = torch.repeat_interleave(splits)
    begin = first[seq] + (torch.arange(len(seq), device=rows.device) - place[seq]) * tokens[seq]
    end = torch.minimum(begin + tokens[seq], kv_lens[seq])
    fields = (seq, rows[seq], begin, end, splits[seq], end == kv_lens[seq])
    pieces[: len(seq)] = torch.stack([field.int() for field in fields], dim=1)
    return KvSplits(pieces, torch.stack([place, splits], dim=1).int())


def kv_splits(
    rows: Tensor, kv_lens: Tensor, splitting: Splitting, max_kv_len: int, window: int | None = None
) -> KvSplits:
    """Cut every sequence's context in pieces of even length.

    Shapes: rows [seqs] int32, kv_lens [seqs] int32 (0: nothing to read). There is room for the most
    pieces that there can be. With a window only what the newest token sees is cut.
    """
    if not runs_kernel(kv_lens):
        return kv_splits_reference(rows, kv_lens, splitting, max_kv_len, window)
    seqs, count = len(rows), splitting.most(len(rows), max_kv_len)
    pieces = torch.empty((count, 6), dtype=torch.int32, device=rows.device)
    places = torch.empty((seqs, 2), dtype=torch.int32, device=rows.device)
    if count:
        _kv_splits_kernel[(1,)](
            pieces,
            places,
            rows,
            kv_lens,
            seqs,
            count,
            splitting.min_tokens,
            splitting.parts,
            BY_SEQUENCE=splitting.by_sequence,
            WINDOW=window,
            ALIGN=ALIGN_TOKENS,
            SEQS_BLOCK=max(_SEQS_BLOCK, triton.next_power_of_2(seqs)),
            **overlapping_launch(seqs),
        )
    return KvSplits(pieces, places)


@triton.jit(
    do_not_specialize=["seqs", "count", "min_tokens", "parts"],
    do_not_specialize_on_alignment=["rows_ptr", "kv_lens_ptr"],
)
def _kv_splits_kernel(
    pieces_ptr,  # [count, 6]
    places_ptr,  # [seqs, 2]
    rows_ptr,  # [seqs]
    kv_lens_ptr,  # [seqs]
    seqs,
    count,
    min_tokens,
    parts,
    BY_SEQUENCE: tl.constexpr,
    WINDOW: tl.constexpr,
    ALIGN: tl.constexpr,
    SEQS_BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program for all."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    seq = tl.arange(0, SEQS_BLOCK)
    row = tl.load(rows_ptr + seq, mask=seq < seqs, other=0)
    kv_len = tl.load(kv_lens_ptr + seq, mask=seq < seqs, other=0)
    first = tl.zeros_like(kv_len)
    if WINDOW is not None:
        first = tl.maximum(kv_len - WINDOW, 0)
    span = kv_len - first
    shared = span
    if not BY_SEQUENCE:
        shared = tl.zeros_like(span) + tl.sum(span, axis=0)
    least = tl.maximum(tl.cdiv(shared, parts), min_tokens)
    splits = tl.cdiv(span, least)
    tokens = tl.cdiv(span, tl.maximum(splits, 1) * ALIGN) * ALIGN
    splits = tl.cdiv(span, tl.maximum(tokens, 1))
    place = tl.cumsum(splits, axis=0) - splits
    tl.store(places_ptr + seq * 2, place, mask=seq < seqs)
    tl.store(places_ptr + seq * 2 + 1, splits, mask=seq < seqs)
    for split in range(0, tl.max(splits, axis=0)):
        inside = split < splits
        begin = first + split * tokens
        end = tl.minimum(begin + tokens, kv_len)
        piece_ptr = pieces_ptr + (place + split) * 6
        tl.store(piece_ptr, seq, mask=inside)
        tl.store(piece_ptr + 1, row, mask=inside)
        tl.store(piece_ptr + 2, begin, mask=inside)
        tl.store(piece_ptr + 3, end, mask=inside)
        tl.store(piece_ptr + 4, splits, mask=inside)
        tl.store(piece_ptr + 5, (end == kv_len).to(tl.int32), mask=inside)
    for at in range(tl.sum(splits, axis=0), count, SEQS_BLOCK):
        for field in tl.static_range(2, 6):
            tl.store(pieces_ptr + (at + seq) * 6 + field, 0, mask=at + seq < count)

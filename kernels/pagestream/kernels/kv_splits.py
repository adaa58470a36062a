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
    """[pieces, 5] int32: its sequence, that one's row, the first key and the one behind the last,
    and how many pieces the sequence has; 0 of those that are left over, which hold no key."""
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
    """One more than the tiles that are on their way at a time: many hide the latency of a program
    alone, few let more programs run beside it."""
    finer: int = 1
    """So many times the parts there are where the pieces would differ much in length: the short
    ones then make up for the long ones, one after the other on the same processor."""
    merges_apart: bool = False
    """Whether a kernel of its own merges a sequence's pieces: quicker where contexts are cut. Else
    the program that ends last does, which costs nothing where none is."""

    @classmethod
    def fastest(cls, seqs: int, kv_heads: int, head_dim: int) -> "Splitting":
        """Return the splitting that measured fastest for a batch.

        Where sequences leave processors idle, they are cut so that all pieces run at once; where
        there are more, a piece only costs its own beginning and end.
        """
        programs, ways = seqs * kv_heads, _ways(head_dim)
        at_once, tile, stages = ways.few
        if programs <= at_once:
            few = cls(128, at_once, tile=tile, stages=stages).fitted(seqs, kv_heads)
            # Those of few sequences are many pieces each, and so much alike.
            are_cut = programs <= at_once // 2
            return few._replace(merges_apart=True) if are_cut else few._replace(finer=3)
        _, tile, stages = max(ways.many, key=lambda way: _share_of_waves(programs, way.at_once))
        return _MANY._replace(tile=tile, stages=stages).fitted(seqs, kv_heads)

    @classmethod
    def for_many(cls, kv_heads: int, head_dim: int) -> "Splitting":
        """Return one splitting for every batch of many sequences: one kernel to compile."""
        _, tile, stages = _ways(head_dim).many[-1]
        return _MANY._replace(tile=tile, stages=stages).fitted(_MANY.parts, kv_heads)

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
        return min(seqs * each, seqs + self.parts * self.finer)


FIXED_SPLITTING = Splitting(512, 16, by_sequence=True)
"""For any batch: what a sequence gives alone it gives among others."""

_MANY = Splitting(2048, 792)
"""For more programs than run at once; `parts` is times kv heads."""


class _Way(NamedTuple):
    """A way to read pieces, and how many programs an H200 of 132 processors runs at once by it."""

    at_once: int
    tile: int
    stages: int


class _Ways(NamedTuple):
    """Those that measured fastest for heads of a size on an H200."""

    few: _Way
    """Where all programs run at once."""
    many: tuple[_Way, ...]
    """Else: whichever leaves fewer processors idle at the end."""


def _ways(head_dim: int) -> _Ways:
    if head_dim % 8:  # no multiple of 16 bytes: comes in smaller pieces, which cost registers
        way = _Way(3 * 132, 64, 2)
        return _Ways(way, (way,))
    if head_dim <= 64:
        way = _Way(4 * 132, 64, 4)
        return _Ways(way, (way, _Way(5 * 132, 64, 3)))
    if head_dim <= 128:
        return _Ways(_Way(2 * 132, 64, 4), (_Way(3 * 132, 64, 3), _Way(4 * 132, 64, 2)))
    way = _Way(2 * 132, 32, 4)
    return _Ways(way, (way,))


def _share_of_waves(programs: int, at_once: int) -> float:
    """How full the device is on average if all programs take the same time."""
    return programs / (-(-programs // at_once) * at_once)


def kv_splits_reference(
    rows: Tensor, kv_lens: Tensor, splitting: Splitting, max_kv_len: int, window: int | None = None
) -> KvSplits:
    """`kv_splits` in plain torch."""
    first = torch.zeros_like(kv_lens) if window is None else (kv_lens - window).clamp(min=0)
    span = kv_lens - first
    shared = span if splitting.by_sequence else span.sum()

    def cut(parts: int) -> tuple[Tensor, Tensor]:
        least = (-(-shared // parts)).clamp(min=splitting.min_tokens)
        splits = -(-span // least)
        tokens = -(-span // (splits.clamp(min=1) * ALIGN_TOKENS)) * ALIGN_TOKENS
        return -(-span // tokens.clamp(min=1)), tokens

    splits, tokens = cut(splitting.parts)
    if len(span) and 4 * tokens.max() * splits.sum() > 5 * span.sum():
        splits, tokens = cut(splitting.parts * splitting.finer)
    place = splits.cumsum(0) - splits
    most = splitting.most(len(rows), max_kv_len)
    pieces = torch.zeros(most, 5, dtype=torch.int32, device=rows.device)
    seq = torch.repeat_interleave(splits)
    begin = first[seq] + (torch.arange(len(seq), device=rows.device) - place[seq]) * tokens[seq]
    end = torch.minimum(begin + tokens[seq], kv_lens[seq])
    fields = (seq, rows[seq], begin, end, splits[seq])
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
    pieces = torch.empty((count, 5), dtype=torch.int32, device=rows.device)
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
            splitting.finer,
            BY_SEQUENCE=splitting.by_sequence,
            WINDOW=window,
            ALIGN=ALIGN_TOKENS,
            SEQS_BLOCK=max(_SEQS_BLOCK, triton.next_power_of_2(seqs)),
            **overlapping_launch(seqs),
        )
    return KvSplits(pieces, places)


@triton.jit
def _cut(span, shared, parts, min_tokens, ALIGN: tl.constexpr):
    """Return how many pieces each context of `span` tokens gets, and how long they are."""
    least = tl.maximum(tl.cdiv(shared, parts), min_tokens)
    splits = tl.cdiv(span, least)
    tokens = tl.cdiv(span, tl.maximum(splits, 1) * ALIGN) * ALIGN
    return tl.cdiv(span, tl.maximum(tokens, 1)), tokens


@triton.jit(
    do_not_specialize=["seqs", "count", "min_tokens", "parts", "finer"],
    do_not_specialize_on_alignment=["rows_ptr", "kv_lens_ptr"],
)
def _kv_splits_kernel(
    pieces_ptr,  # [count, 5]
    places_ptr,  # [seqs, 2]
    rows_ptr,  # [seqs]
    kv_lens_ptr,  # [seqs]
    seqs,
    count,
    min_tokens,
    parts,
    finer,
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
    splits, tokens = _cut(span, shared, parts, min_tokens, ALIGN)
    longest, count_even = tl.max(tokens, axis=0).to(tl.int64), tl.sum(splits, axis=0)
    if 4 * longest * count_even > 5 * tl.sum(span, axis=0).to(tl.int64):
        splits, tokens = _cut(span, shared, parts * finer, min_tokens, ALIGN)
    place = tl.cumsum(splits, axis=0) - splits
    tl.store(places_ptr + seq * 2, place, mask=seq < seqs)
    tl.store(places_ptr + seq * 2 + 1, splits, mask=seq < seqs)
    for split in range(0, tl.max(splits, axis=0)):
        inside = split < splits
        begin = first + split * tokens
        piece_ptr = pieces_ptr + (place + split) * 5
        tl.store(piece_ptr, seq, mask=inside)
        tl.store(piece_ptr + 1, row, mask=inside)
        tl.store(piece_ptr + 2, begin, mask=inside)
        tl.store(piece_ptr + 3, tl.minimum(begin + tokens, kv_len), mask=inside)
        tl.store(piece_ptr + 4, splits, mask=inside)
    for at in range(tl.sum(splits, axis=0), count, SEQS_BLOCK):
        for field in tl.static_range(2, 5):
            tl.store(pieces_ptr + (at + seq) * 5 + field, 0, mask=at + seq < count)

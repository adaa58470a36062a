from itertools import pairwise

import pytest
import torch

from pagestream.kernels import Splitting, kv_splits
from pagestream.kernels.kv_splits import ALIGN_TOKENS, _splittings

LENGTHS = ([1], [0, 5, 0], [2100, 385, 256, 100, 1], [4096] * 3, [128, 32_000], [7] * 1030, [])
SPLITTINGS = (
    Splitting(128, 33),
    Splitting(1024, 4),
    Splitting(512, 16, by_sequence=True),
)

on_both_paths = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cpu", id="interpreter", marks=pytest.mark.interpreter),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)


def cut(lengths, splitting, device, window=None, longer=0):
    """The pieces of each sequence, as (begin, end)."""
    kv_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    rows = torch.arange(len(lengths), dtype=torch.int32, device=device) + 10
    splits = kv_splits(rows, kv_lens, splitting, max([*lengths, 1]) + longer, window)
    items, places = splits.pieces.tolist(), splits.places.tolist()
    used = [item for item in items if item[4]]
    assert items[: len(used)] == used, "what is left over is behind"
    pieces = [[] for _ in lengths]
    for place, (seq, row, begin, end, count, has_newest) in enumerate(used):
        assert row == seq + 10
        assert has_newest == (end == lengths[seq])
        first, in_all = places[seq]
        assert place == first + len(pieces[seq]), "a sequence's pieces are neighbours, in order"
        assert count == in_all
        pieces[seq].append((begin, end))
    assert [len(own) for own in pieces] == [in_all for _, in_all in places]
    return pieces


@on_both_paths
@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_pieces_are_the_context(device, splitting, window):
    for lengths in LENGTHS:
        for longer in (0, 5_000):
            pieces = cut(lengths, splitting, device, window, longer)
            for length, own in zip(lengths, pieces, strict=True):
                first = max(length - window, 0) if window else 0
                assert [begin for begin, _ in own] == [first, *[end for _, end in own]][: len(own)]
                assert not own or own[-1][1] == length
                assert bool(own) == bool(length)


@on_both_paths
def test_a_batch_is_shared_out_evenly(device):
    pieces = cut([30_000, 2_000, 1_000, 500], Splitting(128, 33), device)
    longest = -(-33_500 // 33)
    for begin, end in (piece for own in pieces for piece in own):
        assert end - begin <= longest + ALIGN_TOKENS
    assert [len(own) for own in pieces] == [30, 2, 1, 1]


@on_both_paths
def test_what_is_fixed_depends_on_the_sequence_alone(device):
    splitting = Splitting(512, 16, by_sequence=True)
    together = cut([1025, 9_000, 3, 512], splitting, device)
    for length, own in zip([1025, 9_000, 3, 512], together, strict=True):
        assert cut([length], splitting, device)[0] == own
    assert [len(own) for own in together] == [3, 15, 1, 1]


@pytest.mark.parametrize(
    ("head_dim", "seqs", "at_once"),
    [(128, 1, 132), (128, 8, 264), (128, 20, 396), (64, 2, 264), (64, 20, 528), (256, 12, 264)],
)
def test_few_sequences_are_cut_to_fill_the_device_at_once(head_dim, seqs, at_once):
    """Not with more pieces than it runs at once, however they round."""
    splitting = Splitting.fastest(seqs, 8, head_dim)
    assert splitting.merges_apart
    ragged = [3_000 + 5_000 * i // seqs for i in range(seqs)]
    for lengths in ([4_096] * seqs, [6_000] * seqs, ragged):
        pieces = 8 * sum(map(len, cut(lengths, splitting, "cpu")))
        assert 0.6 * at_once <= pieces <= at_once, (lengths, splitting)


def test_of_many_sequences_only_long_contexts_are_cut():
    lengths = [32_000, *[500] * 63]
    pieces = cut(lengths, Splitting.fastest(64, 8, 128), "cpu")
    assert [len(own) for own in pieces[1:]] == [1] * 63
    assert len(pieces[0]) > 8


@pytest.mark.parametrize("head_dim", [32, 64, 96, 100, 128, 256])
def test_each_number_of_sequences_has_its_splitting(head_dim):
    """Every row of the tables serves, up to its limit, and pieces are of whole alignments."""
    fewer, most = _splittings(head_dim)
    limits = [limit for limit, _ in fewer]
    assert limits == sorted(set(limits))
    for (limit, splitting), (_, following) in pairwise([*fewer, (0, most)]):
        assert splitting != following
        assert Splitting.fastest(limit, 1, head_dim) == splitting.fitted(limit, 1)
        assert Splitting.fastest(limit + 1, 1, head_dim) == following.fitted(limit + 1, 1)
        assert splitting.min_tokens % ALIGN_TOKENS == 0
    assert Splitting.for_many(8, head_dim).tile == most.tile

import pytest
import torch
from kernel_cases import check_prefill, on_every_device, on_every_path, paged, randn

from pagestream.kernels import prefill_attention, query_tiles
from pagestream.kernels._triton import KERNELS_ON_CPU

RAGGED = [(1, 1), (20, 37), (64, 64), (1, 100), (33, 161)]


@on_every_path
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(3, 3, 32), (4, 2, 32), (7, 1, 64), (8, 1, 96), (4, 2, 100)]
)
def test_matches_the_oracle(device, dtype, heads, kv_heads, head_dim):
    check_prefill(prefill_attention, RAGGED, heads, kv_heads, head_dim, device, dtype)


@on_every_path
def test_wide_heads(device, dtype):
    check_prefill(prefill_attention, [(5, 70), (150, 161), (1, 1)], 2, 1, 256, device, dtype)


@on_every_path
@pytest.mark.parametrize("window", [1, 16, 70, 100, 500])
def test_window(device, dtype, window):
    check_prefill(prefill_attention, [(1, 1), (100, 161)], 4, 2, 32, device, dtype, window)


@on_every_path
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 32), (4, 96), (4, 128)])
def test_more_query_tiles_than_one(device, dtype, heads, head_dim):
    lens = [(200, 210), (70, 70)]
    check_prefill(prefill_attention, lens, heads, 1, head_dim, device, dtype)


def attend(q, cache, members, q_lens, window=None):
    """The newest tokens of some sequences, whose queries stand in `q` one behind the other."""
    device = q.device
    cu_q = torch.tensor([0, *q_lens], device=device).cumsum(0).int()
    rows, kv_lens = (torch.stack([t[i] for i in members]) for t in (cache.rows, cache.kv_lens))
    return prefill_attention(q, *cache[:3], rows, cu_q, kv_lens, 0.1, window=window)


@on_every_path
def test_tiles_made_before_and_more_than_there_are(device, dtype):
    def op(q, *others, **options):
        tiles = query_tiles(q, 1, others[4], max_seqs=9)
        return prefill_attention(q, *others, tiles=tiles, **options)

    check_prefill(op, [(0, 5), (1, 1), (150, 161), (0, 9), (70, 70)], 2, 1, 32, device, dtype)


@on_every_device
def test_query_tiles_cover_every_query_once(device):
    lens = [0, 1, 0, 64, 65, *[0] * 300, 200]
    cu_q = torch.tensor([5, *lens], device=device).cumsum(0).int()
    q = torch.zeros(5 + sum(lens), 4, 32, device=device)
    tiles = query_tiles(q, 2, cu_q, max_seqs=4).first.tolist()
    if device == "cpu" and not KERNELS_ON_CPU:
        assert tiles == []
        return
    used = [(seq, query) for seq, query in tiles if query < lens[seq]]
    assert used == [(i, first) for i, n in enumerate(lens) for first in range(0, n, 32)]
    assert used == [(seq, query) for seq, query in tiles[: len(used)]]


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3)])
def test_a_sequence_knows_no_other_sequence(heads, kv_heads, window):
    lens = [1, 64, 65, 130, 200, 7]
    cache = paged(lens, kv_heads, 32, torch.float32, "cpu")
    q = randn(sum(lens), heads, 32, dtype=torch.float32, device="cpu", seed=1)
    whole = attend(q, cache, range(6), lens, window).split(lens)
    for i, own in enumerate(q.split(lens)):
        assert torch.equal(attend(own, cache, [i], lens[i : i + 1], window), whole[i])


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float32),
        pytest.param("cpu", torch.float32, marks=pytest.mark.interpreter),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
    ],
    ids=["reference", "fp32", "bf16"],
)
@pytest.mark.parametrize(("window", "head_dim"), [(None, 32), (50, 32), (None, 128), (None, 256)])
def test_bits_do_not_depend_on_the_chunks(device, dtype, window, head_dim):
    # So many at once that programs take more rows than for a chunk.
    cache = paged([300], 1, head_dim, dtype, device)
    q = randn(300, 2, head_dim, dtype=dtype, device=device, seed=1)
    whole = attend(q, cache, [0], [300], window)
    # In the interpreter products are numpy's, whose bits may depend on a row's place in its tile.
    tolerance = 1e-6 if KERNELS_ON_CPU else 0.0
    begin = 0
    for tokens in (1, 69, 64, 166):
        end = begin + tokens
        part = cache._replace(kv_lens=cache.kv_lens * 0 + end)
        got = attend(q[begin:end], part, [0], [tokens], window)
        torch.testing.assert_close(got, whole[begin:end], rtol=tolerance, atol=tolerance)
        begin = end


def test_a_sequence_without_tokens_is_skipped():
    cache = paged([20, 5], 1, 32, torch.float32, "cpu")
    q = randn(5, 2, 32, dtype=torch.float32, device="cpu")
    expected = attend(q, cache, [1], [5])
    assert torch.equal(attend(q, cache, [0, 1], [0, 5]), expected)


def test_refuses_bounds_of_another_length():
    cache, ids = torch.zeros(2, 16, 1, 32), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(AssertionError, match="cu_q"):
        prefill_attention(torch.zeros(1, 1, 32), cache, cache, ids[None], ids, ids, ids, 1.0)

from functools import partial

import pytest
import torch
from kernel_cases import (
    NEWEST_LENS,
    check_decode,
    check_decode_behind_a_kernel,
    on_every_path,
    paged,
    randn,
)

from pagestream.kernels import FIXED_SPLITTING, Splitting, decode_attention, kv_splits


@on_every_path
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [
        (3, 3, 32),
        (4, 2, 32),
        (10, 2, 64),
        (7, 1, 32),
        (8, 1, 96),
        (18, 1, 32),
        (3, 3, 100),
        (2, 1, 256),
    ],
)
def test_matches_the_oracle(device, dtype, heads, kv_heads, head_dim):
    check_decode(decode_attention, [1, 37, 64, 65], heads, kv_heads, head_dim, device, dtype)


@on_every_path
@pytest.mark.parametrize("window", [1, 16, 50, 500])
def test_window(device, dtype, window):
    check_decode(decode_attention, [1, 50, 200], 4, 2, 32, device, dtype, window)


@on_every_path
@pytest.mark.parametrize("window", [None, 300, 1500])
def test_several_splits(device, dtype, window):
    for splitting in (
        Splitting(128, 16, by_sequence=True),
        Splitting(128, 20),
        Splitting(128, 20, merges_apart=True),
    ):
        op = partial(decode_attention, splitting=splitting)
        # One split; two; the last split nearly empty; so many that they are merged in turns.
        check_decode(op, [100, 256, 385, 2100], 2, 1, 32, device, dtype, window)


SHIPPED = [
    None,
    FIXED_SPLITTING,
    Splitting.for_many(8, 128),
    *(Splitting.fastest(seqs, 8, 128) for seqs in (1, 8, 20, 40, 64)),
]


@on_every_path
@pytest.mark.parametrize("splitting", SHIPPED)
def test_splits_as_they_are_shipped(device, dtype, splitting):
    op = partial(decode_attention, splitting=splitting)
    check_decode(op, [1030, 9, 129], 2, 1, 32, device, dtype)


on_kernels = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.interpreter),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)


@on_kernels
@pytest.mark.parametrize("seqs", [1, 3, 20])
def test_what_is_settled_changes_no_bits(device, seqs):
    q, cache = batch([700, 5, 130] * 7, device=device, dtype=torch.float16)
    splitting = Splitting(128, 20, merges_apart=True)
    splits = kv_splits(cache.rows[:seqs], cache.kv_lens[:seqs], splitting, 700)
    args = (q[:seqs], *cache[:3], cache.rows[:seqs], cache.kv_lens[:seqs], 0.1)
    options = {"max_kv_len": 700, "splitting": splitting, "splits": splits}
    waits = decode_attention(*args, **options)
    assert torch.equal(decode_attention(*args, settled=True, **options), waits)


@pytest.mark.gpu
@pytest.mark.parametrize("seqs", [1, 3, 10, 40])
@pytest.mark.parametrize("splitting", [*SHIPPED, Splitting(128, 528, stages=5, merges_apart=True)])
def test_the_newest_keys_may_come_of_the_kernel_in_front(splitting, seqs):
    splitting = splitting or Splitting.fastest(seqs, 8, 128)
    check_decode_behind_a_kernel(decode_attention, (NEWEST_LENS * 4)[-seqs:], splitting)


@on_kernels
def test_arrivals_are_zeros_again(device):
    arrivals = torch.zeros(40, dtype=torch.int32, device=device)
    op = partial(decode_attention, splitting=Splitting(64, 8, by_sequence=True), arrivals=arrivals)
    for _ in range(2):
        check_decode(op, [300, 9, 129], 4, 2, 32, device, torch.float16)
        assert not arrivals.any()


def batch(kv_lens, heads=4, kv_heads=2, head_dim=64, device="cpu", dtype=torch.float32):
    cache = paged(kv_lens, kv_heads, head_dim, dtype, device)
    q = randn(len(kv_lens), heads, head_dim, dtype=dtype, device=device, seed=1)
    return q, cache


def alone(q, cache, i, window=None, longer=0, op=decode_attention):
    pick = slice(i, i + 1)
    return op(
        q[pick], *cache[:3], cache.rows[pick], cache.kv_lens[pick], 0.1,
        window=window, max_kv_len=int(cache.kv_lens[i]) + longer,
    )  # fmt: skip


MIXED = [(37 * i) % 500 + 1 for i in range(64)]


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (5, 5), (7, 1)])
def test_a_sequence_knows_no_other_sequence(heads, kv_heads, window):
    q, cache = batch(MIXED, heads, kv_heads)
    whole = decode_attention(q, *cache[:5], 0.1, window=window, max_kv_len=4096)
    for i in range(64):
        assert torch.equal(alone(q, cache, i, window)[0], whole[i]), f"{MIXED[i]} tokens"


@pytest.mark.gpu
def test_a_sequence_knows_no_other_sequence_on_the_gpu():
    lens = [*MIXED, 1025, 5000, 20000]
    q, cache = batch(lens, 32, 8, 128, "cuda", torch.bfloat16)
    op = partial(decode_attention, splitting=FIXED_SPLITTING)
    whole = op(q, *cache[:5], 0.1, max_kv_len=max(lens))
    for i in (0, 10, 63, 64, 65, 66):
        for longer in (0, 30000):
            assert torch.equal(alone(q, cache, i, longer=longer, op=op)[0], whole[i])


@pytest.mark.gpu
def test_can_be_captured_in_a_graph():
    q, cache = batch([700, 1500, 3], 8, 2, 128, "cuda", torch.bfloat16)
    expected = decode_attention(q, *cache[:5], 0.1, max_kv_len=4096)
    graph, out = torch.cuda.CUDAGraph(), torch.empty_like(q)
    with torch.cuda.graph(graph):
        decode_attention(q, *cache[:5], 0.1, max_kv_len=4096, out=out)
    graph.replay()
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param("cpu", torch.float16, id="fp16", marks=pytest.mark.interpreter),
        pytest.param("cuda", torch.bfloat16, id="bf16", marks=pytest.mark.gpu),
    ],
)
def test_offsets_past_two_billion_elements(device, dtype, tmp_path):
    """A block whose elements lie beyond 2^31, in a cache of which hardly any is touched."""
    blocks = 2**31 // (16 * 32) + 2
    shape = (blocks, 16, 1, 32)
    if device == "cuda":
        cache = torch.empty(shape, dtype=dtype, device=device)
    else:
        size = blocks * 16 * 32
        sparse = torch.from_file(str(tmp_path / "cache"), shared=True, size=size, dtype=dtype)
        cache = sparse.view(shape)
    content = randn(16, 1, 32, dtype=dtype, device=device)
    cache[-1] = content
    table = torch.tensor([[blocks - 1]], dtype=torch.int32, device=device)
    lens = torch.tensor([16], dtype=torch.int32, device=device)
    q = randn(1, 2, 32, dtype=dtype, device=device, seed=1)
    got = decode_attention(q, cache, cache, table, lens * 0, lens, 0.1, max_kv_len=16)
    small = content[None]
    expected = decode_attention(q, small, small, table * 0, lens * 0, lens, 0.1, max_kv_len=16)
    assert torch.equal(got, expected)


def test_half_precision_on_the_cpu():
    for dtype in (torch.float16, torch.bfloat16):
        check_decode(decode_attention, [1, 70], 4, 2, 32, "cpu", dtype)


def test_refuses_heads_that_do_not_divide():
    cache = torch.zeros(2, 16, 3, 32)
    ids = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(AssertionError, match="4 heads on 3 kv heads"):
        decode_attention(
            torch.zeros(1, 4, 32), cache, cache, ids[None], ids, ids, 1.0, max_kv_len=1
        )

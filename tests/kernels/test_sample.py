import pytest
import torch
from kernel_cases import on_every_path
from sampling_cases import (
    check_chunks_agree,
    check_deep_thresholds,
    check_sample,
    shares,
    table,
)

from pagestream.kernels import sample
from pagestream.kernels.sample import _gumbel, _mix_reference


def draw(logits, position=0, device="cpu", **columns):
    """One id a row of logits; row i of the table is sequence i."""
    rows = torch.arange(len(logits), dtype=torch.int32, device=device)
    return sample(
        logits.to(device), rows, rows * 0 + position, table(len(logits), device, **columns)
    )


@on_every_path
def test_matches_the_reference(device, dtype):
    check_sample(sample, device, dtype)
    for vocab in (4096, 5000, 20011):
        check_sample(sample, device, dtype, rows=6, vocab=vocab)


@on_every_path
def test_thresholds_that_leave_in_more_than_the_chunks_send(device, dtype):
    check_deep_thresholds(sample, device, dtype)


@on_every_path
def test_chunks_of_the_vocabulary_agree(device, dtype):
    check_chunks_agree(sample, device, dtype)


@on_every_path
def test_few_possible_tokens_and_a_threshold(device, dtype):
    logits = torch.full((12, 4500), float("-inf"), dtype=dtype)
    logits[:, [40, 3000, 4499]] = torch.tensor([0.0, 1.0, 0.5], dtype=dtype)
    for limits in ({"top_k": 50}, {"top_p": 0.99}, {"top_k": 50, "min_p": 0.1}):
        ids = draw(logits, device=device, seed=range(12), temperature=5.0, **limits).tolist()
        assert set(ids) == {40, 3000, 4499}, limits


@pytest.mark.gpu
def test_a_captured_graph_draws_again_after_other_sizes():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(9, 9001, generator=generator).to("cuda", torch.bfloat16)
    columns = {"top_k": [0, 40, 2000] * 3, "top_p": [1.0, 0.9, 0.5] * 3, "seed": range(9)}
    made = table(9, "cuda", **columns)
    rows = torch.arange(9, dtype=torch.int32, device="cuda")
    expected = sample(logits, rows, rows, made)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = sample(logits, rows, rows, made)
    for seqs in (1, 9, 4):
        sample(logits[:seqs], rows[:seqs], rows[:seqs], made)
        graph.replay()
        assert torch.equal(ids, expected)


@on_every_path
def test_greedy_takes_the_lowest_id_of_a_tie(device, dtype):
    logits = torch.zeros(2, 5000, dtype=dtype)
    logits[0, [4500, 77]] = 3.0
    assert draw(logits, device=device, temperature=0.0).tolist() == [77, 0]


@on_every_path
def test_no_end_token_before_the_minimum(device, dtype):
    logits = torch.zeros(1, 100, dtype=dtype)
    logits[0, 7], logits[0, 50], logits[0, 8] = 9.0, 8.0, 7.0
    stops = {"suppressed_ids": [[7, 50, 8]], "num_suppressed": 2, "min_position": 20}
    for temperature in (0.0, 0.01):
        drawn = [
            draw(logits, at, device, temperature=temperature, **stops).item() for at in (19, 20)
        ]
        assert drawn == [8, 7]


@on_every_path
def test_top_k_and_top_p_of_one_are_greedy(device, dtype):
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    best = logits.float().argmax(-1).tolist()
    assert draw(logits, device=device, top_k=1).tolist() == best
    assert draw(logits, device=device, top_p=1e-6).tolist() == best
    assert draw(logits, device=device, min_p=1.0).tolist() == best


@on_every_path
def test_ties_at_the_threshold_are_all_kept(device, dtype):
    logits = torch.tensor([[0.0, 5.0, -0.0, 0.0]], dtype=dtype).expand(12, 4).contiguous()
    for limits in ({"top_k": 2}, {"top_k": 2, "top_p": 0.9999}):
        ids = draw(logits, device=device, seed=range(12), temperature=9.0, **limits)
        assert set(ids.tolist()) == {0, 1, 2, 3}


@on_every_path
def test_minus_infinity_is_never_drawn(device, dtype):
    logits = torch.full((8, 300), float("-inf"), dtype=dtype)
    logits[:, 123] = -4.0
    for limits in ({}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}):
        assert draw(logits, device=device, seed=range(8), **limits).tolist() == [123] * 8


OPTIONS = [
    {},
    {"temperature": 0.5},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"temperature": 1.5, "top_k": 12, "top_p": 0.8},
    {"top_k": 10, "top_p": 0.9, "min_p": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_draws_follow_the_distribution(options):
    draws = 20_000
    logits = torch.randn(30, generator=torch.Generator().manual_seed(2)) * 1.5
    expected = shares(logits, **({"temperature": 1.0} | options))
    ids = draw(logits.expand(draws, 30).contiguous(), 3, seed=range(draws), **options)
    counts = torch.bincount(ids, minlength=30).double()
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    wanted = expected[possible] * draws
    chi2 = ((counts[possible] - wanted) ** 2 / wanted).sum()
    degrees = int(possible.sum()) - 1
    assert chi2 < degrees + 4 * (2 * degrees) ** 0.5 + 4, f"chi2 {chi2:.1f} of {degrees} degrees"


@pytest.mark.parametrize("vary", ["seed", "position"])
def test_successive_draws_are_independent(vary):
    """Pairs of neighbours: every joint frequency is the product of the single ones."""
    draws = 20_000
    steps = torch.arange(draws)
    logits = torch.zeros(draws, 4)
    rows = steps.int()
    made = table(draws, seed=steps if vary == "seed" else 5)
    ids = sample(logits, rows, rows if vary == "position" else rows * 0, made).long()
    for lag in (1, 2, 256):
        pairs = torch.bincount(ids[:-lag] * 4 + ids[lag:], minlength=16).double()
        wanted = (draws - lag) / 16
        assert ((pairs - wanted) ** 2 / wanted).sum() < 15 + 4 * 30**0.5


def test_a_nucleus_larger_than_what_is_sorted_first():
    logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(1)) * 0.1
    for top_k, top_p in ((0, 0.1), (0, 0.5), (700, 1.0), (700, 0.9), (0, 0.999999)):
        ids = torch.stack(
            [draw(logits, at, top_k=top_k, top_p=top_p, seed=9) for at in range(40)], dim=1
        ).long()
        for row, own in zip(logits, ids, strict=True):
            assert (shares(row, 1.0, top_k, top_p)[own] > 0).all()


@on_every_path
def test_a_draw_does_not_depend_on_the_batch(device, dtype):
    seqs, generator = 24, torch.Generator().manual_seed(4)
    logits = (torch.randn(seqs, 5000, generator=generator) * 3).to(device, dtype)
    columns = {
        "temperature": [0.0 if i % 3 == 0 else 0.9 + i % 7 for i in range(seqs)],
        "top_p": [1.0 if i % 2 else 0.9 for i in range(seqs)],
        "top_k": [0 if i % 5 else 40 for i in range(seqs)],
        "seed": range(1000, 1000 + seqs),
    }
    made = table(seqs, device, **columns)
    rows = torch.arange(seqs, dtype=torch.int32, device=device)
    whole = sample(logits, rows, rows, made)
    for i in range(seqs):
        one = slice(i, i + 1)
        assert torch.equal(sample(logits[one], rows[one], rows[one], made), whole[one])


def test_the_hash_is_murmurs_finalizer():
    def finalizer(h):
        h = ((h ^ h >> 16) * 0x85EBCA6B) % 2**32
        h = ((h ^ h >> 13) * 0xC2B2AE35) % 2**32
        return h ^ h >> 16

    values = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xDEADBEEF, *range(100, 130)]
    signed = torch.tensor([v - 2**32 if v >= 2**31 else v for v in values], dtype=torch.int32)
    assert [h % 2**32 for h in _mix_reference(signed).tolist()] == [finalizer(v) for v in values]


def test_the_noise_is_gumbel_and_finite():
    seeds = torch.tensor([0, 1, 2**31, 2**63 - 1])
    noise = _gumbel(seeds, torch.tensor([0, 5, 2**31 - 1, 77], dtype=torch.int32), 200_000)
    assert noise.isfinite().all()
    assert len(noise[:, :50].unique()) == 200, "rows share no noise"
    torch.testing.assert_close(noise.mean(-1), torch.full((4,), 0.5772), atol=0.015, rtol=0)
    torch.testing.assert_close(noise.var(-1), torch.full((4,), 1.6449), atol=0.03, rtol=0)
    # The upper tail decides who wins: 200,000 tokens reach about ln 200,000 = 12.2.
    assert ((noise.amax(-1) > 9.5) & (noise.amax(-1) < 23)).all()

import pytest
import torch
from kernel_cases import check_rope_and_cache, on_every_path, randn

from pagestream.kernels import rope_and_cache


@on_every_path
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "options"),
    [
        (4, 2, 32, {}),
        (5, 5, 64, {"norm": True}),
        (9, 3, 32, {"norm": True}),
        (6, 1, 96, {"norm": True, "tokens": 1}),
        (2, 1, 64, {"rotary_dim": 48, "norm": True}),
        (3, 3, 100, {}),
        (2, 2, 256, {"tokens": 2}),
    ],
)
def test_matches_complex_rotation(device, dtype, heads, kv_heads, head_dim, options):
    check_rope_and_cache(rope_and_cache, heads, kv_heads, head_dim, device, dtype, **options)


def test_a_token_knows_no_other_token():
    qkv, cos_sin = (randn(70, n, dtype=torch.float32, device="cpu") for n in (8 * 32, 32))
    weight = randn(32, dtype=torch.float32, device="cpu")
    slots = torch.arange(70)
    caches = torch.zeros(2, 5, 16, 2, 32)
    whole = rope_and_cache(qkv, cos_sin, *caches, slots, 4, weight, weight)
    for tokens in (1, 2, 33):
        part = torch.zeros_like(caches)
        last = [t[-tokens:] for t in (qkv, cos_sin, slots)]
        q = rope_and_cache(last[0], last[1], *part, last[2], 4, weight, weight)
        assert torch.equal(q, whole[-tokens:])
        written = slots[-tokens:]
        assert torch.equal(
            part.view(2, 80, 2, 32)[:, written], caches.view(2, 80, 2, 32)[:, written]
        )


def test_refuses_a_projection_of_another_size():
    cache = torch.zeros(2, 16, 2, 32)
    with pytest.raises(AssertionError, match="qkv"):
        rope_and_cache(torch.zeros(1, 100), torch.zeros(1, 32), cache, cache, torch.zeros(1), 4)


@pytest.mark.parametrize(
    ("rows", "slots", "named"), [(3, 2, "2 slots"), (2, 3, "2 rows of cos_sin")]
)
def test_refuses_tokens_without_a_slot_or_a_position(rows, slots, named):
    cache, qkv = torch.zeros(2, 16, 2, 32), torch.zeros(3, 8 * 32)
    with pytest.raises(AssertionError, match=f"{named} for 3 tokens"):
        rope_and_cache(qkv, torch.zeros(rows, 32), cache, cache, torch.zeros(slots).long(), 4)

import pytest
import torch
from kernel_cases import check_batch_layout, on_every_device

from pagestream.kernels import batch_layout


@on_every_device
def test_matches_a_loop_over_tokens(device):
    check_batch_layout(batch_layout, device)


@on_every_device
def test_a_prompt_longer_than_a_program_takes_at_once(device):
    tokens = 2500
    zero = torch.zeros(1, dtype=torch.int32, device=device)
    ids = torch.arange(tokens, dtype=torch.int32, device=device)
    cu_q = torch.tensor([0, tokens], dtype=torch.int32, device=device)
    table = torch.arange(1, 200, dtype=torch.int32, device=device)[None]
    layout = batch_layout(zero, zero + 16, cu_q, ids, zero, zero, table, 16)
    assert torch.equal(layout.input_ids, ids)
    assert torch.equal(layout.positions, ids + 16)
    assert torch.equal(layout.slot_mapping, ids.long() + 32)
    assert layout.kv_lens.tolist() == [tokens + 16]


def test_refuses_bounds_of_another_length():
    ints = torch.zeros(3, dtype=torch.int32)
    with pytest.raises(AssertionError, match="cu_q"):
        batch_layout(ints, ints, ints, ints, ints, ints, ints.view(3, 1), 16)

import pytest
import torch
from kernel_cases import check_silu_mul, on_every_path, randn

from pagestream.kernels import silu_mul


@on_every_path
@pytest.mark.parametrize(("tokens", "intermediate"), [(1, 32), (3, 1100), (7, 77)])
def test_matches_the_formula(device, dtype, tokens, intermediate):
    check_silu_mul(silu_mul, tokens, intermediate, device, dtype)


def test_a_row_knows_no_other_row():
    x = randn(301, 2 * 864, dtype=torch.float32, device="cpu")
    whole = silu_mul(x)
    for tokens in (1, 2, 17, 100):
        assert torch.equal(silu_mul(x[-tokens:]), whole[-tokens:])


def test_refuses_an_odd_projection():
    with pytest.raises(AssertionError, match="gate_up"):
        silu_mul(torch.zeros(2, 7))

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import randn

from pagestream.kernels import linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (320, 960), (864, 320), (2048, 512)])
def test_a_row_knows_no_other_row(inputs, outputs, bias):
    x, weight = (
        randn(n, inputs, dtype=torch.float32, device="cpu", seed=n) for n in (600, outputs)
    )
    b = randn(outputs, dtype=torch.float32, device="cpu") if bias else None
    whole = linear(x, weight, b)
    expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
    torch.testing.assert_close(whole.double(), expected, atol=1e-3, rtol=1e-5)
    for rows in (*range(1, 71), 109, 192, 257, 600):
        assert torch.equal(linear(x[:rows], weight, b), whole[:rows]), f"{rows} rows"
        assert torch.equal(linear(x[-rows:], weight, b), whole[-rows:]), f"last {rows} rows"


def test_half_precision_is_rounded_once():
    x, weight = (randn(n, 2048, dtype=torch.bfloat16, device="cpu", seed=n) for n in (20, 64))
    expected = F.linear(x.double(), weight.double())
    torch.testing.assert_close(linear(x, weight).double(), expected, atol=0.2, rtol=2**-8)


def test_no_rows():
    assert linear(torch.zeros(0, 600), torch.zeros(8, 600)).shape == (0, 8)

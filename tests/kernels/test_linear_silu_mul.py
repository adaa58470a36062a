from functools import partial

import pytest
import torch
from kernel_cases import check_linear_silu_mul, on_every_kernel, on_every_path, randn

from pagestream.kernels import linear, linear_silu_mul, silu_mul
from pagestream.kernels._few_rows import Tile, few_rows


@on_every_path
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "inputs", "intermediate"), [(1, 512, 35), (5, 300, 96), (16, 256, 64), (40, 256, 32)]
)
def test_matches_fp64(device, dtype, rows, inputs, intermediate, bias):
    check_linear_silu_mul(linear_silu_mul, rows, inputs, intermediate, bias, device, dtype)


@on_every_kernel
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 16, 40])
def test_few_rows_match_fp64(device, dtype, rows, bias):
    op = partial(few_rows, tile=Tile(32, 128, 3, 4), gated=True)
    check_linear_silu_mul(op, rows, 300, 70, bias, device, dtype)


@on_every_path
@pytest.mark.parametrize("rows", [1, 7, 20])
def test_is_silu_mul_of_linear(device, dtype, rows):
    x, weight = (randn(n, 512, dtype=dtype, device=device) / 16 for n in (rows, 96))
    fused, apart = linear_silu_mul(x, weight), silu_mul(linear(x, weight))
    torch.testing.assert_close(fused.float(), apart.float(), atol=1e-6, rtol=2**-7)


def test_refuses_an_odd_projection():
    with pytest.raises(AssertionError, match="gate_up"):
        linear_silu_mul(torch.zeros(2, 8), torch.zeros(7, 8))

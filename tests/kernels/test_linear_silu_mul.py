from functools import partial

import pytest
import torch
from kernel_cases import check_linear_silu_mul, on_every_kernel, on_every_path, randn

from pagestream.kernels import linear, linear_silu_mul, silu_mul
from pagestream.kernels._few_rows import Tile, few_rows
from pagestream.kernels._many_rows import many_rows, takes_many_rows


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


@on_every_kernel
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 40, 300])
def test_many_rows_match_fp64(device, dtype, rows, bias):
    """In tiles that divide neither rows nor outputs nor inputs, in bands and without."""
    op = partial(many_rows, rows_block=16, outputs_block=16, inputs_block=128)
    check_linear_silu_mul(op, rows, 304, 136, bias, device, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "inputs", "intermediate"),
    [(768, 4096, 14336), (1000, 4096, 14336), (8192, 1024, 3072), (5003, 896, 4864)],
)
def test_many_rows_know_no_other_row(rows, inputs, intermediate):
    """Nor how many there are: few rows, by another kernel, are the same bits."""
    x = randn(rows, inputs, dtype=torch.bfloat16, device="cuda")
    weight = randn(2 * intermediate, inputs, dtype=torch.bfloat16, device="cuda", seed=1) / 30
    assert takes_many_rows(x, weight)
    whole = linear_silu_mul(x, weight)
    for begin in range(0, rows, 64):
        part = x[begin : begin + 64]
        few = few_rows(part, weight, None, Tile(64, 64, 4, 4), gated=True)
        assert torch.equal(few, whole[begin : begin + 64]), f"rows from {begin} on"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("changed", "x_shape", "weight_shape"),
    [
        ("nothing", (1024, 4096), (8192, 4096)),
        ("few rows", (512, 4096), (16384, 4096)),
        ("few products", (1024, 512), (1024, 512)),
        ("inputs that are no multiple of 16 bytes", (1024, 4100), (8192, 4100)),
        ("outputs that are no multiple of 16 bytes", (1024, 4096), (8200, 4096)),
    ],
)
def test_many_rows_are_taken_only_where_they_can_be(changed, x_shape, weight_shape):
    x, weight = (
        torch.empty(s, dtype=torch.bfloat16, device="cuda") for s in (x_shape, weight_shape)
    )
    assert takes_many_rows(x, weight) == (changed == "nothing")
    assert not takes_many_rows(x.float(), weight.float())
    assert not takes_many_rows(x.t().contiguous().t(), weight)


@on_every_path
@pytest.mark.parametrize("rows", [1, 7, 20])
def test_is_silu_mul_of_linear(device, dtype, rows):
    x, weight = (randn(n, 512, dtype=dtype, device=device) / 16 for n in (rows, 96))
    fused, apart = linear_silu_mul(x, weight), silu_mul(linear(x, weight))
    torch.testing.assert_close(fused.float(), apart.float(), atol=1e-6, rtol=2**-7)


def test_refuses_an_odd_projection():
    with pytest.raises(AssertionError, match="gate_up"):
        linear_silu_mul(torch.zeros(2, 8), torch.zeros(7, 8))

"""The gated MLP's first half: silu(gate) * up on the outputs of one fused projection.

    out = dtype(silu(gate)) * up,  gate and up the halves of dtype(x @ weight.T + bias)

For few rows and for many one kernel does both and the projection's output never leaves the chip;
between them `linear` and `silu_mul` follow each other. The module knows nothing of the layer around
it.

Source: Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202, eq. 5 (SwiGLU).
"""

from torch import Tensor

from ._few_rows import few_rows, few_rows_tile
from ._many_rows import many_rows, takes_many_rows
from ._products import Products
from .linear import linear, linear_reference
from .silu_mul import silu_mul, silu_mul_reference


def linear_silu_mul_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear_silu_mul` in plain torch; also what serves on the CPU."""
    return silu_mul_reference(linear_reference(x, weight, bias))


def linear_silu_mul(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, products: Products | None = None
) -> Tensor:
    """Return silu(gate) * up of the halves of x @ weight.T + bias, gate first.

    Shapes: x [tokens, inputs], weight [2 * intermediate, inputs], bias [2 * intermediate] ->
    [tokens, intermediate]. Sums in fp32; gate, up and silu(gate) are each rounded to the dtype, as
    `silu_mul` of `linear` rounds them. `products` as in `linear`.
    """
    assert x.shape[1:] == weight.shape[1:], f"{tuple(x.shape)} times {tuple(weight.shape)}.T"
    assert len(weight) % 2 == 0, f"gate_up {tuple(weight.shape)}"
    if tile := few_rows_tile(x, weight, gated=True):
        return few_rows(x, weight, bias, tile, gated=True)
    if takes_many_rows(x, weight):
        return many_rows(x, weight, bias)
    return silu_mul(linear(x, weight, bias, products))

"""A linear layer whose rows do not depend on how many rows there are.

On a GPU few rows, as in a decode step, take the kernel of _few_rows.py, and more are cuBLAS's. On a
CPU the BLAS picks another order of summation for few rows, and another again where it splits a long
sum between threads (seen from K = 864 on, at 57 rows or more): rows then differ by about 1e-6 with
the size of the batch, enough to change a sampled token. So on the CPU few rows are padded to 16,
and the sum runs over slices of 512 in a fixed order, which measured bit-equal from 1 to 2,048 rows
on 1, 2, 4 and 8 threads. The module knows nothing of what the weights mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._few_rows import few_rows, few_rows_tile
from ._products import Products

_MIN_ROWS = 16
_SLICE = 512


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` in plain torch with rows that know no other row; what serves on the CPU."""
    rows, inputs = x.shape
    if rows < _MIN_ROWS:
        x = F.pad(x, (0, 0, 0, _MIN_ROWS - rows))
    # Below fp32 the slices' sums would each be rounded to the dtype.
    step = _SLICE if x.dtype == torch.float32 else inputs
    out = F.linear(x[:, :step], weight[:, :step], bias)
    for begin in range(step, inputs, step):
        out.addmm_(x[:, begin : begin + step], weight[:, begin : begin + step].t())
    return out[:rows]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, products: Products | None = None
) -> Tensor:
    """Return x @ weight.T + bias.

    Shapes: x [tokens, inputs], weight [outputs, inputs], bias [outputs] -> [tokens, outputs]; sums
    in fp32. On a CPU in fp32, and on a GPU among the few rows that do not go to cuBLAS, a row's
    bits depend on that row alone. `products` knows faster algorithms of cuBLAS's for some shapes.
    """
    assert x.shape[1:] == weight.shape[1:], f"{tuple(x.shape)} times {tuple(weight.shape)}.T"
    if tile := few_rows_tile(x, weight):
        return few_rows(x, weight, bias, tile)
    if not x.is_cuda:
        return linear_reference(x, weight, bias)
    if products is not None and bias is None and (out := products.multiply(x, weight)) is not None:
        return out
    return F.linear(x, weight, bias)

"""A projection: a weight, perhaps a bias, and the op that applies them.

The decoder only calls it, so that other storage of the weight is another class with the same calls.
"""

import torch
from torch import Tensor

from pagestream.kernels import Products, linear, linear_silu_mul


class Linear:
    """y = x Wᵀ + b with `weight [out, in]` and `bias [out]` or None, uninitialised until loaded."""

    __slots__ = ("bias", "products", "weight")

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.weight = torch.empty(outputs, inputs, dtype=dtype, device=device)
        self.products: Products | None = None
        """Faster algorithms for some numbers of rows, where they have been measured."""
        self.bias = torch.empty(outputs, dtype=dtype, device=device) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: x [tokens, in] -> [tokens, out]."""
        return linear(x, self.weight, self.bias, self.products)

    def silu_mul(self, x: Tensor) -> Tensor:
        """silu(gate) · up of the output's halves. Shapes: x [tokens, in] -> [tokens, out / 2]."""
        return linear_silu_mul(x, self.weight, self.bias, self.products)

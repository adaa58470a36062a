"""RMS norm of each token's hidden state, fused with the residual addition before it.

    residual' = x + residual                                    in the model's dtype
    normed    = weight * dtype(residual' / sqrt(mean(residual'^2) + eps))     fp32 inside

The rounding order is Hugging Face Llama's: the normalised value is cast to the model's dtype before
it meets the weight. The module knows nothing of layers or of where the residual stream begins.

Source: Zhang & Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467, eq. 4.
"""

import torch
from torch import Tensor

from ._triton import (
    overlapping_launch,
    runs_kernel,
    start_dependents,
    tl,
    triton,
    wait_for_inputs,
)


def rms_norm_reference(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`rms_norm` in plain torch; also what serves on the CPU. No token knows another."""
    if residual is not None:
        x = x + residual
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype), x


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the normalised hidden states and the residual stream they were made from.

    Shapes: x [tokens, hidden], weight [hidden], residual like x -> (normed, residual') like x; any
    float dtype, the same for all; accumulation in fp32. Without a residual, x itself comes back as
    the second.
    """
    assert weight.shape == x.shape[-1:], f"weight {tuple(weight.shape)} for x {tuple(x.shape)}"
    assert residual is None or residual.shape == x.shape, f"residual {tuple(residual.shape)}"
    if not runs_kernel(x):
        return rms_norm_reference(x, weight, eps, residual)
    assert x.stride(-1) == weight.stride(0) == 1, "hidden must be the contiguous axis"
    assert residual is None or residual.stride(-1) == 1, "hidden must be the contiguous axis"
    tokens, hidden = x.shape
    normed = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device)
    summed = x if residual is None else torch.empty_like(normed)
    block = triton.next_power_of_2(hidden)
    if tokens:
        _rms_norm_kernel[(tokens,)](
            normed,
            summed,
            x,
            x if residual is None else residual,
            weight,
            x.stride(0),
            x.stride(0) if residual is None else residual.stride(0),
            eps,
            HIDDEN=hidden,
            BLOCK=block,
            HAS_RESIDUAL=residual is not None,
            num_warps=min(max(block // 512, 1), 16),
            **overlapping_launch(tokens),
        )
    return normed, summed


@triton.jit
def _rms_norm_kernel(
    normed_ptr,  # [tokens, hidden]
    summed_ptr,  # [tokens, hidden], written with a residual only
    x_ptr,  # [tokens, hidden]
    residual_ptr,  # [tokens, hidden]
    weight_ptr,  # [hidden]
    x_stride,
    residual_stride,
    eps,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a token."""
    start_dependents(PDL)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    x = tl.load(x_ptr + token * x_stride + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + token * residual_stride + columns, mask=inside, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(summed_ptr + token * HIDDEN + columns, x, mask=inside)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / HIDDEN + eps)
    normed = (wide * scale).to(x.dtype).to(tl.float32) * weight
    tl.store(normed_ptr + token * HIDDEN + columns, normed.to(x.dtype), mask=inside)

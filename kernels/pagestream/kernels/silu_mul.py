"""The gated activation of a Llama MLP: silu(gate) * up, on the fused gate_up projection.

    out = dtype(silu(gate)) * up,  silu(g) = g / (1 + exp(-g))         fp32 inside

The module knows nothing of the projections around it.

Source: Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202, eq. 5 (SwiGLU).
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

_BLOCK = 1024


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """`silu_mul` in plain torch; also what serves on the CPU.

    The exponential is torch.exp and not F.silu, whose vector loop ends in a scalar tail with other
    roundings: where the tail falls depends on the batch and on the number of threads.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    wide = gate.float()
    divisor = wide.neg().exp_().add_(1.0)
    return torch.div(wide, divisor, out=divisor).to(gate.dtype) * up


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up of a fused projection, gate first.

    Shapes: gate_up [tokens, 2 * intermediate] -> [tokens, intermediate]; any float dtype, fp32
    inside, silu rounded to the dtype before the product, as Hugging Face Llama does.
    """
    assert gate_up.shape[1] % 2 == 0, f"gate_up {tuple(gate_up.shape)}"
    if not runs_kernel(gate_up):
        return silu_mul_reference(gate_up)
    assert gate_up.stride(1) == 1, "the projection must be the contiguous axis"
    tokens, intermediate = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, intermediate), dtype=gate_up.dtype, device=gate_up.device)
    if tokens:
        grid = (tokens, triton.cdiv(intermediate, _BLOCK))
        _silu_mul_kernel[grid](
            out,
            gate_up,
            gate_up.stride(0),
            INTERMEDIATE=intermediate,
            BLOCK=_BLOCK,
            **overlapping_launch(tokens),
        )
    return out


@triton.jit
def silu_times(gate, up) -> tl.tensor:
    """silu(gate) * up in their dtype; silu is rounded to it before the product."""
    wide = gate.to(tl.float32)
    silu = (wide / (tl.exp(-wide) + 1.0)).to(gate.dtype).to(tl.float32)
    return (silu * up.to(tl.float32)).to(gate.dtype)


@triton.jit
def _silu_mul_kernel(
    out_ptr,  # [tokens, intermediate]
    gate_up_ptr,  # [tokens, 2 * intermediate]
    gate_up_stride,
    INTERMEDIATE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a token and BLOCK columns."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < INTERMEDIATE
    gate_ptr = gate_up_ptr + token * gate_up_stride + columns
    gate = tl.load(gate_ptr, mask=inside, other=0.0)
    up = tl.load(gate_ptr + INTERMEDIATE, mask=inside, other=0.0)
    tl.store(out_ptr + token * INTERMEDIATE + columns, silu_times(gate, up), mask=inside)

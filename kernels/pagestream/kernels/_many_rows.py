"""The gated product of many rows with a weight.

Many rows, as in a step full of prompts, are bound by the tensor cores, where cuBLAS is as fast;
what is saved is the projection's output, the widest of a layer, which never leaves the chip here.
As many programs as there are processors take tile after tile. A tile's outputs of gate and up are
one operand, so that one product makes both, and the next tile's operands are under way while the
last one is written. A sum runs over all inputs in order, so a row's bits depend on no other row.
The module knows nothing of what the weights mean, nor of other ways to multiply.

Source: NVIDIA, "CUDA Programming Guide", the tensor memory accelerator and warpgroup products.
"""

import torch
from torch import Tensor

from ._triton import TensorDescriptor, fitting_tiles, processors, runs_product, tl, triton
from .silu_mul import silu_times

_MIN_ROWS = 768
"""Fewer make too few tiles: at 512 and 640 rows of an 8B model cuBLAS was 1 to 2 % faster."""
_MIN_PRODUCTS = 1 << 34
"""Fewer are over before the host has launched the next kernel, which its descriptors delay."""
_ROWS_BLOCK, _OUTPUTS_BLOCK, _INPUTS_BLOCK, _STAGES = 128, 128, 64, 3


def takes_many_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether `many_rows` multiplies these operands faster than cuBLAS and `silu_mul` do."""
    if len(x) < _MIN_ROWS or len(x) * weight.numel() < _MIN_PRODUCTS:
        return False
    if not runs_product(x, weight):
        return False
    # The tensor memory accelerator takes rows that begin at multiples of 16 bytes.
    size = x.element_size()
    row_bytes = (size * n for n in (x.stride(0), weight.stride(0), len(weight) // 2))
    if any(n % 16 for n in (x.data_ptr(), weight.data_ptr(), *row_bytes)):
        return False
    tile_bytes = size * (_ROWS_BLOCK + 2 * _OUTPUTS_BLOCK) * _INPUTS_BLOCK
    kept_bytes = size * _ROWS_BLOCK * _OUTPUTS_BLOCK
    return fitting_tiles(_STAGES, tile_bytes, kept_bytes, x.device) == _STAGES


def many_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    rows_block: int = _ROWS_BLOCK,
    outputs_block: int = _OUTPUTS_BLOCK,
    inputs_block: int = _INPUTS_BLOCK,
) -> Tensor:
    """Return silu(gate) * up of the halves of x @ weight.T + bias, gate first.

    Shapes: x [rows, inputs], weight [2 * outputs, inputs], bias [2 * outputs] -> [rows, outputs];
    fp16 or bf16, sums in fp32; gate, up and silu(gate) are each rounded to the dtype. A tile has
    `rows_block` rows and `outputs_block` outputs, and sums `inputs_block` inputs a step.
    """
    rows, inputs = x.shape
    outputs = len(weight) // 2
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    rows_tiles, outputs_tiles = triton.cdiv(rows, rows_block), triton.cdiv(outputs, outputs_block)
    halves = weight.unflatten(0, (2, outputs))
    _many_rows_kernel[(min(rows_tiles * outputs_tiles, processors(x.device)),)](
        TensorDescriptor.from_tensor(out, [rows_block, outputs_block]),
        TensorDescriptor.from_tensor(x, [rows_block, inputs_block]),
        TensorDescriptor.from_tensor(halves, [2, outputs_block, inputs_block]),
        weight if bias is None else bias,
        inputs,
        outputs,
        rows_tiles,
        outputs_tiles,
        # Few tiles of rows stay in the L2 cache together; of many, weights and rows share it.
        band=rows_tiles if rows_tiles <= 16 else 8,
        ROWS_BLOCK=rows_block,
        OUTPUTS_BLOCK=outputs_block,
        INPUTS_BLOCK=inputs_block,
        HAS_BIAS=bias is not None,
        num_warps=8,
        num_stages=_STAGES,
    )
    return out


@triton.jit(do_not_specialize=["rows_tiles", "outputs_tiles", "band"])
def _many_rows_kernel(
    out,  # descriptor of [rows, outputs]
    x,  # of [rows, inputs]
    weight,  # of [2, outputs, inputs], gate first
    bias_ptr,  # [2 * outputs]
    inputs,
    outputs,
    rows_tiles,
    outputs_tiles,
    band,  # tiles of rows that are gone through together, outputs after outputs
    ROWS_BLOCK: tl.constexpr,
    OUTPUTS_BLOCK: tl.constexpr,
    INPUTS_BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """One program a processor; its tiles are as many apart as there are programs."""
    tiles = rows_tiles * outputs_tiles
    # Flattened with the loop over the inputs, so that the next tile's loads do not wait for it.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        first = tile // (band * outputs_tiles) * band
        in_band = tile % (band * outputs_tiles)
        height = tl.minimum(rows_tiles - first, band)
        row = (first + in_band % height) * ROWS_BLOCK
        output = in_band // height * OUTPUTS_BLOCK
        acc = tl.zeros([ROWS_BLOCK, 2 * OUTPUTS_BLOCK], tl.float32)
        for begin in range(0, inputs, INPUTS_BLOCK):
            operand = weight.load([0, output, begin]).reshape(2 * OUTPUTS_BLOCK, INPUTS_BLOCK)
            acc = tl.dot(x.load([row, begin]), operand.T, acc, input_precision="ieee")
        if HAS_BIAS:
            lane = tl.arange(0, 2 * OUTPUTS_BLOCK)
            own = output + lane % OUTPUTS_BLOCK
            at = bias_ptr + lane // OUTPUTS_BLOCK * outputs + own
            acc += tl.load(at, mask=own < outputs, other=0.0).to(tl.float32)[None, :]
        gate, up = acc.reshape(ROWS_BLOCK, 2, OUTPUTS_BLOCK).permute(0, 2, 1).split()
        dtype: tl.constexpr = out.dtype
        out.store([row, output], silu_times(gate.to(dtype), up.to(dtype)))

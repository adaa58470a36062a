"""The product of few rows with a weight, plain or gated.

Few rows are bound by the bandwidth of the weights, which the kernel streams once. A program owns a
tile of outputs for all rows and sums over all inputs in order, so no partial sums meet between
programs, and a row's bits depend on no other row. Its first weights are asked for while the kernel
in front still runs, and come from the L2 cache when the rows are there. The module knows nothing of
what the weights mean, nor of other ways to multiply.

Source: programmatic dependent launch, as NVIDIA's "CUDA Programming Guide" describes it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ._triton import (
    fitting_tiles,
    overlapping_launch,
    runs_product,
    start_dependents,
    tl,
    triton,
    wait_for_inputs,
)
from .silu_mul import silu_times


class Tile(NamedTuple):
    """How the kernel is cut: outputs a program, inputs a step, and the pipeline over the steps."""

    outputs: int
    inputs: int
    stages: int
    warps: int
    ahead: int = 128
    """Inputs in a run of weights asked for before the kernel in front has ended; 0: none."""


_HEAD_OUTPUTS = 65536
"""From here on a weight keeps every SM busy for several tiles: the LM head's does."""
_SMS = 132
"""Of an H200: up to so many programs run at once, one an SM, and none waits for another."""


def tile_for(rows: int, outputs: int, inputs: int, *, gated: bool = False) -> Tile | None:
    """The tile that measured fastest in a chain of layers on an H200; None where cuBLAS did.

    A row has the same bits by all of them: each sums 16 inputs at a time, in order.
    """
    if rows > 64:
        return None
    if gated:
        return _gated_tile_for(rows, outputs // 2, inputs)
    if outputs >= _HEAD_OUTPUTS:
        return Tile(64, 256, 3, 4) if rows <= 16 else Tile(64, 128, 3, 4)
    if rows <= 16:
        if outputs <= 16 * _SMS:
            return Tile(16, 512, 6, 4)
        return Tile(32, 512, 4, 4) if outputs <= 32 * _SMS else Tile(64, 256, 5, 4)
    if inputs > 4096:  # only where nearly every SM has one of these long sums, and none has two
        return Tile(32, 256, 6, 4) if rows <= 32 and 24 < outputs / _SMS <= 32 else None
    if rows <= 32:
        if outputs <= 16 * _SMS:
            return Tile(16, 256, 6, 4)
        return Tile(64, 128, 5, 4) if outputs > 32 * _SMS or inputs < 4096 else None
    return Tile(64, 128, 5, 4) if 32 < outputs / _SMS <= 64 else None


def _gated_tile_for(rows: int, outputs: int, inputs: int) -> Tile | None:
    """`tile_for` where so many outputs are made of twice as many."""
    is_small = 16 * _SMS < outputs < 32 * _SMS and inputs <= 2048
    if rows > 16:
        return None if is_small else Tile(64, 64, 4, 4)
    programs = triton.cdiv(outputs, 64)
    busy = programs / (triton.cdiv(programs, _SMS) * _SMS)
    return Tile(64, 128, 5, 4) if is_small or inputs <= 1024 or busy > 0.8 else None


def few_rows_tile(x: Tensor, weight: Tensor, *, gated: bool = False) -> Tile | None:
    """The tile for these operands, or None where another op multiplies them."""
    return tile_for(len(x), *weight.shape, gated=gated) if runs_product(x, weight) else None


def few_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, tile: Tile, *, gated: bool = False
) -> Tensor:
    """Return x @ weight.T + bias or, gated, silu(gate) * up of its halves, gate first.

    Shapes: x [rows, inputs], weight [outputs, inputs], bias [outputs] -> [rows, outputs], gated
    half as many; fp16 or bf16, sums in fp32.
    """
    rows, inputs = x.shape
    outputs = len(weight) // 2 if gated else len(weight)
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    rows_block = min(max(8, triton.next_power_of_2(rows)), 256)
    whole = inputs % tile.inputs == 0
    # What is asked for ahead is in runs of 16 bytes.
    aligned = weight.data_ptr() % 16 == 0 and weight.stride(0) % 8 == 0
    grid = (triton.cdiv(rows, rows_block), triton.cdiv(outputs, tile.outputs))
    operand_rows = rows_block + tile.outputs * (2 if gated else 1)
    tile_bytes = operand_rows * tile.inputs * x.element_size()
    tiles = fitting_tiles(tile.stages - 1, tile_bytes, 0, x.device)
    _few_rows_kernel[grid](
        out,
        x,
        weight,
        weight if bias is None else bias,
        rows,
        outputs,
        inputs,
        x.stride(0),
        weight.stride(0),
        ROWS_BLOCK=rows_block,
        OUTPUTS_BLOCK=tile.outputs,
        INPUTS_BLOCK=tile.inputs,
        WHOLE=whole,
        AHEAD=tile.ahead if aligned and tile.ahead <= inputs else 0,
        GATED=gated,
        HAS_BIAS=bias is not None,
        num_warps=tile.warps,
        num_stages=1 + tiles,
        **overlapping_launch(rows),
    )
    return out


@triton.jit
def _prefetch(weight_ptr, first, outputs, inputs, stride, ROWS: tl.constexpr, AHEAD: tl.constexpr):
    """Ask for the first inputs of ROWS outputs' weights: 128 runs of AHEAD elements."""
    RUNS: tl.constexpr = 128 // ROWS if ROWS < 128 else 1
    run = tl.arange(0, 128)
    output = tl.minimum(first + run // RUNS, outputs - 1).to(tl.int64)
    input = tl.minimum(run % RUNS * AHEAD, inputs - AHEAD)
    size = tl.full([128], AHEAD * (weight_ptr.dtype.element_ty.primitive_bitwidth // 8), tl.int32)
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [(weight_ptr + output * stride + input).to(tl.int64), size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _rounded_sum(acc, bias_ptr, output, inside, dtype: tl.constexpr, HAS_BIAS: tl.constexpr):
    """The layer's outputs in its dtype."""
    if HAS_BIAS:
        acc += tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)[:, None]
    return acc.to(dtype)


@triton.jit(do_not_specialize=["rows"])
def _few_rows_kernel(
    out_ptr,  # [rows, outputs]
    x_ptr,  # [rows, inputs]
    weight_ptr,  # [outputs, inputs], gated: twice as many outputs
    bias_ptr,  # [outputs], likewise
    rows,
    outputs,
    inputs,
    x_stride,
    weight_stride,
    ROWS_BLOCK: tl.constexpr,
    OUTPUTS_BLOCK: tl.constexpr,
    INPUTS_BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    AHEAD: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a tile of outputs and rows; the weights are the product's first operand."""
    first = tl.program_id(1) * OUTPUTS_BLOCK
    up_ptr = weight_ptr + outputs.to(tl.int64) * weight_stride
    if PDL and AHEAD > 0:
        _prefetch(weight_ptr, first, outputs, inputs, weight_stride, OUTPUTS_BLOCK, AHEAD)
        if GATED:
            _prefetch(up_ptr, first, outputs, inputs, weight_stride, OUTPUTS_BLOCK, AHEAD)
    start_dependents(PDL)
    wait_for_inputs(PDL)

    output = first + tl.arange(0, OUTPUTS_BLOCK)
    row = tl.program_id(0) * ROWS_BLOCK + tl.arange(0, ROWS_BLOCK)
    step = tl.arange(0, INPUTS_BLOCK)
    # Outputs past the last repeat it, so that loads need no mask; they are not stored.
    weight_row = tl.minimum(output, outputs - 1).to(tl.int64)[:, None] * weight_stride
    x_row = row.to(tl.int64)[:, None] * x_stride
    in_rows = (row < rows)[:, None]
    acc = tl.zeros([OUTPUTS_BLOCK, ROWS_BLOCK], tl.float32)
    up_acc = tl.zeros([OUTPUTS_BLOCK, ROWS_BLOCK], tl.float32)
    for begin in range(0, inputs, INPUTS_BLOCK):
        at = (begin + step)[None, :]
        if WHOLE:
            x = tl.load(x_ptr + x_row + at, mask=in_rows, other=0.0)
            weight = tl.load(weight_ptr + weight_row + at, eviction_policy="evict_first")
        else:
            x = tl.load(x_ptr + x_row + at, mask=in_rows & (at < inputs), other=0.0)
            weight = tl.load(weight_ptr + weight_row + at, mask=at < inputs, other=0.0)
        acc = tl.dot(weight, tl.trans(x), acc, input_precision="ieee")
        if GATED:
            if WHOLE:
                up = tl.load(up_ptr + weight_row + at, eviction_policy="evict_first")
            else:
                up = tl.load(up_ptr + weight_row + at, mask=at < inputs, other=0.0)
            up_acc = tl.dot(up, tl.trans(x), up_acc, input_precision="ieee")

    dtype: tl.constexpr = out_ptr.dtype.element_ty
    inside = output < outputs
    result = _rounded_sum(acc, bias_ptr, output, inside, dtype, HAS_BIAS)
    if GATED:
        up_out = _rounded_sum(up_acc, bias_ptr + outputs, output, inside, dtype, HAS_BIAS)
        result = silu_times(result, up_out)
    out_at = row.to(tl.int64)[None, :] * outputs + output[:, None]
    tl.store(out_ptr + out_at, result, mask=inside[:, None] & (row < rows)[None, :])

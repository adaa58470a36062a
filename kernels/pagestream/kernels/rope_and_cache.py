"""Between the qkv projection and attention: qk-norm, rotary embedding, write to the cache.

For each token, in one kernel: q and k heads are RMS-normalised where the family asks for it,
rotated by the token's angles, q goes to a buffer of its own and k and v to the token's slot of the
cache. Rotation is NeoX style: element i pairs with i + rotary_dim / 2, and elements past rotary_dim
pass through.

    out[i] = x[i] * cos[i] - x[i + half] * sin[i]      out[i + half] = x[i + half] * cos[i] + x[i] *
    sin[i]

The module knows neither positions nor rope scaling: angles come as a table row a token.

Source: Su et al., "RoFormer", arXiv:2104.09864, eq. 34; qk-norm as in the Qwen3 report,
arXiv:2505.09388.
"""

import torch
from torch import Tensor

from ._paged import check_layout
from ._triton import (
    overlapping_launch,
    runs_kernel,
    start_dependents,
    tl,
    triton,
    wait_for_inputs,
)
from .rms_norm import rms_norm_reference

_HEADS_PER_PROGRAM = 8


def rope_and_cache_reference(
    qkv: Tensor,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """`rope_and_cache` in plain torch; also what serves on the CPU."""
    kv_heads, head_dim = k_cache.shape[2:]
    q, k, v = qkv.view(len(qkv), -1, head_dim).split([heads, kv_heads, kv_heads], dim=1)
    if q_norm is not None:
        q, _ = rms_norm_reference(q, q_norm, eps)
    if k_norm is not None:
        k, _ = rms_norm_reference(k, k_norm, eps)
    x = torch.cat([q, k], dim=1)
    cos, sin = cos_sin[:, None].chunk(2, dim=-1)
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    rotated = torch.empty_like(x)
    rotated[..., :half] = first * cos - second * sin
    rotated[..., half : 2 * half] = second * cos + first * sin
    rotated[..., 2 * half :] = x[..., 2 * half :]
    k_cache.view(-1, kv_heads, head_dim)[slot_mapping] = rotated[:, heads:]
    v_cache.view(-1, kv_heads, head_dim)[slot_mapping] = v
    return rotated[:, :heads].contiguous()


def rope_and_cache(
    qkv: Tensor,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Normalise and rotate q and k, write k and v to their slots, and return q.

    Shapes: qkv [tokens, (heads + 2 * kv_heads) * head_dim] (q, then k, then v), cos_sin [tokens,
    rotary_dim] fp32 (cosines, then sines), k_cache and v_cache [blocks, block_size, kv_heads,
    head_dim], slot_mapping [tokens] int64 (block * block_size + offset), q_norm and k_norm
    [head_dim] or None -> q [tokens, heads, head_dim]. Rotation in fp32; the norm rounds to the
    dtype before its weight and after it, as Hugging Face Qwen3 does. Several tokens may share a
    slot only if nobody reads it (padding writes to block 0).
    """
    tokens, (kv_heads, head_dim) = len(qkv), k_cache.shape[2:]
    check_layout(k_cache, v_cache)
    assert qkv.shape[1] == (heads + 2 * kv_heads) * head_dim, f"qkv {tuple(qkv.shape)}"
    assert len(slot_mapping) >= tokens, f"{len(slot_mapping)} slots for {tokens} tokens"
    assert len(cos_sin) >= tokens, f"{len(cos_sin)} rows of cos_sin for {tokens} tokens"
    rotary_dim = cos_sin.shape[1]
    assert rotary_dim in range(2, head_dim + 1, 2), f"rotary_dim {rotary_dim} of {head_dim}"
    if not runs_kernel(qkv):
        return rope_and_cache_reference(
            qkv, cos_sin, k_cache, v_cache, slot_mapping, heads, q_norm, k_norm, eps
        )
    assert qkv.stride(1) == 1, f"a token of qkv must be contiguous: {qkv.stride()}"
    assert cos_sin.is_contiguous(), f"cos_sin must be contiguous: {cos_sin.stride()}"
    q = torch.empty((tokens, heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    q_programs = triton.cdiv(heads, _HEADS_PER_PROGRAM)
    grid = (tokens, q_programs + triton.cdiv(kv_heads, _HEADS_PER_PROGRAM))
    if tokens:
        _rope_and_cache_kernel[grid](
            q,
            qkv,
            cos_sin,
            k_cache,
            v_cache,
            slot_mapping,
            qkv if q_norm is None else q_norm,
            qkv if k_norm is None else k_norm,
            qkv.stride(0),
            eps,
            HEADS=heads,
            KV_HEADS=kv_heads,
            HEAD_DIM=head_dim,
            ROTARY_DIM=rotary_dim,
            Q_PROGRAMS=q_programs,
            HEADS_BLOCK=min(_HEADS_PER_PROGRAM, triton.next_power_of_2(heads)),
            DIM_BLOCK=triton.next_power_of_2(head_dim),
            Q_NORM=q_norm is not None,
            K_NORM=k_norm is not None,
            num_warps=4,
            **overlapping_launch(tokens),
        )
    return q


@triton.jit
def _normed_and_rotated(
    x_ptr,  # [HEADS_BLOCK, 1] to each head's first element
    norm_ptr,  # [head_dim]
    cos_sin_ptr,  # [rotary_dim], this token's
    dims,  # [1, DIM_BLOCK]
    inside,  # [HEADS_BLOCK, DIM_BLOCK]
    eps,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    NORM: tl.constexpr,
):
    """Heads after norm and rotation, fp32; each element loads its partner too."""
    HALF: tl.constexpr = ROTARY_DIM // 2
    turns = dims < ROTARY_DIM
    partners = tl.where(turns, tl.where(dims < HALF, dims + HALF, dims - HALF), dims)
    x = tl.load(x_ptr + dims, mask=inside, other=0.0)
    partner = tl.load(x_ptr + partners, mask=inside, other=0.0)
    dtype = x.dtype
    x, partner = x.to(tl.float32), partner.to(tl.float32)
    if NORM:
        in_head = dims < HEAD_DIM
        scale = tl.rsqrt(tl.sum(x * x, axis=1)[:, None] / HEAD_DIM + eps)
        weight = tl.load(norm_ptr + dims, mask=in_head, other=0.0).to(tl.float32)
        partner_weight = tl.load(norm_ptr + partners, mask=in_head, other=0.0).to(tl.float32)
        x = ((x * scale).to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)
        partner = (partner * scale).to(dtype).to(tl.float32) * partner_weight
        partner = partner.to(dtype).to(tl.float32)
    cos = tl.load(cos_sin_ptr + dims % HALF, mask=turns, other=1.0)
    sin = tl.load(cos_sin_ptr + HALF + dims % HALF, mask=turns, other=0.0)
    return x * cos + partner * tl.where(dims < HALF, -sin, sin)


@triton.jit
def _rope_and_cache_kernel(
    q_ptr,  # [tokens, heads, head_dim]
    qkv_ptr,  # [tokens, (heads + 2 * kv_heads) * head_dim]
    cos_sin_ptr,  # [tokens, rotary_dim]
    k_cache_ptr,  # [blocks, block_size, kv_heads, head_dim]
    v_cache_ptr,  # [blocks, block_size, kv_heads, head_dim]
    slot_mapping_ptr,  # [tokens]
    q_norm_ptr,  # [head_dim]
    k_norm_ptr,  # [head_dim]
    qkv_stride,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    Q_PROGRAMS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a token and HEADS_BLOCK heads: of q, or of k and v together."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    dims = tl.arange(0, DIM_BLOCK)[None, :]
    qkv_ptr += token * qkv_stride
    cos_sin_ptr += token * ROTARY_DIM
    if part < Q_PROGRAMS:
        head = part * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)[:, None]
        inside = (head < HEADS) & (dims < HEAD_DIM)
        x_ptr = qkv_ptr + head * HEAD_DIM
        q = _normed_and_rotated(
            x_ptr, q_norm_ptr, cos_sin_ptr, dims, inside, eps, HEAD_DIM, ROTARY_DIM, Q_NORM
        )
        out_ptr = q_ptr + token * HEADS * HEAD_DIM + head * HEAD_DIM + dims
        tl.store(out_ptr, q.to(q_ptr.dtype.element_ty), mask=inside)
    else:
        head = (part - Q_PROGRAMS) * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)[:, None]
        inside = (head < KV_HEADS) & (dims < HEAD_DIM)
        x_ptr = qkv_ptr + (HEADS + head) * HEAD_DIM
        k = _normed_and_rotated(
            x_ptr, k_norm_ptr, cos_sin_ptr, dims, inside, eps, HEAD_DIM, ROTARY_DIM, K_NORM
        )
        v = tl.load(x_ptr + KV_HEADS * HEAD_DIM + dims, mask=inside, other=0.0)
        slot = tl.load(slot_mapping_ptr + token).to(tl.int64)
        place = slot * KV_HEADS * HEAD_DIM + (head * HEAD_DIM + dims)
        tl.store(k_cache_ptr + place, k.to(k_cache_ptr.dtype.element_ty), mask=inside)
        tl.store(v_cache_ptr + place, v.to(v_cache_ptr.dtype.element_ty), mask=inside)

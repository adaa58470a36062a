"""How many KV blocks fit, and the tensors that hold them.

On a GPU the cache takes what is left of the allowed share after weights and the largest step; on a
CPU a fixed amount, enough for a demo. Knows no requests.
"""

import torch

from ..config import BLOCK_TOKENS
from ..errors import ConfigError
from ..models import ModelSpec
from ..models.inputs import LayerCache

CPU_CACHE_BYTES = 2**30
"""KV cache on a CPU when `num_blocks` is not given, at most."""


def block_bytes(spec: ModelSpec) -> int:
    """Bytes of one block over all layers, K and V."""
    per_token = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize
    return per_token * BLOCK_TOKENS


def blocks_that_fit(
    spec: ModelSpec,
    most_blocks: int,
    device: torch.device,
    utilization: float,
) -> int:
    """Blocks to allocate on `device`, at most `most_blocks`.

    On a GPU it is asked after a step of the largest size has run: the allocator's peak then tells
    what weights and activations take.

    Raises:
        ConfigError: not even two blocks fit.
    """
    free_bytes = CPU_CACHE_BYTES
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        unused_bytes, total_bytes = torch.cuda.mem_get_info(device)
        torch_bytes = torch.cuda.memory_reserved(device)
        others_bytes = total_bytes - unused_bytes - torch_bytes
        peak_bytes = torch.cuda.max_memory_allocated(device)
        free_bytes = int(total_bytes * utilization) - others_bytes - peak_bytes
        torch.cuda.empty_cache()
    num_blocks = min(most_blocks, free_bytes // block_bytes(spec))
    if num_blocks < 2:
        raise ConfigError(
            f"no room for a KV cache: {free_bytes / 2**30:.1f} GiB are left at "
            f"gpu_memory_utilization={utilization}; use a smaller model, or raise it"
        )
    return num_blocks


def allocate_cache(spec: ModelSpec, num_blocks: int, device: torch.device) -> list[LayerCache]:
    """Paged K and V of every layer, `[blocks, block_size, kv_heads, head_dim]` each.

    Zeros, so that what a padding row reads from the padding block is finite.
    """
    shape = (num_blocks, BLOCK_TOKENS, spec.num_kv_heads, spec.head_dim)
    return [
        LayerCache(
            k=torch.zeros(shape, dtype=spec.dtype, device=device),
            v=torch.zeros(shape, dtype=spec.dtype, device=device),
        )
        for _ in range(spec.num_layers)
    ]

"""Compile every kernel for a GPU as the ops launch it, on a machine without one, and report on it.

The ops run on CPU tensors of the shapes below; each launch is compiled instead (same constants,
warps, stages and argument specialisations) and assembled by Triton's ptxas. Run as a script,
because a failed assertion inside LLVM ends the process: `compile_probe.py 90 232448` (compute
capability, bytes of shared memory that a program may have) prints one JSON list.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from pagestream.kernels import (
    SamplingTable,
    Splitting,
    _triton,
    batch_layout,
    decode_attention,
    kv_splits,
    linear,
    linear_silu_mul,
    prefill_attention,
    rms_norm,
    rope_and_cache,
    sample,
    silu_mul,
)

BF16 = torch.bfloat16


def attention_args(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype = BF16
) -> tuple[Any, ...]:
    cache = torch.empty(4, 16, kv_heads, head_dim, dtype=dtype)
    ids = torch.zeros(4, dtype=torch.int32)
    return cache, cache.clone(), torch.zeros(4, 8, dtype=torch.int32), ids


def decode(
    heads: int,
    kv_heads: int,
    head_dim: int,
    seqs: int = 64,
    window: int | None = None,
    settled: bool = True,
    dtype: torch.dtype = BF16,
) -> None:
    k, v, table, _ = attention_args(heads, kv_heads, head_dim, dtype)
    q, rows = torch.empty(seqs, heads, head_dim, dtype=dtype), torch.zeros(seqs, dtype=torch.int32)
    splitting = Splitting.fastest(seqs, kv_heads, head_dim)
    splits = kv_splits(rows, rows, splitting, 2048, window)
    args = (q, k, v, table, rows, rows.clone(), 0.1)
    decode_attention(*args, window=window, max_kv_len=2048, splits=splits, settled=settled)


def prefill(heads: int, kv_heads: int, head_dim: int, tokens: int = 4096, **options: Any) -> None:
    k, v, table, ids = attention_args(heads, kv_heads, head_dim)
    q, cu_q = torch.empty(tokens, heads, head_dim, dtype=BF16), torch.zeros(5, dtype=torch.int32)
    prefill_attention(q, k, v, table, ids, cu_q, ids.clone(), 0.1, **options)


def rope(heads: int, kv_heads: int, head_dim: int, *, norm: bool) -> None:
    k, v, _, _ = attention_args(heads, kv_heads, head_dim)
    qkv = torch.empty(4, (heads + 2 * kv_heads) * head_dim, dtype=BF16)
    weight = torch.empty(head_dim, dtype=BF16) if norm else None
    slots = torch.zeros(4, dtype=torch.int64)
    rope_and_cache(qkv, torch.empty(4, head_dim), k, v, slots, heads, weight, weight)


def draw(vocab: int) -> None:
    ints, floats = torch.zeros(4, dtype=torch.int32), torch.zeros(4)
    table = SamplingTable(
        floats, floats, floats, ints, ints.long(), ints, ints.view(4, 1), ints.clone()
    )
    sample(torch.empty(4, vocab, dtype=BF16), ints, ints, table)


def norm(hidden: int) -> None:
    x = torch.empty(4, hidden, dtype=BF16)
    rms_norm(x, x[0], 1e-6, x.clone())


def layout() -> None:
    ints = torch.zeros(4, dtype=torch.int32)
    cu_q = torch.zeros(5, dtype=torch.int32)
    batch_layout(ints, ints, cu_q, ints, ints, ints, ints.view(4, 1), 16)


def splits() -> None:
    ints = torch.zeros(4, dtype=torch.int32)
    kv_splits(ints, ints, Splitting(128, 33), 2048)


def product(op: Callable[..., Any], rows: int, inputs: int, outputs: int) -> None:
    op(torch.empty(rows, inputs, dtype=BF16), torch.empty(outputs, inputs, dtype=BF16))


CASES: dict[str, Callable[[], object]] = {
    "decode 32/8 x 128": lambda: decode(32, 8, 128),
    "decode 32/8 x 128, few": lambda: decode(32, 8, 128, seqs=1),
    "decode 32/8 x 128, 8": lambda: decode(32, 8, 128, seqs=8),
    "decode 32/8 x 128, some": lambda: decode(32, 8, 128, seqs=32),
    "decode 32/8 x 128, 40": lambda: decode(32, 8, 128, seqs=40),
    "decode 32/8 x 128, unsettled": lambda: decode(32, 8, 128, settled=False),
    "decode 32/8 x 128, few, unsettled": lambda: decode(32, 8, 128, seqs=1, settled=False),
    "decode 32/8 x 128, few, fp32": lambda: decode(32, 8, 128, seqs=1, dtype=torch.float32),
    "decode 16/8 x 256, some": lambda: decode(16, 8, 256, seqs=32),
    "decode 32/32 x 96": lambda: decode(32, 32, 96),
    "decode 32/32 x 100": lambda: decode(32, 32, 100),
    "decode 32/32 x 100, few": lambda: decode(32, 32, 100, seqs=1),
    "decode 16/8 x 256": lambda: decode(16, 8, 256),
    "decode 16/8 x 256, few": lambda: decode(16, 8, 256, seqs=1),
    "decode 14/2 x 64, window": lambda: decode(14, 2, 64, window=4096),
    "prefill 32/8 x 128": lambda: prefill(32, 8, 128),
    "prefill 32/8 x 128, window": lambda: prefill(32, 8, 128, window=4096),
    "prefill 32/8 x 128, few": lambda: prefill(32, 8, 128, tokens=64),
    "prefill 32/32 x 96": lambda: prefill(32, 32, 96),
    "prefill 32/32 x 100": lambda: prefill(32, 32, 100),
    "prefill 32/32 x 100, few": lambda: prefill(32, 32, 100, tokens=64),
    "prefill 16/8 x 256": lambda: prefill(16, 8, 256),
    "prefill 14/2 x 64, window": lambda: prefill(14, 2, 64, window=4096),
    "rope 32/8 x 128": lambda: rope(32, 8, 128, norm=False),
    "rope 16/8 x 96, norm": lambda: rope(16, 8, 96, norm=True),
    "rms_norm 4096": lambda: norm(4096),
    "linear 1 x 4096 to 6144": lambda: product(linear, 1, 4096, 6144),
    "linear 16 x 2048 to 1024": lambda: product(linear, 16, 2048, 1024),
    "linear 16 x 14336 to 4096": lambda: product(linear, 16, 14336, 4096),
    "linear 32 x 2048 to 1024": lambda: product(linear, 32, 2048, 1024),
    "linear 32 x 14336 to 4096": lambda: product(linear, 32, 14336, 4096),
    "linear 64 x 4096 to 6144": lambda: product(linear, 64, 4096, 6144),
    "linear 3 x 864 to 200": lambda: product(linear, 3, 864, 200),
    "linear_silu_mul 1 x 4096": lambda: product(linear_silu_mul, 1, 4096, 28672),
    "linear_silu_mul 16 x 1024": lambda: product(linear_silu_mul, 16, 1024, 6144),
    "linear_silu_mul 64 x 4096": lambda: product(linear_silu_mul, 64, 4096, 28672),
    "linear_silu_mul 1024 x 2048": lambda: product(linear_silu_mul, 1024, 2048, 8192),
    "silu_mul 14336": lambda: silu_mul(torch.empty(4, 28672, dtype=BF16)),
    "batch_layout": layout,
    "kv_splits": splits,
    "sample 128256": lambda: draw(128256),
}


def resources(kernel: Any, capability: int) -> dict[str, Any]:
    """What ptxas says of a compiled kernel."""
    arch = f"sm_{capability}{'a' if capability == 90 else ''}"
    with tempfile.NamedTemporaryFile(suffix=".ptx") as ptx:
        ptx.write(kernel.asm["ptx"].encode())
        ptx.flush()
        command = [
            triton.knobs.nvidia.ptxas.path,
            "-v",
            f"-arch={arch}",
            ptx.name,
            "-o",
            "/dev/null",
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", said)]
    registers = re.search(r"Used (\d+) registers", said)
    assert len(spills) == 2, f"unexpected words from ptxas: {said}"
    assert registers, f"unexpected words from ptxas: {said}"
    ptx = kernel.asm["ptx"]
    before_wait = ptx.partition("griddepcontrol.wait")[0]
    before_last_wait = kernel.asm["ttgir"].rpartition("griddepcontrol.wait")[0]
    return {
        "kernel": kernel.metadata.name,
        "warps": kernel.metadata.num_warps,
        "registers": int(registers[1]),
        "spilled_bytes": sum(spills),
        "shared_bytes": kernel.metadata.shared,
        "wgmma": "wgmma.mma_async" in ptx,
        "may_begin_early": kernel.metadata.launch_pdl,
        "waits": before_wait != ptx,
        "reads_before_wait": len(re.findall(r"\b(?:ld\.global|cp\.async\.c[ag])", before_wait)),
        "writes_before_wait": len(re.findall(r"\b(?:st|atom|red)\.global", before_wait)),
        "stages": kernel.metadata.num_stages,
        "copies_before_last_wait": before_last_wait.count("async_copy_global_to_local"),
    }


def main() -> None:
    capability, shared_bytes = map(int, sys.argv[1:])
    target = GPUTarget("cuda", capability, 32)
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled.append(run(self, *args, grid=grid, warmup=True, **options))

    JITFunction.run = compile_only
    _triton.KERNELS_ON_CPU = True
    _triton._properties = lambda device: _triton.HOPPER | {"max_shared_mem": shared_bytes}
    report = []
    for case, launch in CASES.items():
        compiled.clear()
        launch()
        report += [{"case": case, **resources(kernel, capability)} for kernel in compiled]
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()

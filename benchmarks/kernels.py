"""Measure every kernel against its reference, torch's own op and what the GPU allows.

    python benchmarks/kernels.py                         # all ops, a table
    python benchmarks/kernels.py sample --json benchmarks/results/kernels.json

Each case runs in a CUDA graph of several launches, so that Python's launch overhead is not counted,
over enough copies of its inputs to miss the L2 cache. `roof` is the share of the roofline: bytes
that must move at the copy bandwidth measured first, or products at the matrix rate measured first,
whichever takes longer. References are timed where they run on a GPU; those of attention and
sampling are made for the CPU. `torch` is what torch itself has for the same: its attention reads
keys and values that lie in a row, not in blocks.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from timing import Launch, copy_bytes_per_us, flops_per_us, ints, randn, time_us
from torch import Tensor

from pagestream.kernels import (
    SamplingTable,
    Splitting,
    batch_layout,
    decode_attention,
    kv_splits,
    linear,
    linear_silu_mul,
    prefill_attention,
    query_tiles,
    rms_norm,
    rope_and_cache,
    sample,
    silu_mul,
)
from pagestream.kernels.rms_norm import rms_norm_reference
from pagestream.kernels.rope_and_cache import rope_and_cache_reference
from pagestream.kernels.silu_mul import silu_mul_reference
from pagestream.worker.bench.facts import machine

BLOCK_SIZE = 16
HEAD_DIM = 128
ROOM_TOKENS = 4096
"""Contexts that the graphs of short steps have room for."""

Op = Callable[..., object]


@dataclass(frozen=True)
class Case:
    """One shape of one op: a launch on fresh inputs, and what it must move and multiply."""

    op: str
    shape: str
    make: Callable[[], Launch]
    inputs_bytes: int
    moved_bytes: int
    flops: int = 0
    make_reference: Callable[[], Launch] | None = None
    make_torch: Callable[[], Launch] | None = None
    """On inputs of its own, of the same size."""


@dataclass(frozen=True)
class Result:
    """What was measured of one case."""

    op: str
    shape: str
    us: float
    reference_us: float | None
    torch_us: float | None
    tb_per_s: float
    tflops: float
    roof: float


def paged(
    seqs: int, kv_len: int, kv_heads: int, head_dim: int = HEAD_DIM
) -> tuple[Tensor, Tensor, Tensor]:
    """K, V, and a block table in shuffled order."""
    per_seq = -(-kv_len // BLOCK_SIZE)
    shape = (seqs * per_seq + 1, BLOCK_SIZE, kv_heads, head_dim)
    table = torch.randperm(seqs * per_seq, device="cuda").int().view(seqs, per_seq) + 1
    return randn(*shape), randn(*shape), table


def rms_norm_case(tokens: int, hidden: int) -> Case:
    def make(op: Op = rms_norm) -> Launch:
        x, residual, weight = randn(tokens, hidden), randn(tokens, hidden), randn(hidden)
        return lambda: op(x, weight, 1e-5, residual)

    def torch_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> Tensor:
        return F.rms_norm(residual.add_(x), (hidden,), weight, eps)

    one = tokens * hidden * 2
    return Case(
        "rms_norm", f"{tokens} x {hidden}", make, 2 * one, 4 * one,
        make_reference=lambda: make(rms_norm_reference), make_torch=lambda: make(torch_norm),
    )  # fmt: skip


def silu_mul_case(tokens: int, intermediate: int) -> Case:
    def make(op: Op = silu_mul) -> Launch:
        gate_up = randn(tokens, 2 * intermediate)
        return lambda: op(gate_up)

    one = tokens * intermediate * 2
    return Case(
        "silu_mul", f"{tokens} x {intermediate}", make, 2 * one, 3 * one,
        make_reference=lambda: make(silu_mul_reference),
    )  # fmt: skip


def rope_and_cache_case(tokens: int, heads: int, kv_heads: int, norm: bool) -> Case:
    width = (heads + 2 * kv_heads) * HEAD_DIM

    def make(op: Op = rope_and_cache) -> Launch:
        k, v, _ = paged(1, tokens, kv_heads)
        qkv, weight = randn(tokens, width), randn(HEAD_DIM) if norm else None
        angles = torch.randn(tokens, HEAD_DIM, device="cuda")
        slots = torch.randperm(tokens, device="cuda") + BLOCK_SIZE
        return lambda: op(qkv, angles, k, v, slots, heads, weight, weight)

    shape = f"{tokens} x {heads}/{kv_heads}{' norm' if norm else ''}"
    size = tokens * width * 2
    return Case(
        "rope_and_cache", shape, make, size, 2 * size + tokens * HEAD_DIM * 4,
        make_reference=lambda: make(rope_and_cache_reference),
    )  # fmt: skip


def decode_launch(
    q: Tensor,
    cache: tuple[Tensor, Tensor, Tensor],
    rows: Tensor,
    kv_lens: Tensor,
    splitting: Splitting | None = None,
) -> Launch:
    """One layer's decode attention, as a captured step launches it.

    What is made once a step is made before, and there is room for longer contexts.
    """
    longest = max(ROOM_TOKENS, int(kv_lens.max()))
    seqs, kv_heads, head_dim = len(rows), cache[0].shape[2], q.shape[2]
    splitting = splitting or Splitting.fastest(seqs, kv_heads, head_dim)
    splits = kv_splits(rows, kv_lens, splitting, longest)
    arrivals = torch.zeros(seqs * kv_heads, dtype=torch.int32, device=q.device)
    return lambda: decode_attention(
        *(q, *cache, rows, kv_lens, 0.09),
        max_kv_len=longest,
        splitting=splitting,
        splits=splits,
        settled=True,
        arrivals=arrivals,
    )


def decode_attention_case(seqs: int, kv_len: int, heads: int, kv_heads: int, head_dim: int) -> Case:
    def make() -> Launch:
        cache = paged(seqs, kv_len, kv_heads, head_dim)
        q, rows, lens = randn(seqs, heads, head_dim), ints(range(seqs)), ints([kv_len] * seqs)
        return decode_launch(q, cache, rows, lens)

    size = seqs * kv_len * kv_heads * head_dim * 4
    moved = size + 4 * seqs * heads * head_dim
    shape = f"{seqs} x {kv_len}, {heads}/{kv_heads} of {head_dim}"
    return Case(
        "decode_attention", shape, make, size, moved,
        make_torch=lambda: torch_attention(seqs, 1, kv_len, heads, kv_heads, head_dim),
    )  # fmt: skip


def torch_attention(
    seqs: int, q_len: int, kv_len: int, heads: int, kv_heads: int, head_dim: int
) -> Launch:
    """Torch's attention of the newest tokens, or of whole prompts."""
    q = randn(seqs, heads, q_len, head_dim)
    k, v = (randn(seqs, kv_heads, kv_len, head_dim) for _ in range(2))
    return lambda: F.scaled_dot_product_attention(
        q, k, v, is_causal=q_len > 1, scale=0.09, enable_gqa=heads != kv_heads
    )


def kv_splits_case(seqs: int, kv_len: int) -> Case:
    def make() -> Launch:
        rows, lens = ints(range(seqs)), ints([kv_len] * seqs)
        splitting = Splitting.fastest(seqs, 8, HEAD_DIM)
        return lambda: kv_splits(rows, lens, splitting, ROOM_TOKENS)

    moved = seqs * 32  # a row and a length read, a piece written
    return Case("kv_splits", f"{seqs} x {kv_len}", make, moved, moved)


def prefill_attention_case(
    seqs: int, q_len: int, before: int, heads: int, kv_heads: int, head_dim: int
) -> Case:
    kv_len = before + q_len

    def make() -> Launch:
        cache = paged(seqs, kv_len, kv_heads, head_dim)
        q, rows = randn(seqs * q_len, heads, head_dim), ints(range(seqs))
        cu_q, lens = ints(range(0, seqs * q_len + 1, q_len)), ints([kv_len] * seqs)
        return lambda: prefill_attention(q, *cache, rows, cu_q, lens, 0.09)

    # Query i sees before + i + 1 keys; each costs two products of head_dim.
    pairs = seqs * (q_len * before + q_len * (q_len + 1) // 2)
    moved = 4 * seqs * (kv_len * kv_heads + q_len * heads) * head_dim
    shape = f"{seqs} x {q_len} after {before}, {heads}/{kv_heads} of {head_dim}"

    def make_torch() -> Launch:
        return torch_attention(seqs, q_len, q_len, heads, kv_heads, head_dim)

    return Case(
        "prefill_attention", shape, make, moved, moved, flops=4 * pairs * heads * head_dim,
        make_torch=None if before else make_torch,  # its causal mask begins with the first key
    )  # fmt: skip


def query_tiles_case(seqs: int, q_len: int) -> Case:
    def make() -> Launch:
        q, cu_q = randn(seqs * q_len, 32, HEAD_DIM), ints(range(0, seqs * q_len + 1, q_len))
        return lambda: query_tiles(q, 8, cu_q)

    moved = seqs * (q_len // 32 + 1) * 8
    return Case("query_tiles", f"{seqs} x {q_len}", make, moved, moved)


def linear_case(tokens: int, name: str, inputs: int, outputs: int) -> Case:
    def make(op: Op = linear) -> Launch:
        x, weight = randn(tokens, inputs), randn(outputs, inputs)
        return lambda: op(x, weight)

    moved = 2 * (inputs * outputs + tokens * (inputs + outputs))
    flops = 2 * tokens * inputs * outputs
    return Case(
        "linear", f"{tokens} x {name}", make, moved, moved, flops,
        make_torch=lambda: make(F.linear),
    )  # fmt: skip


def linear_silu_mul_case(tokens: int, inputs: int, intermediate: int) -> Case:
    def make(op: Op = linear_silu_mul) -> Launch:
        x, weight = randn(tokens, inputs), randn(2 * intermediate, inputs)
        return lambda: op(x, weight)

    moved = 2 * (2 * inputs * intermediate + tokens * (inputs + intermediate))
    return Case(
        "linear_silu_mul", f"{tokens} x {inputs} to {intermediate}", make, moved, moved,
        flops=4 * tokens * inputs * intermediate,
        make_reference=lambda: make(lambda x, weight: silu_mul_reference(F.linear(x, weight))),
    )  # fmt: skip


def batch_layout_case(seqs: int, q_len: int) -> Case:
    def make() -> Launch:
        rows, zero = ints(range(seqs)), ints([0] * seqs)
        cu_q, ids = ints(range(0, seqs * q_len + 1, q_len)), ints([0] * (seqs * q_len))
        table = ints([[0] * -(-q_len // BLOCK_SIZE)] * seqs)
        return lambda: batch_layout(rows, zero, cu_q, ids, zero, zero, table, BLOCK_SIZE)

    moved = seqs * q_len * 20  # an id read; an id, a position and a slot written
    return Case("batch_layout", f"{seqs} x {q_len}", make, moved, moved)


def sample_case(seqs: int, vocab: int, columns: dict[str, float]) -> Case:
    def column(name: str, neutral: float, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.full((seqs,), columns.get(name, neutral), dtype=dtype, device="cuda")

    def make() -> Launch:
        table = SamplingTable(
            temperature=column("temperature", 1, torch.float32),
            top_p=column("top_p", 1, torch.float32),
            min_p=column("min_p", 0, torch.float32),
            top_k=column("top_k", 0),
            seed=column("seed", 5, torch.int64),
            min_position=column("min_position", 0),
            suppressed_ids=column("suppressed_ids", 0)[:, None],
            num_suppressed=column("num_suppressed", 0),
        )
        logits, rows = randn(seqs, vocab) * 4, ints(range(seqs))
        return lambda: sample(logits, rows, rows, table)

    def make_torch() -> Launch:
        logits = randn(seqs, vocab)
        return lambda: logits.argmax(-1)

    options = ", ".join(f"{name} {value:g}" for name, value in columns.items()) or "temperature 1"
    moved = seqs * vocab * 2
    return Case(
        "sample", f"{seqs} x {vocab}, {options}", make, moved, moved,
        make_torch=make_torch if columns == {"temperature": 0} else None,
    )  # fmt: skip


DECODE = [
    *((1, 512), (1, 2048), (1, 8192), (1, 32768)),
    *((8, 2048), (8, 8192), (32, 1024), (64, 2048), (256, 576)),
]
PREFILL = [(64, 512, 0), (16, 2048, 0), (4, 8192, 0), (1, 32768, 0), (1, 512, 8192)]
HEADS = [
    *((32, 8, 128), (32, 32, 128), (16, 8, 128)),
    *((32, 8, 64), (14, 2, 64), (32, 32, 96), (32, 32, 100), (16, 8, 256)),
]
WEIGHTS = [("qkv", 4096, 6144), ("o", 4096, 4096), ("up", 4096, 28672), ("down", 14336, 4096)]
DRAWS: list[dict[str, float]] = [
    {"temperature": 0}, {}, {"top_k": 50}, {"top_p": 0.95}, {"top_k": 50, "top_p": 0.95},
]  # fmt: skip


def cases() -> Iterator[Case]:
    """Every case; nothing touches the GPU before a case's `make`."""
    tokens = (1, 64, 256, 8192)
    product = itertools.product
    yield from (rms_norm_case(n, hidden) for n, hidden in product(tokens, (1024, 4096)))
    yield from (silu_mul_case(n, width) for n, width in product(tokens, (3072, 14336)))
    for n, (heads, kv_heads, norm) in product(tokens, ((32, 8, False), (16, 8, True))):
        yield rope_and_cache_case(n, heads, kv_heads, norm)
    yield from (decode_attention_case(*shape, *heads) for shape, heads in product(DECODE, HEADS))
    yield from (kv_splits_case(*shape) for shape in ((1, 2048), (256, 576)))
    yield from (prefill_attention_case(*shape, *heads) for shape, heads in product(PREFILL, HEADS))
    yield from (query_tiles_case(*shape) for shape in ((16, 512), (256, 32)))
    yield from (linear_case(n, *weight) for n, weight in product((1, 16, 64, 256), WEIGHTS))
    yield from (linear_silu_mul_case(n, 4096, 14336) for n in (1, 16, 64, 256, 1024, 8192))
    yield from (batch_layout_case(*shape) for shape in ((1, 1), (256, 1), (16, 512), (1, 8192)))
    yield from (sample_case(n, 128256, columns) for n, columns in product((1, 64, 256), DRAWS))


def measure(case: Case, bytes_per_us: float, matrix_flops_per_us: float) -> Result:
    us, reference_us, torch_us = (
        None if make is None else time_us(make, case.inputs_bytes)
        for make in (case.make, case.make_reference, case.make_torch)
    )
    assert us is not None, "ours is always there"
    floor_us = max(case.moved_bytes / bytes_per_us, case.flops / matrix_flops_per_us)
    return Result(
        case.op, case.shape, us, reference_us, torch_us,
        case.moved_bytes / us / 1e6, case.flops / us / 1e6, floor_us / us,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the ops named on the command line, or all."""
    known = sorted({case.op for case in cases()})
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ops", nargs="*", metavar="op", help=f"of {', '.join(known)}; none: all")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.ops) - set(known)):
        parser.error(f"no such op: {', '.join(unknown)}")
    if not torch.cuda.is_available():
        parser.error("these are measurements of a GPU, and there is none")
    bytes_per_us, matrix_flops_per_us = copy_bytes_per_us(), flops_per_us()
    here = machine()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, commit {here.commit}")
    print(f"copy {bytes_per_us / 1e6:.2f} TB/s, matrix {matrix_flops_per_us / 1e6:.0f} TFLOP/s\n")
    print(
        f"{'op':18}{'shape':42}{'µs':>10}{'reference':>10}{'torch':>10}{'TB/s':>8}{'TFLOP/s':>9}{'roof':>7}"
    )
    results: list[Result] = []
    for case in cases():
        if options.ops and case.op not in options.ops:
            continue
        result = measure(case, bytes_per_us, matrix_flops_per_us)
        results.append(result)
        times = (result.us, result.reference_us, result.torch_us)
        shown = "".join(f"{'–' if us is None else f'{us:.1f}':>10}" for us in times)
        print(
            f"{result.op:18}{result.shape:42}{shown}"
            f"{result.tb_per_s:8.2f}{result.tflops:9.0f}{result.roof:7.0%}"
        )
        torch.cuda.empty_cache()
    if options.json:
        limits = {"copy_tb_per_s": bytes_per_us / 1e6, "tflops": matrix_flops_per_us / 1e6}
        rows = [asdict(result) for result in results]
        report = {"machine": msgspec.to_builtins(here), **limits, "results": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

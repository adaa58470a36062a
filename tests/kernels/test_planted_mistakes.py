"""A mistake planted in each kernel's text must be seen by the very check that passes the kernel."""

import importlib.util
import inspect
import sys
from functools import partial

import pytest
import torch
from kernel_cases import (
    NEWEST_LENS,
    check_batch_layout,
    check_decode,
    check_decode_behind_a_kernel,
    check_linear_silu_mul,
    check_merge_pieces,
    check_prefill,
    check_rms_norm,
    check_rope_and_cache,
    check_silu_mul,
    settled,
)
from sampling_cases import check_chunks_agree, check_deep_thresholds, check_sample

from pagestream.kernels import Splitting
from pagestream.kernels._few_rows import Tile

CPU = {"device": "cpu", "dtype": torch.float32}
norm = partial(check_rms_norm, tokens=3, hidden=100, residual=True, **CPU)
silu = partial(check_silu_mul, tokens=2, intermediate=50, **CPU)
gated = partial(check_linear_silu_mul, rows=3, inputs=300, intermediate=70, bias=True, **CPU)
many = partial(check_linear_silu_mul, rows=300, inputs=304, intermediate=136, bias=True, **CPU)
rope = partial(
    check_rope_and_cache, heads=9, kv_heads=3, head_dim=64, rotary_dim=48, norm=True, **CPU
)
layout = partial(check_batch_layout, device="cpu")
merge = partial(check_merge_pieces, counts=[1, 3, 270], heads=6, head_dim=32, device="cpu")
decode = partial(check_decode, kv_lens=[1, 50, 2100], heads=6, kv_heads=2, head_dim=32, **CPU)
windowed = partial(decode, window=40)


def ahead(op):
    """Decode attention that reads ahead, as fp32's does not."""
    decode(settled(op), dtype=torch.float16)


prefill = partial(check_prefill, lens=[(1, 1), (70, 150)], heads=6, kv_heads=2, head_dim=32, **CPU)
windowed_prefill = partial(prefill, window=40)
wider_prefill = partial(prefill, window=100)
draw = partial(check_sample, **CPU)
deep = partial(check_deep_thresholds, **CPU)
chunks = partial(check_chunks_agree, **CPU)

LAUNCHED_BY = {"kv_splits": "decode_attention"}
"""An op of each module that only ops import."""

MISTAKES = [
    ("rms_norm", norm, "axis=0) / HIDDEN + eps", "axis=0) / HIDDEN"),
    ("rms_norm", norm, "axis=0) / HIDDEN + eps", "axis=0) / BLOCK + eps"),
    ("rms_norm", norm, "tl.store(summed_ptr + token * HIDDEN + columns, x,", "tl.store(summed_ptr + token * HIDDEN + columns, residual,"),
    ("rms_norm", norm, ".to(tl.float32) * weight", ".to(tl.float32)"),
    ("silu_mul", silu, "tl.exp(-wide)", "tl.exp(wide)"),
    ("silu_mul", silu, "gate_ptr + INTERMEDIATE", "gate_ptr"),
    ("_few_rows", gated, "bias_ptr + outputs, output", "bias_ptr, output"),
    ("_few_rows", gated, "outputs.to(tl.int64) * weight_stride", "outputs.to(tl.int64) * 0"),
    ("_few_rows", gated, "weight_row + at, mask=at < inputs", "weight_row + at, mask=at < begin"),
    ("_few_rows", gated, "output < outputs", "output < outputs - 1"),
    ("_few_rows", gated, "silu_times(result, up_out)", "silu_times(up_out, result)"),
    ("_few_rows", gated, "silu_times(result, up_out)", "silu_times(result, result)"),
    ("_few_rows", gated, "acc += tl.load", "acc -= tl.load"),
    ("_few_rows", gated, "range(0, inputs, INPUTS_BLOCK)", "range(0, inputs - INPUTS_BLOCK, INPUTS_BLOCK)"),
    ("_few_rows", gated, "row.to(tl.int64)[:, None] * x_stride", "row.to(tl.int64)[:, None] * inputs"),
    ("_many_rows", many, "permute(0, 2, 1)", "permute(0, 1, 2).reshape(ROWS_BLOCK, OUTPUTS_BLOCK, 2)"),
    ("_many_rows", many, "silu_times(gate.to(dtype), up.to(dtype))", "silu_times(up.to(dtype), gate.to(dtype))"),
    ("_many_rows", many, "rows_tiles - first, band)", "band, band)"),
    ("_many_rows", many, "in_band % height", "in_band // height"),
    ("_many_rows", many, "in_band // height", "in_band % height"),
    ("_many_rows", many, "range(0, inputs, INPUTS_BLOCK)", "range(0, inputs - INPUTS_BLOCK, INPUTS_BLOCK)"),
    ("_many_rows", many, "tl.num_programs(0), flatten", "tl.num_programs(0) + 1, flatten"),
    ("_many_rows", many, "unflatten(0, (2, outputs))", "unflatten(0, (outputs, 2)).mT.reshape(2, outputs, inputs)"),
    ("rope_and_cache", rope, "tl.where(dims < HALF, -sin, sin)", "tl.where(dims < HALF, sin, -sin)"),
    ("rope_and_cache", rope, "cos_sin_ptr + HALF + dims % HALF", "cos_sin_ptr + dims % HALF"),
    ("rope_and_cache", rope, "turns = dims < ROTARY_DIM", "turns = dims < HEAD_DIM"),
    ("rope_and_cache", rope, "norm_ptr + partners", "norm_ptr + dims"),
    ("rope_and_cache", rope, "x_ptr + KV_HEADS * HEAD_DIM + dims", "x_ptr + dims"),
    ("rope_and_cache", rope, "(head * HEAD_DIM + dims)", "(head * 0 + dims)"),
    ("rope_and_cache", rope, "slot * KV_HEADS * HEAD_DIM +", "(slot ^ 1) * KV_HEADS * HEAD_DIM +"),
    ("rope_and_cache", rope, "x_ptr, k_norm_ptr,", "x_ptr, q_norm_ptr,"),
    ("batch_layout", layout, "position = start + token - begin", "position = start + token"),
    ("batch_layout", layout, "tl.where(is_decode, newest, host_id)", "host_id"),
    ("batch_layout", layout, "row * block_table_stride", "seq * block_table_stride"),
    ("batch_layout", layout, "decode_block, mask=is_decode", "decode_block"),
    ("batch_layout", layout, "decode_block, mask=is_decode", "decode_block, mask=seq < 0"),
    ("batch_layout", layout, "kv_len = start + end - begin", "kv_len = start + end - begin - 1"),
    ("decode_attention", decode, "inside = keys < end", "inside = keys < end - 1"),
    ("decode_attention", decode, "inside = keys < end", "inside = keys < end + 1"),
    ("decode_attention", decode, "acc = acc * shrink[:, None]\n        acc =", "acc = acc\n        acc ="),
    ("decode_attention", decode, "head = kv_head * GROUP + group", "head = kv_head + group * GROUP"),
    ("decode_attention", decode, "tl.load(pieces_ptr + 1)", "tl.load(pieces_ptr)"),
    ("decode_attention", decode, "top + tl.log2(total)", "top"),
    ("decode_attention", decode, "== splits - 1", "== splits"),
    ("decode_attention", decode, "tl.load(place_ptr)", "(0 * tl.load(place_ptr))"),
    ("decode_attention", ahead, "tile == first_tile", "tile > first_tile"),
    ("_merge_pieces", merge, "tl.load(places_ptr + seq * 2).to", "(0 * tl.load(places_ptr + seq * 2)).to"),
    ("_merge_pieces", merge, "acc = acc * shrink[:, None] +", "acc = acc +"),
    ("_merge_pieces", merge, "total = total * shrink +", "total = total +"),
    ("_merge_pieces", merge, "if pieces < 2", "if pieces < 9"),
    ("_merge_pieces", merge, "piece[:, None] * HEADS + head[None, :]", "piece[:, None] * HEADS + head[None, :] * 0"),
    ("_merge_pieces", merge, "partial * weights[:, :, None]", "partial"),
    ("kv_splits", decode, "tl.minimum(begin + tokens, kv_len)", "kv_len"),
    ("kv_splits", decode, "places_ptr + seq * 2, place,", "places_ptr + seq * 2, place * 0,"),
    ("kv_splits", decode, "piece_ptr + 1, row", "piece_ptr + 1, row * 0"),
    ("kv_splits", windowed, "kv_len - WINDOW", "kv_len - WINDOW - 1"),
    ("kv_splits", windowed, "begin = first +", "begin ="),
    ("decode_attention", decode, "lane % BLOCK_SIZE", "lane"),
    ("decode_attention", decode, "totals = totals * shrink[:, None] +", "totals = totals +"),
    ("decode_attention", decode, "in_dim & inside[:, None]", "in_dim"),
    ("decode_attention", windowed, "inside & (keys >= begin)", "inside"),
    ("decode_attention", windowed, "begin // BLOCK_SIZE * BLOCK_SIZE", "begin"),
    ("decode_attention", decode, "(tile + TILE) // BLOCK_SIZE", "tile // BLOCK_SIZE"),
    ("prefill_attention", prefill, "keys[None, :] <= positions", "keys[None, :] < positions"),
    ("prefill_attention", prefill, "(first_position + 1) // TILE", "(first_position + TILE) // TILE"),
    ("prefill_attention", prefill, "(step + 1) * (TILE // BLOCK_SIZE)", "step * (TILE // BLOCK_SIZE)"),
    ("prefill_attention", prefill, "lane % BLOCK_SIZE", "lane"),
    ("prefill_attention", prefill, "in_dim & (keys < kv_len)[:, None]", "in_dim"),
    ("prefill_attention", prefill, "acc * shrink[:, None]", "acc"),
    ("prefill_attention", prefill, "positions = kv_len - q_len + query", "positions = query"),
    ("prefill_attention", prefill, "head = kv_head * GROUP + packed % GROUP", "head = kv_head * GROUP"),
    ("prefill_attention", windowed_prefill, "positions[:, None] - WINDOW", "positions[:, None] - WINDOW - 1"),
    ("prefill_attention", windowed_prefill, "first_position + 1 - WINDOW, 0)", "first_position + 20, 0)"),
    ("prefill_attention", wider_prefill, "tl.maximum(end - WINDOW, 0)", "tl.maximum(end - TILE - WINDOW, 0)"),
    ("sample", draw, "first + 0x165667B1", "first"),
    ("sample", draw, "h ^= h >> 13", "h ^= h >> 12"),
    ("sample", draw, "x = x * (1.0 / temperature) +", "x = x +"),
    ("sample", deep, "score = x * (1.0 / temperature) +", "score = x +"),
    ("sample", draw, "found = tl.where(reached >= target", "found = tl.where(reached > target"),
    ("sample", draw, "top_p * mass", "top_p * 1.0"),
    ("sample", draw, "tl.log(min_p)", "min_p"),
    ("sample", draw, "tl.where(early, tl.load(table.num_suppressed + row), 0)", "0"),
    ("sample", deep, "enough & (low >= cut)", "True"),
    ("sample", deep, "enough = low >= cut", "enough = True"),
    ("sample", deep, "cut += 1 << (32 - BITS)", "cut += 0"),
    ("sample", deep, "slot = count + tl.cumsum", "slot = tl.cumsum"),
    ("sample", deep, "masses * tl.exp2((tops - top) * (LOG2E / temperature))", "masses"),
    ("sample", chunks, "(0x7FFFFFFF - ids)", "ids"),
    ("sample", chunks, "mask=ids < VOCAB", "mask=ids < VOCAB - 1"),
    ("sample", chunks, "mask=slot >= count)", "mask=slot < 0)"),
]  # fmt: skip
# ruff: noqa: E501

OPTIONS = {
    "decode_attention": {"splitting": Splitting(128, 20)},
    "_few_rows": {"tile": Tile(16, 128, 2, 4), "gated": True},
    "_many_rows": {"rows_block": 16, "outputs_block": 16, "inputs_block": 128},
}


def altered(name, was, becomes, folder, monkeypatch):
    """The op of a module whose source says `becomes` where it said `was`."""
    package = "pagestream.kernels"
    op_module = sys.modules[f"{package}.{LAUNCHED_BY.get(name, name)}"]

    def load(module, old, new):
        text = inspect.getsource(module)
        assert text.count(old) >= 1, f"{module.__name__} no longer says {old!r}"
        path = folder / f"{module.__name__.rpartition('.')[2]}.py"
        path.write_text(text.replace(old, new))
        spec = importlib.util.spec_from_file_location(f"{package}.altered", path)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made

    if name in LAUNCHED_BY:
        part = f"{package}.{name}"
        monkeypatch.setitem(sys.modules, part, load(sys.modules[part], was, becomes))
        was = becomes = ""
    made = load(op_module, was, becomes)
    op_name = op_module.__name__.rpartition(".")[2]
    return partial(getattr(made, op_name.removeprefix("_")), **OPTIONS.get(op_name, {}))


@pytest.mark.interpreter
@pytest.mark.filterwarnings("ignore")  # numpy may notice a mistake too
@pytest.mark.parametrize(
    ("name", "check", "was", "becomes"), MISTAKES, ids=[f"{m[0]}: {m[3]}" for m in MISTAKES]
)
def test_a_mistake_is_seen(name, check, was, becomes, tmp_path, monkeypatch):
    wrong = altered(name, was, becomes, tmp_path, monkeypatch)
    with pytest.raises(AssertionError):
        check(wrong)


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("name", "check", "was"), {id(m[1]): m[:3] for m in MISTAKES}.values(), ids=str
)
def test_the_same_text_unaltered_passes(name, check, was, tmp_path, monkeypatch):
    check(altered(name, was, was, tmp_path, monkeypatch))


LEFT_OUT_WAITS = [
    ("(has_newest != 0) & is_loaded_early", "(has_newest != has_newest)"),
    ("wait_for_inputs(PDL)\n            q = _queries(", "q = _queries("),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("was", "becomes"), LEFT_OUT_WAITS, ids=["newest keys", "queries"])
def test_a_wait_that_is_left_out_is_seen(was, becomes, tmp_path, monkeypatch):
    """The interpreter runs one kernel after the other."""
    wrong = altered("decode_attention", was, becomes, tmp_path, monkeypatch)
    for splitting in (Splitting(128, 20, merges_apart=True), Splitting(512, 264, stages=4)):
        with pytest.raises(AssertionError):
            check_decode_behind_a_kernel(wrong, NEWEST_LENS, splitting)

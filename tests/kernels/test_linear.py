from functools import partial

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import check_linear, on_every_kernel, on_every_path, randn

from pagestream.kernels import linear, rms_norm
from pagestream.kernels._few_rows import Tile, few_rows, few_rows_tile


@on_every_path
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 512, 70), (5, 300, 96), (16, 1024, 33), (40, 256, 64)]
)
def test_matches_fp64(device, dtype, rows, inputs, outputs, bias):
    check_linear(linear, rows, inputs, outputs, bias, device, dtype)


@on_every_kernel
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 16, 40])
def test_few_rows_match_fp64(device, dtype, rows, bias):
    op = partial(few_rows, tile=Tile(32, 128, 3, 4))
    check_linear(op, rows, 300, 70, bias, device, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("inputs", "outputs", "gated"),
    [
        *((4096, 6144, False), (1024, 4096, False), (14336, 4096, False)),
        *((1024, 2048, False), (2048, 1024, False)),
        *((4096, 28672, True), (1024, 6144, True), (896, 9728, True)),
    ],
)
def test_few_rows_know_no_other_row(inputs, outputs, gated):
    """Nor the tile, which depends on how many there are."""
    x, weight = (randn(n, inputs, dtype=torch.bfloat16, device="cuda") for n in (64, outputs))
    whole = few_rows(x, weight, None, Tile(64, 64, 4, 4), gated=gated)
    tiles = [few_rows_tile(x[:rows], weight, gated=gated) for rows in range(1, 65)]
    assert any(tiles), "cuBLAS multiplies all of them"
    for rows, tile in enumerate(tiles, 1):
        if tile is not None:
            out = few_rows(x[:rows], weight, None, tile, gated=gated)
            assert torch.equal(out, whole[:rows]), f"{rows} rows by {tile}"


@pytest.mark.gpu
def test_a_layer_replayed_in_a_graph_gives_the_same_each_time():
    """Kernels that begin early read what the ones in front of them wrote, and not before."""
    weights = [randn(2048, 2048, dtype=torch.bfloat16, device="cuda", seed=n) for n in range(8)]
    scale = randn(2048, dtype=torch.bfloat16, device="cuda", seed=9)
    x = randn(4, 2048, dtype=torch.bfloat16, device="cuda", seed=10)

    def forward(pause):
        out, residual = x, None
        for weight in weights:
            out, residual = rms_norm(out, scale, 1e-6, residual)
            pause()
            out = linear(out, weight)
            pause()
        return out

    expected = forward(torch.cuda.synchronize)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = forward(lambda: None)
    for _ in range(50):
        out.zero_()
        graph.replay()
        assert torch.equal(out, expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (320, 960), (864, 320), (2048, 512)])
def test_a_row_knows_no_other_row(inputs, outputs, bias):
    x, weight = (
        randn(n, inputs, dtype=torch.float32, device="cpu", seed=n) for n in (600, outputs)
    )
    b = randn(outputs, dtype=torch.float32, device="cpu") if bias else None
    whole = linear(x, weight, b)
    expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
    torch.testing.assert_close(whole.double(), expected, atol=1e-3, rtol=1e-5)
    for rows in (*range(1, 71), 109, 192, 257, 600):
        assert torch.equal(linear(x[:rows], weight, b), whole[:rows]), f"{rows} rows"
        assert torch.equal(linear(x[-rows:], weight, b), whole[-rows:]), f"last {rows} rows"


def test_half_precision_is_rounded_once():
    x, weight = (randn(n, 2048, dtype=torch.bfloat16, device="cpu", seed=n) for n in (20, 64))
    expected = F.linear(x.double(), weight.double())
    torch.testing.assert_close(linear(x, weight).double(), expected, atol=0.2, rtol=2**-8)


def test_no_rows():
    assert linear(torch.zeros(0, 600), torch.zeros(8, 600)).shape == (0, 8)

"""Which tile multiplies few rows fastest, where it stands: among a layer's other kernels.

    python benchmarks/tune_few_rows.py --model benchmarks/models/llama-3.1-8b --rows 1 8 16 32 64

A product by itself says little. A kernel of ours begins while the one in front still runs, and
cuBLAS's do not, so a tile changes what its neighbours take. Layers without their attention are
replayed from a CUDA graph, as a step's are; each of the four products is given one tile after the
other, and cuBLAS's best, while the others keep what is shipped. What is found goes into `tile_for`
of kernels/_few_rows.py, with a line in NOTES.md, once whole steps say the same. Compiling 60 to 90
tiles takes a minute or two a product and number of rows, the first time.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timing import randn, time_us
from torch import Tensor
from triton.runtime.errors import OutOfResources

from pagestream.kernels import Products, _few_rows, linear, linear_silu_mul, rms_norm
from pagestream.kernels._few_rows import Tile
from pagestream.worker.models.spec import ModelSpec, read_spec

WEIGHT_BYTES = 6 << 30
"""Of all layers, about: far more than the L2 cache holds."""
UNDER_WAY_BYTES = range(24 << 10, 200 << 10)
"""Of weights on their way to one program: less leaves the memory idle, more finds no room."""
TURNS = 3
"""A replay's time differs by a percent from one to the next."""
SHOWN = 4
PRODUCTS = ("qkv", "o", "gate_up", "down")
"""Of a layer, in the order they run."""

Name = tuple[int, int, bool]
"""Outputs and inputs of a weight, and whether its product is gated."""


class Layers:
    """Decoder layers, their attention left out, and what cuBLAS does best for them."""

    def __init__(self, spec: ModelSpec) -> None:
        """Make them of random weights, on the GPU."""
        hidden, heads = spec.hidden_size, spec.num_heads * spec.head_dim
        qkv = heads + 2 * spec.num_kv_heads * spec.head_dim
        gate_up = 2 * spec.intermediate_size
        qkv_o = (qkv, hidden, False), (hidden, heads, False)
        mlp = (gate_up, hidden, True), (hidden, spec.intermediate_size, False)
        self.names: dict[str, Name] = dict(zip(PRODUCTS, (*qkv_o, *mlp), strict=True))
        layer_bytes = 2 * sum(outputs * inputs for outputs, inputs, _ in self.names.values())
        self._layers = [
            [randn(outputs, inputs) / 64 for outputs, inputs, _ in self.names.values()]
            for _ in range(max(1, WEIGHT_BYTES // layer_bytes))
        ]
        self._bytes = layer_bytes * len(self._layers)
        self._scales = (randn(hidden), randn(heads))
        self._products = Products(torch.device("cuda", torch.cuda.current_device()))
        self._heads, self._hidden = heads, hidden

    def learn(self, rows: int) -> None:
        """Let cuBLAS's best be known for all four products."""
        x = randn(rows, self._hidden)
        with mock.patch.object(_few_rows, "tile_for", return_value=None), self._products.learning():
            self._run(x)

    def us(self, rows: int, tiles: dict[Name, Tile | None]) -> float:
        """Microseconds of a layer with these tiles, and the shipped ones for the rest."""
        shipped = _few_rows.tile_for

        def tile_for(rows: int, outputs: int, inputs: int, *, gated: bool = False) -> Tile | None:
            name = outputs, inputs, gated
            return tiles[name] if name in tiles else shipped(rows, outputs, inputs, gated=gated)

        x = randn(rows, self._hidden)
        with mock.patch.object(_few_rows, "tile_for", tile_for):
            return time_us(lambda: lambda: self._run(x), self._bytes) / len(self._layers)

    def _run(self, x: Tensor) -> Tensor:
        residual, (scale, heads_scale), products = x, self._scales, self._products
        for qkv, o, gate_up, down in self._layers:
            x, residual = rms_norm(x, scale, 1e-5, residual)
            x = linear(x, qkv, products=products)[:, : self._heads]
            x, _ = rms_norm(x, heads_scale, 1e-5)  # in the place of what attention launches
            x, residual = rms_norm(linear(x, o, products=products), scale, 1e-5, residual)
            x = linear(linear_silu_mul(x, gate_up, products=products), down, products=products)
        return x


def candidates(*, gated: bool) -> Iterator[Tile]:
    """Every tile worth a try."""
    for outputs, inputs, stages in itertools.product(
        (16, 32, 64, 128), (64, 128, 256, 512, 1024), (3, 4, 5, 6, 8)
    ):
        weights_bytes = (stages - 1) * outputs * inputs * (4 if gated else 2)
        if weights_bytes in UNDER_WAY_BYTES:
            for warps in {16: (2, 4), 32: (4,)}.get(outputs, (4, 8)):
                yield Tile(outputs, inputs, stages, warps)


def sweep(layers: Layers, rows: int, product: str) -> None:
    """Print what the fastest tiles of one product make of a layer, and what is shipped."""
    name = layers.names[product]
    found: dict[Tile | None, float] = {}
    for tile in (None, *candidates(gated=name[2])):
        try:
            found[tile] = layers.us(rows, {name: tile})
        except OutOfResources:
            continue
    best = sorted(found, key=found.__getitem__)[:SHOWN]
    shipped = _few_rows.tile_for(rows, *name[:2], gated=name[2])
    print(f"{rows} rows, {product} of {name[0]} x {name[1]}; shipped: {said(shipped)}")
    for tile in dict.fromkeys((shipped, *best)):
        us = statistics.median(layers.us(rows, {name: tile}) for _ in range(TURNS))
        print(f"  {us:8.2f} µs a layer by {said(tile)}", flush=True)


def said(tile: Tile | None) -> str:
    """A tile, or what there is without one: cuBLAS, or a plain product and an activation."""
    return "no tile" if tile is None else str(tuple(tile))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a directory with a config.json")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--products", nargs="+", choices=PRODUCTS, default=PRODUCTS)
    arguments: Any = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this measures a GPU, and there is none")
    layers = Layers(read_spec(arguments.model))
    for rows in arguments.rows:
        layers.learn(rows)
        for product in arguments.products:
            sweep(layers, rows, product)


if __name__ == "__main__":
    main()

"""What measuring products comes to; the measuring itself is judged by benchmarks."""

import ctypes
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from kernel_cases import check_linear, randn

from pagestream.kernels import Products, _products, linear, linear_silu_mul
from pagestream.kernels._cublaslt import Algorithm, Shape
from pagestream.kernels._product_notes import Notes

SHAPE = Shape(64, 512, 256, torch.bfloat16)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """No choice of a test may be found by a worker: here any other algorithm counts as better."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_products, "_WORTHWHILE", 100.0)
    return tmp_path


def noted(number: int) -> Algorithm:
    return Algorithm((ctypes.c_uint64 * 8)(*[number] * 8))


def test_what_was_chosen_is_there_at_the_next_start():
    notes = Notes("a GPU", 1)
    notes[SHAPE], notes[SHAPE._replace(rows=72)] = noted(7), None
    notes.keep()
    again = Notes("a GPU", 1)
    assert bytes(again[SHAPE] or b"") == bytes(noted(7))
    assert SHAPE._replace(rows=72) in again
    assert again[SHAPE._replace(rows=72)] is None
    assert SHAPE._replace(rows=80) not in again
    assert SHAPE._replace(dtype=torch.float16) not in again


@pytest.mark.parametrize("other", [("another GPU", 1), ("a GPU", 2)])
def test_another_gpu_or_library_finds_nothing(other):
    notes = Notes("a GPU", 1)
    notes[SHAPE] = noted(7)
    notes.keep()
    assert SHAPE not in Notes(*other)


@pytest.mark.parametrize("damage", ["", "{", '{"64 x'])
def test_a_damaged_file_is_measured_anew(cache, caplog, damage):
    notes = Notes("a GPU", 1)
    notes[SHAPE] = noted(7)
    notes.keep()
    (path,) = cache.glob("*/products.json")
    path.write_text(damage)
    again = Notes("a GPU", 1)
    assert SHAPE not in again
    assert str(path) in caplog.text
    again[SHAPE] = noted(8)
    again.keep()
    assert bytes(Notes("a GPU", 1)[SHAPE] or b"") == bytes(noted(8))


def test_a_file_that_cannot_be_written_costs_the_measuring_alone(cache, caplog):
    notes = Notes("a GPU", 1)
    (folder,) = cache.iterdir()
    folder.rmdir()
    folder.write_text("in the way")
    notes[SHAPE] = noted(7)
    notes.keep()
    assert "not kept" in caplog.text


class Library:
    """cuBLASLt without a GPU: proposals 1 and 2, tilings 10 to 14."""

    version = 1

    def __init__(self, device: torch.device) -> None:
        pass

    @staticmethod
    def takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
        return True

    def layouts(self, shape: Shape) -> Shape:
        return shape

    def proposals(self, shape: Shape, most: int) -> list[Algorithm]:
        return [noted(1), noted(2)]

    def tilings(self, shape: Shape, like: Algorithm) -> list[Algorithm]:
        return [noted(number) for number in range(10, 15)]

    def launch(self, shape: Shape, algorithm: Algorithm, *_: object, **__: object) -> int:
        return 0


@pytest.fixture
def chosen(monkeypatch):
    """What is chosen for shapes, given what each algorithm takes; torch's own choice takes 100."""

    def choose(rows_us, outputs=256):
        def time_us(launch, weights, rounds=1):
            if launch.func is torch.nn.functional.linear:
                return 100.0
            tried.append((launch.args[0].rows, launch.args[1].data[0]))
            return float(rows_us(*tried[-1]))

        tried: list[tuple[int, int]] = []
        monkeypatch.setattr(_products, "CublasLt", Library)
        monkeypatch.setattr(_products, "_WORTHWHILE", 0.97)
        monkeypatch.setattr(_products, "_time_us", time_us)
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda _: SimpleNamespace(name="", multi_processor_count=1),
        )
        products = Products(torch.device("cpu"))
        weight = torch.zeros(outputs, 8)
        with products.learning():
            for rows in (104, 96, 100):
                products.multiply(torch.zeros(rows, 8), weight)
        found = {
            shape.rows: None if best is None else best[1].data[0]
            for shape, best in products._chosen.items()
        }
        return found, tried

    return choose


def test_rows_between_take_what_was_good_where_all_tilings_were_tried(chosen):
    # 13 is best at 96 rows, and 12, third there, at the others.
    us = {13: 50, 11: 60, 12: 70}
    found, tried = chosen(
        lambda rows, number: 40 if rows > 96 and number == 12 else us.get(number, 90)
    )
    assert found == {96: 13, 104: 12, 100: 12}
    assert {number for rows, number in tried if rows == 96} == {1, 2, 10, 11, 12, 13, 14}
    assert {number for rows, number in tried if rows == 104} == {1, 2, 11, 12, 13}


def test_torch_keeps_its_choice_where_little_is_gained(chosen):
    assert chosen(lambda rows, number: 98)[0] == {96: None, 104: None, 100: None}


def test_the_heads_tilings_are_not_tried(chosen):
    _, tried = chosen(lambda rows, number: 90, outputs=65536)
    assert {number for _, number in tried} == {1, 2}


@pytest.mark.gpu
def test_the_next_start_measures_nothing(monkeypatch):
    x, weight = (randn(n, 512, dtype=torch.bfloat16, device="cuda") for n in (96, 256))
    products = Products(torch.device("cuda"))
    with products.learning():
        products.multiply(x, weight)
    expected = products.multiply(x, weight)
    assert expected is not None

    def measured(*_: object) -> None:
        raise AssertionError("a shape that was noted was measured again")

    monkeypatch.setattr(Products, "_fastest", measured)
    again = Products(torch.device("cuda"))
    with again.learning():
        again.multiply(x, weight)
    out = again.multiply(x, weight)
    assert out is not None
    assert torch.equal(out, expected)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(72, 1024, 512), (300, 520, 264)])
def test_learned_products_match_fp64(rows, inputs, outputs):
    products = Products(torch.device("cuda"))
    x, weight = (randn(n, inputs, dtype=torch.bfloat16, device="cuda") for n in (rows, outputs))
    with products.learning():
        assert products.multiply(x, weight) is None
    assert products.multiply(x, weight) is not None
    assert products.multiply(x[:-1], weight) is None, "another shape"
    op = partial(linear, products=products)
    check_linear(op, rows, inputs, outputs, False, "cuda", torch.bfloat16)
    check_linear(op, rows, inputs, outputs, True, "cuda", torch.bfloat16)
    gated = linear_silu_mul(x, weight, products=products)
    torch.testing.assert_close(gated, linear_silu_mul(x, weight), rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_a_learned_product_can_be_captured():
    products = Products(torch.device("cuda"))
    x, weight = (randn(n, 512, dtype=torch.bfloat16, device="cuda") for n in (96, 256))
    with products.learning():
        products.multiply(x, weight)
    expected = products.multiply(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = products.multiply(x, weight)
    assert expected is not None
    assert out is not None
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)


@pytest.mark.gpu
def test_what_cublaslt_cannot_take_is_left_to_torch():
    products = Products(torch.device("cuda"))
    x, weight = (randn(n, 512, dtype=torch.bfloat16, device="cuda") for n in (97, 256))
    with products.learning():
        unaligned = x.view(-1)[8 : 8 + 512 * 96].view(96, 512)
        for other in (unaligned, x[:, ::2], x.float(), x[:0]):
            assert products.multiply(other, weight[:, : other.shape[1]]) is None
    assert products._chosen == {}

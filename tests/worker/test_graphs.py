import pytest

from pagestream.worker.engine import graphs
from pagestream.worker.engine.batch import StepShape
from pagestream.worker.engine.graphs import StepGraphs, decode_buckets, mixed_buckets

SMALL, LARGE = 15 << 20, 208 << 20
"""Products of a token in a layer of a 0.6B and of an 8B model, about."""


@pytest.mark.parametrize(
    ("most", "buckets"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (20, [1, 2, 4, 8, 16, 20]),
        (256, [1, 2, 4, *range(8, 257, 8)]),
        (280, [1, 2, 4, *range(8, 257, 8), 280]),
        (600, [1, 2, 4, *range(8, 257, 8), *range(288, 513, 32), 576, 600]),
    ],
)
def test_buckets_end_in_the_most_sequences(most, buckets):
    assert decode_buckets(most) == buckets


def test_long_contexts_have_fewer_buckets():
    assert decode_buckets(800, 32) == [1, 2, 4, 8, 16, 24, *range(32, 257, 32), 384, 512, 768, 800]


@pytest.mark.parametrize(
    ("most", "products", "large"),
    [
        (8192, SMALL, [3072, 4096, 6144, 8192]),
        (8191, SMALL, [3072, 4096, 6144, 8191]),
        (2049, SMALL, [2049]),
        (2048, SMALL, []),
        (8192, 4 * SMALL, []),
        (8192, 2 * SMALL, [3072, 4096]),
        (2100, 2 * SMALL, [2100]),
        (8192, LARGE, []),
    ],
)
def test_large_steps_are_captured_where_launching_takes_longer_than_they_do(most, products, large):
    assert [tokens for tokens in mixed_buckets(most, products) if tokens > 2048] == large


@pytest.fixture
def shapes_alone(monkeypatch) -> None:
    """Which step takes which needs no GPU."""
    monkeypatch.setattr(graphs.torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(graphs.torch.cuda, "Stream", lambda: None)


@pytest.fixture
def captured(shapes_alone) -> StepGraphs:
    return StepGraphs(100, max_model_tokens=9000, max_step_tokens=1000, layer_products=SMALL)


@pytest.mark.parametrize(
    ("step", "shape"),
    [
        (StepShape(3, 3, True, 0, 50), StepShape(4, 4, True, 0, 4096)),
        (StepShape(98, 98, True, 0, 4097), StepShape(100, 100, True, 0, 9000)),
        (StepShape(3, 30, True, 1, 50), StepShape(64, 64, True, 32, 4096)),
        (StepShape(3, 65, False, 3, 50), StepShape(100, 128, True, 32, 4096)),
        (StepShape(100, 512, True, 32, 50), StepShape(100, 512, True, 32, 4096)),
        (StepShape(100, 512, True, 33, 50), None),
        (StepShape(100, 512, True, 1, 4097), None),
        (StepShape(100, 1000, True, 1, 50), None),
    ],
)
def test_a_step_takes_the_smallest_shape_that_holds_it(captured, step, shape):
    assert captured.fit(step) == shape
    assert shape is None or shape in set(captured.shapes())


@pytest.mark.usefixtures("shapes_alone")
def test_a_step_of_few_sequences_computes_few_rows_of_the_head():
    captured = StepGraphs(700, max_model_tokens=900, max_step_tokens=1000, layer_products=SMALL)
    steps = [StepShape(seqs, 600, True, 9, 50) for seqs in (100, 256, 257, 600)]
    shapes = [captured.fit(step) for step in steps]
    assert [shape and shape.num_seqs for shape in shapes] == [256, 256, 640, 640]
    assert set(shapes) < set(captured.shapes())


@pytest.mark.usefixtures("shapes_alone")
@pytest.mark.parametrize(("prefills", "fits"), [(1, True), (64, True), (65, False)])
def test_a_large_step_holds_more_prefills(prefills, fits):
    captured = StepGraphs(700, max_model_tokens=900, max_step_tokens=8192, layer_products=SMALL)
    shape = captured.fit(StepShape(300, 8000, True, prefills, 50))
    assert shape == (StepShape(700, 8192, True, 64, 900) if fits else None)
    assert shape is None or shape in set(captured.shapes())

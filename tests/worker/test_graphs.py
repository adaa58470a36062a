import pytest

from pagestream.worker.engine.graphs import decode_buckets


@pytest.mark.parametrize(
    ("most", "buckets"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (20, [1, 2, 4, 8, 16, 20]),
        (256, [1, 2, 4, *range(8, 257, 8)]),
        (280, [1, 2, 4, *range(8, 257, 8), 272, 280]),
    ],
)
def test_buckets_end_in_the_most_sequences(most, buckets):
    assert decode_buckets(most) == buckets

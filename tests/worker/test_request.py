import pytest

from pagestream.worker.engine.request import Request
from pagestream.worker.messages import Sampling


def request(in_flight=0):
    made = Request("r", [1, 2, 3], Sampling(max_tokens=4), [4, 5])
    made.num_tokens += in_flight
    return made


@pytest.mark.parametrize(
    ("start", "stop", "ids"),
    [(0, 2, [1, 2]), (1, 3, [2, 3]), (2, 4, [3, 4]), (3, 5, [4, 5]), (0, 5, [1, 2, 3, 4, 5])],
)
def test_ids_run_over_the_end_of_the_prompt(start, stop, ids):
    assert request().ids(start, stop) == ids


def test_tokens_in_flight_count_but_are_not_known():
    made = request(in_flight=1)
    assert (made.num_known_tokens, made.num_tokens) == (5, 6)


def test_drawing_ends_with_the_tokens_in_flight():
    assert request(in_flight=1).num_tokens < request().max_tokens
    assert request(in_flight=2).num_tokens == request().max_tokens


def test_only_full_blocks_of_known_tokens_get_hashes():
    made = request(in_flight=1)
    made.extend_hashes(2)
    assert len(made.block_hashes) == 2
    made.output_ids.append(6)
    assert made.ids(4, 6) == [5, 6]
    made.extend_hashes(2)
    assert len(made.block_hashes) == 3


def test_an_empty_prompt_is_a_programming_error():
    with pytest.raises(AssertionError, match="empty prompt"):
        Request("r", [], Sampling())

"""What a submit call becomes: checked here, before anything is sent."""

import datetime

import pytest

from pagestream.producer.errors import InvalidRequest, UnsupportedParameter
from pagestream.producer.protocol import decode_payload
from pagestream.producer.request import build_request, seed_of
from pagestream.producer.sampling import SamplingParams


def build(**given):
    return build_request(given, model="m", tenant="default", queue_limit=10)


def test_a_request_says_what_was_asked_for():
    request = build(
        prompt="hi", id="j", top_k=3, stop="end", lane="high", deadline_ms=9, mirror=True
    )
    payload = decode_payload(request.body)
    assert payload == request.payload
    assert (payload.model, payload.prompt) == ("m", "hi")
    assert (payload.sampling.top_k, payload.sampling.stop) == (3, ("end",))
    assert payload.sampling.seed == seed_of("j")
    options = request.options
    assert (options.lane, options.deadline_ms, options.mirror, options.queue_limit) == (
        *("high", 9, True),
        10,
    )
    assert options.tokens_max >= 2


def test_the_same_call_is_the_same_job_and_another_id_another_draw():
    assert build(prompt="hi", id="j").body == build(prompt="hi", id="j").body
    assert build(prompt="hi", id="j").body != build(prompt="hi", id="k").body
    assert build(prompt="hi").id != build(prompt="hi").id
    # Stable over versions: a resubmission after an upgrade must not be a conflict.
    assert seed_of("order-7") == 8_420_207_841_770_109_304


def test_single_parameters_win_over_the_struct():
    request = build(prompt="hi", sampling=SamplingParams(top_k=1, temperature=0.5), top_k=2, seed=7)
    sampling = request.payload.sampling
    assert (sampling.top_k, sampling.temperature, sampling.seed) == (2, 0.5, 7)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "exactly one"),
        ({"prompt": "a", "prompt_ids": [1]}, "exactly one"),
        ({"prompt": ""}, "empty"),
        ({"prompt": 3}, "wrong type"),
        ({"prompt": "\ud800"}, "Unicode"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": object()}]}, "wrong type"),
        ({"prompt_ids": [1.5]}, "token id"),
        ({"prompt_ids": [-1]}, "-1"),
        ({"prompt": "a", "temprature": 1}, "temprature"),
        ({"prompt": "a", "temperature": "hot"}, "wrong type"),
        ({"prompt": "a", "temperature": 3.0}, "temperature=3.0"),
        ({"prompt": "a", "sampling": SamplingParams(top_k="x")}, "wrong type"),
        ({"prompt": "a", "sampling": 5}, "sampling"),
        ({"prompt": "a", "id": "a b"}, "job id"),
        ({"prompt": "a", "lane": "fast"}, "fast"),
        ({"prompt": "a", "deadline_ms": 0}, "deadline_ms=0"),
        ({"prompt": "a", "retention_ms": 1.5}, "retention_ms=1.5"),
        ({"prompt": "a", "queue_timeout_ms": -4}, "queue_timeout_ms=-4"),
        ({"prompt": "a", "queue_limit": 0}, "queue_limit=0"),
    ],
)
def test_what_could_never_run_is_refused_by_name(given, named):
    with pytest.raises(InvalidRequest, match=named):
        build(**given)


def test_a_job_may_say_how_full_is_full():
    assert build(prompt="a", queue_limit=3).options.queue_limit == 3


def test_a_refusal_has_the_name_of_what_it_is_about():
    for given in ({"temperature": 9}, {"n": 2}, {"lane": "fast"}, {"deadline_ms": 0}):
        with pytest.raises(InvalidRequest) as refused:
            build(prompt="a", **given)
        assert refused.value.param == next(iter(given))


def test_parameters_that_are_not_built_are_refused_unless_neutral():
    build(prompt="a", n=1, presence_penalty=0.0, logprobs=False)
    with pytest.raises(UnsupportedParameter, match="n=2"):
        build(prompt="a", n=2)


def test_what_json_has_no_form_for_travels_as_json_would_write_it():
    day, bits = datetime.date(2026, 1, 31), b"ab"
    given, written = (
        build(messages=[{"role": "user", "content": content}], id="j").body
        for content in ([day, bits], ["2026-01-31", "YWI="])
    )
    assert given == written


def test_a_message_that_is_nested_too_deeply_is_refused():
    content: list[object] = []
    for _ in range(100_000):
        content = [content]
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        build(messages=[{"role": "user", "content": content}])


def test_a_number_that_no_wire_carries_is_refused():
    messages = [{"role": "user", "content": "x", "weight": 2**70}]
    with pytest.raises(InvalidRequest, match="a message cannot be written"):
        build_request({"messages": messages}, model=None, tenant="default", queue_limit=1)

"""`/v1/responses` with OpenAI's client: whole, in events, in the background."""

import openai
import pytest
from stub_worker import answer


def test_a_response_and_again(client, queue_name):
    told = client.responses.create(
        model=queue_name,
        instructions="be brief",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
        max_output_tokens=4,
        temperature=0.5,
        extra_body={"seed": 6},
    )
    assert told.output_text == answer(6, 4)[1]
    assert told.status == "incomplete"
    assert told.incomplete_details.reason == "max_output_tokens"
    assert told.usage.output_tokens == 4
    again = client.responses.retrieve(told.id)
    assert again.to_dict() == told.to_dict()
    client.responses.delete(told.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(told.id)


def test_events_and_their_numbers(client, queue_name):
    ask = {"model": queue_name, "input": "hello", "max_output_tokens": 5}
    events = list(client.responses.create(**ask, stream=True, extra_body={"seed": 2}))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == answer(2, 5)[1]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == answer(2, 5)[1]
    behind = deltas[1].sequence_number
    rest = list(
        client.responses.retrieve(events[0].response.id, stream=True, starting_after=behind)
    )
    assert [event.to_dict() for event in rest] == [
        event.to_dict() for event in events[behind + 1 :]
    ]


def test_a_response_in_the_background(client, worker, queue_name):
    told = client.responses.create(
        model=queue_name, input="hold", background=True, max_output_tokens=3, extra_body={"seed": 8}
    )
    assert told.status == "queued"
    assert worker.claimed.wait(20)
    assert client.responses.retrieve(told.id).status in ("queued", "in_progress")
    worker.released.set()
    stream = client.responses.retrieve(told.id, stream=True)
    assert [event.type for event in stream][-1] == "response.incomplete"
    done = client.responses.retrieve(told.id)
    assert done.background
    assert done.output_text == answer(8, 3)[1]


def test_a_response_in_events_may_have_to_wait(client, worker, queue_name):
    """What keeps the connection meanwhile is no event, also behind those that have ids."""
    ask = {"model": queue_name, "input": "hold", "max_output_tokens": 2, "stream": True}
    stream = client.responses.create(**ask)
    opening = [next(stream).type for _ in range(4)]
    assert opening[-1] == "response.content_part.added"
    worker.released.set()
    assert [event.type for event in stream][-1] == "response.incomplete"


def test_a_response_can_be_cancelled(client, worker, queue_name):
    told = client.responses.create(model=queue_name, input="hold", background=True)
    assert worker.claimed.wait(20)
    assert client.responses.cancel(told.id).status == "cancelled"
    with pytest.raises(openai.APIError, match="was cancelled"):
        for _ in client.responses.retrieve(told.id, stream=True):
            pass
    assert client.responses.retrieve(told.id).status == "cancelled"
    ended = client.responses.create(model=queue_name, input="x", max_output_tokens=1)
    assert client.responses.cancel(ended.id).status == "incomplete"


def test_a_response_that_fails(client, queue_name):
    told = client.responses.create(model=queue_name, input="fail", background=True)
    with pytest.raises(openai.APIError, match="asked to fail"):
        for _ in client.responses.retrieve(told.id, stream=True):
            pass
    failed = client.responses.retrieve(told.id)
    assert failed.status == "failed"
    assert "asked to fail" in failed.error.message


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "resp_1"},
        {"tools": [{"type": "web_search"}]},
        {"metadata": {"a": "b"}},
    ],
)
def test_what_is_not_built_is_refused_by_name(client, queue_name, more):
    with pytest.raises(openai.BadRequestError, match=f"{next(iter(more))}=.* is not supported yet"):
        client.responses.create(model=queue_name, input="x", **more)

"""Coming back to a stream: wherever it is cut, what follows is exactly what was not yet told."""

import pytest
from gateway_process import events_of
from stub_worker import answer

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "seed": 4}
# After five tokens a word of the text is still held back: it comes with the end.
ASKED = [
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", {"prompt": "hello", "max_tokens": 5, "seed": 4}),
]


def told(http, path, body, **headers):
    """The events of a new stream, or of an old one under its key."""
    answered = http.post(path, json={**body, "stream": True}, headers=headers)
    assert answered.status_code == 200, answered.text
    return events_of(answered.text)


def fetched(http, path, **more):
    answered = http.get(path, **more)
    assert answered.status_code == 200, answered.text
    return events_of(answered.text)


def said_in(data):
    """An event without its id, which says how many events an end has."""
    return {name: value for name, value in data.items() if name != "event_id"}


@pytest.mark.parametrize(("path", "asked"), ASKED)
@pytest.mark.parametrize("with_usage", [True, False])
def test_a_stream_cut_behind_any_event_goes_on_there(
    gateways, http, worker, queue_name, path, asked, with_usage
):
    body = {"model": queue_name, **asked, "stream_options": {"include_usage": with_usage}}
    events = told(http, path, body, **{"Idempotency-Key": "one"})
    ids = [event_id for event_id, _ in events[:-1]]
    assert ids == [data["event_id"] for _, data in events[:-1]]
    assert all(ids), "every event can be come back to"
    assert len(set(ids)) == len(ids)
    stream = f"{gateways[1].url}/v1/streams/{events[0][1]['id']}"
    for place, event_id in enumerate(ids, 1):
        rest = events[place:]
        again = {"Idempotency-Key": "one", "Last-Event-ID": event_id}
        assert told(http, path, body, **again) == rest
        from_query = fetched(http, stream, params={"from": event_id})
        assert from_query == fetched(http, stream, headers={"Last-Event-ID": event_id})
        if with_usage:
            assert from_query == rest
        else:  # there the end has an event more
            data = [one for _, one in from_query]
            assert [said_in(one) for one in data[: len(rest) - 1]] == [
                said_in(one) for _, one in rest[:-1]
            ]


def test_the_ids_of_an_end(http, worker, queue_name):
    body = {"model": queue_name, **CHAT, "stream_options": {"include_usage": True}}
    events = told(http, "/v1/chat/completions", body)
    ids = [data["event_id"] for _, data in events[:-1]]
    assert ids == ["0-0", "1-1", "1-2", "1-3", "1-4", "1-5", "1-6.1", "1-6.2", "1-6"]
    # Nobody can ask for just this again, and some readers of streams know no other lines.
    assert not any(event_id for event_id, _ in events)


def test_a_failure_is_told_to_whoever_comes_back(http, worker, queue_name):
    body = {"model": queue_name, "prompt": "fail", "seed": 4}
    events = told(http, "/v1/completions", body, **{"Idempotency-Key": "lost"})
    assert [event_id for event_id, _ in events] == ["1-1", "1-2", None, None]
    assert events[-1][1]["error"]["code"] == "stub_failure"
    again = {"Idempotency-Key": "lost", "Last-Event-ID": "1-1"}
    assert told(http, "/v1/completions", body, **again) == events[1:]


def test_a_response_cut_behind_any_event_goes_on_there(gateways, http, worker, queue_name):
    body = {"model": queue_name, "input": "hello", "max_output_tokens": 5, "seed": 4}
    events = told(http, "/v1/responses", body, **{"Idempotency-Key": "one"})
    assert [int(event_id) for event_id, _ in events] == list(range(len(events)))
    assert answer(4, 5)[1] == events[-1][1]["response"]["output"][0]["content"][0]["text"]
    response = f"{gateways[1].url}/v1/responses/{events[0][1]['response']['id']}"
    asked = {"stream": "true"}
    for place, (event_id, _) in enumerate(events, 1):
        last = {"Last-Event-ID": event_id}
        assert fetched(http, response, params=asked, headers=last) == events[place:]
        again = {"Idempotency-Key": "one", **last}
        assert told(http, "/v1/responses", body, **again) == events[place:]
    # What the query says wins, as it does on a page that was loaded anew.
    later = {"params": {**asked, "starting_after": 2}, "headers": {"Last-Event-ID": "4"}}
    assert fetched(http, response, **later) == events[3:]


@pytest.mark.parametrize(
    ("path", "asked"), [*ASKED, ("/v1/responses", {"input": "x", "max_output_tokens": 1})]
)
@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Last-Event-ID": "1-2"}, "this is a new request"),
        ({"Last-Event-ID": "soon", "Idempotency-Key": "one"}, "'soon' is not"),
        ({"Last-Event-ID": "1-2.0", "Idempotency-Key": "one"}, "'1-2.0' is not"),
    ],
)
def test_a_last_event_that_says_nothing_is_refused(
    http, worker, queue_name, redis_client, keys, path, asked, headers, said
):
    body = {"model": queue_name, **asked, "stream": True}
    refused = http.post(path, json=body, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "Last-Event-ID"
    assert said in refused.json()["error"]["message"]
    assert not redis_client.exists(keys.jobs("normal", "default")), "nothing was submitted"

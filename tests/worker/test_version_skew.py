"""Two ends of different versions: what is new and harmless is ignored, what is not is refused."""

import msgspec
from stub_engine import expected_ids

from pagestream.producer.protocol import decode_entry
from pagestream.worker.messages import Sampling

SAMPLING = {"max_tokens": 6, "ignore_eos": True}


def test_a_newer_producer_may_say_more_than_this_worker_knows(start, client):
    start()
    client.submit("new", prompt_ids=[3], sampling=SAMPLING, colour="red", parts=[{"a": 1}])
    client.submit("old", prompt_ids=[4], sampling=SAMPLING)
    for job_id, prompt_id in (("new", 3), ("old", 4)):
        wanted = expected_ids([prompt_id], Sampling(max_tokens=6))
        assert client.result(job_id).ids == wanted


def test_a_newer_major_version_is_refused_by_name_and_harms_nobody(start, client):
    start()
    payload = {"v": 2, "prompt_ids": [3], "sampling": {"max_tokens": 6, "dream": True}}
    client.submit_bytes("next", msgspec.msgpack.encode(payload))
    client.submit_bytes("json", msgspec.json.encode(payload))
    client.submit("now", prompt_ids=[4], sampling=SAMPLING)
    for job_id in ("next", "json"):
        refused = client.result(job_id).end
        assert (refused.reason, refused.error) == ("error", "unsupported_version")
        assert "v=2; this worker reads v=1" in refused.message
    assert client.result("now").ids == expected_ids([4], Sampling(max_tokens=6))


def test_an_option_that_would_change_the_answer_is_not_ignored(start, client):
    """The envelope may grow; a sampling parameter that this worker lacks is another answer."""
    start()
    client.submit("j", prompt_ids=[3], sampling={**SAMPLING, "dream": True})
    refused = client.result("j").end
    assert refused.error == "invalid_request"
    assert "dream" in refused.message


def test_an_older_client_reads_the_entries_of_a_newer_worker():
    tokens = {b"choice": b"0", b"start": b"0", b"ids": b"7 8", b"text": b"x", b"mood": b"good"}
    assert decode_entry(b"1-2", tokens).ids == (7, 8)
    end = {b"event": b"end", b"reason": b"stop", b"usage": b'{"prompt_tokens": 1, "dreams": 2}'}
    assert decode_entry(b"1-3", end | {b"mood": b"good"}).usage.prompt_tokens == 1

"""A job's rows and end: what is published, and what is published again after a rollback."""

import random
from typing import Any

import pytest
from tiny_tokenizer import EOS, byte_level

from pagestream.producer.errors import InvalidRequest
from pagestream.worker.messages import Output, Sampling
from pagestream.worker.queue.calls import Claim
from pagestream.worker.queue.detokenizer import Detokenizer
from pagestream.worker.queue.intake import Prepared
from pagestream.worker.queue.reply import Job
from pagestream.worker.queue.tokenizer import Tokenizer

TOKENIZER = Tokenizer(byte_level())
EOS_ID = TOKENIZER._backend.token_to_id(EOS)


def encode(text: str) -> list[int]:
    return TOKENIZER._backend.encode(text, add_special_tokens=False).ids


def job(published: list[int] | None = None, stop: tuple[str, ...] = (), **sampling: Any) -> Job:
    settings = Sampling(**{"max_tokens": 100, "stop_token_ids": (EOS_ID,), **sampling})
    made = Job(Claim("j", 3, 0, "normal", "default", b"payload", 900, None, False), 1, 10.0, 1000)
    made.resume(published or [])
    made.prepare(
        Prepared(
            [1, 2, 3],
            settings,
            lambda: Detokenizer(
                TOKENIZER.pieces(), stop=stop, silent_ids=frozenset(settings.stop_token_ids)
            ),
        )
    )
    return made


def give(to: Job, ids: list[int], finish: Any = None, now_s: float = 11.0) -> None:
    to.take(Output(to.request_id, ids, finish), now_s)


def test_rows_carry_tokens_and_text_of_several_steps() -> None:
    one = job()
    give(one, encode("a"))
    give(one, encode("bc"))
    row = one.row()
    assert row is not None
    assert (row.job_id, row.epoch, row.offset, row.start, row.text) == ("j", 3, 3, 0, "abc")
    assert list(row.ids) == encode("abc")
    assert one.row() is None
    give(one, encode("d"), "length", 12.5)
    row = one.row()
    assert row is not None
    assert (row.offset, row.start, row.text) == (4, 3, "d")
    end = one.end(13.0)
    assert (end.offset, end.reason, end.text, end.error) == (5, "length", "", "")
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (3, 4)
    timings = end.timings
    assert (timings.queue_ms, timings.first_token_ms, timings.total_ms) == (100.0, 1000.0, 3000.0)


def test_ids_go_out_before_their_text_is_certain() -> None:
    one = job()
    first, *others = encode("é日"[1])
    give(one, [first])
    row = one.row()
    assert row is not None
    assert (list(row.ids), row.text) == ([first], "")
    give(one, others)
    row = one.row()
    assert row is not None
    assert row.text == "日"


def test_the_end_holds_the_rest_of_the_text() -> None:
    one = job(stop=("xyz",))
    give(one, [*encode("axy"), encode("日")[0]], "length")
    row = one.row()
    assert row is not None
    assert row.text + one.end(12.0).text == "axy\ufffd"


def test_ids_beyond_a_stop_string_are_never_published() -> None:
    one = job(stop=("the e",))
    give(one, encode("a the end of it"))
    row, end = one.row(), one.end(12.0)
    assert row is not None
    assert one.reason == "stop"
    assert row.text + end.text == "a "
    assert TOKENIZER.decode(list(row.ids)) == "a the e"
    assert end.offset == len(row.ids) + 1
    assert end.usage.completion_tokens == len(row.ids)


def test_an_end_token_is_published_without_text() -> None:
    one = job(stop_token_ids=(EOS_ID, encode("z")[0]))
    give(one, encode("az"), "stop")
    row = one.row()
    assert row is not None
    assert (list(row.ids), row.text) == (encode("az"), "a")
    assert one.reason == "stop"


def test_an_engine_error_ends_the_job() -> None:
    one = job()
    give(one, encode("a"))
    one.take(Output(one.request_id, [], "error", message="no room"), 12.0)
    end = one.end(12.0)
    assert (end.reason, end.error, end.message) == ("error", "error", "no room")


def test_a_refused_job_has_an_end_without_tokens() -> None:
    one = Job(Claim("j", 1, 0, "normal", "default", b"x", 0, None, False), 1, 0.0, 0)
    one.fail(InvalidRequest("no"))
    end = one.end(1.0)
    assert (end.offset, end.reason, end.error, end.message) == (1, "error", "invalid_request", "no")
    assert one.row() is None


@pytest.mark.parametrize(
    ("published", "reason"),
    [
        ("a", None),
        ("a the e", "stop"),
        ("abcdefgh", "length"),
        ("a" + EOS, "stop"),
        ("", None),
    ],
)
def test_a_resumed_job_may_be_complete(published: str, reason: str | None) -> None:
    assert job(encode(published), stop=("the e",), max_tokens=8).reason == reason


def test_a_resumed_job_goes_on_where_its_tokens_end() -> None:
    ids = encode("é日 abc the end")
    for cut in range(len(ids) + 1):
        whole, resumed = job(stop=("q", "the eq")), job(ids[:cut], stop=("q", "the eq"))
        give(whole, ids[:cut])
        first = whole.row()
        give(whole, ids[cut:], "length")
        give(resumed, ids[cut:], "length")
        assert resumed.add().output_ids == ids
        assert whole.row() == resumed.row()
        assert whole.end(12.0)._replace(timings=None) == resumed.end(12.0)._replace(timings=None)
        assert (first.offset if first else 0) == cut


def test_a_rollback_publishes_the_same_again() -> None:
    rng = random.Random(3)
    for _ in range(100):
        ids = [rng.randrange(270) for _ in range(20)]
        reference, one = job(stop=("  ", "a")), job(stop=("  ", "a"))
        for token_id in ids:
            give(reference, [token_id])
            give(one, [token_id])
            if rng.random() < 0.5:
                one.row()
            if one.reason:
                break
        first, texts = reference.row(), {0: ""}
        assert first is not None
        again = job(stop=("  ", "a"))
        for count, token_id in enumerate(first.ids, start=1):
            give(again, [token_id])
            row = again.row()
            assert row is not None
            texts[count] = texts[count - 1] + row.text
        kept = rng.randrange(len(first.ids) + 1)
        one.rewind(kept)
        row = one.row()
        assert (list(row.ids) if row else []) == list(first.ids)[kept:]
        assert texts[kept] + (row.text if row else "") == first.text
        assert one.reason == reference.reason

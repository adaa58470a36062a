"""The checker sees each way in which a reply can be wrong."""

from random import Random

import msgspec
import pytest

from pagestream.producer.protocol import Entry
from pagestream.worker.chaos.answers import Answer, Answers
from pagestream.worker.chaos.checker import check

ANSWER = Answer([1, 2], 4, True, [10, 11, 12, 13], "abcd", "length")


def tokens(start: int, *ids: int, text: str = "") -> Entry:
    shown = text or "".join("abcd"[place] for place in range(start, start + len(ids)))
    return Entry(id=f"1-{start + len(ids)}", event="tokens", start=start, ids=ids, text=shown)


def end(reason: str = "length", text: str = "") -> Entry:
    return msgspec.convert(
        {"id": "1-5", "event": "end", "reason": reason, "text": text}, Entry, strict=False
    )


WHOLE = [tokens(0, 10), tokens(1, 11, 12), tokens(3, 13), end()]


def test_the_whole_answer_is_clean() -> None:
    tally = check(ANSWER, WHOLE)
    assert tally.clean
    assert (tally.jobs, tally.tokens, tally.terminals) == (1, 4, 1)


@pytest.mark.parametrize(
    ("entries", "count"),
    [
        ([tokens(0, 10), tokens(2, 12, 13), end()], "lost"),
        ([tokens(0, 10, 11, 12), end()], "lost"),
        ([*WHOLE[:3]], "lost"),
        ([tokens(0, 10), tokens(0, 10), *WHOLE[1:]], "repeated"),
        ([tokens(1, 11, 12), tokens(0, 10), tokens(3, 13), end()], "repeated"),
        ([tokens(0, 10), tokens(1, 99, 12), tokens(3, 13), end()], "wrong"),
        ([tokens(0, 10, 11, 12, 13), tokens(4, 14, text="x"), end()], "wrong"),
        ([tokens(0, 10, 11, 12, 13, text="abxd"), end()], "wrong"),
        ([tokens(0, 10, 11, 12, 13), end("stop")], "wrong"),
    ],
)
def test_each_mistake_is_counted(entries: list[Entry], count: str) -> None:
    tally = check(ANSWER, entries)
    assert getattr(tally, count) > 0
    assert not tally.clean


def test_two_ends_are_one_too_many() -> None:
    tally = check(ANSWER, [*WHOLE, end()])
    assert (tally.terminals, tally.clean) == (2, False)


def test_a_cancelled_job_may_be_short_but_not_wrong() -> None:
    assert check(ANSWER, [tokens(0, 10), end("cancelled")], early="cancelled").clean
    assert check(ANSWER, WHOLE, early="cancelled").clean
    assert not check(ANSWER, [tokens(0, 99), end("cancelled")], early="cancelled").clean
    assert not check(ANSWER, [tokens(0, 10, text="x"), end("cancelled")], early="cancelled").clean
    assert not check(ANSWER, [tokens(1, 11), end("cancelled")], early="cancelled").clean
    assert not check(ANSWER, [tokens(0, 10), end("cancelled")]).clean


def test_a_condemned_job_ends_as_condemned_only() -> None:
    assert check(ANSWER, [tokens(0, 10), end("error")], early="error").clean
    assert not check(ANSWER, [tokens(0, 10), end("error")]).clean
    assert not check(ANSWER, [tokens(0, 10), end("cancelled")], early="error").clean


def test_the_known_answers_vary() -> None:
    picked = [Answers().pick(Random(seed)) for seed in range(200)]
    assert {one.reason for one in picked} == {"stop", "length"}
    assert len({tuple(one.prompt_ids) for one in picked}) > 20
    assert all(len(one.ids) <= one.max_tokens and one.text for one in picked)

"""Incremental text equals the text of all ids at once, however the ids arrive."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import byte_fallback, byte_level, metaspace

from pagestream.worker.queue.detokenizer import Detokenizer
from pagestream.worker.queue.tokenizer import Tokenizer

BYTES = Tokenizer(byte_level())
FALLBACK = Tokenizer(byte_fallback())
UNSTRIPPED = Tokenizer(byte_fallback(strip=False))
WINDOW = Tokenizer(metaspace())

VOCAB = 270  # some ids beyond the tokenizer's: models pad their vocabulary
chunked_ids = st.lists(st.lists(st.integers(0, VOCAB), max_size=5), max_size=12)
no_byte_ids = st.lists(st.lists(st.integers(259, 268), max_size=4), max_size=12)


def run(detokenizer: Detokenizer, chunks: list[list[int]]) -> list[str]:
    return [*(detokenizer.push(chunk) for chunk in chunks), detokenizer.flush()]


def flat(chunks: list[list[int]]) -> list[int]:
    return [token_id for chunk in chunks for token_id in chunk]


@given(chunked_ids, st.booleans())
@settings(max_examples=200, deadline=None)
def test_byte_level_text_is_exact_for_any_ids_and_chunks(
    chunks: list[list[int]], skip: bool
) -> None:
    detokenizer = Detokenizer(BYTES.pieces(skip_special_tokens=skip))
    assert "".join(run(detokenizer, chunks)) == BYTES.decode(flat(chunks), skip_special_tokens=skip)


@given(no_byte_ids, st.sampled_from([FALLBACK, UNSTRIPPED]))
@settings(max_examples=200, deadline=None)
def test_byte_fallback_text_is_exact_without_byte_tokens(
    chunks: list[list[int]], tokenizer: Tokenizer
) -> None:
    assert "".join(run(Detokenizer(tokenizer.pieces()), chunks)) == tokenizer.decode(flat(chunks))


@given(st.text(max_size=30), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_byte_fallback_text_is_exact_for_encoded_text(text: str, size: int) -> None:
    ids = FALLBACK._backend.encode(text).ids
    chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
    assert "".join(run(Detokenizer(FALLBACK.pieces()), chunks)) == FALLBACK.decode(ids)


def test_byte_fallback_shows_one_replacement_for_each_broken_byte() -> None:
    broken = [FALLBACK._backend.token_to_id(f"<0x{byte:02X}>") for byte in (0xE2, 0x82)]
    ids = [259, *broken, 263]
    assert "".join(run(Detokenizer(FALLBACK.pieces()), [[i] for i in ids])) == FALLBACK.decode(ids)
    assert "".join(run(Detokenizer(FALLBACK.pieces()), [broken])) == FALLBACK.decode(broken) == "��"


@given(st.lists(st.lists(st.integers(1, 6), max_size=4), max_size=12))
@settings(max_examples=200, deadline=None)
def test_other_decoders_go_through_a_window(chunks: list[list[int]]) -> None:
    assert "".join(run(Detokenizer(WINDOW.pieces()), chunks)) == WINDOW.decode(flat(chunks))


@given(chunked_ids, st.sampled_from([BYTES, FALLBACK, UNSTRIPPED]))
@settings(max_examples=200, deadline=None)
def test_text_does_not_depend_on_the_chunks(chunks: list[list[int]], tokenizer: Tokenizer) -> None:
    whole = "".join(run(Detokenizer(tokenizer.pieces()), [flat(chunks)]))
    assert "".join(run(Detokenizer(tokenizer.pieces()), chunks)) == whole


def test_no_half_characters_are_given() -> None:
    ids = BYTES._backend.encode("é日😀", add_special_tokens=False).ids
    detokenizer = Detokenizer(BYTES.pieces())
    assert [piece for token_id in ids if (piece := detokenizer.push([token_id]))] == [
        "é",
        "日",
        "😀",
    ]
    assert detokenizer.flush() == ""


def encode(text: str) -> list[int]:
    return BYTES._backend.encode(text, add_special_tokens=False).ids


@given(
    st.text(alphabet="abth e", max_size=40),
    st.lists(st.text(alphabet="abth e", min_size=1, max_size=5), min_size=1, max_size=3),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_text_ends_at_the_first_token_that_completes_a_stop_string(
    text: str, stops: list[str], include: bool
) -> None:
    detokenizer = Detokenizer(BYTES.pieces(), stop=stops, include_stop=include)
    given_text, ids = "", encode(text)
    for count, token_id in enumerate(ids, start=1):
        given_text += detokenizer.push([token_id])
        so_far = BYTES.decode(ids[:count])
        found = [(at, stop) for stop in stops if (at := so_far.find(stop)) >= 0]
        assert bool(found) == (detokenizer.stopped is not None)
        if found:
            at, stop = min(found, key=lambda match: (match[0], len(match[1])))
            assert given_text == so_far[: at + len(stop) if include else at]
            assert detokenizer.tokens == count
            assert detokenizer.push(ids[count:]) == "" == detokenizer.flush()
            return
        # All but what a stop string may still take back.
        possible = [
            length
            for stop in stops
            for length in range(1, len(stop))
            if so_far.endswith(stop[:length])
        ]
        assert given_text == so_far[: len(so_far) - max(possible, default=0)]
    assert given_text + detokenizer.flush() == text


def test_a_stop_string_across_tokens_is_held_back_then_released() -> None:
    detokenizer = Detokenizer(BYTES.pieces(), stop=["xyz"])
    assert [detokenizer.push(encode(char)) for char in "axyxy"] == ["a", "", "", "xy", ""]
    assert detokenizer.push(encode("q")) == "xyq"
    assert detokenizer.push(encode("xy")) == ""
    assert detokenizer.push([*encode("z"), *encode("more")]) == ""
    assert detokenizer.stopped == "xyz"
    assert detokenizer.tokens == 9


def test_no_stop_string_counts_before_min_tokens() -> None:
    detokenizer = Detokenizer(BYTES.pieces(), stop=["b"], min_tokens=3)
    assert "".join(detokenizer.push(encode(char)) for char in "abcab") == "abca"
    assert detokenizer.stopped == "b"


def test_ids_that_end_the_request_add_no_text() -> None:
    end = encode("c")[0]
    detokenizer = Detokenizer(BYTES.pieces(), silent_ids=frozenset([end]))
    assert detokenizer.push(encode("abc")) == "ab"
    assert detokenizer.tokens == 3


@pytest.mark.parametrize(
    "tokenizer", [BYTES, FALLBACK, WINDOW], ids=["bytes", "fallback", "window"]
)
def test_replay_rebuilds_the_state(tokenizer: Tokenizer) -> None:
    rng = random.Random(7)
    for _ in range(50):
        ids = [
            rng.randrange(1, 7) if tokenizer is WINDOW else rng.randrange(VOCAB) for _ in range(30)
        ]
        cut = rng.randrange(31)
        first = Detokenizer(tokenizer.pieces(), stop=["the", "  "])
        before = first.push(ids[:cut])
        after = first.push(ids[cut:]) + first.flush()
        second = Detokenizer(tokenizer.pieces(), stop=["the", "  "])
        assert second.push(ids[:cut]) == before
        assert second.push(ids[cut:]) + second.flush() == after


def test_a_token_costs_the_same_however_long_the_text() -> None:
    detokenizer = Detokenizer(WINDOW.pieces())
    detokenizer.push([1, 2, 3] * 2000)
    assert len(detokenizer._pieces._window) <= 16  # pyright: ignore

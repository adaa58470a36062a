"""Every bad payload ends in an error that names it; good ones have every default filled in."""

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_payloads import BAD, CONTEXT, VOCAB, pack
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import BOS, EOS, TEMPLATE, save_byte_level

from pagestream.producer.errors import InvalidRequest, PagestreamError
from pagestream.producer.protocol import Entry, ModelInfo, Payload, encode_payload
from pagestream.producer.sampling import SamplingParams
from pagestream.worker.models.hub import GenerationDefaults, generation_defaults
from pagestream.worker.queue.calls import Claim
from pagestream.worker.queue.intake import (
    Intake,
    Intaken,
    IntakeThread,
    Prepared,
    published_ids,
)
from pagestream.worker.queue.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_level(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    loaded = Tokenizer.load(folder)
    assert loaded is not None
    return loaded


def info(**changes: Any) -> ModelInfo:
    fields = {
        "name": "tiny", "context_tokens": CONTEXT, "vocab_size": VOCAB, "has_tokenizer": True,
        "has_chat_template": True, "max_running": 4, "kv_tokens": 1024,
    }  # fmt: skip
    return ModelInfo(**{**fields, **changes})


@pytest.fixture(scope="module")
def intake(tokenizer: Tokenizer, folder: Path) -> Intake:
    return Intake(tokenizer, info(), generation_defaults(folder))


@pytest.mark.parametrize("name", BAD)
def test_bad_payload(intake: Intake, name: str) -> None:
    data, code, word = BAD[name]
    with pytest.raises(PagestreamError) as caught:
        intake.prepare("j", data)
    assert caught.value.code == code
    assert word in str(caught.value)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_request_or_an_error(data: bytes) -> None:
    bare = Intake(None, info(), GenerationDefaults())
    with pytest.raises(PagestreamError):
        bare.prepare("j", data)


def test_prompt_has_the_special_tokens_of_the_configuration(
    intake: Intake, tokenizer: Tokenizer
) -> None:
    prepared = intake.prepare("j", pack(prompt="the é"))
    assert tokenizer.decode(prepared.prompt_ids, skip_special_tokens=False) == f"{BOS}the é"
    assert tokenizer.decode(prepared.prompt_ids) == "the é"


def test_encoding_is_transformers(tokenizer: Tokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(folder))
    messages = [{"role": "user", "content": "hé"}]
    assert tokenizer.encode_prompt("the é \n\n") == theirs("the é \n\n")["input_ids"]
    assert tokenizer.encode_chat(messages) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


def test_chat_brings_its_own_special_tokens(intake: Intake, tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    ids = intake.prepare("j", pack(messages=messages)).prompt_ids
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == f"{BOS}system: s\nuser: a\nb\nassistant:"


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    plain = Tokenizer.load(save_byte_level(tmp_path, chat_template=None))
    assert plain is not None
    assert not plain.has_chat_template
    with pytest.raises(InvalidRequest, match="no chat template"):
        Intake(plain, info(), GenerationDefaults()).prepare(
            "j", pack(messages=[{"role": "user", "content": "a"}])
        )


def test_template_file_is_read(tmp_path: Path) -> None:
    save_byte_level(tmp_path, chat_template=None)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    loaded = Tokenizer.load(tmp_path)
    assert loaded is not None
    assert loaded.has_chat_template


def test_a_model_without_a_tokenizer_takes_ids_only(tmp_path: Path) -> None:
    assert Tokenizer.load(tmp_path) is None
    bare = Intake(None, info(), GenerationDefaults())
    assert bare.prepare("j", pack(prompt_ids=[1, 2])).prompt_ids == [1, 2]
    for fields in ({"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}):
        with pytest.raises(InvalidRequest, match="no tokenizer"):
            bare.prepare("j", pack(**fields))
    with pytest.raises(InvalidRequest, match="stop strings need a tokenizer"):
        bare.prepare("j", pack(prompt_ids=[1], sampling={"stop": ["a"]}))


def test_broken_tokenizer_files_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="cannot be loaded"):
        Tokenizer.load(tmp_path)


def test_defaults_are_the_models(intake: Intake, tokenizer: Tokenizer) -> None:
    filled = intake.prepare("j", pack(prompt_ids=[1, 2, 3])).sampling
    eos = tokenizer._backend.token_to_id(EOS)
    assert (filled.temperature, filled.top_k, filled.top_p, filled.min_p) == (0.5, 40, 1.0, 0.0)
    assert filled.max_tokens == CONTEXT - 3
    assert filled.stop_token_ids == (eos,)


def test_parameters_win_over_defaults(intake: Intake) -> None:
    params = SamplingParams(
        temperature=0.0, top_k=0, max_tokens=5000, min_tokens=4000, seed=0, ignore_eos=True,
        stop_token_ids=(7, 7),
    )  # fmt: skip
    filled = intake.prepare(
        "j", encode_payload(Payload(prompt_ids=[1] * 60, sampling=params))
    ).sampling
    assert (filled.temperature, filled.top_k, filled.seed) == (0.0, 0, 0)
    assert (filled.max_tokens, filled.min_tokens) == (4, 4)
    assert filled.stop_token_ids == (7,)


def test_a_job_without_a_seed_has_the_same_one_at_every_claim(intake: Intake) -> None:
    data = pack(prompt="a")
    assert intake.prepare("j1", data).sampling.seed == intake.prepare("j1", data).sampling.seed
    assert intake.prepare("j1", data).sampling.seed != intake.prepare("j2", data).sampling.seed


def test_json_is_read_too(intake: Intake) -> None:
    data = b'{"v": 1, "prompt_ids": [5], "model": "tiny", "new": 1, "sampling": {"max_tokens": 2}}'
    assert intake.prepare("j", data).sampling.max_tokens == 2


def entry(start: int, ids: tuple[int, ...]) -> Entry:
    return Entry(id=f"1-{start + len(ids)}", event="tokens", start=start, ids=ids)


def test_published_ids_are_what_a_reader_sees() -> None:
    entries = [
        Entry(id="0-1", event="queued"), Entry(id="1-0", event="start"),
        entry(0, (5, 6)), entry(2, (7,)), entry(1, (6, 7, 8)), entry(4, (9,)),
    ]  # fmt: skip
    assert published_ids(entries) == [5, 6, 7, 8, 9]


def claim(job_id: str, data: bytes, epoch: int = 1) -> Claim:
    return Claim(job_id, epoch, 0, "normal", "default", data, 0, None, False)


def run_thread(
    intake: Intake, claims: list[Claim], replay: Callable[[str], list[Entry]]
) -> list[Intaken]:
    done: queue.Queue[Intaken] = queue.Queue()
    thread = IntakeThread(intake, replay, done.put)
    for one in claims:
        thread.submit(one)
    thread.close()
    return [done.get(timeout=20) for _ in claims]


def test_the_thread_answers_every_claim_in_order(intake: Intake) -> None:
    claims = [
        claim("a", pack(prompt="x")),
        claim("bad", b"\xc1"),
        claim("b", pack(prompt="y"), epoch=3),
    ]
    asked: list[str] = []

    def replay(job_id: str) -> list[Entry]:
        asked.append(job_id)
        return [entry(0, (1, 2, 3))]

    first, bad, resumed = run_thread(intake, claims, replay)
    assert (first.claim.job_id, first.replayed_ids) == ("a", [])
    assert isinstance(bad.request, InvalidRequest)
    assert (resumed.claim.job_id, resumed.claim.epoch, resumed.replayed_ids) == ("b", 3, [1, 2, 3])
    assert asked == ["b"]


def test_a_bug_in_one_job_ends_that_job_only(intake: Intake) -> None:
    def replay(job_id: str) -> list[Entry]:
        raise KeyError("bug")

    claims = [claim("a", pack(prompt="x"), epoch=2), claim("b", pack(prompt="y"))]
    broken, good = run_thread(intake, claims, replay)
    assert isinstance(broken.request, PagestreamError)
    assert broken.request.code == "error"
    assert not isinstance(good.request, PagestreamError)


@pytest.mark.parametrize(
    ("data", "epoch"), [(pack(prompt="x" * IntakeThread.AT_ONCE_BYTES), 1), (pack(prompt="x"), 2)]
)
def test_only_small_first_claims_are_prepared_at_once(
    intake: Intake, data: bytes, epoch: int
) -> None:
    thread = IntakeThread(intake, lambda job_id: [], lambda intaken: None)
    assert thread.at_once(claim("a", data, epoch)) is None
    intaken = thread.at_once(claim("b", pack(prompt="y")))
    bad = thread.at_once(claim("c", b"\xc1"))
    thread.close()
    assert intaken is not None
    assert isinstance(intaken.request, Prepared)
    assert bad is not None
    assert isinstance(bad.request, InvalidRequest)

import pytest
from tiny_models import make_checkpoint
from tiny_tokenizer import byte_level, save_byte_level

from pagestream.producer.errors import InvalidRequest
from pagestream.producer.sampling import SamplingParams
from pagestream.worker.llm import LLM


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_byte_level(path)
    make_checkpoint("llama", path, vocab_size=270)
    return LLM(path, device="cpu", num_blocks=64, max_running=8)


def test_texts_and_ids_give_the_same_completion(llm):
    params = SamplingParams(temperature=0, max_tokens=12)
    first, second = llm.generate(["the cat", "another text"], params)
    again = llm.generate([first.prompt_ids, second.prompt_ids], params)
    assert [completion.token_ids for completion in again] == [first.token_ids, second.token_ids]
    assert first.text == byte_level().decode(first.token_ids)
    assert first.finish_reason == "length"


def test_one_prompt_need_not_be_a_list(llm):
    (alone,) = llm.generate("the cat", SamplingParams(temperature=0, max_tokens=3))
    assert len(alone.token_ids) == 3


def test_a_stop_string_ends_one_request_and_not_the_other(llm):
    free = SamplingParams(temperature=0, max_tokens=20)
    whole, other = llm.generate(["the cat", "dog"], free)
    stop = whole.text[4:6]
    cut, same = llm.generate(
        ["the cat", "dog"], [SamplingParams(temperature=0, max_tokens=20, stop=(stop,)), free]
    )
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert same.token_ids == other.token_ids
    assert not llm.engine.has_work


def test_tokens_are_told_as_they_come(llm):
    seen: list[int] = []
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=6)
    (done,) = llm.generate("the", params, on_token=lambda _, output: seen.extend(output.token_ids))
    assert seen == done.token_ids


def test_a_chat_is_rendered_by_the_template(llm):
    answer = llm.chat([{"role": "user", "content": "the"}], SamplingParams(max_tokens=2))
    assert byte_level().decode(answer.prompt_ids).startswith("user: the")


@pytest.mark.parametrize(
    ("prompts", "params", "reason"),
    [
        ([""], None, "empty"),
        ([[5, 270]], None, "270"),
        ([[5] * 300], None, "context"),
        (["a"], SamplingParams(temperature=9), "temperature"),
        (["a", "b"], [SamplingParams()], "1 sampling parameters for 2"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(llm, prompts, params, reason):
    with pytest.raises(InvalidRequest, match=reason):
        llm.generate(prompts, params)
    assert not llm.engine.has_work

"""The demo model that ships with the worker, and the split of the text it was trained on."""

import ast
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from demo_prompts import DEMO_MODEL, DemoPrompt, load_demo_prompts
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from demo_model import text
from demo_model.ngram import ORDER, KneserNey

FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO_MODEL)


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaForCausalLM]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield LlamaForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def modules() -> list[text.Module]:
    return list(text.modules())


def test_files_are_all_there_and_small() -> None:
    assert {path.name for path in DEMO_MODEL.iterdir()} == FILES
    assert (DEMO_MODEL / "model.safetensors").stat().st_size <= 16 * 2**20


def test_weights_are_bf16_and_few(model: LlamaForCausalLM) -> None:
    assert json.loads((DEMO_MODEL / "config.json").read_text())["dtype"] == "bfloat16"
    assert sum(p.numel() for p in model.parameters()) <= 8_000_000
    assert model.config.max_position_embeddings >= 512


def test_end_tokens_are_named(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|end|>"])
    assert model.generation_config.eos_token_id == ends
    assert tokenizer.eos_token_id == ends[0]


@pytest.mark.parametrize("name", ["heapq", "json.encoder", "test.test_fstring", "test.test_ucn"])
def test_tokenizer_gives_text_back_exactly(
    name: str, modules: list[text.Module], tokenizer: PreTrainedTokenizerBase
) -> None:
    source = next((m.source for m in modules if m.name == name), None)
    if source is None:
        pytest.skip(f"this Python comes without {name}")
    ids = tokenizer(source[:20_000], add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == source[:20_000]


def test_tokenizer_takes_any_text(tokenizer: PreTrainedTokenizerBase) -> None:
    odd = " \t\r\n\n  Grüße 二 🐍\u200d\x00\ufeff  , ' s n't \u2028  "
    ids = tokenizer(odd)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == odd


def test_chat_renders(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [
        {"role": "system", "content": "Be brief.\nUse Python."},
        {"role": "user", "content": "Add two numbers."},
        {"role": "assistant", "content": "def add(a, b):\n    return a + b"},
        {"role": "user", "content": "Now subtract.\n"},
    ]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|begin|># Be brief.\n# Use Python.\n<|user|>Add two numbers.<|assistant|>"
        "def add(a, b):\n    return a + b<|end|><|user|>Now subtract.<|assistant|>"
    )


def test_chat_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(Exception, match="The roles are system, user and assistant; got tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_known_answers_are_enough_and_varied() -> None:
    known = load_demo_prompts()
    assert len(known) >= 30
    assert all(len(prompt.expected_ids) == 64 for prompt in known)
    assert any(prompt.end is not None for prompt in known)
    lengths = [len(prompt.prompt_ids) for prompt in known]
    assert min(lengths) <= 5
    assert max(lengths) >= 200


@pytest.mark.parametrize("known", load_demo_prompts()[:12], ids=range(12))
def test_greedy_continuation_is_the_known_one(
    known: DemoPrompt, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = tokenizer(known.text)["input_ids"]
    assert ids == known.prompt_ids
    whole = model(torch.tensor([ids + known.expected_ids])).logits[0, len(ids) - 1 : -1]
    best, second = whole.topk(2).values.unbind(-1)
    assert whole.argmax(-1).tolist() == known.expected_ids
    assert (best - second).min() > 5e-4


def test_chat_answer_is_a_function(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    chat = [{"role": "user", "content": "Return the number of items."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=200, do_sample=False, temperature=None, top_p=None)
    answer = out[0, ids["input_ids"].shape[1] :].tolist()
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|end|>")
    assert isinstance(ast.parse(tokenizer.decode(answer[:-1])).body[0], ast.FunctionDef)


def test_split_is_by_module_and_disjoint(modules: list[text.Module]) -> None:
    names = [m.name for m in modules]
    assert len(set(names)) == len(names)
    parts = {part: {n for n in names if text.part_of(n) == part} for part in text.PARTS}
    assert sum(map(len, parts.values())) == len(names)
    assert len(parts["train"]) > 0.85 * len(names)
    assert {"heapq", "json.encoder", "secrets"} <= parts["held_out"]
    assert {"ast", "shutil"} <= parts["train"]


def test_text_has_no_other_licence_and_no_local_paths(modules: list[text.Module]) -> None:
    assert modules
    for module in modules:
        assert "Permission is hereby granted" not in module.source, module.name
        assert not module.name.startswith(("_sysconfigdata", "site-packages")), module.name


def test_a_function_is_its_prompt_and_its_body(modules: list[text.Module]) -> None:
    found = text.functions(next(m for m in modules if m.name == "heapq"))
    push = next(f for f in found if f.prompt.startswith("def heappush("))
    assert push.prompt.endswith('"""')
    assert push.body.startswith("\n    heap.append(item)")
    assert push.summary == "Push item onto heap, maintaining the heap invariant."
    for function in found:
        ast.parse(function.prompt + function.body)


def test_ngram_probabilities_add_up_to_one() -> None:
    vocab_size = 12
    tokens = np.random.default_rng(0).integers(0, vocab_size - 2, 400)
    ngram = KneserNey(tokens, vocab_size)
    for context in (tokens[50 : 50 + ORDER - 1], np.array([11, 3, 11, 4])):
        rows = [np.append(context, token) for token in range(vocab_size)]
        total = sum(np.exp(ngram.log_probabilities(row)).item() for row in rows)
        assert total == pytest.approx(1.0)

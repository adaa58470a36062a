"""Every family's logits against transformers', through flat batches and a shuffled paged cache."""

import dataclasses
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from paged_run import PagedRun
from tiny_models import FAMILIES, make_checkpoint
from torch import Tensor
from transformers import PreTrainedModel

from pagestream.worker.config import EngineConfig
from pagestream.worker.models import load_model
from pagestream.worker.models.decoder import Model
from pagestream.worker.models.rope import make_rope

TOLERANCE = 1e-4
VOCAB = 128
MAX_TOKENS = 112
# Beyond the windows (24) and the trained lengths (32), across block borders (16), and very short.
PROMPT_TOKENS = (57, 1, 32, 17, 90)


@dataclass
class Pair:
    """Our model and transformers', from the same files."""

    ours: Model
    theirs: PreTrainedModel


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: on a busy machine a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(request.param, tmp_path_factory.mktemp("model"))


def _pair(family: str, path: Path) -> Pair:
    theirs = make_checkpoint(family, path)
    config = EngineConfig(model=str(path), max_model_tokens=MAX_TOKENS)
    return Pair(load_model(config, torch.device("cpu")), theirs)


def _prompts(seed: int = 0) -> dict[int, list[int]]:
    draw = random.Random(seed)
    return {row: draw.choices(range(VOCAB), k=n) for row, n in enumerate(PROMPT_TOKENS)}


@torch.inference_mode()
def _their_logits(model: PreTrainedModel, prompt: list[int], forced: list[int]) -> Tensor:
    """Logits at each token when the request runs alone: the prompt at once, then token by token."""
    # Dynamic rope keeps the longest length it has seen; a request alone starts without that.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    out = model(torch.tensor([prompt]), use_cache=True)
    logits = [out.logits[0]]
    for token in forced:
        out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0])
    return torch.cat(logits).float()


def _difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def test_prompts_and_decodes_of_mixed_batches(pair: Pair) -> None:
    prompts, draw = _prompts(), random.Random(1)
    forced = {row: draw.choices(range(VOCAB), k=12) for row in prompts}
    run = PagedRun(pair.ours, len(prompts), MAX_TOKENS)
    late = max(prompts)  # its prompt arrives in pieces while the others decode already
    seen = {
        row: [logits]
        for row, logits in run.prefill({r: p for r, p in prompts.items() if r != late}).items()
    }
    seen[late] = []
    run.start(late, len(prompts[late]))
    for step in range(12):
        decodes = {row: tokens[step] for row, tokens in forced.items() if row != late}
        piece = prompts[late][step * 20 : step * 20 + 20]
        for row, logits in run.step(decodes, {late: piece} if piece else {}).items():
            seen[row].append(logits)
    for token in forced[late]:
        seen[late].append(run.step({late: token})[late])
    worst = max(
        _difference(torch.cat(seen[row]), _their_logits(pair.theirs, prompts[row], forced[row]))
        for row in prompts
    )
    assert worst < TOLERANCE


def test_prefill_in_pieces_equals_prefill_at_once(pair: Pair) -> None:
    prompts = _prompts(seed=2)
    whole = PagedRun(pair.ours, len(prompts), MAX_TOKENS).prefill(prompts)
    run = PagedRun(pair.ours, len(prompts), MAX_TOKENS, seed=1)
    pieces: dict[int, list[Tensor]] = {row: [] for row in prompts}
    for row, prompt in prompts.items():
        run.start(row, len(prompt))
    for start in range(0, max(PROMPT_TOKENS), 19):  # the last piece of 57 + 1 tokens is one token
        step = {
            row: prompt[start : start + 19] for row, prompt in prompts.items() if prompt[start:]
        }
        for row, logits in run.step(prefills=step).items():
            pieces[row].append(logits)
    for row in prompts:
        assert torch.equal(torch.cat(pieces[row]), whole[row]), f"row {row}"


def _drop_qkv_bias(model: Model) -> None:
    model.layers[1].attention.qkv.bias = None


def _drop_out_bias(model: Model) -> None:
    model.layers[1].attention.out.bias = None


def _drop_gate_up_bias(model: Model) -> None:
    model.layers[1].mlp.gate_up.bias = None


def _drop_down_bias(model: Model) -> None:
    model.layers[1].mlp.down.bias = None


def _flatten_k_norm(model: Model) -> None:
    k_norm = model.layers[1].attention.k_norm
    assert k_norm is not None
    k_norm.fill_(1.0)


def _swap_gate_and_up(model: Model) -> None:
    weight = model.layers[1].mlp.gate_up.weight
    weight.copy_(weight.roll(len(weight) // 2, 0))


@pytest.mark.parametrize(
    ("family", "break_it"),
    [
        ("qwen2", _drop_qkv_bias),
        ("llama-biases", _drop_out_bias),
        ("llama-biases", _drop_gate_up_bias),
        ("llama-biases", _drop_down_bias),
        ("qwen3", _flatten_k_norm),
        ("llama", _swap_gate_and_up),
    ],
)
def test_the_tolerance_notices(
    family: str, break_it: Callable[[Model], None], tmp_path: Path
) -> None:
    pair, prompt = _pair(family, tmp_path), _prompts()[0]
    break_it(pair.ours)
    ours = PagedRun(pair.ours, 1, MAX_TOKENS).prefill({0: prompt})[0]
    assert _difference(ours, _their_logits(pair.theirs, prompt, [])) > 100 * TOLERANCE


@pytest.mark.parametrize("family", ["mistral-window", "qwen2-window", "qwen3-window"])
def test_the_window_is_seen_by_these_prompts(family: str, tmp_path: Path) -> None:
    pair, prompt = _pair(family, tmp_path), _prompts()[0]
    for layer in pair.ours.layers:
        layer.attention.window = None
    ours = PagedRun(pair.ours, 1, MAX_TOKENS).prefill({0: prompt})[0]
    assert _difference(ours, _their_logits(pair.theirs, prompt, [])) > 100 * TOLERANCE


@pytest.mark.parametrize("family", ["llama3-rope", "llama-linear", "llama-dynamic", "llama-yarn"])
def test_the_scaling_is_seen_by_these_prompts(family: str, tmp_path: Path) -> None:
    pair, prompt = _pair(family, tmp_path), _prompts()[0]
    plain = dataclasses.replace(
        pair.ours.spec, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}
    )
    pair.ours.rope = make_rope(plain, MAX_TOKENS, torch.device("cpu"))
    ours = PagedRun(pair.ours, 1, MAX_TOKENS).prefill({0: prompt})[0]
    assert _difference(ours, _their_logits(pair.theirs, prompt, [])) > 100 * TOLERANCE


def test_dynamic_rope_rotates_a_prompt_for_its_own_length(tmp_path: Path) -> None:
    pair, prompt = _pair("llama-dynamic", tmp_path), _prompts()[0]
    run = PagedRun(pair.ours, 1, MAX_TOKENS)
    run.start(0, 1)  # as if the tokens had been generated one by one
    ours = run.step(prefills={0: prompt})[0]
    assert _difference(ours, _their_logits(pair.theirs, prompt, [])) > 100 * TOLERANCE
    assert _difference(ours, _their_logits(pair.theirs, prompt[:1], prompt[1:])) < TOLERANCE


@pytest.mark.parametrize("family", ["llama-dynamic", "qwen3-tied"])
def test_a_sequence_does_not_depend_on_its_batch(family: str, tmp_path: Path) -> None:
    pair, prompts = _pair(family, tmp_path), _prompts()
    together = PagedRun(pair.ours, len(prompts), MAX_TOKENS).prefill(prompts)
    for row, prompt in prompts.items():
        alone = PagedRun(pair.ours, 1, MAX_TOKENS, seed=row).prefill({0: prompt})[0]
        assert torch.equal(alone, together[row]), f"the prompt of {len(prompt)} tokens"


def test_bfloat16_runs_and_stays_near(tmp_path: Path) -> None:
    make_checkpoint("qwen3", tmp_path)
    exact, rough = (
        load_model(EngineConfig(model=str(tmp_path), dtype=dtype), torch.device("cpu"))
        for dtype in ("float32", "bfloat16")
    )
    prompt = _prompts()[3]
    expected = PagedRun(exact, 1, MAX_TOKENS).prefill({0: prompt})[0]
    got = PagedRun(rough, 1, MAX_TOKENS).prefill({0: prompt})[0]
    assert rough.embed.dtype == torch.bfloat16
    assert _difference(got, expected) < 0.1 * expected.abs().max().item()

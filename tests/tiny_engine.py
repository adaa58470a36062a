"""Engines of tiny models, and running requests on them to their ends."""

import random

import torch

from pagestream.worker.config import EngineConfig
from pagestream.worker.engine.engine import Engine, build_engine
from pagestream.worker.messages import Add, Sampling

MARGIN = 1e-3
"""Greedy choices closer than this could differ by rounding alone, so they prove nothing."""


def engine_for(path, **settings) -> Engine:
    defaults = {"device": "cpu", "max_running": 8, "max_step_tokens": 64, "num_blocks": 96}
    return build_engine(EngineConfig(model=str(path), **(defaults | settings)))


def run(engine: Engine, adds: list[Add]) -> dict[str, list[int]]:
    tokens = {add.request_id: [] for add in adds}
    for add in adds:
        engine.add(add)
    while engine.has_work:
        for output in engine.step().outputs:
            assert output.finish != "error", output.message
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
        engine.scheduler.check()
    return tokens


def greedy(name: str, prompt: list[int], max_tokens: int) -> Add:
    return Add(request_id=name, prompt_ids=prompt, sampling=Sampling(max_tokens=max_tokens))


def ragged_prompts(lengths, vocab=128, seed=0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, vocab) for _ in range(length)] for length in lengths]


def expected(model, prompt: list[int], max_tokens: int, margin: float = MARGIN) -> list[int]:
    """Greedy tokens by transformers, cut before the first choice too close to call."""
    with torch.inference_mode():
        # transformers' dynamic rope keeps the longest length it has seen until it sees a short one.
        model(torch.tensor([[3]]))
        result = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    ids = result.sequences[0, len(prompt) :].tolist()
    for index, logits in enumerate(result.logits):
        top = logits[0].float().topk(2).values
        if top[0] - top[1] < margin:
            return ids[:index]
    return ids


def assert_greedy(engine: Engine, prompts: list[list[int]], wanted: list[list[int]], count: int):
    adds = [greedy(f"r{n}", prompt, count) for n, prompt in enumerate(prompts)]
    tokens = run(engine, adds)
    for index, want in enumerate(wanted):
        assert tokens[f"r{index}"][: len(want)] == want, f"request {index} differs"
    assert sum(map(len, wanted)) > 0.3 * count * len(prompts), "too few choices were clear"

"""Engines of tiny models, and running requests on them to their ends."""

import random

from pagestream.worker.config import EngineConfig
from pagestream.worker.engine.engine import Engine, build_engine
from pagestream.worker.messages import Add, Sampling


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

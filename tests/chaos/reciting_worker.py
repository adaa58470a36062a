"""A worker whose engine recites the known answers: a worker that starts in little time, for volume.

python tests/chaos/reciting_worker.py --model demo …   (the flags of `pagestream worker`)

The answers are those of transformers. It looks at what it is asked to go on from: a context that is
not the beginning of the answer gets a token that is not in it.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from demo_prompts import load_demo_prompts
from stub_engine import StubEngine, StubOptions

from pagestream.producer.logs import log_to_stderr
from pagestream.worker.config import EngineConfig
from pagestream.worker.service import run_worker
from pagestream.worker.settings import read_settings

OPTIONS = StubOptions(vocab_size=4096, max_model_tokens=1024, max_running=16, step_s=0.01)
WRONG = 3


class RecitingEngine(StubEngine):
    def __init__(self, options: StubOptions) -> None:
        super().__init__(options)
        self.answers = {tuple(one.prompt_ids): one.expected_ids for one in load_demo_prompts()}

    def next_token(self, prompt_ids: list[int], ids: list[int]) -> int:
        answer = self.answers[tuple(prompt_ids)]
        return answer[len(ids)] if ids == answer[: len(ids)] else WRONG


def build(options: StubOptions, config: EngineConfig) -> RecitingEngine:
    return RecitingEngine(options)


def main() -> int:
    names = [word.removeprefix("--").replace("-", "_") for word in sys.argv[1::2]]
    log_to_stderr()
    settings = read_settings(**dict(zip(names, sys.argv[2::2], strict=True)))
    return run_worker(settings, partial(build, OPTIONS))


if __name__ == "__main__":
    sys.exit(main())

"""Known answers of the demo model: prompts and their greedy continuations.

Made by ``make_demo_prompts.py`` with transformers in fp32 on a CPU. At every step the best token's
logit is at least 1e-3 above the second's, so that rounding cannot change the answer.
"""

import json
from pathlib import Path
from typing import NamedTuple

DEMO_MODEL = Path(__file__).parents[1] / "worker" / "pagestream" / "worker" / "demo_model"
_DATA = DEMO_MODEL.parent / "chaos" / "known_answers.json"


class DemoPrompt(NamedTuple):
    """A prompt and its answer.

    ``prompt_ids`` are the text's tokens with the begin token. ``expected_ids`` are the next 64 when
    end tokens are ignored; ``end`` is the index in them of the first end token, or None.
    """

    text: str
    prompt_ids: list[int]
    expected_ids: list[int]
    end: int | None


def load_demo_prompts() -> list[DemoPrompt]:
    """Read the known answers, about 40."""
    return [DemoPrompt(**row) for row in json.loads(_DATA.read_text(encoding="utf-8"))]

"""Jobs whose answers are known: prompts and the demo model's greedy continuations.

The answers were computed with transformers, not with this project's engine; at every step the best
token's logit is at least 1e-3 above the second's, so that rounding cannot change them.
This module knows no queue: it gives requests and what their replies must be.
"""

import json
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

from tokenizers import Tokenizer

from ..models.hub import DEMO, resolve

TOKENS_MIN = 8


class Answer(NamedTuple):
    """One request and its whole reply."""

    prompt_ids: list[int]
    max_tokens: int
    ignore_eos: bool
    ids: list[int]
    text: str
    reason: Literal["stop", "length"]


class Answers:
    """The known answers; each prompt gives many requests, of different lengths and ends."""

    def __init__(self) -> None:
        rows = files("pagestream.worker.chaos").joinpath("known_answers.json").read_text("utf-8")
        self._rows = json.loads(rows)
        directory: Path = resolve(DEMO, None, weights=False)
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def pick(self, random: Random, tokens_min: int = TOKENS_MIN) -> Answer:
        """Choose a prompt and how much of its answer to ask for."""
        row = random.choice(self._rows)
        expected, end = row["expected_ids"], row["end"]
        max_tokens = random.randint(tokens_min, len(expected))
        ignore_eos = random.random() < 0.5
        stops = end is not None and not ignore_eos and end < max_tokens
        ids: list[int] = expected[: int(end or 0) + 1] if stops else expected[:max_tokens]
        return Answer(
            prompt_ids=row["prompt_ids"],
            max_tokens=max_tokens,
            ignore_eos=ignore_eos,
            ids=ids,
            # Decoded at once, by the tokenizers library.
            text=self._tokenizer.decode(ids[:-1] if stops else ids, skip_special_tokens=True),
            reason="stop" if stops else "length",
        )

"""The requests that figures are measured on: prompts as token ids, and how many tokens to generate.

`nano`, `share` and `small` are fixed: the same requests everywhere, so that figures compare. What
the ids mean does not matter to a figure; their number and their repetition do.
Knows no engine and no clock; tokenizing is the caller's.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from pagestream.producer.errors import PagestreamError

DRAWN_VOCAB = 10_000
"""Ids are drawn below this, or up to it; `fit_to_vocabulary` brings them into a smaller one."""

SHARE_GPT_REQUESTS = 1000
SHARE_GPT_MIN_TOKENS = 4
SHARE_GPT_MAX_PROMPT_TOKENS = 1024
SHARE_GPT_MAX_TOKENS = 2048
"""Conversations outside these three are left out, as vLLM's benchmark does."""


class BadDataset(PagestreamError):
    """The requests cannot be made as asked, or the file does not hold what it should."""

    code = "bad_dataset"


class Sample(NamedTuple):
    """One request: its prompt and the exact number of tokens to generate."""

    prompt_ids: list[int]
    output_tokens: int


Workload = list[Sample]
Encode = Callable[[str], list[int]]


def nano(vocab: int = DRAWN_VOCAB, n: int = 256, seed: int = 0) -> Workload:
    """256 requests, lengths in and out uniform in [100, 1024]: 142,827 tokens in, 133,966 out.

    Source: nano-vllm's bench.
    """
    rng = random.Random(seed)
    prompts = [[rng.randint(0, vocab) for _ in range(rng.randint(100, 1024))] for _ in range(n)]
    outputs = [rng.randint(100, 1024) for _ in range(n)]
    return [Sample(*pair) for pair in zip(prompts, outputs, strict=True)]


def share(n: int = 1000, seed: int = 1, vocab: int = DRAWN_VOCAB) -> Workload:
    """1,000 requests, lognormal lengths near ShareGPT's means: 206,722 tokens in, 192,965 out."""
    rng = random.Random(seed)

    def draw(mu: float, sigma: float) -> int:
        return max(4, min(1024, int(rng.lognormvariate(mu, sigma))))

    return [
        Sample([rng.randint(0, vocab) for _ in range(draw(4.85, 1.1))], draw(4.85, 0.95))
        for _ in range(n)
    ]


def small(vocab: int = 4_000, n: int = 64, seed: int = 2) -> Workload:
    """64 requests, lengths in and out uniform in [16, 128]: for the demo model on a CPU."""
    rng = random.Random(seed)
    prompts = [[rng.randint(10, vocab) for _ in range(rng.randint(16, 128))] for _ in range(n)]
    outputs = [rng.randint(16, 128) for _ in range(n)]
    return [Sample(*pair) for pair in zip(prompts, outputs, strict=True)]


WORKLOADS: dict[str, Callable[[], Workload]] = {"nano": nano, "share": share, "small": small}
"""The fixed ones, by name."""

DATASETS = (*WORKLOADS, "random", "prefix-repetition", "sharegpt")


def random_lengths(
    n: int, input_tokens: int, output_tokens: int, range_ratio: float, seed: int
) -> Workload:
    """Random ids; lengths uniform within `range_ratio` of the given ones, 0 for exactly those."""
    rng = random.Random(seed)

    def around(tokens: int) -> int:
        return max(1, rng.randint(int(tokens * (1 - range_ratio)), int(tokens * (1 + range_ratio))))

    return [
        Sample(_ids(rng, around(input_tokens)), around(output_tokens)) for _ in range(max(0, n))
    ]


def prefix_repetition(
    n: int, prefixes: int, prefix_tokens: int, suffix_tokens: int, output_tokens: int, seed: int
) -> Workload:
    """Each request is one of a few prefixes, in turn, and a suffix of its own."""
    rng = random.Random(seed)
    heads = [_ids(rng, prefix_tokens) for _ in range(prefixes)]
    return [
        Sample(heads[index % prefixes] + _ids(rng, suffix_tokens), output_tokens)
        for index in range(n)
    ]


class _Turn(msgspec.Struct):
    value: str


class _Conversation(msgspec.Struct):
    conversations: list[_Turn] = []


def share_gpt(path: Path, n: int, encode: Encode, seed: int) -> Workload:
    """First turns of `n` conversations, drawn by `seed`; the answers' lengths are what to generate.

    Args:
        path: a JSON list of `{"conversations": [{"value": …}, {"value": …}, …]}`.
        n: requests at most.
        encode: the model's tokenizer.
        seed: of the order in which conversations are taken.

    Raises:
        BadDataset: the file cannot be read, or has no conversation of a usable length.
    """
    try:
        conversations = msgspec.json.decode(path.read_bytes(), type=list[_Conversation])
    except OSError as error:
        raise BadDataset(f"the dataset {path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadDataset(
            f"{path} is not ShareGPT's format, a JSON list of conversations: {error}"
        ) from error
    random.Random(seed).shuffle(conversations)
    samples: Workload = []
    for turns in (one.conversations for one in conversations if len(one.conversations) > 1):
        if len(samples) == n:
            break
        if not turns[0].value or not turns[1].value:
            continue
        sample = Sample(encode(turns[0].value), len(encode(turns[1].value)))
        if _usable(sample):
            samples.append(sample)
    if not samples:
        raise BadDataset(
            f"none of the {len(conversations)} conversations of {path} has a question and an "
            f"answer of {SHARE_GPT_MIN_TOKENS} tokens and more, within {SHARE_GPT_MAX_TOKENS}"
        )
    return samples


def _usable(sample: Sample) -> bool:
    prompt_tokens = len(sample.prompt_ids)
    return (
        min(prompt_tokens, sample.output_tokens) >= SHARE_GPT_MIN_TOKENS
        and prompt_tokens <= SHARE_GPT_MAX_PROMPT_TOKENS
        and prompt_tokens + sample.output_tokens <= SHARE_GPT_MAX_TOKENS
    )


def _ids(rng: random.Random, tokens: int) -> list[int]:
    return [rng.randrange(DRAWN_VOCAB) for _ in range(tokens)]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Which requests to make; `load` makes them."""

    name: str = "small"
    requests: int | None = None
    """The first so many; None is all of a fixed one, 1,000 of a file, 256 otherwise."""
    path: Path | None = None
    input_tokens: int = 512
    output_tokens: int = 128
    range_ratio: float = 0.0
    prefixes: int = 10
    prefix_tokens: int = 256
    max_output_tokens: int | None = None
    """Cuts every request's output."""
    seed: int = 0

    def load(self, encode: Encode | None = None) -> Workload:
        """Make the requests; `encode` is the model's tokenizer, which a file of texts needs.

        Raises:
            BadDataset: they cannot be made; the message says why.
        """
        most = self.max_output_tokens
        return [
            Sample(ids, tokens if most is None else min(tokens, most))
            for ids, tokens in self._make(encode)
        ]

    def _make(self, encode: Encode | None) -> Workload:
        if self.name in WORKLOADS:
            whole = WORKLOADS[self.name]()
            if self.requests is not None and self.requests > len(whole):
                raise BadDataset(
                    f"{self.name} has {len(whole)} requests, not {self.requests}; "
                    "--dataset random has any number"
                )
            return whole[: self.requests]
        if self.name == "random":
            return random_lengths(
                self.requests or 256,
                self.input_tokens,
                self.output_tokens,
                self.range_ratio,
                self.seed,
            )
        if self.name == "prefix-repetition":
            return prefix_repetition(
                self.requests or 256,
                self.prefixes,
                self.prefix_tokens,
                self.input_tokens,
                self.output_tokens,
                self.seed,
            )
        if self.name != "sharegpt":
            raise BadDataset(
                f"there is no dataset {self.name!r}; there are {', '.join(DATASETS)} "
                "(its file: --dataset-path)"
            )
        if self.path is None:
            raise BadDataset("--dataset sharegpt needs its file: --dataset-path FILE.json")
        if encode is None:
            raise BadDataset("--dataset sharegpt needs a model with a tokenizer; this one has none")
        return share_gpt(self.path, self.requests or SHARE_GPT_REQUESTS, encode, self.seed)


def fit_to_vocabulary(workload: Workload, vocab_size: int, shift: int = 0) -> Workload:
    """The same requests with ids below `vocab_size`, all moved by `shift`.

    Equal prefixes stay equal, and with another shift nothing is equal to what was run before: a
    repeat neither gains nor loses anything from the prefix cache.
    """
    return [
        Sample([(token_id + shift) % vocab_size for token_id in ids], tokens)
        for ids, tokens in workload
    ]


def shift_of(place: int) -> int:
    """How far the ids of run number `place` are moved: the first's not at all; 1 is a warm-up's."""
    return place + 1 if place else 0


def check_lengths(workload: Workload, max_model_tokens: int) -> None:
    """Make sure that each request fits into the model's context.

    Raises:
        BadDataset: one does not.
    """
    for index, (ids, tokens) in enumerate(workload):
        if len(ids) + tokens > max_model_tokens:
            raise BadDataset(
                f"request {index} has {len(ids)} tokens in and {tokens} out, more than the context "
                f"of {max_model_tokens}; choose another --dataset, shorter outputs "
                "(--max-output-len), or a larger --max-model-len where the model allows it"
            )

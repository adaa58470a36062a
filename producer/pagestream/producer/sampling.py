"""How a request wants its tokens drawn, and the one check of it that needs no model.

The client, the gateway and the worker's intake call the same `SamplingParams.check`; what depends
on the model (vocabulary, context length, template) is checked by the worker.
"""

import math

import msgspec

from .errors import InvalidRequest, UnsupportedParameter

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_SEED = 2**63 - 1

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (None, 1),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "logit_bias": (None, {}),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None, 0),
    "bad_words": (None, []),
    "allowed_token_ids": (None, []),
    "response_format": (None, {"type": "text"}),
}
"""Parameters that are part of the format but not built yet, and the values that change nothing."""


class SamplingParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Sampling parameters of one request; `None` means "as the model's generation config says".

    Temperature 0 is greedy. The random draw of each token depends on (seed, position) alone, so the
    same request gives the same tokens in any batch and after a resume.
    """

    temperature: float | None = None
    """0 (greedy) to 2. Default 1 where the model names none."""
    top_k: int | None = None
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the most likely tokens whose probabilities reach p; 0 < p <= 1."""
    min_p: float | None = None
    """Drop tokens less likely than this share of the most likely one; 0 <= min_p <= 1."""
    seed: int | None = None
    """0 to 2^63 - 1; the client fills it in, so that every job can be resumed."""
    max_tokens: int | None = None
    """Output tokens at most; None runs to the end of the model's context."""
    min_tokens: int = 0
    """No stop before this many output tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end the output; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the output, beside the model's own end tokens."""
    ignore_eos: bool = False
    """Go on past the model's end tokens."""
    include_stop_str_in_output: bool = False
    """Keep the matched stop string at the end of the text."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""

    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    response_format: dict[str, object] | None = None

    def check(self) -> "SamplingParams":
        """Return self if every value is in range and implemented.

        Raises:
            InvalidRequest: a value is out of range; the message names it.
            UnsupportedParameter: a parameter that is not built yet has a value that would matter.
        """
        for name, neutral in _NEUTRAL.items():
            value = getattr(self, name)
            if value not in neutral:
                raise UnsupportedParameter(
                    f"{name}={value!r} is not supported yet; "
                    f"leave it out or set it to {neutral[-1]!r}",
                    param=name,
                )
        _number("temperature", self.temperature, 0.0, 2.0)
        _number("top_k", self.top_k, 0, 2**31 - 1)
        _number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise InvalidRequest(
                "top_p=0 keeps no token; use temperature=0 for greedy decoding", param="top_p"
            )
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("seed", self.seed, 0, MAX_SEED)
        _number("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _number("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}",
                param="min_tokens",
            )
        self._check_stops()
        return self

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(
                f"stop has {len(self.stop)} strings; at most {MAX_STOP_STRINGS}", param="stop"
            )
        for text in self.stop:
            if not 1 <= len(text) <= MAX_STOP_STRING_CHARS:
                raise InvalidRequest(
                    f"a stop string has {len(text)} characters; it may have 1 to "
                    f"{MAX_STOP_STRING_CHARS}",
                    param="stop",
                )
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequest(
                f"stop_token_ids has {len(self.stop_token_ids)} ids; at most {MAX_STOP_TOKEN_IDS}",
                param="stop_token_ids",
            )
        for token_id in self.stop_token_ids:
            _number("stop_token_ids", token_id, 0, 2**31 - 1)


def _number(name: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    if math.isnan(value) or not low <= value <= high:
        raise InvalidRequest(f"{name}={value!r} is out of range: {low} to {high}", param=name)

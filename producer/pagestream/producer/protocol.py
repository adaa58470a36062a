"""The wire: what a job and the entries of its reply stream look like.

A payload is a msgpack map, or JSON when its first byte is `{`, so that any language can enqueue.
Unknown fields of the envelope are ignored (a newer producer may send them); unknown sampling
parameters are refused by name, because ignoring one would change the answer.
This module knows bytes and structs only: no connection, no model.
"""

from typing import Any, Literal

import msgspec

from .errors import InvalidRequest, UnsupportedVersion
from .sampling import SamplingParams

VERSION = 1
"""Major version of the payload; a worker refuses any other."""

TEMPLATE_ALLOWANCE_TOKENS = 64
"""Tokens a chat template may add per message, for `tokens_max` before tokenizing."""

FinishReason = Literal["stop", "length", "cancelled", "expired", "error"]
"""Why a job ended: done (`stop`, `length`) or not."""

JobState = Literal["queued", "running", "done", "cancelled", "expired", "failed", "dead"]


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """One job: exactly one of `prompt`, `messages` and `prompt_ids`, and how to sample.

    Fields are written even when they are the default: `v` must always be there.
    """

    v: int = VERSION
    model: str | None = None
    """Refused with `unknown_model` unless it is the served name; None takes what is served."""
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    """Chat messages, rendered by the model's chat template."""
    prompt_ids: list[int] | None = None
    """Token ids, used as they are."""
    sampling: SamplingParams = SamplingParams()

    def tokens_max(self) -> int:
        """An upper bound of the prompt's length in tokens, known without a tokenizer.

        Exact for token ids; otherwise the UTF-8 length (a token holds a byte or more), plus
        an allowance for the template.
        """
        if self.prompt_ids is not None:
            return len(self.prompt_ids)
        if self.prompt is not None:
            return len(self.prompt.encode()) + TEMPLATE_ALLOWANCE_TOKENS
        messages = self.messages or []
        return len(msgspec.json.encode(messages)) + TEMPLATE_ALLOWANCE_TOKENS * (len(messages) + 1)


class _Header(msgspec.Struct):
    v: int


_encoder = msgspec.msgpack.Encoder()
_packed = (msgspec.msgpack.Decoder(_Header), msgspec.msgpack.Decoder(Payload))
_json = (msgspec.json.Decoder(_Header), msgspec.json.Decoder(Payload))


def encode_payload(payload: Payload) -> bytes:
    """Encode a payload as msgpack.

    Raises:
        InvalidRequest: a string has a lone surrogate, which UTF-8 cannot carry, or a message holds
            a number that msgpack cannot, or is nested too deeply.
    """
    try:
        return _encoder.encode(payload)
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the prompt is not valid Unicode: {error}") from error
    except (OverflowError, RecursionError) as error:
        raise InvalidRequest(f"a message cannot be written: {error}") from error


def decode_payload(data: bytes) -> Payload:
    """Decode and check a payload as far as that needs no model.

    Raises:
        UnsupportedVersion: the major version is not ours.
        InvalidRequest: not a payload; or the prompt or a sampling value is not acceptable.
    """
    header, body = _json if data[:1] == b"{" else _packed
    try:
        version = header.decode(data).v
        if version != VERSION:
            raise UnsupportedVersion(f"payload version v={version}; this worker reads v={VERSION}")
        payload = body.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the payload cannot be read: {error}") from error
    check_prompt(payload)
    payload.sampling.check()
    return payload


def check_prompt(payload: Payload) -> None:
    """Check that the payload has one prompt and that it is not empty.

    Raises:
        InvalidRequest: none or several prompts, or an empty one, or a negative token id.
    """
    prompts = {
        name: value
        for name in ("prompt", "messages", "prompt_ids")
        if (value := getattr(payload, name)) is not None
    }
    if len(prompts) != 1:
        raise InvalidRequest(
            "a job has exactly one of prompt, messages and prompt_ids; "
            f"got {sorted(prompts) or 'none'}"
        )
    ((name, value),) = prompts.items()
    if not value:
        raise InvalidRequest(f"{name} is empty; give at least one token of input", param=name)
    if payload.prompt_ids is not None and min(payload.prompt_ids) < 0:
        raise InvalidRequest(
            f"prompt_ids holds {min(payload.prompt_ids)}; token ids start at 0", param="prompt_ids"
        )


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of a finished job."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Where a finished job's time went, in milliseconds of the worker's clock."""

    queue_ms: float = 0.0
    """From the accepted submit to the claim."""
    first_token_ms: float = 0.0
    """From the claim to the first token."""
    total_ms: float = 0.0
    """From the claim to the end."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a reply stream.

    Tokens: `choice`, `start` (index of the first id), `ids`, `text` (empty while a character or
    a possible stop string is incomplete). Otherwise `event`: `queued`, `start`, `end`.
    The end has `reason`, the last of the text, `usage`, `timings`, and `error`/`message` if any.
    """

    id: str
    """`<epoch>-<offset>`: pass it back to resume after this entry."""
    event: Literal["queued", "start", "tokens", "end"]
    choice: int = 0
    start: int = 0
    ids: tuple[int, ...] = ()
    text: str = ""
    worker: str = ""
    reason: FinishReason | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    error: str = ""
    message: str = ""

    @property
    def epoch(self) -> int:
        """The claim that wrote this entry."""
        return int(self.id.split("-")[0])

    @property
    def offset(self) -> int:
        """Output tokens published up to and including this entry."""
        return int(self.id.split("-")[1])


def decode_entry(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    """Read one entry as redis-py returns it (no response decoding)."""
    text = {key.decode(): value.decode() for key, value in fields.items()}
    if "ids" in text:
        return Entry(
            id=entry_id.decode(),
            event="tokens",
            choice=int(text["choice"]),
            start=int(text["start"]),
            ids=tuple(map(int, text["ids"].split())),
            text=text["text"],
        )
    return Entry(
        id=entry_id.decode(),
        event=text["event"],  # pyright: ignore[reportArgumentType]
        choice=int(text.get("choice", "0")),
        text=text.get("text", ""),
        worker=text.get("worker", ""),
        reason=text.get("reason"),  # pyright: ignore[reportArgumentType]
        usage=msgspec.json.decode(text["usage"], type=Usage) if text.get("usage") else Usage(),
        timings=msgspec.json.decode(text["timings"], type=Timings)
        if text.get("timings")
        else Timings(),
        error=text.get("error", ""),
        message=text.get("message", ""),
    )


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker serves, published for clients and gateways to check early."""

    name: str
    context_tokens: int
    vocab_size: int
    has_tokenizer: bool
    has_chat_template: bool
    max_running: int
    """Requests that may run at once."""
    kv_tokens: int
    """Tokens the KV cache holds."""

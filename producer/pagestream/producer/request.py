"""What a call of `submit` becomes: a checked payload, its bytes, and the queue's options.

Pure functions: this module knows no connection and no worker, and asks nobody what time it is.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any, Literal, TypedDict

import msgspec

from .errors import InvalidRequest, UnknownModel
from .hooks.urls import check_url
from .keys import DEFAULT_TENANT, LANES, RETENTION_MS, check_name
from .protocol import ModelInfo, Payload, check_prompt, encode_payload
from .sampling import SamplingParams

READER_TIMEOUT_MS_MIN = 1_000
"""Readers renew three times in a timeout, and workers look twice a second."""
QUEUE_LIMIT_JOBS = 10_000
"""Unfinished jobs a tenant may have on a queue before `QueueFull`."""

Lane = Literal["high", "normal", "low"]


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`, given to `submit` one by one."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    max_tokens: int
    min_tokens: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    n: int
    best_of: int | None
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: dict[str, float] | None
    logprobs: bool | int | None
    top_logprobs: int | None
    prompt_logprobs: int | None
    bad_words: list[str] | None
    allowed_token_ids: list[int] | None
    response_format: dict[str, object] | None


class SubmitOptions(SamplingOptions, total=False):
    """Keyword arguments of `submit`, beside the prompt."""

    messages: Sequence[Mapping[str, Any]]
    """Chat messages, `{"role": …, "content": …}`, rendered by the model's chat template."""
    prompt_ids: Iterable[int]
    sampling: SamplingParams
    """Sampling parameters as one value; single ones beside it win."""
    id: str
    """The job's id, which makes the call idempotent; a random one where it is left out, behind
    `<tenant>.` for a tenant that has a name."""
    lane: Lane
    """Priority: a better lane goes first, and on a full worker takes a worse one's slot."""
    tenant: str
    """Whose job it is; the client's where left out."""
    queue_limit: int
    """Unfinished jobs that the tenant may have before `QueueFull`; the client's where left out.
    Where an operator has set a bound for the tenant, that holds."""
    queue_timeout_ms: int
    """Expire if no worker has taken the job by then."""
    deadline_ms: int
    """Expire if the job has not finished by then, counted from the submit."""
    reader_timeout_ms: int
    """Cancel the job when nobody has read it for so long; left out, it runs to its end.

    An open token stream, or a wait for the result, counts as reading, in any process."""
    retention_ms: int
    """How long the finished job stays readable."""
    mirror: bool
    """Publish each entry on the job's pub/sub channel as well."""
    webhook: str
    """An http or https URL that is told of the job's end, by a jobs process."""


class JobSpec(SubmitOptions, total=False):
    """One job of `submit_many`; exactly one of `prompt`, `messages`, `prompt_ids`."""

    prompt: str


_SAMPLING_NAMES = frozenset(SamplingOptions.__annotations__)
_SUBMIT_NAMES = frozenset(JobSpec.__annotations__) - _SAMPLING_NAMES
_NAMES = _SAMPLING_NAMES | _SUBMIT_NAMES


class QueueOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the queue treats a job; the third argument of the submit script, as JSON."""

    lane: str
    tenant: str
    tokens_max: int
    queue_limit: int
    retention_ms: int
    queue_timeout_ms: int | None = None
    deadline_ms: int | None = None
    reader_timeout_ms: int | None = None
    mirror: bool = False
    webhook: str | None = None
    traceparent: str | None = None
    """W3C trace context of whoever submits, for the worker's spans."""
    tracestate: str | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One job, ready to be sent."""

    id: str
    payload: Payload
    body: bytes
    """The payload as it goes into Redis."""
    options: QueueOptions

    def traced(self, context: Mapping[str, str]) -> "Request":
        """Return the request with a trace context, as `tracing` has it."""
        if not context:
            return self
        return msgspec.structs.replace(
            self, options=msgspec.structs.replace(self.options, **context)
        )


def seed_of(job_id: str) -> int:
    """Return the seed of a job that names none: a stable hash, so that it can be resubmitted."""
    return int.from_bytes(hashlib.blake2b(job_id.encode(), digest_size=8).digest(), "big") >> 1


def build_request(
    given: Mapping[str, Any], *, model: str | None, tenant: str, queue_limit: int
) -> Request:
    """Build and check a request from `submit`'s keyword arguments.

    Raises:
        InvalidRequest: an argument is unknown, of the wrong type or out of range.
        UnsupportedParameter: a sampling parameter that is not built yet has a value that matters.
    """
    if unknown := given.keys() - _NAMES:
        raise InvalidRequest(
            f"submit takes no {sorted(unknown)[0]!r}; it takes {sorted(_SUBMIT_NAMES)} and the "
            "fields of SamplingParams"
        )
    job_id = given.get("id")
    if job_id is None:
        # A tenant's ids can be told apart, so that an ACL can keep tenants apart.
        job_id = f"{'' if tenant == DEFAULT_TENANT else f'{tenant}.'}{os.urandom(16).hex()}"
    else:
        check_name("job id", job_id)
    messages = _messages(given.get("messages"))
    prompt_ids = _token_ids(given.get("prompt_ids"))
    sampling = _sampling(given, job_id)
    asked = {"model": model, "prompt": given.get("prompt"), "messages": messages}
    try:
        # Struct constructors check no types; what a worker would refuse is refused here.
        payload = msgspec.convert(msgspec.to_builtins(asked), Payload)
        payload = msgspec.structs.replace(payload, prompt_ids=prompt_ids, sampling=sampling)
        check_prompt(payload)
        body = encode_payload(payload)
    except (msgspec.MsgspecError, TypeError) as error:
        raise InvalidRequest(f"the request has a value of the wrong type: {error}") from error
    except RecursionError as error:
        raise InvalidRequest(f"a message is nested too deeply: {error}") from error
    owner = given.get("tenant", tenant)
    if not isinstance(owner, str):
        raise InvalidRequest(f"tenant={owner!r} is not a string")
    options = QueueOptions(
        lane=given.get("lane", "normal"),
        tenant=owner,
        tokens_max=payload.tokens_max(),
        queue_limit=given.get("queue_limit", queue_limit),
        retention_ms=given.get("retention_ms", RETENTION_MS),
        queue_timeout_ms=given.get("queue_timeout_ms"),
        deadline_ms=given.get("deadline_ms"),
        reader_timeout_ms=given.get("reader_timeout_ms"),
        mirror=bool(given.get("mirror", False)),
        webhook=given.get("webhook"),
    )
    _check_options(options)
    return Request(id=job_id, payload=payload, body=body, options=options)


def check_against(payload: Payload, models: Sequence[ModelInfo]) -> None:
    """Refuse what none of the models served now can do; without models, refuse nothing.

    The worker checks again: this only saves a job that is known to fail its way through the queue.

    Raises:
        UnknownModel: no worker serves the payload's model.
        InvalidRequest: every worker of it would refuse the prompt.
    """
    if not models:
        return
    served = [info for info in models if payload.model in (None, info.name)]
    if not served:
        names = sorted({info.name for info in models})
        raise UnknownModel(f"no worker serves {payload.model!r} on this queue; it serves {names}")
    problems = [_problem(payload, info) for info in served]
    if all(problems):
        asked = {"prompt_ids": payload.prompt_ids, "prompt": payload.prompt}
        param = next((name for name, value in asked.items() if value is not None), "messages")
        raise InvalidRequest(str(problems[0]), param=param)


def _problem(payload: Payload, info: ModelInfo) -> str | None:
    """Say why a model cannot run the payload, or None."""
    if payload.prompt_ids is None:
        if not info.has_tokenizer:
            return f"model {info.name!r} has no tokenizer; send prompt_ids"
        if payload.messages is not None and not info.has_chat_template:
            return f"model {info.name!r} has no chat template; send prompt or prompt_ids"
        return None
    largest = max(payload.prompt_ids)
    if largest >= info.vocab_size:
        return f"prompt_ids holds {largest}; model {info.name!r} has {info.vocab_size} token ids"
    if len(payload.prompt_ids) >= info.context_tokens:
        return (
            f"the prompt has {len(payload.prompt_ids)} tokens; model {info.name!r} has "
            f"a context of {info.context_tokens}, output included"
        )
    return None


def _sampling(given: Mapping[str, Any], job_id: str) -> SamplingParams:
    single = {name: value for name, value in given.items() if name in _SAMPLING_NAMES}
    if isinstance(single.get("stop"), str):
        single["stop"] = (single["stop"],)
    try:
        if "sampling" in given:
            single = {**msgspec.to_builtins(given["sampling"]), **single}
        if single.get("seed") is None:
            single["seed"] = seed_of(job_id)
        return msgspec.convert(single, SamplingParams).check()
    except (msgspec.MsgspecError, TypeError) as error:
        raise InvalidRequest(f"a sampling parameter has the wrong type: {error}") from error


def _messages(messages: Any) -> list[dict[str, Any]] | None:
    if messages is None:
        return None
    if isinstance(messages, str) or not all(isinstance(one, Mapping) for one in messages):
        raise InvalidRequest("messages is a list of maps with 'role' and 'content'")
    return [dict(one) for one in messages]


def _token_ids(ids: Iterable[int] | None) -> list[int] | None:
    if ids is None:
        return None
    try:
        return [index(one) for one in ids]
    except TypeError as error:
        raise InvalidRequest(
            f"prompt_ids holds something that is not a token id: {error}"
        ) from error


def _check_options(options: QueueOptions) -> None:
    if options.lane not in LANES:
        raise InvalidRequest(
            f"lane={options.lane!r} is not one of {', '.join(LANES)}", param="lane"
        )
    check_name("tenant", options.tenant)
    limit: Any = options.queue_limit  # as given: struct constructors check no types
    if not isinstance(limit, int) or not 1 <= limit <= 10**12:
        raise InvalidRequest(
            f"queue_limit={limit!r} is not a whole number of jobs above 0", param="queue_limit"
        )
    for name in ("retention_ms", "queue_timeout_ms", "deadline_ms", "reader_timeout_ms"):
        value = getattr(options, name)
        if value is None:
            continue
        if not isinstance(value, int) or not 1 <= value <= 2**42:
            raise InvalidRequest(
                f"{name}={value!r} is not a whole number of milliseconds above 0", param=name
            )
    if options.webhook is not None:
        check_url(options.webhook)
    if options.reader_timeout_ms is not None and options.reader_timeout_ms < READER_TIMEOUT_MS_MIN:
        raise InvalidRequest(
            f"reader_timeout_ms={options.reader_timeout_ms} is below {READER_TIMEOUT_MS_MIN}: "
            "readers could not keep a job alive through a short outage",
            param="reader_timeout_ms",
        )

"""From a claimed payload to a request for the engine, or to an error for its reply stream.

Everything that depends on the model is checked here: its name, vocabulary, context, template and
defaults. Tokenizing runs on a thread of its own, off the step path.
This module knows no engine process and no steps; it reads Redis only to replay a resumed job.
"""

import logging
import threading
import traceback
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pagestream.producer.errors import InvalidRequest, PagestreamError, UnknownModel
from pagestream.producer.protocol import Entry, ModelInfo, Payload, decode_payload
from pagestream.producer.request import seed_of
from pagestream.producer.sampling import SamplingParams

from ..messages import Ready, Sampling
from .backoff import RedisGone
from .calls import Claim
from .detokenizer import Detokenizer
from .pieces import NoPieces
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..models.hub import GenerationDefaults

logger = logging.getLogger(__name__)

Number = TypeVar("Number", int, float)


def model_info(name: str, ready: Ready, tokenizer: Tokenizer | None) -> ModelInfo:
    """Return what an engine that is ready serves under `name`: intake checks against it."""
    return ModelInfo(
        name=name,
        context_tokens=ready.max_model_tokens,
        vocab_size=ready.vocab_size,
        has_tokenizer=tokenizer is not None,
        has_chat_template=tokenizer is not None and tokenizer.has_chat_template,
        max_running=ready.max_running,
        kv_tokens=(ready.num_blocks - 1) * ready.block_tokens,  # block 0 is nobody's
    )


class Prepared(NamedTuple):
    """A request that the model can run."""

    prompt_ids: list[int]
    sampling: Sampling
    new_detokenizer: Callable[[], Detokenizer]


class Intaken(NamedTuple):
    """What became of a claim: a request, or the error that ends it."""

    claim: Claim
    """The very one that was submitted."""
    request: Prepared | PagestreamError | None
    """None: the job could not be looked at, and goes back to the queue."""
    replayed_ids: list[int]
    """Output tokens that earlier claims of the job published."""


class Intake:
    """Checks payloads against one model and tokenizes them."""

    def __init__(
        self, tokenizer: Tokenizer | None, model: ModelInfo, defaults: "GenerationDefaults"
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._defaults = defaults

    def prepare(self, job_id: str, data: bytes) -> Prepared:
        """Read and check a payload, and return the request it asks for.

        Raises:
            PagestreamError: the request cannot run; its code and message are for the client.
        """
        payload = decode_payload(data)
        if payload.model not in (None, self._model.name):
            raise UnknownModel(f"this worker serves {self._model.name!r}, not {payload.model!r}")
        params = payload.sampling
        if params.stop and self._tokenizer is None:
            raise InvalidRequest(
                "stop strings need a tokenizer and this model has none; use stop_token_ids"
            )
        prompt_ids = self._prompt_ids(payload)
        self._check_range("prompt_ids", prompt_ids)
        self._check_range("stop_token_ids", params.stop_token_ids)
        room_tokens = self._model.context_tokens - len(prompt_ids)
        if room_tokens < 1:
            raise InvalidRequest(
                f"the prompt has {len(prompt_ids)} tokens; the context of {self._model.name!r} is "
                f"{self._model.context_tokens} tokens and one must be left for the output"
            )
        sampling = self._sampling(job_id, params, room_tokens)
        return Prepared(prompt_ids, sampling, self._detokenizers(params, sampling))

    def _prompt_ids(self, payload: Payload) -> list[int]:
        if payload.prompt_ids is not None:
            return payload.prompt_ids
        if self._tokenizer is None:
            raise InvalidRequest("this model has no tokenizer; send `prompt_ids`")
        if payload.prompt is not None:
            return self._tokenizer.encode_prompt(payload.prompt)
        return self._tokenizer.encode_chat(payload.messages or [])

    def _check_range(self, name: str, ids: Iterable[int]) -> None:
        highest = max(ids, default=0)
        if highest >= self._model.vocab_size:
            raise InvalidRequest(
                f"{name} holds {highest}; token ids of {self._model.name!r} end at "
                f"{self._model.vocab_size - 1}"
            )

    def _sampling(self, job_id: str, params: SamplingParams, room_tokens: int) -> Sampling:
        """Fill in every default; `max_tokens` never passes the context."""
        defaults = self._defaults
        end_ids = () if params.ignore_eos else defaults.eos_token_ids
        max_tokens = min(params.max_tokens or room_tokens, room_tokens)
        return Sampling(
            temperature=_first(params.temperature, defaults.temperature, 1.0),
            top_k=_first(params.top_k, defaults.top_k, 0),
            top_p=_first(params.top_p, defaults.top_p, 1.0),
            min_p=_first(params.min_p, defaults.min_p, 0.0),
            seed=params.seed if params.seed is not None else seed_of(job_id),
            max_tokens=max_tokens,
            min_tokens=min(params.min_tokens, max_tokens),
            stop_token_ids=tuple(dict.fromkeys((*end_ids, *params.stop_token_ids))),
        )

    def _detokenizers(
        self, params: SamplingParams, sampling: Sampling
    ) -> Callable[[], Detokenizer]:
        tokenizer = self._tokenizer
        silent_ids = () if params.include_stop_str_in_output else sampling.stop_token_ids

        def new() -> Detokenizer:
            return Detokenizer(
                tokenizer.pieces(skip_special_tokens=params.skip_special_tokens)
                if tokenizer
                else NoPieces(),
                stop=params.stop,
                include_stop=params.include_stop_str_in_output,
                min_tokens=sampling.min_tokens,
                silent_ids=frozenset(silent_ids),
            )

        return new


class IntakeThread:
    """Prepares claims one after the other on a thread and posts an `Intaken` for each.

    A small one that came alone may be prepared at once, where it was claimed: handing it over and
    back takes longer.
    """

    AT_ONCE_BYTES = 2048
    """Largest payload that is: a tenth of a millisecond to tokenize."""

    def __init__(
        self,
        intake: Intake,
        replay: Callable[[str], list[Entry]],
        post: Callable[[Intaken], None],
    ) -> None:
        """`replay` returns the entries a job's reply holds; it waits as long as Redis is away."""
        self._intake = intake
        self._replay = replay
        self._post = post
        self._claims: SimpleQueue[Claim | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()

    def at_once(self, claim: Claim) -> Intaken | None:
        """Prepare a small first claim; None if it has to be submitted: it would take its time."""
        is_large = len(claim.payload) > self.AT_ONCE_BYTES
        return None if is_large or claim.epoch > 1 else self._prepared(claim)

    def submit(self, claim: Claim) -> None:
        """Queue a claim; never blocks."""
        self._claims.put(claim)

    def close(self) -> None:
        """End the thread after what was submitted."""
        self._claims.put(None)

    def _run(self) -> None:
        while (claim := self._claims.get()) is not None:
            self._post(self._prepared(claim))

    def _prepared(self, claim: Claim) -> Intaken:
        replayed_ids: list[int] = []
        request: Prepared | PagestreamError | None
        try:
            # A first claim has nothing to replay.
            if claim.epoch > 1:
                replayed_ids = published_ids(self._replay(claim.job_id))
            request = self._intake.prepare(claim.job_id, claim.payload)
        except PagestreamError as error:
            request = error
        except RedisGone:
            request = None
        except Exception as error:
            # One job's payload must not end what prepares all the others.
            # Where it happened, not its words: a template's or tokenizer's may quote the prompt.
            logger.error(
                "job %s could not be prepared: %s\n%s",
                claim.job_id,
                type(error).__name__,
                "".join(traceback.format_tb(error.__traceback__)),
                extra={"job_id": claim.job_id},
            )
            request = PagestreamError(f"the worker could not prepare this job: {error!r}")
        return Intaken(claim, request, replayed_ids)


def published_ids(entries: Iterable[Entry]) -> list[int]:
    """Return the output ids that a reply stream holds, as its readers see them."""
    ids: list[int] = []
    for entry in entries:
        if entry.event == "tokens" and entry.start <= len(ids):
            ids.extend(entry.ids[len(ids) - entry.start :])
    return ids


def _first(*values: Number | None) -> Number:
    """The first value that is given."""
    return next(value for value in values if value is not None)

"""One running job: its token log, its text, and what the next step's write says of it.

The token log is the truth in this process; rows and the end are made from it, so that a write that
Redis forgot can be made again, and an engine that died gets its requests back. This module knows no
Redis and no engine process; times are this process's monotonic seconds.
"""

from pagestream.producer.errors import PagestreamError
from pagestream.producer.keys import SUSPECT_CRASHES
from pagestream.producer.protocol import FinishReason, Timings, Usage

from ..messages import Add, Output
from .calls import Claim, End, Prefill, Row
from .detokenizer import Detokenizer
from .intake import Prepared

REQUEST_SEPARATOR = "#"

PROBATION_TOKENS = 16
"""What a suspect has to give alone before it is cleared: more than an engine usually is ahead of
what was heard of it. One that kills later is a suspect again, with more tokens than before."""


class Job:
    """A claimed job until its end is written.

    Invariant: the ids up to `published` are in a row that was made; `ids` beyond a matched stop
    string do not exist.
    """

    def __init__(self, claim: Claim, number: int, now_s: float, now_ms: int) -> None:
        """Take a claim, the `number`-th of this process.

        Args:
            claim: what Redis said.
            number: an epoch does not tell two claims of a job apart: one that Redis forgot, or that
                was deleted, is followed by another of the same epoch.
            now_s: the claim's time on this clock.
            now_ms: the same on Redis's.
        """
        self.claim = claim
        self.id = claim.job_id
        self.epoch = claim.epoch
        self.lane = claim.lane
        self.tenant = claim.tenant
        self.is_aged = claim.is_aged
        """It came before better lanes, by its age."""
        self.took_a_place = False
        """Another job went back for it: the engine's next reports may not yet show the room."""
        self.ids: list[int] = []
        """Every output token, those of earlier claims included."""
        self.published = 0
        self.cached_tokens = 0
        self.prompt_tokens = len(claim.payload)
        """Until the prompt is tokenized: no more than this (a token takes a byte or more)."""
        self.reason: FinishReason | None = None
        """Why the job ended, once it has."""
        self.request: Prepared | None = None
        self.is_sent = False
        """The engine process that lives now has been asked to run the job."""
        self.is_answered = False
        """It has given tokens of it: its `Load` counts the job's blocks."""
        self.is_returning = False
        """The job goes back to the queue in the next write."""
        self.crashes = claim.crashes
        """Deaths of a worker or an engine that the job was running at."""
        self.deadline_ms = claim.deadline_ms
        """In Redis's time."""
        self._probation_ids = 0
        """Ids it had when it became a suspect."""
        self._number = number
        self._error = ""
        self._message = ""
        self._text = ""
        self._detokenizer: Detokenizer | None = None
        self._prefill_tokens: int | None = 0
        """What the claim's prompt took to compute; None once it has been told."""
        self.claimed_s = now_s
        self.first_token_s: float | None = None
        """Of this claim."""
        self.last_token_s: float | None = None
        self._queue_ms = max(0.0, float(now_ms - claim.queued_ms))

    @property
    def request_id(self) -> str:
        """The engine's name for this claim of the job: a later claim is another request."""
        return f"{self.id}{REQUEST_SEPARATOR}{self._number}"

    @property
    def accepted_s(self) -> float:
        """When the queue accepted the job, on this process's clock."""
        return self.claimed_s - self._queue_ms / 1000

    @property
    def context_tokens(self) -> int:
        """Tokens the engine has to compute, or find in its cache, before the next one."""
        return self.prompt_tokens + len(self.ids)

    @property
    def is_suspect(self) -> bool:
        """It was running at several deaths, so it runs alone until it is cleared."""
        return self.crashes >= SUSPECT_CRASHES

    @property
    def is_cleared(self) -> bool:
        """A suspect that has outlived where it was when the others died."""
        return self.is_suspect and len(self.ids) >= self._probation_ids + PROBATION_TOKENS

    def crashed(self, crashes: int) -> None:
        """The engine died while it ran the job, which now has so many crashes."""
        self.crashes = crashes
        self._probation_ids = len(self.ids)

    def resume(self, ids: list[int]) -> None:
        """Take the output tokens that earlier claims published."""
        self.ids = list(ids)
        self.published = len(ids)
        self._probation_ids = len(ids)

    def prepare(self, request: Prepared) -> None:
        """Take the tokenized request; a resumed job may turn out to be complete."""
        self.request = request
        self.prompt_tokens = len(request.prompt_ids)
        self._rebuild_text()
        if (self._detokenizer is not None and self._detokenizer.stopped is not None) or (
            self.ids and self.ids[-1] in request.sampling.stop_token_ids
        ):
            self.reason = "stop"
        elif len(self.ids) >= request.sampling.max_tokens:
            self.reason = "length"

    def add(self) -> Add:
        """Return the message that makes the engine run the job from where its token log ends."""
        assert self.request is not None, "prepare() the job first"
        if self._prefill_tokens is not None:  # only once: a new engine is not the tenant's doing
            self._prefill_tokens = self.context_tokens
        return Add(
            request_id=self.request_id,
            prompt_ids=self.request.prompt_ids,
            sampling=self.request.sampling,
            output_ids=self.ids,
        )

    def take(self, output: Output, now_s: float) -> None:
        """Take what the engine gave: tokens, and perhaps the end."""
        assert self._detokenizer is not None, "the engine answered before it was asked"
        if output.token_ids:
            self.is_answered = True
            self.first_token_s = self.first_token_s or now_s
            self.last_token_s = now_s
            before = self._detokenizer.tokens
            self._text += self._detokenizer.push(output.token_ids)
            # Not the ids computed beyond a stop string.
            self.ids += output.token_ids[: self._detokenizer.tokens - before]
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        if self._detokenizer.stopped is not None:
            self.reason = "stop"
        elif output.finish == "error":
            self.fail(PagestreamError(output.message))
        else:
            self.reason = output.finish

    def fail(self, error: PagestreamError) -> None:
        """End the job with an error for its reader."""
        self.reason, self._error, self._message = "error", error.code, str(error)

    def row(self) -> Row | None:
        """Return the row of the tokens not yet in one, if there are any; they are in one then."""
        new = self.ids[self.published :]
        if not new:
            return None
        start, self.published = self.published, len(self.ids)
        text, self._text = self._text, ""
        return Row(self.id, self.epoch, self.published, 0, start, new, text)

    def prefill(self) -> Prefill | None:
        """Return what the prompt took to compute, when it is known and has not been told."""
        leaves = self.reason is not None or self.is_returning
        if self._prefill_tokens is None or not (self.is_answered or leaves):
            return None
        computed, self._prefill_tokens = self._prefill_tokens - self.cached_tokens, None
        return Prefill(self.id, self.epoch, max(0, computed), self.is_answered)

    def end(self, now_s: float) -> End:
        """Return the end of the job, with the rest of its text."""
        assert self.reason is not None, "the job has not ended"
        text = self._text + (self._detokenizer.flush() if self._detokenizer else "")
        usage = Usage(
            prompt_tokens=len(self.request.prompt_ids) if self.request else 0,
            completion_tokens=len(self.ids),
            cached_tokens=self.cached_tokens,
        )
        return End(
            self.id,
            self.epoch,
            len(self.ids) + 1,
            0,
            self.reason,
            text,
            usage,
            self._timings(now_s),
            self._error,
            self._message,
        )

    def rewind(self, published: int) -> None:
        """Redis has the first `published` tokens only: the rows after them are made again."""
        self.published = min(published, len(self.ids))
        if self.request is not None:
            self._rebuild_text()
            assert self._detokenizer is not None, "a prepared job has a detokenizer"
            self._text = self._detokenizer.push(self.ids[self.published :])

    def _rebuild_text(self) -> None:
        """Bring the detokenizer to where the published ids end."""
        assert self.request is not None, "prepare() the job first"
        self._text = ""
        self._detokenizer = self.request.new_detokenizer()
        self._detokenizer.push(self.ids[: self.published])

    def _timings(self, now_s: float) -> Timings:
        first_s = self.first_token_s
        return Timings(
            queue_ms=self._queue_ms,
            first_token_ms=round((first_s - self.claimed_s) * 1000, 3) if first_s else 0.0,
            total_ms=round((now_s - self.claimed_s) * 1000, 3),
        )

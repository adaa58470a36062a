"""A stub worker: the real wire, no model. Its "tokens" are arithmetic on the job's seed.

It claims, publishes, cancels and ends jobs through a real `Lease`, one token a job a step, in a
thread. What it writes is a pure function of (seed, max_tokens), so a test knows every byte: see
`answer`. As a detokenizer would, it sometimes sends ids whose text only comes with the next ones.

Prompts, or last messages of chats, that begin with a word of these do as it says:
    fail   ends in the error `stub_failure` after two tokens
    hold   waits, claimed and without a token, until `worker.released` is set
"""

import threading
import time
from contextlib import suppress

from redis.exceptions import RedisError

from pagestream.producer.connection import connect
from pagestream.producer.keys import Keys
from pagestream.producer.protocol import ModelInfo, Payload, Timings, Usage, decode_payload
from pagestream.worker.queue.lease import Claim, End, Lease, Row, StepCall, StepReply

VOCAB = 1_000
DEFAULT_TOKENS = 8
MODEL = ModelInfo(
    name="stub",
    context_tokens=4_096,
    vocab_size=VOCAB,
    has_tokenizer=True,
    has_chat_template=True,
    max_running=512,
    kv_tokens=1_000_000,
)


def answer(seed: int, tokens: int = DEFAULT_TOKENS) -> tuple[tuple[int, ...], str]:
    """The ids and the text the stub gives to a job."""
    ids = tuple((seed + 7_919 * place) % VOCAB for place in range(tokens))
    return ids, "".join(f" w{token_id}·" for token_id in ids)


def shown(seed: int, tokens: int) -> str:
    """The text published together with the first `tokens` ids: every third word comes late."""
    return answer(seed, tokens - 1 if tokens % 3 == 2 else tokens)[1]


class _Running:
    def __init__(self, claim: Claim, payload: Payload, done: int) -> None:
        self.claim = claim
        last = payload.messages[-1]["content"] if payload.messages else payload.prompt
        self.prompt = str(last or payload.prompt_ids)
        self.seed = payload.sampling.seed or 0
        self.tokens = payload.sampling.max_tokens or DEFAULT_TOKENS
        self.done = done
        self.cancelled = False


class StubWorker:
    """A context manager: the worker lives in it."""

    def __init__(
        self, url: str, queue: str, *, info: ModelInfo = MODEL, step_s: float = 0.0
    ) -> None:
        self.released = threading.Event()
        self.claimed = threading.Event()
        """Set once a job has been claimed."""
        self.steps_allowed: threading.Semaphore | None = None
        """If set before a job comes: each release lets one step of tokens out."""
        self._redis = connect(url, client_name="stub-worker")
        self._lease = Lease(self._redis, Keys(queue), f"stub-{time.time_ns()}")
        self._info = info
        self._step_s = step_s
        self._running: dict[str, _Running] = {}
        self.most_running = 0
        """Jobs it has held at a time, at most."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="stub-worker", daemon=True)

    def __enter__(self) -> "StubWorker":
        self._lease.register(self._info)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self.steps_allowed is not None:
            self.steps_allowed.release(10_000)
        self._thread.join()
        with suppress(RedisError):  # the test may have taken the server away
            self._lease.leave()
        self._redis.close()

    def _work(self) -> None:
        bell_id: str | None = None
        while not self._stopping.is_set():
            call = self._next_call()
            reply = self._send(call, bell_id)
            bell_id = None
            if reply is None:
                return
            if reply.status == "rollback":
                # Hold nothing: `reap` then finds our jobs unheld, and the next step returns them.
                self._lease.resync([(one.claim.job_id, one.claim.epoch) for one in self._held()])
                self._running.clear()
                self._lease.reap(())
                continue
            self._settle(call, reply)
            self._take(reply)
            self.most_running = max(self.most_running, len(self._running))
            if not any(not self._waits(one) for one in self._held()):
                bell_id = reply.bell_id

    def _send(self, call: StepCall, bell_id: str | None) -> StepReply | None:
        while True:
            try:
                if bell_id is None or self._lease.beat_due_ms() == 0:
                    return self._lease.step(call)
                return self._lease.wait_and_step(call, bell_id, 20)
            except RedisError:
                if self._stopping.wait(0.02):
                    return None

    def _held(self) -> list[_Running]:
        return list(self._running.values())

    def _waits(self, one: _Running) -> bool:
        held = one.prompt.startswith("hold") and not self.released.is_set()
        return held and not one.cancelled

    def _next_call(self) -> StepCall:
        rows: list[Row] = []
        ends: list[End] = []
        moving = [one for one in self._held() if not self._waits(one)]
        if moving:
            if self.steps_allowed is not None:
                self.steps_allowed.acquire()
            time.sleep(self._step_s)
        for one in moving:
            job_id, epoch = one.claim.job_id, one.claim.epoch
            fails = one.prompt.startswith("fail") and one.done >= 2
            if not one.cancelled and not fails and one.done < one.tokens:
                before, one.done = one.done, one.done + 1
                text = shown(one.seed, one.done)[len(shown(one.seed, before)) :]
                ids = answer(one.seed, one.done)[0][before:]
                rows.append(Row(job_id, epoch, one.done, 0, before, ids, text))
            else:
                ends.append(self._end(one, fails))
        return StepCall(rows=rows, ends=ends, slots=512 - len(self._running), tokens=10**9)

    def _end(self, one: _Running, fails: bool) -> End:
        rest = answer(one.seed, one.done)[1][len(shown(one.seed, one.done)) :]
        reason = "cancelled" if one.cancelled else "error" if fails else "length"
        return End(
            *(one.claim.job_id, one.claim.epoch, one.done + 1, 0, reason, rest),
            Usage(prompt_tokens=len(one.prompt.split()), completion_tokens=one.done),
            Timings(queue_ms=1.0, first_token_ms=2.0, total_ms=3.0),
            *(("stub_failure", "asked to fail") if fails else ()),
        )

    def _settle(self, call: StepCall, reply: StepReply) -> None:
        for end in call.ends:
            self._running.pop(end.job_id, None)
        for row, code in zip(call.rows, reply.row_codes, strict=False):
            if code in "fg":
                self._running.pop(row.job_id, None)

    def _take(self, reply: StepReply) -> None:
        for claim in reply.claims:
            if claim.job_id not in self._running:
                entries = self._lease.replay(claim.job_id) if claim.epoch > 1 else []
                done = max((one.offset for one in entries if one.event == "tokens"), default=0)
                payload = decode_payload(claim.payload)
                self._running[claim.job_id] = _Running(claim, payload, done)
                self.claimed.set()
        for control in reply.controls:
            if control.kind == "cancel" and control.job_id in self._running:
                self._running[control.job_id].cancelled = True

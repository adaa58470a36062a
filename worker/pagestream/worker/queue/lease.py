"""The worker's side of the wire: one worker's hold on its jobs.

A `Lease` knows its step number, when the next heartbeat is due, how far it has read its control
stream, and how Redis's clock stands to the monotonic one. It runs nothing by itself and retries
nothing: redis-py's errors go to the caller, who calls again.
This module knows no engine, no text and no torch.
"""

import secrets
from collections.abc import Container, Sequence
from typing import Any

import msgspec
import redis
from redis.exceptions import NoScriptError

from pagestream.producer.connection import HeldConnection
from pagestream.producer.errors import WorkerNameTaken, WorkerReplaced
from pagestream.producer.keys import (
    CRASH_CAP,
    HEARTBEAT_MS,
    HEARTBEAT_TTL_MS,
    QUEUES,
    Keys,
    check_name,
)
from pagestream.producer.lua import Script
from pagestream.producer.protocol import Entry, ModelInfo, decode_entry

from .calls import (
    Claim,
    Control,
    Crash,
    End,
    Reaped,
    Return,
    Row,
    StepCall,
    StepReply,
    Tail,
    Waiting,
    pack_end,
    pack_row,
    read_reply,
    read_weights,
)
from .server_clock import ServerClock, monotonic_ms

__all__ = [
    "Claim",
    "Control",
    "Crash",
    "End",
    "Lease",
    "Reaped",
    "Return",
    "Row",
    "StepCall",
    "StepReply",
    "Tail",
    "Waiting",
]

WAIT_MS_MAX = 5_000
"""Longest single wait: shorter than a connection's timeout."""

REPLAY_PAGE_ENTRIES = 1_000

_pack = msgspec.msgpack.Encoder().encode


class Lease:
    """One worker's hold on its jobs. For one thread, but `replay` may be called from any.

    Invariant: a step that was sent and not answered is the only one that may be sent next.
    """

    def __init__(
        self,
        redis: redis.Redis,
        keys: Keys,
        worker: str,
        *,
        heartbeat_ttl_ms: int = HEARTBEAT_TTL_MS,
        heartbeat_ms: int = HEARTBEAT_MS,
        crash_cap: int = CRASH_CAP,
    ) -> None:
        """Make a lease that holds nothing; `register` comes next.

        Args:
            redis: from `connection.connect(url, client_name=worker)`.
            keys: the queue's.
            worker: unique among the queue's live workers.
            heartbeat_ttl_ms: others take this worker for dead when it is silent for so long.
            heartbeat_ms: how often a step carries a heartbeat.
            crash_cap: crashes that make a job a dead letter.

        Raises:
            InvalidRequest: the worker's name cannot stand in a key.
        """
        self.worker = check_name("worker", worker)
        self._redis: Any = redis
        self._held = HeldConnection(redis)
        self._keys = keys
        self._key = keys.step(worker)
        self.reap_ms = heartbeat_ttl_ms // 6
        """How often to call `reap`."""
        self._ttl_ms = heartbeat_ttl_ms
        self._heartbeat_ms = heartbeat_ms
        self._crash_cap = crash_cap
        names = ("register", "step", "resync", "reap", "crash", "leave")
        self._scripts = {name: Script(name) for name in names}
        self._incarnation = secrets.token_hex(6)
        self._model = "{}"
        self._job_tokens_max = 0
        self._step = 0
        self._unanswered: StepCall | None = None
        self._lost: list[tuple[str, int]] = []
        self._control_id = "0-0"
        self._beat_due_ms = 0.0
        self._clock = ServerClock()

    def register(self, info: ModelInfo) -> None:
        """Begin to live: take the name, beat once, say what is served.

        Jobs that an earlier process of this name died with go back to the queue.

        Raises:
            WorkerNameTaken: a live worker has the name.
        """
        self._model = msgspec.json.encode(info).decode()
        # A longer prompt is refused after its claim, so it need not fit before.
        self._job_tokens_max = min(info.context_tokens, info.kv_tokens)
        self._redis.sadd(QUEUES, self._keys.queue)
        args = (self.worker, self._incarnation, self._ttl_ms, "{}", self._model, self._crash_cap)
        status = self._call("register", *args)[0]
        if status == b"taken":
            raise WorkerNameTaken(
                f"a live worker of queue {self._keys.queue!r} is called {self.worker!r}; "
                f"choose another name, or wait {self._ttl_ms} ms if it has just been killed"
            )
        self._step = 0
        self._beat_due_ms = monotonic_ms() + self._heartbeat_ms

    def step(self, call: StepCall) -> StepReply:
        """Publish, finish, hand back and claim, in one atomic call.

        After an error (lost connection, server out of service) call again with the same `call`: it
        is applied once, however often it is sent.
        """
        beats = monotonic_ms() >= self._beat_due_ms
        request = self._request(call, beats=beats)
        sent_ms = monotonic_ms()
        reply = read_reply(self._call("step", request))
        self._clock.set(reply.now_ms, sent_ms, monotonic_ms())
        self._answered(reply)
        if beats and reply.status != "rollback":
            self._beat_due_ms = sent_ms + self._heartbeat_ms
        return reply

    def wait_and_step(self, call: StepCall, bell_id: str, timeout_ms: int) -> StepReply:
        """Wait for the bell or a control message newer than those seen, and make a step then.

        Nothing rung since the step that gave `bell_id` is missed. The server has both at once, so
        it makes the step without telling anybody of the bell first. Waits `WAIT_MS_MAX` at most,
        and makes the step in any case; it carries no heartbeat. After an error, as after `step`.
        """
        block_ms = max(1, min(timeout_ms, WAIT_MS_MAX))
        request = self._request(call, beats=False)
        keys = self._keys.bell, self._keys.control(self.worker)
        wait = ("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *keys, bell_id, self._control_id)
        step = self._scripts["step"].words(self._key, request)
        rung, answer = self._held.execute_all(wait, step)
        if isinstance(rung, Exception):
            raise rung
        if isinstance(answer, NoScriptError):
            answer = self._call("step", request)
        elif isinstance(answer, Exception):
            raise answer
        reply = read_reply(answer)
        self._answered(reply)
        return reply

    def _request(self, call: StepCall, *, beats: bool) -> bytes:
        """Return the next step as step.lua takes it."""
        assert self._unanswered is None or self._unanswered is call, (
            "resend the unanswered step first"
        )
        self._unanswered = call
        request = (
            self.worker,
            self._incarnation,
            self._step + 1,
            self._ttl_ms if beats else 0,
            call.info,
            [pack_row(row) for row in call.rows],
            [pack_end(end) for end in call.ends],
            [*call.returns, *self._lost],
            call.slots,
            call.tokens,
            self._job_tokens_max,
            self._control_id,
            call.prefills,
            call.aged_slots,
            call.victim or (),
            call.snapshot,
        )
        return _pack(request)

    def _answered(self, reply: StepReply) -> None:
        self._unanswered = None
        self._lost.clear()
        if reply.status == "rollback":
            return
        self._step += 1
        if reply.controls:
            self._control_id = reply.controls[-1].id

    def resync(self, running: Sequence[tuple[str, int]]) -> list[Tail]:
        """After `rollback`: beat and count steps anew, and learn which running jobs are still ours.

        Args:
            running: (job id, epoch) of every job this worker holds.

        Raises:
            WorkerReplaced: another process has this worker's name now.
        """
        header = (self.worker, self._incarnation, self._step, self._ttl_ms, "{}", self._model)
        status, _, tails = self._call("resync", _pack((*header, running)))
        if status == b"replaced":
            raise WorkerReplaced(
                f"another process is worker {self.worker!r} now; this one has to stop"
            )
        self._beat_due_ms = monotonic_ms() + self._heartbeat_ms
        return [
            Tail(job_id.decode(), owned == 1, state.decode(), last_id.decode(), offset)
            for job_id, owned, state, last_id, offset in tails
        ]

    def reap(self, held: Container[str]) -> Reaped:
        """Take back the jobs of dead workers; find jobs of our own that we do not run.

        Does nothing while a step is unanswered. Nobody is taken for dead before the workers, this
        one or others, have been reaping for a heartbeat's life: after an outage every heartbeat is
        stale. For that, call it every `reap_ms`.

        Args:
            held: ids of every job this worker holds.
        """
        if self._unanswered is not None:
            return Reaped()
        args = (self.worker, self._crash_cap, self._ttl_ms)
        _, put_back, dead, workers, own, weights = self._call("reap", *args)
        self._lost = [
            (job_id.decode(), epoch) for job_id, epoch in own if job_id.decode() not in held
        ]
        gone = tuple(worker.decode() for worker in workers)
        return Reaped(put_back, dead, gone, tuple(self._lost), read_weights(weights))

    def crashed(self, running: Sequence[tuple[str, int, int]], error: str = "") -> list[Crash]:
        """The engine died while this worker lives: count a crash for each job it ran.

        Args:
            running: (job id, epoch, crashes known so far). A call repeated with the same numbers
                counts once.
            error: what the engine said last, for the dead letter.
        """
        outcome = self._call("crash", _pack((self.worker, self._crash_cap, running, error)))
        return [Crash(job_id.decode(), crashes, what.decode()) for job_id, crashes, what in outcome]

    def replay(self, job_id: str) -> list[Entry]:
        """Return every entry of a job's reply, oldest first: what a resumed job has said."""
        entries: list[Entry] = []
        after = "-"
        while True:
            page: Any = self._redis.xrange(
                self._keys.out(job_id), min=after, max="+", count=REPLAY_PAGE_ENTRIES
            )
            entries += [decode_entry(entry_id, fields) for entry_id, fields in page]
            if len(page) < REPLAY_PAGE_ENTRIES:
                return entries
            after = f"({entries[-1].id}"

    def leave(self) -> None:
        """Leave the queue: what is still held goes back, no crash is counted, and the keys go."""
        self._call("leave", self.worker, self._incarnation)

    def beat_due_ms(self) -> float:
        """Milliseconds until a step has to carry the next heartbeat; 0 if it is due."""
        return max(0.0, self._beat_due_ms - monotonic_ms())

    def now_ms(self) -> float:
        """Redis's time now, on this process's monotonic clock; as of the last step."""
        return self._clock.now_ms()

    @property
    def knows_time(self) -> bool:
        """Whether a step has told Redis's time, so that `now_ms` can be asked."""
        return self._clock.is_set

    def _call(self, name: str, *args: Any) -> Any:
        return self._scripts[name](self._held, self._key, *args)

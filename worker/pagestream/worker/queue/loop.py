"""The loop of the queue process: what happens between Redis and the engine, and when.

    wait ─► take what arrived ─► ONE write to Redis ─► act on its answer ─► wait …

Everything that can happen is an event in the inbox or an answer of Redis, and all of it is handled
on this one thread; tokenizing and reading the engine's socket are on others. Publishing never holds
the engine up: what arrives during a write waits and goes out together in the next. This module
knows no torch, no text and no Lua; signals and exit statuses are the service's.
"""

import logging
import time
from collections.abc import Mapping, Sequence

import msgspec

from pagestream.producer.errors import PagestreamError

from ..messages import Fatal, Look, Output, Ready, Step, View
from ..process import Died, EngineProcess
from .backoff import Patience
from .calls import Claim, Control, Return, StepCall, StepReply, Victim, Waiting
from .credit import Credit
from .eviction import aged_slots, choose_victim
from .held import Held
from .inbox import Inbox
from .intake import Intaken, IntakeThread
from .lease import Lease
from .meter import JobObserver, Meter
from .reply import Job
from .snapshots import Snapshots
from .supervisor import Supervisor

logger = logging.getLogger(__name__)

STEPS_TO_REPORT = 2
"""Steps of the engine after which its reports show what it was told to stop."""


class StopFlag:
    """How the worker has been asked to end; set from signal handlers and control messages."""

    def __init__(self) -> None:
        self.drain = False
        """Take no new job, let the running ones finish."""
        self.now = False
        """Hand back what runs."""

    def request(self) -> None:
        """Drain at the first request, hand back at the second."""
        self.drain, self.now = True, self.drain


class EngineLost(Exception):
    """The engine was given up; every job has been handed back."""


class QueueLoop:
    """Runs claimed jobs on the engine until told to stop."""

    def __init__(
        self,
        lease: Lease,
        engine: EngineProcess,
        intake: IntakeThread,
        inbox: Inbox,
        ready: Ready,
        stop: StopFlag,
        patience: Patience,
        meter: Meter,
        *,
        observers: Sequence[JobObserver] = (),
        grace_s: float,
        step_stall_s: float,
    ) -> None:
        """The engine process is up and has said `ready`; the worker is registered.

        Args:
            lease: where jobs come from, and what holds them.
            engine: what runs them.
            intake: what prepares them.
            inbox: where the engine's and the intake's answers arrive.
            ready: what the engine said.
            stop: set by whoever wants the worker to end.
            patience: how calls to Redis are made.
            meter: told of all that happens.
            observers: told of jobs that come and go, beside the meter.
            grace_s: what running jobs get to finish in a drain.
            step_stall_s: an engine that has requests and says nothing for so long is wedged.
        """
        self._lease = lease
        self._engine = Supervisor(engine, step_stall_s)
        self._intake = intake
        self._inbox = inbox
        self._credit = Credit(ready)
        self._stop = stop
        self._patience = patience
        self._meter = meter
        self._held = Held(self._engine, (meter, *observers))
        self._snapshots = Snapshots(ready, meter, self.refuses)
        self._grace_s = grace_s
        self._drain_until_s: float | None = None
        self._victim: Victim | None = None
        self._evict_from_step = 0
        self._weights: Mapping[str, float] = {}
        self._bell_id = "0-0"
        self._rung = True
        self._next_reap_s = 0.0

    def run(self) -> None:
        """Serve until stopped; no job is held when this returns, or raises `EngineLost`.

        Raises:
            EngineLost: the engine died too often, or hangs and cannot be killed.
            RedisGone: Redis was away for longer than the worker waits.
            WorkerReplaced: another process took this worker's name while this one was away.
        """
        while not self._is_done():
            for event in self._wait():
                self._take_event(event)
            self._check_clocks()
            if self._is_step_due():
                call = self._next_call()
                self._act_on(call, self._patience.call(self._lease.step, call))
            self._reap_if_due()
        if self._engine.lost:
            raise EngineLost(self._engine.lost)

    def refuses(self) -> str:
        """Return why no job is taken now, or nothing; from any thread."""
        if self._stop.drain:
            return "it is draining"
        return "" if self._engine.is_up else "the engine is being started again"

    def undone(self) -> tuple[str, object]:
        """Return what here should get on, or nothing, and what tells it apart; from any thread."""
        for job in list(self._held):
            if job.request is None and job.reason is None and not job.is_returning:
                return f"job {job.id} is claimed and not prepared", job.request_id
        return "", None

    @property
    def is_idle(self) -> bool:
        """Whether no job is held; from any thread."""
        return not self._held

    def debug(self) -> bytes:
        """Return the jobs and what the engine last showed of its scheduler, as JSON.

        From any thread.
        """
        return self._snapshots.debug(list(self._held))

    def _is_done(self) -> bool:
        return not self._held and (self._stop.drain or bool(self._engine.lost))

    # ---- waiting, and what arrives

    def _wait(self) -> list[object]:
        """Wait for the engine while something runs, else for the bell; never past the next duty."""
        reap_s = self._next_reap_s - time.monotonic()
        due_s = 0.0 if self._rung else min(self._lease.beat_due_ms() / 1000, reap_s)
        if due_s <= 0 or self._held or not self._engine.is_up:
            return self._inbox.take(due_s)
        self._rung = self._patience.call(self._lease.wait, self._bell_id, int(due_s * 1000) + 1)
        return self._inbox.take(0.0)

    def _take_event(self, event: object) -> None:
        match event:
            case Step():
                self._engine.heard()
                self._credit.load = event.load
                self._meter.heard(event.load, self._inbox.arrived_s)
                for output in event.outputs:
                    self._take_output(output)
            case Intaken():
                self._take_intaken(event)
            case View():
                self._snapshots.view = event
            case Ready():
                self._engine_came_up()
            case Died():
                self._engine_died(event)
            case Fatal():
                logger.error("the engine gave up: %s", event.message.strip().splitlines()[-1])
            case _:
                assert event is None, f"nobody puts a {type(event).__name__} in the inbox"

    def _take_output(self, output: Output) -> None:
        job = self._held.of_request(output.request_id)
        if job is None:
            return
        if output.token_ids:
            self._meter.takes(job, len(output.token_ids), self._engine.heard_s)
        job.take(output, self._engine.heard_s)
        self._held.change(job)
        if job.reason is not None:
            if output.finish is None:  # a stop string, which the engine cannot see
                self._held.forget_in_engine([job])
            job.is_sent = False
        elif job.is_cleared:
            self._held.hand_back([job])

    def _take_intaken(self, intaken: Intaken) -> None:
        job = self._held.active(intaken.claim.job_id)
        if job is None or job.claim is not intaken.claim:
            return
        job.resume(intaken.replayed_ids)
        if isinstance(intaken.request, PagestreamError):
            job.fail(intaken.request)
        elif intaken.request is not None:
            job.prepare(intaken.request)
        if job.reason is not None:
            self._held.change(job)
        elif job.request is None or not self._credit.fits(job, self._held):
            self._held.hand_back([job])
        elif self._engine.is_up:
            self._held.run(job)

    # ---- what is due

    def _check_clocks(self) -> None:
        """Deadlines of jobs, the end of a drain, an engine that is wedged."""
        now_s = time.monotonic()
        timed = [job for job in self._held if job.deadline_ms is not None]
        if timed:
            now_ms = self._lease.now_ms()
            self._held.end([job for job in timed if now_ms >= (job.deadline_ms or 0)], "expired")
        if self._stop.drain and self._drain_until_s is None:
            logger.info("draining: %d jobs have %.0f s to finish", len(self._held), self._grace_s)
            self._drain_until_s = now_s + self._grace_s
        grace_is_over = self._drain_until_s is not None and now_s >= self._drain_until_s
        if self._stop.now or grace_is_over or self._engine.lost:
            self._held.hand_back(self._held)
        if ran := self._held.sent():
            self._engine.check()
            if self._engine.lost:
                self._count_crash(ran, self._engine.lost)

    def _is_step_due(self) -> bool:
        return self._held.has_changed or self._rung or self._lease.beat_due_ms() == 0

    def _next_call(self) -> StepCall:
        """Everything there is to write, and how much may be claimed."""
        now_s = time.monotonic()
        self._rung = False
        changed = self._held.take_changed()
        rows = [row for job in changed if (row := job.row()) is not None]
        leaving = {job.id: job for job in changed if job.reason or job.is_returning}
        slots = tokens = aged = 0
        victim, self._victim = self._victim, None
        if victim is not None and (victim.job_id in leaving or victim.job_id not in self._held):
            victim = None
        staying = [job for job in self._held if job.id not in leaving]
        is_alone = any(job.is_suspect for job in staying)
        if self._engine.is_up and not self._stop.drain and not is_alone:
            slots, tokens = self._credit.of(staying)
            aged = aged_slots(staying, self._credit.max_running)
        else:
            victim = None
        return StepCall(
            rows=rows,
            ends=[job.end(now_s) for job in leaving.values() if not job.is_returning],
            returns=[
                Return(
                    job.id,
                    job.epoch,
                    job.context_tokens if job.request else None,
                    job.is_cleared,
                )
                for job in leaving.values()
                if job.is_returning
            ],
            slots=slots,
            tokens=tokens,
            aged_slots=aged,
            prefills=[item for job in changed if (item := job.prefill()) is not None],
            victim=victim,
            info=self._heartbeat_info(),
            snapshot=self._snapshot(),
        )

    def _heartbeat_info(self) -> str:
        load = self._credit.load
        counters = msgspec.structs.asdict(load) if load is not None else {}
        return msgspec.json.encode({"jobs": len(self._held), **counters}).decode()

    def _snapshot(self) -> str:
        """With a heartbeat: what it all looks like. The engine's part is as of the one before."""
        if self._lease.beat_due_ms() > 0 or not self._lease.knows_time:
            return ""
        if self._snapshots.wants_view:
            self._engine.send(Look())
        return self._snapshots.take(self._held, self._lease.now_ms()).decode()

    def _reap_if_due(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_reap_s:
            self._next_reap_s = now_s + self._lease.reap_ms / 1000
            reaped = self._patience.call(self._lease.reap, self._held)
            self._weights = reaped.weights
            self._meter.reaped(reaped)
            # Jobs of dead workers wait now, or jobs of ours that the next step hands back.
            self._rung = self._rung or bool(reaped.put_back or reaped.lost)

    # ---- Redis's answer

    def _act_on(self, call: StepCall, reply: StepReply) -> None:
        if reply.status == "rollback":
            self._meter.rollbacks += 1
            self._roll_back()
            return
        self._meter.wrote(call, reply)
        self._bell_id = reply.bell_id
        self._settle(call, reply)
        if reply.status == "applied":
            # Written before this step's claims: what they say is of jobs held until now.
            self._take_controls(reply.controls)
            self._take_claims(reply.claims, reply)
        else:
            self._take_claims([one for one in reply.claims if not self._held.knows(one)], reply)
            self._take_controls(reply.controls)
        if reply.victim_left and not reply.claims:  # it takes more than one to make that room
            self._evict_from_step = self._credit.engine_step + STEPS_TO_REPORT
        if reply.waiting is not None:
            self._make_room(reply.waiting)
        self._meter.held = len(self._held)

    def _settle(self, call: StepCall, reply: StepReply) -> None:
        """Let go of what the write has ended, handed back, or found to be another's."""
        for row, code in zip(call.rows, reply.row_codes, strict=True):
            if code == "f":
                logger.warning(
                    "job %s has another owner now", row.job_id, extra={"job_id": row.job_id}
                )
            if code in "fg":  # gone: the reader deleted its reply, and nobody wants the rest
                self._held.drop(row.job_id)
        for end, code in zip(call.ends, reply.end_codes, strict=True):
            self._held.written(end.job_id, ended=code == "k")
        for returned in call.returns:
            self._held.written(returned[0], ended=False)
        if call.victim is not None and reply.victim_left:
            self._held.drop(call.victim.job_id)

    def _make_room(self, waiting: Waiting) -> None:
        """Offer a job for the one that waits, in the next write, where the rules want it."""
        running = self._held.all_active()
        slots, tokens = self._credit.of(running)
        # Before it is tokenized a prompt counts for its longest: there may be room after all. It
        # takes a while until the engine's reports show the room that a victim made. And a suspect
        # is alone on purpose.
        untold = slots and any(job.request is None for job in running)
        is_early = untold or self._credit.engine_step < self._evict_from_step
        if self._stop.drain or is_early or any(job.is_suspect for job in running):
            return
        self._victim = choose_victim(
            running,
            waiting,
            self._weights,
            free_tokens=tokens,
            block_tokens=self._credit.block_tokens,
        )
        self._rung = self._rung or self._victim is not None

    def _take_claims(self, claims: list[Claim], reply: StepReply) -> None:
        for claim in claims:
            now_s = time.monotonic()
            self._held.add(claim, now_s, reply.now_ms, took_a_place=reply.victim_left)
            intaken = self._intake.at_once(claim) if len(claims) == 1 else None
            if intaken is None:
                self._intake.submit(claim)
            else:
                self._take_intaken(intaken)

    def _take_controls(self, controls: list[Control]) -> None:
        for control in controls:
            if control.kind in ("drain", "stop"):
                self._stop.drain = True
                self._stop.now = self._stop.now or control.kind == "stop"
            elif (job := self._held.active(control.job_id)) is not None:
                self._held.end([job], "cancelled")

    def _roll_back(self) -> None:
        """Redis forgot acknowledged writes: go back to what it has, drop what is not ours."""
        running = {job.id: job for job in self._held}
        epochs = [(job.id, job.epoch) for job in running.values()]
        for tail in self._patience.call(self._lease.resync, epochs):
            if tail.owned:
                running[tail.job_id].rewind(tail.offset)
                self._held.change(running[tail.job_id])
            else:
                self._held.drop(tail.job_id)
        logger.warning(
            "Redis rolled back: %d of %d jobs are still ours", len(self._held), len(running)
        )
        self._rung = True

    # ---- the engine's life

    def _engine_died(self, died: Died) -> None:
        """What it said before was taken."""
        ran = self._held.sent()
        logger.error("an engine process with %d jobs is gone", len(ran))
        self._meter.engine_deaths += 1
        self._snapshots.view = None
        for job in self._held:
            job.is_sent = job.is_answered = False
        self._count_crash(ran, self._engine.died(died))

    def _count_crash(self, ran: list[Job], last_words: str) -> None:
        """Say who was there; suspects go back to the queue, to be run alone."""
        running = {job.id: job for job in ran}
        counts = [(job.id, job.epoch, job.crashes) for job in ran]
        for crash in self._patience.call(self._lease.crashed, counts, last_words):
            running[crash.job_id].crashed(crash.crashes)
            if crash.outcome != "kept":
                logger.warning(
                    *("job %s is %s after a crash", crash.job_id, crash.outcome),
                    extra={"job_id": crash.job_id},
                )
                self._held.drop(crash.job_id)
            if crash.outcome == "dead":  # it was the job, not the engine
                self._engine.excuse()
        if len(self._held) > 1:
            self._held.hand_back([job for job in self._held if job.is_suspect])

    def _engine_came_up(self) -> None:
        """Give a new engine everything that is to run, from the token logs."""
        self._engine.came_up()
        self._credit.load = None
        self._rung = True
        for job in self._held.all_active():
            if job.request is not None:
                self._held.run(job)

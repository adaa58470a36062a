"""The loop of the queue process: what happens between Redis and the engine, and when.

    wait ─► take what arrived ─► ONE write to Redis ─► act on its answer ─► wait …

Everything that can happen is an event in the inbox or an answer of Redis, and all of it is handled
on this one thread; tokenizing is on another. Publishing never holds the engine up: what arrives
during a write waits and goes out together in the next. While nothing runs, the next step lies with
Redis, which makes it when the bell rings. This module knows no torch, no text and no Lua; signals
and exit statuses are the service's.
"""

import logging
import time
from collections.abc import Sequence

from ..messages import Fatal, Ready, Step, View
from ..process import Died, EngineProcess
from .backoff import Patience
from .credit import Credit
from .engine_jobs import EngineJobs
from .held import Held
from .inbox import Inbox
from .intake import Intaken, IntakeThread
from .lease import Lease
from .meter import JobObserver, Meter
from .room import Room
from .snapshots import Snapshots
from .step_answer import AnswerHandler
from .step_call import CallComposer
from .stop import StopFlag
from .supervisor import Supervisor

logger = logging.getLogger(__name__)


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
            inbox: where what the engine says and the intake has prepared arrives.
            ready: what the engine said.
            stop: set by whoever wants the worker to end.
            patience: how calls to Redis are made.
            meter: told of all that happens.
            observers: told of jobs that come and go, beside the meter.
            grace_s: what running jobs get to finish in a drain.
            step_stall_s: an engine that has requests and says nothing for so long is wedged.
        """
        self._lease = lease
        self._patience = patience
        self._inbox = inbox
        self._stop = stop
        self._meter = meter
        self._grace_s = grace_s
        self._engine = Supervisor(engine, step_stall_s)
        self._held = held = Held(self._engine, (meter, *observers))
        self._credit = credit = Credit(ready)
        self._snapshots = Snapshots(credit, meter, self.refuses)
        self._room = Room(credit)
        self._jobs = EngineJobs(self._engine, held, credit, lease, patience, meter)
        self._composer = CallComposer(
            *(held, self._room, credit, self._engine, stop, lease, self._snapshots)
        )
        self._answers = AnswerHandler(
            *(held, self._room, self._jobs, intake, stop, lease, patience, meter)
        )
        self._drain_until_s: float | None = None
        self._is_rung = True  # something may wait: step, though no job has changed
        self._next_reap_s = 0.0

    def run(self) -> None:
        """Serve until stopped; no job is held when this returns, or raises `EngineLost`.

        Raises:
            EngineLost: the engine died too often, hangs and cannot be killed, or came back smaller
                than what the worker has promised.
            RedisGone: Redis was away for longer than the worker waits.
            WorkerReplaced: another process took this worker's name while this one was away.
        """
        while not self._is_done():
            for event in self._inbox.take(0.0 if self._awaits_bell() else self._until_due_s()):
                self._take_event(event)
            self._check_clocks()
            if self._is_step_due():
                self._step()
            elif self._awaits_bell():
                self._wait_and_step()
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
    def ready(self) -> Ready:
        """What the engine that came up last can take; from any thread."""
        return self._credit.ready

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

    def _awaits_bell(self) -> bool:
        """Whether nothing can come but from Redis."""
        return not self._held and self._engine.is_up

    def _until_due_s(self) -> float:
        """Seconds until the next duty, or 0."""
        if self._is_rung:
            return 0.0
        reap_s = self._next_reap_s - time.monotonic()
        return max(0.0, min(self._lease.beat_due_ms() / 1000, reap_s))

    def _take_event(self, event: object) -> None:
        match event:
            case Step():
                self._jobs.take_step(event)
            case Intaken():
                self._jobs.take_intaken(event)
            case View():
                self._snapshots.view = event
            case Ready():
                self._jobs.came_up(event)
                self._is_rung = True
            case Died():
                self._snapshots.view = None
                self._jobs.died(event)
            case Fatal():
                logger.error("the engine gave up: %s", event.message.strip().splitlines()[-1])
            case _:
                assert event is None, f"nobody puts a {type(event).__name__} in the inbox"

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
        self._jobs.check()

    def _is_step_due(self) -> bool:
        return self._held.has_changed or self._is_rung or self._lease.beat_due_ms() == 0

    def _step(self) -> None:
        call = self._composer.next()
        reply = self._patience.call(self._lease.step, call)
        self._is_rung = self._answers.act_on(call, reply)

    def _wait_and_step(self) -> None:
        """Sleep until the bell rings, and claim what it rang for; never past the next duty."""
        if (wait_s := self._until_due_s()) > 0:
            call = self._composer.next()
            reply = self._patience.call(
                self._lease.wait_and_step, call, self._answers.bell_id, int(wait_s * 1000) + 1
            )
            self._is_rung = self._answers.act_on(call, reply)

    def _reap_if_due(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_reap_s:
            self._next_reap_s = now_s + self._lease.reap_ms / 1000
            reaped = self._patience.call(self._lease.reap, self._held)
            self._room.weights = reaped.weights
            self._meter.reaped(reaped)
            # Jobs of dead workers wait now, or jobs of ours that the next step hands back.
            self._is_rung = self._is_rung or bool(reaped.put_back or reaped.lost)

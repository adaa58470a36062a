"""What Redis's answer to a step means for the jobs: written, lost, claimed, cancelled, forgotten.

This module writes nothing: what there is to say goes out with the next step.
"""

import logging
import time

from .backoff import Patience
from .calls import Claim, Control, StepCall, StepReply
from .engine_jobs import EngineJobs
from .held import Held
from .intake import IntakeThread
from .lease import Lease
from .meter import Meter
from .room import Room
from .stop import StopFlag

logger = logging.getLogger(__name__)


class AnswerHandler:
    """Acts on one answer after the other."""

    def __init__(
        self,
        held: Held,
        room: Room,
        jobs: EngineJobs,
        intake: IntakeThread,
        stop: StopFlag,
        lease: Lease,
        patience: Patience,
        meter: Meter,
    ) -> None:
        self.bell_id = "0-0"
        """The doorbell as of the last answer: what rings later is news."""
        self._held = held
        self._room = room
        self._jobs = jobs
        self._intake = intake
        self._stop = stop
        self._lease = lease
        self._patience = patience
        self._meter = meter

    def act_on(self, call: StepCall, reply: StepReply) -> bool:
        """Do what an answer asks for; whether another step is due at once."""
        if reply.status == "rollback":
            self._meter.rollbacks += 1
            self._roll_back()
            return True
        self._meter.wrote(call, reply)
        self.bell_id = reply.bell_id
        self._settle(call, reply)
        if reply.status == "applied":
            # Written before this step's claims: what they say is of jobs held until now.
            self._take_controls(reply.controls)
            self._take_claims(reply.claims, reply)
        else:
            self._take_claims([one for one in reply.claims if not self._held.knows(one)], reply)
            self._take_controls(reply.controls)
        if reply.victim_left and not reply.claims:  # it takes more than one to make that room
            self._room.victim_made_too_little()
        has_victim = False
        if reply.waiting is not None and not self._stop.drain:
            has_victim = self._room.look_for_victim(reply.waiting, self._held.all_active())
        self._meter.held = len(self._held)
        return has_victim

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

    def _take_claims(self, claims: list[Claim], reply: StepReply) -> None:
        for claim in claims:
            now_s = time.monotonic()
            job = self._held.add(claim, now_s, reply.now_ms, took_a_place=reply.victim_left)
            if self._stop.drain:  # the step was sent before, and waited for the bell
                self._held.hand_back([job])
                continue
            intaken = self._intake.at_once(claim) if len(claims) == 1 else None
            if intaken is None:
                self._intake.submit(claim)
            else:
                self._jobs.take_intaken(intaken)

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

"""The jobs and the engine: who is given to it, what it says of them, and its deaths.

This module knows no steps of Redis; only a crash is written here, at once.
"""

import logging

from pagestream.producer.errors import PagestreamError

from ..errors import OutOfMemory
from ..messages import Output, Ready, Step
from ..process import Died
from .backoff import Patience
from .credit import Credit
from .held import Held
from .intake import Intaken
from .lease import Lease
from .meter import Meter
from .reply import Job
from .supervisor import Supervisor

logger = logging.getLogger(__name__)


class EngineJobs:
    """What happens to held jobs on the engine's side, from their preparation on."""

    def __init__(
        self,
        engine: Supervisor,
        held: Held,
        credit: Credit,
        lease: Lease,
        patience: Patience,
        meter: Meter,
    ) -> None:
        self._engine = engine
        self._held = held
        self._credit = credit
        self._lease = lease
        self._patience = patience
        self._meter = meter
        self._promised_tokens = credit.ready.max_model_tokens

    def take_intaken(self, intaken: Intaken) -> None:
        """Run a job that has been prepared, if it fits; end it if it cannot run."""
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

    def take_step(self, step: Step) -> None:
        """The engine ended a step."""
        self._engine.heard()
        self._credit.load = step.load
        self._meter.heard(step)
        for output in step.outputs:
            self._take_output(output, step.made_s)

    def check(self) -> None:
        """Look at an engine that has jobs; if it is given up, they were there."""
        if ran := self._held.sent():
            self._engine.check()
            if self._engine.lost:
                self._count_crash(ran, self._engine.lost)

    def died(self, died: Died) -> None:
        """The engine process is gone; what it said before was taken.

        Where it had no memory for a request, that one alone counts a crash, for whatever else was
        there may have taken the memory. If nothing was, the request ends.
        """
        ran = self._held.sent()
        logger.error("an engine process with %d jobs is gone", len(ran))
        self._meter.engine_deaths += 1
        self._meter.out_of_memory += bool(died.request_id)  # there was no report to count it in
        for job in self._held:
            job.is_sent = job.is_answered = False
        last_words = self._engine.died(died)
        if not died.request_id:
            self._count_crash(ran, last_words)
            return
        without_memory = [job for job in ran if job.request_id == died.request_id]
        if len(ran) > 1:
            self._count_crash(without_memory, last_words)
            return
        for job in without_memory:
            job.fail(OutOfMemory(died.request_id))
            self._held.change(job)

    def came_up(self, ready: Ready) -> None:
        """Give a new engine everything that is to run, from the token logs.

        One whose context is shorter than the worker has promised would refuse jobs it accepted.
        """
        if ready.max_model_tokens < self._promised_tokens:
            self._engine.give_up(
                f"a new engine has memory for a context of {ready.max_model_tokens} tokens, "
                f"not {self._promised_tokens}: something else uses the GPU"
            )
            return
        self._engine.came_up()
        self._credit.renew(ready)
        for job in self._held.all_active():
            if job.request is not None:
                self._held.run(job)

    def _take_output(self, output: Output, made_s: float) -> None:
        job = self._held.of_request(output.request_id)
        if job is None:
            return
        if output.token_ids:
            self._meter.takes(job, len(output.token_ids), made_s)
        job.take(output, made_s)
        self._held.change(job)
        if job.reason is not None:
            if output.finish is None:  # a stop string, which the engine cannot see
                self._held.forget_in_engine([job])
            job.is_sent = False
        elif job.is_cleared:
            self._held.hand_back([job])

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

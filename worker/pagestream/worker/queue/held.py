"""The jobs a worker holds, and what the next write has to say of them.

A job is here from its claim until its end, its return or its loss is known to be written. Whoever
leaves is forgotten by the engine at once. This module knows no Redis, no credit and no clock.
"""

from collections.abc import Iterable, Iterator, Sequence

from pagestream.producer.protocol import FinishReason

from ..messages import Abort
from .calls import Claim
from .meter import JobObserver
from .reply import REQUEST_SEPARATOR, Job
from .supervisor import Supervisor


class Held:
    """Jobs by their ids; iterating gives the jobs, and `in` asks for an id.

    Invariant: a job that has changed since the last write is here.
    """

    def __init__(self, engine: Supervisor, observers: Sequence[JobObserver]) -> None:
        self._engine = engine
        self._observers = observers
        self._jobs: dict[str, Job] = {}
        self._changed: dict[str, Job] = {}
        self._claims = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._jobs

    def active(self, job_id: str) -> Job | None:
        """Return the job of this id, if it has neither ended here nor goes back."""
        job = self._jobs.get(job_id)
        return job if job is not None and _is_active(job) else None

    def of_request(self, request_id: str) -> Job | None:
        """Return the active job that a request of the engine's is; an earlier claim is nobody's."""
        job = self.active(request_id.rpartition(REQUEST_SEPARATOR)[0])
        return job if job is not None and job.request_id == request_id else None

    def all_active(self) -> list[Job]:
        """Return the jobs that have neither ended here nor go back."""
        return [job for job in self if _is_active(job)]

    def sent(self) -> list[Job]:
        """Return the jobs that the engine which lives now has been asked to run."""
        return [job for job in self if job.is_sent]

    def knows(self, claim: Claim) -> bool:
        """Whether a claim of a repeated answer is known already."""
        job = self._jobs.get(claim.job_id)
        known = None if job is None else (job.epoch, job.claim.queued_ms)
        return known == (claim.epoch, claim.queued_ms)

    # ---- in and out

    def add(self, claim: Claim, now_s: float, now_ms: int, *, took_a_place: bool) -> Job:
        """Hold a claim from here on, as a job; arguments as `Job` has them."""
        self.drop(claim.job_id)  # deleted, and submitted again
        self._claims += 1
        job = Job(claim, self._claims, now_s, now_ms)
        job.took_a_place = took_a_place
        self._jobs[claim.job_id] = job
        for observer in self._observers:
            observer.claimed(job)
        return job

    def run(self, job: Job) -> None:
        """Ask the engine to run a job from where its token log ends."""
        if not any(job.is_sent for job in self):
            self._engine.heard()  # it had nothing to say
        job.is_sent = True
        self._engine.send(job.add())

    def end(self, jobs: Iterable[Job], reason: FinishReason) -> None:
        """End jobs from here: the engine forgets them, the next write says why."""
        ending = [job for job in jobs if _is_active(job)]
        for job in ending:
            job.reason = reason
            self.change(job)
        self.forget_in_engine(ending)

    def hand_back(self, jobs: Iterable[Job]) -> None:
        """Give jobs back to the queue with their progress; their tokens so far go out first."""
        returning = [job for job in jobs if _is_active(job)]
        for job in returning:
            job.is_returning = True
            self.change(job)
        self.forget_in_engine(returning)

    def drop(self, job_id: str) -> None:
        """The job is somebody else's, or nobody's: say nothing more of it."""
        self._changed.pop(job_id, None)
        if (job := self._jobs.pop(job_id, None)) is not None:
            self.forget_in_engine([job])

    def written(self, job_id: str, *, ended: bool) -> None:
        """What the last write said of the job was the last of it; `ended`: it was its end."""
        job = self._jobs.pop(job_id, None)
        if job is not None and ended:
            for observer in self._observers:
                observer.ended(job)

    # ---- what has changed

    def change(self, job: Job) -> None:
        """Let the next write have something to say of a job."""
        assert self._jobs.get(job.id) is job, f"job {job.id} is not held"
        self._changed[job.id] = job

    @property
    def has_changed(self) -> bool:
        """Whether the next write has anything to say."""
        return bool(self._changed)

    def take_changed(self) -> list[Job]:
        """Return the jobs that the next write is about; they count as unchanged from here on."""
        changed, self._changed = self._changed, {}
        return list(changed.values())

    def forget_in_engine(self, jobs: list[Job]) -> None:
        """Tell the engine to stop requests, where it has them."""
        sent = [job.request_id for job in jobs if job.is_sent]
        if sent:
            self._engine.send(Abort(sent))
        for job in jobs:
            job.is_sent = False


def _is_active(job: Job) -> bool:
    return job.reason is None and not job.is_returning

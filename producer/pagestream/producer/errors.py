"""Everything a caller may catch.

Each error says which value was wrong and what to do about it. `code` is the same word on the wire
(the `error` field of a reply stream's last entry), in HTTP bodies and in metrics.
"""


class PagestreamError(Exception):
    """Base of every error this package raises on purpose."""

    code = "error"


class InvalidRequest(PagestreamError):
    """The request can never work as written: the message names the value and the fix."""

    code = "invalid_request"
    param: str | None = None
    """The argument, field or header that it is about, if it is one."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param or self.param


class BadSettings(InvalidRequest):
    """The settings of a process cannot work: a value, two together, or an unknown variable."""

    code = "bad_settings"


class UnsupportedParameter(InvalidRequest):
    """A known parameter has a value that is not implemented; its neutral value is accepted."""

    code = "unsupported_parameter"


class UnknownModel(InvalidRequest):
    """No worker serves the named model on this queue."""

    code = "unknown_model"
    param = "model"


class UnsupportedVersion(InvalidRequest):
    """The payload's major version is one this end does not read."""

    code = "unsupported_version"


class QueueFull(PagestreamError):
    """The queue holds as many unfinished jobs as it may; try again after `retry_after_ms`."""

    code = "queue_full"

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class RateLimited(PagestreamError):
    """The tenant sends more jobs or tokens a second than it may; again after `retry_after_ms`."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class JobConflict(PagestreamError):
    """The job id is taken by a job with another payload."""

    code = "job_conflict"


class JobNotFound(PagestreamError):
    """No job has this id: it was never submitted, or its retention has passed."""

    code = "job_not_found"


class JobLost(PagestreamError):
    """Redis no longer has a job it had accepted; submit again under the same id.

    Happens when Redis lost its last acknowledged writes, or the data was deleted while it was read.
    """

    code = "job_lost"


class JobFailed(PagestreamError):
    """The job ended in an error; `code` and the message come from the worker's terminal entry."""

    def __init__(self, message: str, *, code: str = "error") -> None:
        super().__init__(message)
        self.code = code


class JobCancelled(JobFailed):
    """The job was cancelled before it finished."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="cancelled")


class JobExpired(JobFailed):
    """The job's deadline passed before it finished."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="expired")


class QueueUnavailable(PagestreamError):
    """Redis cannot be reached, or refuses the command; nothing was accepted."""

    code = "queue_unavailable"


class RedisFull(QueueUnavailable):
    """Redis is at its `maxmemory`; nothing was accepted. Running jobs go on and make room."""

    code = "redis_full"


class NotDurable(PagestreamError):
    """Redis cannot promise what `durability="strict"` asks for; the message says what it lacks."""

    code = "not_durable"


class WorkerNotFound(PagestreamError):
    """No live worker of the queue has the name; `pagestream info` lists those there are."""

    code = "worker_not_found"


class WorkerNameTaken(PagestreamError):
    """A live worker of this queue has the name: leave `--name` out, or stop the other worker."""

    code = "worker_name_taken"


class WorkerReplaced(PagestreamError):
    """Another process took this worker's name while it was away; this one must stop."""

    code = "worker_replaced"

"""Every Redis key this project uses, and how long each lives.

All keys of a queue carry one hash tag, `{ps:<queue>}`, so that a script touches one Cluster slot.
A queue is a served model name (or a shard of it); scaling out is more queues.
This module knows names only: no connection, no commands.
"""

import re
from dataclasses import dataclass

from .errors import InvalidRequest

QUEUES = "ps:queues"
"""Set of every queue's name; outside any hash tag."""

FILE_RETENTION_MS = 7 * 24 * 3_600_000
"""How long a file of a batch, and the record of a batch that has ended, stay readable: a week."""

GROUP = "workers"
"""The one consumer group of each job stream, made at id 0 so that no early job is skipped."""

RETURNED = "returned"
"""The consumer that holds jobs handed back or reclaimed, until a worker takes them."""

SUSPECTED = "suspected"
"""The consumer that holds jobs which are to run alone."""

LANES = ("high", "normal", "low")
"""Priority classes, most urgent first."""

DEFAULT_TENANT = "default"

RETENTION_MS = 3_600_000
"""How long a finished job's record and reply stay readable: one hour."""

HEARTBEAT_TTL_MS = 3_000
"""A worker whose heartbeat is older than this is dead to the others."""

HEARTBEAT_MS = 1_000
"""How often a worker beats."""

CRASH_CAP = 3
"""A job whose workers died this many times, the last time while it ran alone, is a dead letter."""

SUSPECT_CRASHES = 2
"""A job that ran at so many deaths is a suspect: it runs alone."""

_QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+@-]{0,199}")
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_WORKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAMES = {"queue": _QUEUE_NAME, "job id": _JOB_ID, "tenant": _TENANT, "worker": _WORKER}


def check_name(kind: str, value: str) -> str:
    """Return `value` if it may stand in a key as a `queue`, `job id`, `tenant` or `worker`.

    Raises:
        InvalidRequest: the value has characters that keys do not allow, or is too long.
    """
    pattern = _NAMES[kind]
    if not pattern.fullmatch(value):
        raise InvalidRequest(f"{kind} {value!r} does not match {pattern.pattern}")
    return value


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one queue."""

    queue: str

    @property
    def prefix(self) -> str:
        """What every key of the queue begins with, hash tag included."""
        return f"{{ps:{self.queue}}}:"

    def job(self, job_id: str) -> str:
        """Hash: the payload, and state, epoch, crashes, owner, lane, tenant, deadlines, timings."""
        return f"{self.prefix}job:{job_id}"

    def out(self, job_id: str) -> str:
        """Stream: the job's reply; entry ids are `<epoch>-<offset>`."""
        return f"{self.prefix}out:{job_id}"

    def tokens(self, job_id: str) -> str:
        """Pub/sub channel that mirrors the reply, at most once; the stream is the truth."""
        return f"{self.prefix}tokens:{job_id}"

    def jobs(self, lane: str, tenant: str = DEFAULT_TENANT) -> str:
        """Stream: (id, tokens_max) of each unfinished job, in order of submission."""
        return f"{self.prefix}jobs:{lane}:{tenant}"

    def ready(self, lane: str) -> str:
        """Sorted set: tenants with waiting work in a lane; score = tokens served to them."""
        return f"{self.prefix}ready:{lane}"

    @property
    def served(self) -> str:
        """Sorted set: every tenant with a job, and some without; score = tokens served to them."""
        return f"{self.prefix}served"

    @property
    def due(self) -> str:
        """Sorted set: jobs with a deadline or a reader timeout, by when to look at them."""
        return f"{self.prefix}due"

    @property
    def limits(self) -> str:
        """Hash: what an operator set for tenants: `<tenant>:weight`, …; `*:…` for all others."""
        return f"{self.prefix}limits"

    def rate(self, tenant: str) -> str:
        """Hash: how full the buckets of a tenant's rate limits are."""
        return f"{self.prefix}rate:{tenant}"

    def running(self, worker: str) -> str:
        """Hash: the jobs a worker holds -> `<epoch> <mirror> <tenant>`, its leases."""
        return f"{self.prefix}running:{worker}"

    @property
    def bell(self) -> str:
        """Stream of length 1: rung whenever there may be new work."""
        return f"{self.prefix}bell"

    @property
    def dead(self) -> str:
        """Stream: dead letters."""
        return f"{self.prefix}dead"

    @property
    def suspects(self) -> str:
        """Sorted set: jobs that are to run alone; score = when they may, in Redis's ms."""
        return f"{self.prefix}suspects"

    @property
    def isolation(self) -> str:
        """String with a TTL: the worker that empties itself for the suspects."""
        return f"{self.prefix}isolation"

    @property
    def watch(self) -> str:
        """Hash: since when, and when last, workers have looked at each other's heartbeats."""
        return f"{self.prefix}watch"

    @property
    def hooks(self) -> str:
        """Stream: ends of jobs that name a webhook, until a jobs process takes them; three days."""
        return f"{self.prefix}hooks"

    def usage(self, period: int | str) -> str:
        """Hash: `<tenant>:requests`, `…:prompt_tokens`, … of a day (days since 1970); 35 days.

        Or of a month (`2026-11`), 400 days; its fields `:<day>` are the days it has.
        """
        return f"{self.prefix}usage:{period}"

    @property
    def pace(self) -> str:
        """Hash: how fast jobs finish, for the retry hint of a full queue."""
        return f"{self.prefix}pace"

    @property
    def model(self) -> str:
        """Hash: worker id -> JSON of what it serves (context, vocabulary, template, limits)."""
        return f"{self.prefix}model"

    def control(self, worker: str) -> str:
        """Stream: messages to one worker (cancel, drain)."""
        return f"{self.prefix}ctl:{worker}"

    def heartbeat(self, worker: str) -> str:
        """String with a TTL: the worker is alive; its value is a JSON of counters."""
        return f"{self.prefix}hb:{worker}"

    def live(self, worker: str) -> str:
        """String with the heartbeat's TTL: JSON of a `WorkerSnapshot`, for whoever looks."""
        return f"{self.prefix}live:{worker}"

    def step(self, worker: str) -> str:
        """String: `<incarnation>:<number>` of the last step of this worker that Redis applied."""
        return f"{self.prefix}step:{worker}"


class Around:
    """The keys of what goes on around the queues: files, batches, and the clock they run by.

    They share the hash tag `{ps}`, which no queue has.
    """

    PREFIX = "{ps}:"

    DUE = "{ps}:due"
    """Sorted set: `<kind>:<id>` of everything a jobs process has to do; score = when, in ms."""

    ARQ = "{ps}:arq"
    """Sorted set: arq's queue."""

    CALLS = "{ps}:arq:calls"
    """Sorted set: arq's queue of what other services enqueue."""

    DEAD_HOOKS = "{ps}:hooks:dead"
    """Sorted set: ids of webhooks that were given up, by when."""

    @staticmethod
    def file(file_id: str) -> str:
        """Hash: `about` (JSON), and the content in pieces `0`, `1`, …; gone after its retention."""
        return f"{{ps}}:file:{file_id}"

    @staticmethod
    def files(tenant: str) -> str:
        """Sorted set: a tenant's files, by when they came."""
        return f"{{ps}}:files:{tenant}"

    @staticmethod
    def batch(batch_id: str) -> str:
        """Hash: `about` (JSON), the status, and when it was reached.

        Two hashes beside it, `…:output` and `…:errors`, hold answers by line until they are files.
        """
        return f"{{ps}}:batch:{batch_id}"

    @staticmethod
    def hook(hook_id: str) -> str:
        """Hash: a webhook that is to be sent: `about` (JSON), attempts, the last error."""
        return f"{{ps}}:hook:{hook_id}"

    @staticmethod
    def schedule(schedule_id: str) -> str:
        """Hash: a prompt to be submitted later: `about` (JSON), and `next_ms`."""
        return f"{{ps}}:schedule:{schedule_id}"

    @staticmethod
    def batches(tenant: str) -> str:
        """Sorted set: a tenant's batches, by when they came."""
        return f"{{ps}}:batches:{tenant}"

"""What a worker says to Redis and hears from it, as values; and their form on the wire.

This module knows no connection and no scripts: `lease` sends these.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from pagestream.producer.protocol import FinishReason, Timings, Usage


class Row(NamedTuple):
    """New tokens of one choice: one entry of the job's reply."""

    job_id: str
    epoch: int
    offset: int
    """Output tokens published with this entry included, over all choices."""
    choice: int
    start: int
    """Index of the first of `ids` in its choice."""
    ids: Sequence[int]
    text: str


class End(NamedTuple):
    """A job's terminal entry."""

    job_id: str
    epoch: int
    offset: int
    """The last row's offset + 1."""
    choice: int
    reason: FinishReason
    text: str
    usage: Usage
    timings: Timings
    error: str = ""
    message: str = ""


class Return(NamedTuple):
    """A job handed back; a plain `(job_id, epoch)` does as well."""

    job_id: str
    epoch: int
    tokens_max: int | None = None
    """The prompt's length, if it is better known now than when the job was submitted."""
    is_cleared: bool = False
    """A suspect that has shown itself harmless: it may run beside others again."""


class Prefill(NamedTuple):
    """What a claim's prompt took to compute."""

    job_id: str
    epoch: int
    tokens: int
    has_token: bool = False
    """Its first token is there: the record says when."""


class Victim(NamedTuple):
    """A running job that may go back for one that waits: see `eviction`."""

    job_id: str
    epoch: int
    lane: str
    """Of the waiting job; another one does not get the room."""
    tenant: str
    tokens: int
    """Room it makes."""


class StepCall(msgspec.Struct, kw_only=True):
    """What one step tells Redis, and the room there is for new jobs."""

    rows: list[Row] = []
    ends: list[End] = []
    returns: Sequence[Return | tuple[str, int]] = ()
    """Handed back after their rows are published: the next worker goes on from there."""
    slots: int = 0
    """Jobs to claim at most."""
    tokens: int = 0
    """Sum of the prompts' `tokens_max` to claim at most."""
    aged_slots: int = 0
    """Jobs to claim at most because they waited long, before those of better lanes."""
    prefills: Sequence[Prefill] = ()
    victim: Victim | None = None
    """Handed back, after its rows are published, if what it was chosen for finds no room."""
    info: str = "{}"
    """The heartbeat's value: JSON of counters, for people and probes."""
    snapshot: str = ""
    """A `WorkerSnapshot` as JSON, kept with the heartbeat; empty leaves the last one."""


class Claim(NamedTuple):
    """A job this worker now owns, until its epoch is over."""

    job_id: str
    epoch: int
    crashes: int
    lane: str
    tenant: str
    payload: bytes
    queued_ms: int
    """When it was accepted, in Redis's time."""
    deadline_ms: int | None
    """In Redis's time: compare with `Lease.now_ms()`."""
    mirror: bool
    is_aged: bool = False
    """It overtook a better lane, because it had waited long; it keeps its slot to its end."""
    traceparent: str = ""
    """W3C trace context of whoever submitted it; empty where it is not traced."""
    tracestate: str = ""


class Control(NamedTuple):
    """A message to this worker."""

    id: str
    kind: str
    """`cancel` (stop the job `job_id`), `drain`, or `stop` (at once); ignore any other."""
    job_id: str


class Waiting(NamedTuple):
    """The best job that waits and could not be claimed."""

    lane: str
    tenant: str
    tokens: int
    """Its `tokens_max`."""


class StepReply(NamedTuple):
    """Redis's answer to a step.

    Codes, one letter a row or end: `k` written · `f` fenced (the job is another's now) · `g` gone
    (the reader deleted the reply; the job is closed) · `d` that offset was written before.
    """

    status: Literal["applied", "already", "rollback"]
    """`already`: an earlier try of this step was applied and its answer lost; `claims` then lists
    every job this worker owns. `rollback`: nothing was done; call `resync` before the next step."""
    now_ms: int
    row_codes: str
    end_codes: str
    claims: list[Claim]
    controls: list[Control]
    bell_id: str
    waiting: Waiting | None
    victim_left: bool = False
    """The step's victim is not this worker's any more."""


class Reaped(NamedTuple):
    """What a reap did."""

    put_back: int = 0
    """Jobs of dead workers that wait again."""
    dead: int = 0
    """Jobs of dead workers that became dead letters."""
    workers: tuple[str, ...] = ()
    """The dead workers."""
    lost: tuple[tuple[str, int], ...] = ()
    """Jobs (id, epoch) this worker owns but does not hold; its next step hands them back."""
    weights: Mapping[str, float] = MappingProxyType({})
    """Tenants' weights as an operator set them; `*` is for those that are not named."""


class Tail(NamedTuple):
    """What Redis still knows of a running job after a rollback."""

    job_id: str
    owned: bool
    """False: another worker has it, or it has ended or is forgotten. Drop it."""
    state: str
    """Empty where Redis does not know the job."""
    last_id: str
    offset: int
    """Output tokens in the reply: publish again from here."""


class Crash(NamedTuple):
    """What became of a job whose engine died."""

    job_id: str
    crashes: int
    outcome: Literal["kept", "dead", "fenced"]


def pack_row(row: Row) -> tuple[object, ...]:
    """Return a row as step.lua takes it."""
    job_id, epoch, offset, choice, start, ids, text = row
    packed_ids = " ".join(map(str, ids)) if len(ids) != 1 else str(ids[0])
    return job_id, epoch, f"{epoch}-{offset}", str(choice), str(start), packed_ids, text


def pack_end(end: End) -> tuple[object, ...]:
    """Return an end as step.lua takes it."""
    usage = msgspec.json.encode(end.usage).decode()
    timings = msgspec.json.encode(end.timings).decode()
    head = (end.job_id, end.epoch, end.offset, str(end.choice), end.reason, end.text)
    return (*head, usage, timings, end.error, end.message)


def read_weights(flat: Sequence[bytes]) -> dict[str, float]:
    """Read tenants' weights as reap.lua returns them, without those that are none."""
    weights: dict[str, float] = {}
    for tenant, value in zip(flat[::2], flat[1::2], strict=True):
        try:
            weight = float(value)
        except ValueError:
            continue  # set by hand; the scripts take no notice of it either
        if 0 < weight < 1e15:
            weights[tenant.decode("utf-8", "replace")] = weight
    return weights


def read_reply(answer: list[Any]) -> StepReply:
    """Read what step.lua returned."""
    status, now_ms, row_codes, end_codes, claims, controls, bell_id, waiting, left = answer
    return StepReply(
        status=status.decode(),
        now_ms=now_ms,
        row_codes=row_codes.decode(),
        end_codes=end_codes.decode(),
        claims=[_read_claim(claim) for claim in claims],
        controls=[_read_control(item) for item in controls],
        bell_id=bell_id.decode(),
        waiting=Waiting(waiting[0].decode(), waiting[1].decode(), waiting[2]) if waiting else None,
        victim_left=left == 1,
    )


def _read_claim(claim: list[Any]) -> Claim:
    job_id, epoch, crashes, lane, tenant, payload, queued_ms, deadline_ms, *more = claim
    mirror, aged, traceparent, tracestate = more
    return Claim(
        job_id=job_id.decode(),
        epoch=epoch,
        crashes=crashes,
        lane=lane.decode(),
        tenant=tenant.decode(),
        payload=payload,
        queued_ms=queued_ms,
        deadline_ms=int(deadline_ms) if deadline_ms else None,
        mirror=mirror == b"1",
        is_aged=aged == b"1",
        traceparent=traceparent.decode("utf-8", "replace"),
        tracestate=tracestate.decode("utf-8", "replace"),
    )


def _read_control(item: list[bytes]) -> Control:
    fields = {item[i]: item[i + 1] for i in range(1, len(item) - 1, 2)}
    kind = fields.get(b"kind", b"").decode("utf-8", "replace")
    return Control(item[0].decode(), kind, fields.get(b"id", b"").decode("utf-8", "replace"))

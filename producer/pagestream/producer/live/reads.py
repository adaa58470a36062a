"""The reads behind `Live`: each yields commands to send together, and makes a struct of replies.

So one function serves a synchronous and an asyncio connection. Replies are as the server sends
them (RESP2), unchanged by redis-py. This module knows keys and replies: no connection.
"""

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import msgspec

from ..errors import JobNotFound
from ..keys import GROUP, LANES, QUEUES, RETURNED, SUSPECTED, Keys, check_name
from ..protocol import Entry, Timings, Usage, decode_entry
from ..snapshot import WorkerSnapshot
from .structs import JobClaim, LaneLive, QueueLive, TenantLive, Timeline, WorkerLive

TENANTS_MAX = 1_000
"""Tenants that are looked at in one call, the least served ones first."""
CLAIMS_MAX = 1_000
"""Entries of a reply that are searched for claims, from its beginning."""

T = TypeVar("T")
Command = tuple[str | int, ...]
Reads = Generator[Sequence[Command], list[Any], T]
"""Yields commands to send together, takes their replies (an exception for a refusal), returns."""


def read_queues() -> Reads[list[str]]:
    """Read the names of all queues."""
    (names,) = yield [("SMEMBERS", QUEUES)]
    return sorted(name.decode() for name in _known(names, ()))


def read_queue(queue: str) -> Reads[QueueLive]:
    """Read a `QueueLive`."""
    keys = Keys(check_name("queue", queue))
    clock, served, models, suspects, dead = yield [
        ("TIME",),
        ("ZRANGE", keys.served, 0, TENANTS_MAX - 1, "WITHSCORES"),
        ("HKEYS", keys.model),
        ("ZCARD", keys.suspects),
        ("XLEN", keys.dead),
    ]
    _check(clock, served, models, suspects, dead)
    now_ms = _clock_ms(clock)
    scores = dict(_pairs(served))
    lanes, tenants = yield from _read_lanes(keys, [name.decode() for name in scores], now_ms)
    workers = yield from _read_workers(keys, sorted(name.decode() for name in models))
    return QueueLive(
        name=queue,
        at_ms=now_ms,
        lanes=lanes,
        tenants=[
            TenantLive(
                tenant=name,
                waiting=waiting,
                running=running,
                served_tokens=float(scores[name.encode()]),
            )
            for name, (waiting, running) in tenants.items()
            if waiting or running
        ],
        suspects=suspects,
        dead_letters=dead,
        workers=workers,
    )


def _read_lanes(
    keys: Keys, tenants: Sequence[str], now_ms: int
) -> Reads[tuple[list[LaneLive], dict[str, list[int]]]]:
    """Read the lanes, and (waiting, running) of each tenant."""
    places = [(lane, tenant) for lane in LANES for tenant in tenants]
    streams = [keys.jobs(lane, tenant) for lane, tenant in places]
    replies = yield [
        command
        for stream in streams
        for command in (
            ("XLEN", stream),
            ("XPENDING", stream, GROUP),
            ("XINFO", "GROUPS", stream),
            ("XPENDING", stream, GROUP, "-", "+", 1, RETURNED),
        )
    ]
    counts = {tenant: [0, 0] for tenant in tenants}
    lanes = {lane: [0, 0, 0] for lane in LANES}
    behind: list[tuple[str, str, str]] = []
    for place, stream, index in zip(places, streams, range(0, len(replies), 4), strict=True):
        length, pending, groups, shelf = replies[index : index + 4]
        waiting, running = _lane_counts(length, pending)
        for count in (counts[place[1]], lanes[place[0]]):
            count[0] += waiting
            count[1] += running
        if waiting and (shelved := _known(shelf, ())):
            lanes[place[0]][2] = max(lanes[place[0]][2], now_ms - _entry_ms(shelved[0][0]))
        elif waiting:
            behind.append((place[0], stream, _delivered(groups)))
    firsts = yield [("XRANGE", stream, f"({last}", "+", "COUNT", 1) for _, stream, last in behind]
    for (lane, _, _), page in zip(behind, firsts, strict=True):
        for entry_id, _fields in _known(page, ()):
            lanes[lane][2] = max(lanes[lane][2], now_ms - _entry_ms(entry_id))
    shown = [
        LaneLive(lane=lane, waiting=waiting, running=running, oldest_ms=max(0, oldest))
        for lane, (waiting, running, oldest) in lanes.items()
    ]
    return shown, counts


def _read_workers(keys: Keys, names: Sequence[str]) -> Reads[list[WorkerLive]]:
    replies = yield [
        command
        for name in names
        for command in (
            ("EXISTS", keys.heartbeat(name)),
            ("HLEN", keys.running(name)),
            ("GET", keys.live(name)),
        )
    ]
    _check(*replies)
    return [
        WorkerLive(
            name=name,
            is_alive=bool(replies[at]),
            jobs=replies[at + 1],
            snapshot=_snapshot(replies[at + 2]),
        )
        for name, at in zip(names, range(0, len(replies), 3), strict=True)
    ]


_RECORD = (
    *("state", "lane", "tenant", "owner", "crashes", "queued_ms", "claimed_ms", "first_token_ms"),
    *("finished_ms", "reason"),
)


def read_timeline(queue: str, job_id: str) -> Reads[Timeline]:
    """Read a `Timeline`."""
    keys = Keys(check_name("queue", queue))
    reply = keys.out(check_name("job id", job_id))
    clock, values, first, last = yield [
        ("TIME",),
        ("HMGET", keys.job(job_id), *_RECORD),
        ("XRANGE", reply, "-", "+", "COUNT", CLAIMS_MAX),
        ("XREVRANGE", reply, "+", "-", "COUNT", 2),
    ]
    _check(clock, values, first, last)
    if values[0] is None:
        raise JobNotFound(f"queue {queue!r} has no job {job_id}, or its retention has passed")
    record = {name: value.decode() for name, value in zip(_RECORD, values, strict=True) if value}
    entries = [_entry(*entry) for entry in first]
    claims = [
        JobClaim(epoch=one.epoch, worker=one.worker, offset=_published(entries[:at]))
        for at, one in enumerate(entries)
        if one.event == "start"
    ]
    newest = [_entry(*entry) for entry in reversed(last)]
    end = newest[-1] if newest and newest[-1].event == "end" else None
    return Timeline(
        id=job_id,
        at_ms=_clock_ms(clock),
        state=record["state"],
        lane=record.get("lane", ""),
        tenant=record.get("tenant", ""),
        worker=record.get("owner") or (claims[-1].worker if claims else ""),
        crashes=int(record.get("crashes", 0)),
        queued_ms=int(record.get("queued_ms", 0)),
        claimed_ms=_number(record.get("claimed_ms")),
        first_token_ms=_number(record.get("first_token_ms")),
        finished_ms=_number(record.get("finished_ms")),
        reason=record.get("reason", ""),
        error=end.error if end else "",
        message=end.message if end else "",
        claims=claims,
        output_tokens=end.offset - 1 if end else _published(newest),
        usage=end.usage if end else Usage(),
        timings=end.timings if end else Timings(),
    )


def _published(entries: Sequence[Entry]) -> int:
    return max((one.offset for one in entries if one.event == "tokens"), default=0)


def _lane_counts(length: Any, pending: Any) -> tuple[int, int]:
    """(waiting, running): each entry is undelivered, on a shelf, or some worker's."""
    consumers: dict[bytes, bytes] = dict(_known(pending, (0, None, None, None))[3] or ())
    shelved = sum(int(consumers.get(name.encode(), 0)) for name in (RETURNED, SUSPECTED))
    running = sum(map(int, consumers.values())) - shelved
    return max(0, int(_known(length, 0)) - running), running


def _delivered(groups: Any) -> str:
    for group in _known(groups, ()):
        info = dict(_pairs(group))
        if info.get(b"name") == GROUP.encode():
            return info[b"last-delivered-id"].decode()
    return "0-0"


def _snapshot(data: bytes | None) -> WorkerSnapshot | None:
    try:
        return msgspec.json.decode(data, type=WorkerSnapshot) if data else None
    except msgspec.MsgspecError:
        return None  # a newer worker describes itself differently


def _known(reply: Any, otherwise: Any) -> Any:
    """A reply, or what stands for it where the key or the group is not there."""
    if isinstance(reply, Exception):
        if not str(reply).startswith(("NOGROUP", "no such key", "ERR no such key")):
            raise reply
        return otherwise
    return reply


def _entry(entry_id: bytes, fields: Sequence[bytes]) -> Entry:
    return decode_entry(entry_id, dict(_pairs(fields)))


def _check(*replies: Any) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _clock_ms(clock: Sequence[bytes]) -> int:
    return int(clock[0]) * 1000 + int(clock[1]) // 1000


def _entry_ms(entry_id: bytes) -> int:
    return int(entry_id.split(b"-")[0])


def _number(text: str | None) -> int | None:
    return int(text) if text else None

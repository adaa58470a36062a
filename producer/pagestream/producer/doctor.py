"""What may be wrong with a Redis that serves queues, and what to do about it.

Each check reads what the server says of itself; what it may not be asked (an ACL) is a finding too.
This module knows no terminal, no GPU and no jobs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from .acl import roles_with
from .calls import unavailable
from .connection import connect
from .errors import QueueUnavailable
from .live import Live, QueueLive

TIMEOUT_S = 5.0
SLOW_MS = 5.0
"""A round trip of more than this is felt in every token."""
ROUND_TRIPS = 20
OLDEST = (6, 2)

Answer = TypeVar("Answer")
Level = Literal["ok", "note", "wrong"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    level: Level
    what: str
    found: str
    fix: str = ""
    """What to do; empty where nothing is to be done."""


def examine(url: str, clock: Callable[[], float]) -> list[Finding]:
    """Look at a server.

    Args:
        url: where it is.
        clock: monotonic seconds, for the round trip.

    Raises:
        QueueUnavailable: it cannot be reached.
        InvalidRequest: the URL is none.
    """
    redis: Any = connect(url, client_name="pagestream-doctor", timeout_s=TIMEOUT_S)
    try:
        redis.ping()
        info = _ask(lambda: redis.info())
        settings = _ask(lambda: redis.config_get("*"))
        return [
            _version(info),
            _round_trip(redis, clock),
            *_persistence(info, settings),
            *_memory(info, settings),
            _scripts(redis),
            *_queues(url),
        ]
    except RedisError as error:
        raise unavailable(url, error) from error
    finally:
        redis.close()


def _ask(question: Callable[[], Any]) -> Mapping[str, Any] | None:
    """The answer, or None where this user may not ask."""
    try:
        return question()
    except (NoPermissionError, ResponseError):
        return None


def _version(info: Mapping[str, Any] | None) -> Finding:
    if info is None:
        return Finding(
            level="note", what="version", found="this user may not ask INFO",
            fix=_run_as_one_with("info"),
        )  # fmt: skip
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    told = tuple(int(part) for part in version.split(".")[:2])
    if name == "Redis" and told < OLDEST:
        fix = "use Redis 6.2 or newer, or Valkey"
        return Finding(level="wrong", what="version", found=f"{name} {version}", fix=fix)
    return Finding(level="ok", what="version", found=f"{name} {version}")


def _round_trip(redis: Any, clock: Callable[[], float]) -> Finding:
    times_ms: list[float] = []
    for _ in range(ROUND_TRIPS):
        begin_s = clock()
        redis.ping()
        times_ms.append((clock() - begin_s) * 1000)
    median_ms = sorted(times_ms)[ROUND_TRIPS // 2]
    found = f"{median_ms:.2f} ms"
    if median_ms > SLOW_MS:
        fix = "put Redis nearer to the workers: every step waits for one round trip"
        return Finding(level="note", what="round trip", found=found, fix=fix)
    return Finding(level="ok", what="round trip", found=found)


def _persistence(
    info: Mapping[str, Any] | None, settings: Mapping[str, str] | None
) -> list[Finding]:
    if settings is None:
        return [
            Finding(
                level="note",
                what="persistence",
                found="this user may not ask CONFIG",
                fix=_run_as_one_with("config|get")
                + "; it looks at appendonly, appendfsync and maxmemory-policy",
            )
        ]
    if settings.get("appendonly") != "yes":
        return [
            Finding(
                level="wrong",
                what="persistence",
                found="appendonly no: a restart forgets jobs",
                fix="CONFIG SET appendonly yes, and write it into the server's configuration",
            )
        ]
    fsync = settings.get("appendfsync", "?")
    found = f"appendonly yes, appendfsync {fsync}"
    if fsync == "no":
        fix = "CONFIG SET appendfsync everysec: the system decides now what a power loss forgets"
        return [Finding(level="wrong", what="persistence", found=found, fix=fix)]
    findings = [Finding(level="ok", what="persistence", found=found)]
    if info is not None and str(info.get("aof_last_write_status", "ok")) != "ok":
        fix = "look at the disk: the server refuses writes until it can append again"
        findings.append(
            Finding(level="wrong", what="disk", found="the last append failed", fix=fix)
        )
    return findings


def _memory(info: Mapping[str, Any] | None, settings: Mapping[str, str] | None) -> list[Finding]:
    findings: list[Finding] = []
    policy = (settings or info or {}).get("maxmemory-policy") or (info or {}).get(
        "maxmemory_policy"
    )
    if policy not in (None, "noeviction"):
        fix = "CONFIG SET maxmemory-policy noeviction: jobs are data, not a cache"
        findings.append(
            Finding(level="wrong", what="eviction", found=f"maxmemory-policy {policy}", fix=fix)
        )
    elif policy is not None:
        findings.append(Finding(level="ok", what="eviction", found="noeviction"))
    if info is not None:
        used, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
        found = f"{used / 2**20:,.0f} MiB used"
        if most == 0:
            fix = "set maxmemory below the host's memory, so that submits fail and not the server"
            findings.append(
                Finding(level="note", what="memory", found=f"{found}, no maxmemory", fix=fix)
            )
        elif used > 0.9 * most:
            fix = "raise maxmemory, or shorten retention: at the limit submits are refused"
            found = f"{found} of {most / 2**20:,.0f}"
            findings.append(Finding(level="wrong", what="memory", found=found, fix=fix))
        else:
            findings.append(
                Finding(level="ok", what="memory", found=f"{found} of {most / 2**20:,.0f}")
            )
    return findings


def _scripts(redis: Any) -> Finding:
    try:
        redis.evalsha(redis.script_load("return 1"), 0)
    except NoPermissionError:
        fix = (
            "right for who only looks; who submits, serves or cleans up needs a role: "
            f"{_a_user(roles_with('evalsha'))}"
        )
        return Finding(level="note", what="scripts", found="this user may run none", fix=fix)
    except ResponseError as error:
        fix = "the server has to allow Lua scripts; every change of a job is one"
        return Finding(level="wrong", what="scripts", found=str(error), fix=fix)
    return Finding(level="ok", what="scripts", found="run")


def _queues(url: str) -> list[Finding]:
    with Live(url, timeout_s=TIMEOUT_S, retries=0) as live:
        names = _allowed(live.queues)
        if names is None:
            fix = _run_as_one_with("smembers", "zcard")
            return [Finding(level="note", what="queues", found="this user may not look", fix=fix)]
        if not names:
            fix = "start a worker: pagestream worker --model …"
            return [
                Finding(level="note", what="queues", found="none was ever served here", fix=fix)
            ]
        return [
            finding
            for name in names
            for finding in _queue(name, _allowed(lambda name=name: live.queue(name)))
        ]


def _allowed(question: Callable[[], Answer]) -> Answer | None:
    """What `Live` answers, or None where this user may not ask."""
    try:
        return question()
    except QueueUnavailable as error:
        if isinstance(error.__cause__, NoPermissionError):
            return None
        raise


def _queue(name: str, queue: QueueLive | None) -> list[Finding]:
    what = f"queue {name}"
    if queue is None:
        fix = f"as its observer: pagestream acl observer --queue {name}"
        return [Finding(level="note", what=what, found="this user may not look", fix=fix)]
    alive = sum(worker.is_alive for worker in queue.workers)
    findings = [Finding(level="ok", what=what, found=f"{alive} workers live")]
    if not alive:
        jobs = queue.waiting + queue.running
        level: Level = "wrong" if jobs else "note"
        found = "no worker lives" + (f", and jobs wait ({jobs})" if jobs else "")
        findings = [
            Finding(level=level, what=what, found=found, fix="start one: pagestream worker …")
        ]
    if queue.dead_letters:
        found = f"{queue.dead_letters} dead letters"
        fix = f"look at them: pagestream dead list --queue {name}"
        findings.append(Finding(level="note", what=what, found=found, fix=fix))
    return findings


def _run_as_one_with(*commands: str) -> str:
    """Say who may ask what this user may not."""
    roles = roles_with(*commands)
    one = f"as a user made by {_a_user(roles)}, or " if roles else ""
    return f"run the doctor {one}as the server's own administrator"


def _a_user(roles: Sequence[str]) -> str:
    return f"pagestream acl {'|'.join(roles)} --queue …"

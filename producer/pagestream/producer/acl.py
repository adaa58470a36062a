"""Redis users with no more rights than their part needs.

What a script may do is what its caller may do, so a user needs the commands inside the scripts it
calls: they are read from the scripts' texts, and cannot be forgotten. Commands that the code sends
itself are listed here. This module knows rules, not servers.
"""

import re
from dataclasses import dataclass
from typing import Literal

from .errors import InvalidRequest
from .keys import DEFAULT_TENANT, QUEUES, Around, Keys, check_name
from .lua import Script

RoleName = Literal["producer", "reader", "observer", "worker", "admin", "gateway", "jobs"]

_CALL = re.compile(r"(?:call|pcall|xadd)\(\s*'([A-Z]+)'(?:, '([A-Z]+)')?|\{'(XCLAIM)'")
_WITH_SUBCOMMANDS = {"XGROUP", "XINFO"}


@dataclass(frozen=True)
class _Role:
    """Key patterns are without the queue's prefix; `<t>` stands for one tenant, or for any."""

    scripts: tuple[str, ...]
    commands: tuple[str, ...]
    """What the code sends beside its scripts."""
    writes: tuple[str, ...]
    reads: tuple[str, ...] = ()
    """Keys it reads only."""
    queues: Literal["writes", "reads", ""] = ""
    """What it does with the set of all queues' names."""
    others: tuple[str, ...] = ()
    """Whole patterns of keys around the queues, which it writes."""


_EVERY_CONNECTION = ("auth", "ping", "select", "client|setname", "client|id")
_READING = (
    *("xread", "xrange", "xrevrange", "exists", "hmget", "client|unblock"),
    *("subscribe", "unsubscribe"),
)
_TALKING = ("evalsha", "script|load")
_LOOKING = (
    *("time", "exists", "get", "hkeys", "hlen", "hmget", "smembers", "zrange", "zcard", "xlen"),
    *("xrange", "xrevrange", "xpending", "xinfo|groups"),
)

_FILES = (
    *("hset", "hsetnx", "hget", "hgetall", "hlen", "hkeys", "pexpire", "pttl", "del"),
    *("zadd", "zrem", "zrevrange", "zrange", "sismember", "time"),
)
# What arq sends: it runs the functions of a jobs process.
_ARQ = (
    *("watch", "unwatch", "multi", "exec", "discard", "set", "get", "psetex", "setex", "incrby"),
    *("expire", "exists", "zscore", "zrangebyscore", "zincrby", "zcard", "info", "dbsize"),
)

ROLES: dict[RoleName, _Role] = {
    "producer": _Role(
        scripts=("submit", "cancel", "delete", "renew"),
        commands=(*_TALKING, *_READING, "hgetall", "smembers", "waitaof"),
        writes=(
            *("job:<id>", "out:<id>", "jobs:*:<t>", "ready:*", "served", "bell"),
            *("ctl:*", "running:*", "dead", "due", "rate:<t>", "hooks", "usage:*"),
        ),
        reads=("model", "hb:*", "pace", "limits"),
        queues="reads",
    ),
    "reader": _Role(scripts=(), commands=_READING, writes=(), reads=("job:<id>", "out:<id>")),
    "observer": _Role(
        scripts=(),
        commands=_LOOKING,
        writes=(),
        reads=(
            *("job:*", "out:*", "jobs:*", "served", "suspects", "dead"),
            *("model", "hb:*", "live:*", "running:*"),
        ),
        queues="reads",
    ),
    "worker": _Role(
        scripts=("register", "step", "resync", "reap", "crash", "leave"),
        commands=(*_TALKING, "xread", "xrange", "sadd", "info"),
        writes=("*",),
        queues="writes",
    ),
    "admin": _Role(
        scripts=("cancel", "delete", "retry", "drain"),
        commands=(
            *(*_TALKING, *_LOOKING, "xdel"),
            *("hget", "hgetall", "hset", "hdel", "pttl", "memory|usage"),
        ),
        writes=("*",),
        queues="reads",
    ),
    "gateway": _Role(
        scripts=("submit", "cancel", "delete", "renew", "due", "batch_move", "schedule"),
        commands=(*_TALKING, *_READING, *_LOOKING, *_FILES, "waitaof"),
        writes=("*",),
        queues="reads",
        others=(
            *(Around.DUE, Around.file("*"), Around.files("*")),
            *(Around.batch("*"), Around.batches("*"), Around.schedule("*")),
        ),
    ),
    "jobs": _Role(
        scripts=(
            *("submit", "cancel", "delete", "renew", "due", "batch_move", "batch_record"),
            *("schedule", "usage_roll"),
        ),
        commands=(
            *(*_TALKING, *_READING, *_LOOKING, *_FILES, *_ARQ, "waitaof", "xdel", "hincrby"),
            *("scan", "zscan", "zremrangebyscore"),
        ),
        writes=("*",),
        queues="reads",
        others=(f"{Around.PREFIX}*", "arq:*"),
    ),
}


def commands_of(script: str) -> set[str]:
    """Return the commands a script may call, in the words of an ACL."""
    found: set[str] = set()
    for name, subcommand, claim in _CALL.findall(Script(script).text):
        command = name or claim
        if command in _WITH_SUBCOMMANDS:
            command += f"|{subcommand}"
        found.add(command.lower())
    return found


def roles_with(*commands: str) -> list[RoleName]:
    """Return the roles whose users may send all of some commands, in the words of an ACL."""
    return [name for name, role in ROLES.items() if set(commands) <= set(role.commands)]


def rule(
    role: RoleName,
    queue: str,
    *,
    user: str,
    password_sha256: str,
    tenant: str | None = None,
    redis_6: bool = False,
) -> str:
    """Return one line of an ACL file.

    Args:
        role: what the user is to do.
        queue: on which queue; `*`, every queue, for what serves them all: a gateway, jobs.
        user: the user's name.
        password_sha256: its password's hash, in hexadecimal.
        tenant: a producer or reader of this tenant alone: its job ids begin with `<tenant>.`, as
            the client makes them for a tenant.
        redis_6: leave out what Redis 6.2 to 7.1 do not all know, which refuse a file that says it:
            keys that are only read may be written, with the commands the user has.

    Raises:
        InvalidRequest: a name has characters it may not have, or the role knows no tenants.
    """
    chosen = ROLES[role]
    is_everywhere = queue == "*" and bool(chosen.others)
    prefix = Keys(queue if is_everywhere else check_name("queue", queue)).prefix
    if not re.fullmatch(r"[A-Za-z0-9._@-]+", user):
        raise InvalidRequest(f"user {user!r} has a character that an ACL file does not allow")
    if tenant is not None and role not in ("producer", "reader"):
        raise InvalidRequest(f"a {role} serves every tenant; leave --tenant out")
    job_ids, tenants = "*", "*"
    if tenant is not None and check_name("tenant", tenant) != DEFAULT_TENANT:
        job_ids, tenants = f"{tenant}.*", tenant

    def pattern(key: str) -> str:
        return prefix + key.replace("<id>", job_ids).replace("<t>", tenants)

    read = "~" if redis_6 else "%R~"
    keys = [f"~{pattern(key)}" for key in chosen.writes]
    keys += [f"{read}{pattern(key)}" for key in chosen.reads]
    keys += [f"~{one}" for one in chosen.others]
    if chosen.queues:
        keys.append(f"{'~' if chosen.queues == 'writes' else read}{QUEUES}")
    allowed = {*_EVERY_CONNECTION, *chosen.commands}
    for script in chosen.scripts:
        allowed |= commands_of(script)
    if redis_6:
        allowed -= {"waitaof"}
    return " ".join(
        [
            f"user {user} on #{password_sha256} resetkeys resetchannels",
            *keys,
            f"&{pattern('tokens:<id>')}",
            "-@all",
            *(f"+{name}" for name in sorted(allowed)),
        ]
    )

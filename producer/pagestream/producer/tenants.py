"""What an operator allows each tenant of a queue: its weight, its bound, its rates.

The scripts read these values from the hash `limits` at every call, so a change holds at once; a
field is `<tenant>:<name>`, and `*:<name>` is for every tenant without a value of its own.
This module knows the hash: what the values do is the scripts' matter.
"""

import math
from collections.abc import Mapping

import msgspec

from .calls import Calls
from .errors import InvalidRequest
from .keys import LANES, Keys, check_name

EVERYBODY = "*"
"""Stands for each tenant without a value of its own."""

_MOST = 1e15


class TenantLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What is set for a tenant; None is the default."""

    weight: float | None = None
    """Its share beside others', by which the tokens it was served are divided; default 1."""
    queue_limit: int | None = None
    """Unfinished jobs at most; default what the client says, 10,000."""
    jobs_per_s: float | None = None
    """Jobs accepted a second, ten seconds' worth at once; default no limit."""
    tokens_per_s: float | None = None
    """Tokens a second, prompts and outputs as they are computed; default no limit."""


LIMITS = TenantLimits.__struct_fields__


class TenantUse(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's limits and how it stands."""

    tenant: str
    limits: TenantLimits
    """Those set for it by name."""
    unfinished_jobs: int
    served_tokens: float
    """Tokens by weight, as compared with other tenants' now; not a bill."""


class Tenants:
    """The tenants of one queue."""

    def __init__(self, calls: Calls, keys: Keys) -> None:
        self._calls = calls
        self._keys = keys

    async def limits(self, tenant: str) -> TenantLimits:
        """Return what holds for a tenant: its own values, else everybody's."""
        known = await self._all()
        return _limits(
            {name: known.get((tenant, name), known.get((EVERYBODY, name))) for name in LIMITS}
        )

    async def set(self, tenant: str, changes: Mapping[str, float]) -> None:
        """Set values of a tenant, or of `EVERYBODY`.

        Raises:
            InvalidRequest: the tenant's name, a limit's name or a value is none.
        """
        _check_tenant(tenant)
        fields: list[str] = []
        for name, value in changes.items():
            fields += [_field(tenant, name), _checked(name, value)]
        if fields:
            await self._calls.command("HSET", self._keys.limits, *fields)

    async def unset(self, tenant: str, names: tuple[str, ...] = LIMITS) -> None:
        """Remove values of a tenant, or of `EVERYBODY`; the defaults hold again."""
        _check_tenant(tenant)
        await self._calls.command(
            "HDEL", self._keys.limits, *(_field(tenant, name) for name in names)
        )

    async def use(self) -> list[TenantUse]:
        """Return every tenant that has limits of its own, or jobs, or had some lately."""
        known = await self._all()
        flat = await self._calls.command("ZRANGE", self._keys.served, 0, -1, "WITHSCORES")
        served = {
            name.decode(): float(score) for name, score in zip(flat[::2], flat[1::2], strict=True)
        }
        tenants = sorted({*served, *(tenant for tenant, _ in known)})
        return [
            TenantUse(
                tenant=tenant,
                limits=_limits({name: known.get((tenant, name)) for name in LIMITS}),
                unfinished_jobs=await self._unfinished(tenant),
                served_tokens=served.get(tenant, 0.0),
            )
            for tenant in tenants
        ]

    async def _unfinished(self, tenant: str) -> int:
        lanes = [await self._calls.command("XLEN", self._keys.jobs(lane, tenant)) for lane in LANES]
        return sum(lanes)

    async def _all(self) -> dict[tuple[str, str], float]:
        raw: dict[bytes, bytes] = await self._calls.command("HGETALL", self._keys.limits)
        known: dict[tuple[str, str], float] = {}
        for field, text in raw.items():
            tenant, _, name = field.decode("utf-8", "replace").rpartition(":")
            try:
                value = float(text)
            except ValueError:
                continue  # written by hand; the scripts take no notice of it either
            if name in LIMITS and 0 < value < _MOST:
                known[tenant, name] = value
        return known


def _limits(values: Mapping[str, float | None]) -> TenantLimits:
    bound = values["queue_limit"]
    return TenantLimits(
        weight=values["weight"],
        queue_limit=None if bound is None else math.ceil(bound),
        jobs_per_s=values["jobs_per_s"],
        tokens_per_s=values["tokens_per_s"],
    )


def _field(tenant: str, name: str) -> str:
    if name not in LIMITS:
        raise InvalidRequest(f"{name!r} is not a limit; there are {', '.join(LIMITS)}")
    return f"{tenant}:{name}"


def _checked(name: str, value: float) -> str:
    if not 0 < value < _MOST:  # false for a nan, too
        raise InvalidRequest(f"{name}={value!r} is not a number above 0; unset it for no limit")
    if name == "queue_limit" and value != int(value):
        raise InvalidRequest(f"queue_limit={value!r} is not a whole number of jobs")
    return repr(int(value) if value == int(value) else value)


def _check_tenant(tenant: str) -> None:
    if tenant != EVERYBODY:
        check_name("tenant", tenant)

"""API keys: whose request it is, and how many jobs it may add to.

Without a file of keys every request is the default tenant's.
This module knows no requests beyond the header, and no queues.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from ..errors import InvalidRequest
from ..keys import DEFAULT_TENANT, check_name
from .failures import InvalidKey


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key stands for; rates and weights are its tenant's, in Redis."""

    tenant: str
    queue_limit: Annotated[int, msgspec.Meta(ge=1, le=10**12)] | None = None
    """With so many unfinished jobs of its tenant on a queue it is refused; the gateway's flag where
    left out. A bound that an operator has set for the tenant wins."""


class ApiKeys:
    """The keys there are."""

    def __init__(self, known: Mapping[str, str | ApiKey] | None) -> None:
        """`known` has a tenant's name, or more, by key; None lets everybody in.

        Raises:
            InvalidRequest: a tenant's name is none.
        """
        # By their hashes: how long a look-up takes then says nothing of a key.
        self._keys: dict[bytes, ApiKey] | None = None
        if known is not None:
            self._keys = {_hash(key): _checked(value) for key, value in known.items()}

    @classmethod
    def read(cls, path: Path | None) -> "ApiKeys":
        """Read `{"key": "tenant", "key": {"tenant": "…", "queue_limit": 100}, …}`.

        Raises:
            InvalidRequest: the file cannot be read, or says something else.
        """
        if path is None:
            return cls(None)
        try:
            known = msgspec.json.decode(path.read_bytes(), type=dict[str, str | ApiKey])
        except (OSError, msgspec.MsgspecError) as error:
            raise InvalidRequest(
                f"--api-keys {path} is not a JSON file of keys, each with a tenant's name or "
                f'{{"tenant": …, "queue_limit": …}}: {error}'
            ) from error
        return cls(known)

    @property
    def are_asked_for(self) -> bool:
        """Whether a request needs one."""
        return self._keys is not None

    def of(self, authorization: str | None) -> ApiKey:
        """Return the key of an `Authorization` header.

        Raises:
            InvalidKey: there is no key, or nobody has it.
        """
        if self._keys is None:
            return ApiKey(DEFAULT_TENANT)
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise InvalidKey("this gateway wants an API key: send `Authorization: Bearer <key>`")
        known = self._keys.get(_hash(key.strip()))
        if known is None:
            raise InvalidKey(f"no tenant has the API key that ends in {key.strip()[-4:]!r}")
        return known


def _checked(value: str | ApiKey) -> ApiKey:
    key = ApiKey(value) if isinstance(value, str) else value
    check_name("tenant", key.tenant)
    return key


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

"""API keys: whose request it is. Without a file of keys every request is the default tenant's.

This module knows no requests beyond the header, and no queues.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ..errors import InvalidRequest
from ..keys import DEFAULT_TENANT, check_name
from .failures import InvalidKey


class ApiKeys:
    """Which tenant an API key stands for."""

    def __init__(self, tenants: Mapping[str, str] | None) -> None:
        """`tenants` by key; None lets everybody in.

        Raises:
            InvalidRequest: a tenant's name is none.
        """
        # By their hashes: how long a look-up takes then says nothing of a key.
        self._tenants: dict[bytes, str] | None = None
        if tenants is not None:
            names = {_hash(key): check_name("tenant", name) for key, name in tenants.items()}
            self._tenants = names

    @classmethod
    def read(cls, path: Path | None) -> "ApiKeys":
        """Read `{"key": "tenant", …}`.

        Raises:
            InvalidRequest: the file cannot be read, or says something else.
        """
        if path is None:
            return cls(None)
        try:
            tenants = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.MsgspecError) as error:
            raise InvalidRequest(
                f"--api-keys {path} is not a JSON file of key and tenant pairs: {error}"
            ) from error
        return cls(tenants)

    @property
    def are_asked_for(self) -> bool:
        """Whether a request needs one."""
        return self._tenants is not None

    def tenant(self, authorization: str | None) -> str:
        """Return the tenant of an `Authorization` header.

        Raises:
            InvalidKey: there is no key, or nobody has it.
        """
        if self._tenants is None:
            return DEFAULT_TENANT
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise InvalidKey("this gateway wants an API key: send `Authorization: Bearer <key>`")
        tenant = self._tenants.get(_hash(key.strip()))
        if tenant is None:
            raise InvalidKey(f"no tenant has the API key that ends in {key.strip()[-4:]!r}")
        return tenant


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

"""How arq's jobs and results travel: msgpack, and errors as data. Never pickle, which runs code.

An error is `{"$error": code, "message": …}`, readable in any language; in Python it is raised as
the class that has this code.
"""

from typing import Any, cast

import msgspec

from .. import errors
from ..errors import (
    JobCancelled,
    JobExpired,
    JobFailed,
    PagestreamError,
    QueueFull,
    RateLimited,
)

_ERROR = "$error"


def pack(value: Any) -> bytes:
    """Return a job or a result of arq's as bytes."""
    return msgspec.msgpack.encode(value, enc_hook=_as_data)


def unpack(data: bytes) -> Any:
    """Return a job or a result of arq's; an error it ended in is an exception again."""
    value: dict[str, Any] = msgspec.msgpack.decode(data)  # both are maps
    result = value.get("r")
    if isinstance(result, dict) and _ERROR in result:
        told = cast(dict[str, str], result)
        value["r"] = _error(told[_ERROR], told.get("message", ""))
    return value


def _as_data(value: Any) -> Any:
    if isinstance(value, BaseException):
        code = value.code if isinstance(value, PagestreamError) else type(value).__name__
        return {_ERROR: code, "message": str(value)}
    raise NotImplementedError(f"{type(value).__name__} cannot be sent")


def _error(code: str, message: str) -> PagestreamError:
    if code == "cancelled":
        return JobCancelled(message)
    if code == "expired":
        return JobExpired(message)
    kind = _by_code().get(code)
    return kind(message) if kind is not None else JobFailed(message, code=code)


def _by_code() -> dict[str, type[PagestreamError]]:
    """Return the errors that are made of a message alone, by code."""
    named = vars(errors).values()
    return {
        one.code: one
        for one in named
        if isinstance(one, type)
        and issubclass(one, PagestreamError)
        and not issubclass(one, (JobFailed, QueueFull, RateLimited))
        and one is not PagestreamError
    }

"""Errors in the form that OpenAI's clients read: a status and `{"error": {…}}`.

Its client tries again by the status, unless a header says otherwise; `code` is ours.
This module knows no requests.
"""

import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..errors import InvalidRequest, PagestreamError, QueueFull, RateLimited

_STATUS = {
    "invalid_request": 400,
    "unsupported_parameter": 400,
    "unsupported_version": 400,
    "invalid_api_key": 401,
    "unknown_model": 404,
    "job_not_found": 404,
    "file_not_found": 404,
    "batch_not_found": 404,
    "expired": 408,
    "job_conflict": 409,
    "cancelled": 409,
    "file_too_large": 413,
    "queue_full": 429,
    "rate_limited": 429,
    "queue_unavailable": 503,
    "redis_full": 503,
    "not_durable": 503,
}
"""HTTP status by error code; any other is a failure of ours."""

_FINAL = ("cancelled", "expired", "job_conflict")
"""Answers that OpenAI's client would ask for again by their status, though they stay the same."""

_FIELDS = {"prompt_ids": "prompt"}
"""What bodies call otherwise than jobs do."""

_RETRY_S = 1
"""For what passes by itself and says no better."""


class InvalidKey(PagestreamError):
    """The request has no API key, or one that is not known here."""

    code = "invalid_api_key"


def status_of(error: PagestreamError) -> int:
    """Return the HTTP status of an error."""
    return _STATUS.get(error.code, 400 if isinstance(error, InvalidRequest) else 500)


def body_of(error: PagestreamError) -> dict[str, Any]:
    """Return what is said of an error, in a body or in the middle of a stream."""
    param = error.param if isinstance(error, InvalidRequest) else None
    return _body(status_of(error), str(error), error.code, _FIELDS.get(param or "", param))


def add_handlers(app: FastAPI) -> None:
    """Answer every error of a request in the one form."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, PagestreamError), "registered for these"
        status = status_of(error)
        headers: dict[str, str] = {}
        if isinstance(error, (QueueFull, RateLimited)):
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_ms / 1000)))
            headers["Retry-After-Ms"] = str(error.retry_after_ms)
        elif status == 503:
            headers["Retry-After"] = str(_RETRY_S)
        elif error.code in _FINAL:
            headers["X-Should-Retry"] = "false"
        return JSONResponse(body_of(error), status, headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError), "registered for these"
        first = error.errors()[0]
        place = ".".join(str(one) for one in first["loc"][1:])
        message = f"{place or 'the request'}: {first['msg']}"
        body = _body(400, message, "invalid_request", place or None)
        return JSONResponse(jsonable_encoder(body), 400)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException), "registered for these"
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(
            _body(error.status_code, message, None), error.status_code, error.headers
        )

    app.add_exception_handler(PagestreamError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _body(status: int, message: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    # A name in it may hold what UTF-8 cannot carry.
    message, param = _sayable(message), param and _sayable(param)
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _sayable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()

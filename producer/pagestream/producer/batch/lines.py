"""The lines of a batch's files, as OpenAI has them. This module knows no Redis and no HTTP.

Source: OpenAI's API reference, "Batch": "The request input object", "The request output object".
"""

from collections.abc import AsyncIterable, Mapping
from typing import Any, Literal

import msgspec

from ..errors import InvalidRequest

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
LINES_MAX = 50_000
"""Lines a batch may have."""
PROBLEMS_MAX = 20
"""Problems of a file that are told; more help nobody."""

Kind = Literal["output", "errors"]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a batch."""

    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a file is no batch."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


def read_line(data: bytes, endpoint: str) -> Line:
    """Read and check one line.

    Raises:
        InvalidRequest: it is no request for the endpoint; the message says why.
    """
    try:
        line = msgspec.json.decode(data, type=Line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the line is no request: {error}") from error
    if not line.custom_id:
        raise InvalidRequest("custom_id is empty: results are told apart by it")
    if line.method != "POST":
        raise InvalidRequest(f"method={line.method!r}: every line is a POST")
    if line.url != endpoint:
        raise InvalidRequest(f"url={line.url!r}: the batch is for {endpoint}")
    if not isinstance(line.body.get("model"), str):
        raise InvalidRequest("body.model is missing: it names the queue")
    if line.body.get("stream"):
        raise InvalidRequest("body.stream=true: a batch has no streams; leave it out")
    return line


async def check_lines(
    lines: AsyncIterable[tuple[int, bytes]], endpoint: str
) -> tuple[int, list[Problem]]:
    """Return how many requests there are, and what is wrong with them."""
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    async for number, data in lines:
        if len(seen) == LINES_MAX:
            message = f"the file has more than {LINES_MAX:,} lines; cut it in several"
            problems.append(Problem(code="too_many_tasks", message=message, line=number))
            break
        try:
            custom_id = read_line(data, endpoint).custom_id
            if custom_id in seen:
                raise InvalidRequest(f"custom_id={custom_id!r} is line {seen[custom_id]}'s, too")
            seen[custom_id] = number
        except InvalidRequest as error:
            problems.append(Problem(code="invalid_line", message=str(error), line=number))
            if len(problems) == PROBLEMS_MAX:
                break
    if not seen and not problems:
        problems.append(Problem(code="empty_file", message="the file has no line"))
    return len(seen), problems


def answer_line(
    answer_id: str, custom_id: str, status: int, body: Mapping[str, Any], request_id: str
) -> tuple[Kind, bytes]:
    """Return which file an answer goes to, and its line there."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    kind: Kind = "output" if status < 400 else "errors"
    return kind, _encode(answer_id, custom_id, response, None)


def unanswered_line(answer_id: str, custom_id: str, code: str, message: str) -> bytes:
    """Return the line of a request that was never answered."""
    return _encode(answer_id, custom_id, None, {"code": code, "message": message})


def _encode(
    answer_id: str,
    custom_id: str,
    response: Mapping[str, Any] | None,
    error: Mapping[str, Any] | None,
) -> bytes:
    line = {"id": answer_id, "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(line)

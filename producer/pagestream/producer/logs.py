"""Logging of the processes that serve: to standard error, for people or as one JSON object a line.

A record's own fields (`extra={"job_id": …}`) are fields of the JSON, and stand behind the message
for people. This module knows nothing of what is logged.
"""

import logging
import os
import sys
from datetime import UTC, datetime
from typing import Literal

import msgspec

LogFormat = Literal["pretty", "json"]

FORMAT_VARIABLE = "PAGESTREAM_LOG_FORMAT"
_KNOWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """One JSON object a record: `time` (UTC), `level`, `logger`, `message`, and its own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_own_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class PrettyFormatter(logging.Formatter):
    """A line for people: time, level, logger, message, and the record's own fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname).1s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line, without what follows it of an exception."""
        fields = " ".join(f"{name}={value}" for name, value in _own_fields(record).items())
        return super().formatMessage(record) + (f"  [{fields}]" if fields else "")


def log_to_stderr(log_format: LogFormat | None = None) -> None:
    """Set up logging for this process and those it starts.

    `PAGESTREAM_LOG_LEVEL` is the level.

    Args:
        log_format: how; None takes `PAGESTREAM_LOG_FORMAT`, else `pretty`.
    """
    chosen = log_format or os.environ.get(FORMAT_VARIABLE, "pretty")
    os.environ[FORMAT_VARIABLE] = chosen  # an engine process logs as its parent does
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if chosen == "json" else PrettyFormatter())
    level = os.environ.get("PAGESTREAM_LOG_LEVEL", "INFO").upper()
    logging.basicConfig(level=level, handlers=[handler])


def _own_fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _KNOWN}

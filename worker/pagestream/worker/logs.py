"""Logging of a worker's processes. This module knows nothing of what is logged."""

import logging
import os


def log_to_stderr() -> None:
    """Set up logging for a process of the worker; `PAGESTREAM_LOG_LEVEL` is the level."""
    level = os.environ.get("PAGESTREAM_LOG_LEVEL", "INFO").upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")

"""The command `pagestream gateway`. Flags and their help only."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..commands import errors_as_sentences
from ..errors import BadSettings, InvalidRequest
from ..help_groups import GroupedCommand
from ..logs import log_to_stderr
from ..service_flags import Format, Url, flag

DRAIN_S = 10
"""Seconds that open answers get to end after SIGTERM; what is cut goes on at another gateway."""

HTTP, JOBS = "HTTP", "Jobs"

Host = Annotated[str | None, flag(HTTP, "ADDRESS", "Listen on. [default: 127.0.0.1]")]
Port = Annotated[int | None, flag(HTTP, "PORT", "Listen on. [default: 8000]")]
Keys = Annotated[
    Path | None,
    flag(HTTP, "FILE", 'JSON of API keys, {"key": "tenant"}. [default: nobody is asked]'),
]
Wait = Annotated[
    float | None,
    flag(HTTP, "SECONDS", "A stream's headers wait so long for its first token. [default: 5]"),
]
Grace = Annotated[
    float | None,
    flag(JOBS, "SECONDS", "Until a job that nobody reads any more is cancelled. [default: 5]"),
]
Limit = Annotated[
    int | None,
    flag(JOBS, "JOBS", "Unfinished ones of a tenant on a queue before 429. [default: 10000]"),
]


def gateway(
    redis_url: Url = None,
    host: Host = None,
    port: Port = None,
    api_keys: Keys = None,
    disconnect_grace: Grace = None,
    first_entry_wait: Wait = None,
    queue_limit: Limit = None,
    log_format: Format = None,
) -> None:
    """Serve OpenAI's HTTP API over the queues of one Redis."""
    import uvicorn

    from .app import create_app
    from .ports import check_free
    from .settings import read_settings

    with errors_as_sentences():
        settings = read_settings(
            redis_url=redis_url,
            host=host,
            port=port,
            api_keys=api_keys,
            disconnect_grace=disconnect_grace,
            first_entry_wait=first_entry_wait,
            queue_limit=queue_limit,
            log_format=log_format,
        )
        try:
            app = create_app(settings)
        except InvalidRequest as error:  # the file of API keys
            raise BadSettings(str(error)) from error
        check_free(settings.host, settings.port)
    # uvicorn raises the signal that stopped it once more, when all is closed: that is no failure.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _leave)
    log_to_stderr(settings.log_format)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=DRAIN_S,
    )


def _leave(signum: int, frame: object) -> None:
    sys.exit(0)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=GroupedCommand)(gateway)

"""The command `pagestream gateway`. Flags and their help only."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..commands import LogFormat, RedisUrl, errors_as_sentences
from ..logs import log_to_stderr

DRAIN_S = 10
"""Seconds that open answers get to end after SIGTERM; what is cut goes on at another gateway."""

Host = Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on. [default: 8000]")]
Keys = Annotated[
    Path | None,
    typer.Option(help='JSON file of API keys, {"key": "tenant"}. [default: nobody is asked]'),
]
Grace = Annotated[
    float | None,
    typer.Option(help="Seconds until a job that nobody reads any more is cancelled. [default: 5]"),
]
Wait = Annotated[
    float | None,
    typer.Option(help="Seconds a stream's headers wait for its first token. [default: 5]"),
]
Limit = Annotated[
    int | None,
    typer.Option(help="Unfinished jobs of a tenant on a queue before 429. [default: 10000]"),
]


def gateway(
    redis_url: RedisUrl = None,
    host: Host = None,
    port: Port = None,
    api_keys: Keys = None,
    disconnect_grace: Grace = None,
    first_entry_wait: Wait = None,
    queue_limit: Limit = None,
    log_format: LogFormat = None,
) -> None:
    """Serve OpenAI's HTTP API over the queues of one Redis."""
    import uvicorn

    from .app import create_app
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
        app = create_app(settings)
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
    app.command()(gateway)

"""The command `pagestream jobs`. Flags and their help only."""

import asyncio
import logging
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from ..commands import errors_as_sentences
from ..help_groups import GroupedCommand
from ..logs import log_to_stderr
from ..service_flags import Format, Url, flag

if TYPE_CHECKING:
    from .settings import JobsSettings

BATCHES, WEBHOOKS, HEALTH = "Batches", "Webhooks", "Health"

InFlight = Annotated[
    int | None,
    flag(BATCHES, "LINES", "That wait for their answers at a time. [default: 512]"),
]
Limit = Annotated[
    int | None,
    flag(BATCHES, "JOBS", "Unfinished ones of a tenant on a queue: lines wait. [default: 10000]"),
]
Allow = Annotated[
    str | None,
    flag(
        *(WEBHOOKS, "HOSTS"),
        "Hosts and networks that webhooks may go to beside the open internet, with commas "
        "between them: hooks.internal, *.lan, 10.1.0.0/16. [default: none]",
    ),
]
HealthPort = Annotated[
    int | None,
    flag(HEALTH, "PORT", "Answer /health, /ready and /metrics, on every address. [default: none]"),
]


def jobs(
    redis_url: Url = None,
    batch_in_flight: InFlight = None,
    queue_limit: Limit = None,
    webhook_allow: Allow = None,
    health_port: HealthPort = None,
    log_format: Format = None,
) -> None:
    """Run batches, send webhooks, and do what else is due around the queues of one Redis.

    Webhooks are signed with PAGESTREAM_WEBHOOK_SECRET, and not sent without it.
    """
    from .settings import read_settings

    with errors_as_sentences():
        settings = read_settings(
            redis_url=redis_url,
            batch_in_flight=batch_in_flight,
            queue_limit=queue_limit,
            webhook_allow=webhook_allow,
            health_port=health_port,
            log_format=log_format,
        )
        log_to_stderr(settings.log_format)
        # arq logs what functions are called with: prompts do not belong into a log.
        logging.getLogger("arq").setLevel(logging.WARNING)
        asyncio.run(_until_told_to_stop(settings))


async def _until_told_to_stop(settings: "JobsSettings") -> None:
    from .assembly import jobs_process

    async with jobs_process(settings) as process:
        working = asyncio.create_task(process.run())
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, working.cancel)
        await asyncio.gather(working, return_exceptions=True)
        if not working.cancelled():
            working.result()


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=GroupedCommand)(jobs)

"""The commands `ls`, `tail` and `cancel`: jobs that wait and run, read from a terminal.

This module knows the terminal: what is read is `admin`'s, what is streamed the client's.
"""

import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from .admin import Admin
from .admin_commands import JobId, Queue, one_queue
from .commands import TIMEOUT_MS, RedisUrl, errors_as_sentences
from .embedded import default_url
from .sync import Client
from .tables import AsJson

Limit = Annotated[int, typer.Option(min=1, help="Oldest jobs to list, of each lane and tenant.")]
After = Annotated[str | None, typer.Option(help="Leave out what is up to this cursor, like 1-17.")]
JobIds = Annotated[list[str], typer.Argument(help="Ids of jobs.", show_default=False)]


def ls(
    redis_url: RedisUrl = None, queue: Queue = None, limit: Limit = 50, json: AsJson = False
) -> None:
    """List the jobs that wait and run, better lanes first, oldest first."""
    with errors_as_sentences(), Admin(redis_url or default_url()) as admin:
        jobs = admin.unfinished(one_queue(admin, queue), limit)
        if json:
            sys.stdout.write(msgspec.json.encode(jobs).decode() + "\n")
            return
        now_ms = admin.now_ms()
        table = Table(
            *(
                "job",
                "lane",
                "tenant",
                "state",
                "age",
                "worker",
                "crashes",
                "prompt tokens at most",
            ),
            box=None,
            pad_edge=False,
        )
        for job in jobs:
            age = f"{(now_ms - job.queued_ms) / 1000:,.1f} s"
            cells = (job.lane, job.tenant, job.state, age, job.worker or "–")
            table.add_row(job.id, *cells, str(job.crashes), f"{job.prompt_tokens_max:,}")
        if jobs:
            Console(markup=False, highlight=False).print(table)


def tail(
    job_id: JobId, redis_url: RedisUrl = None, queue: Queue = None, after: After = None
) -> None:
    """Print a job's text from its beginning and go on as it comes; Ctrl-C leaves the job alone."""
    with errors_as_sentences(), _client(redis_url, queue) as client:
        for chunk in client.job(job_id).stream(after=after):
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
        sys.stdout.write("\n")


def cancel(job_ids: JobIds, redis_url: RedisUrl = None, queue: Queue = None) -> None:
    """Cancel jobs: one that waits is over at once, one that runs within a step."""
    with errors_as_sentences(), _client(redis_url, queue) as client:
        for job_id in job_ids:
            typer.echo(f"{job_id}: {client.job(job_id).cancel()}")


def _client(redis_url: str | None, queue: str | None) -> Client:
    """A client of the queue that is named, or of the only one."""
    url = redis_url or default_url()
    with Admin(url) as admin:
        name = one_queue(admin, queue)
    return Client(url, queue=name, timeout_ms=TIMEOUT_MS)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (ls, tail, cancel):
        app.command()(command)

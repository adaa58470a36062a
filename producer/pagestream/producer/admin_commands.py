"""The operator's commands: `show`, `delete`, `drain`, `acl`, and `dead` with its own four.

Tables for people, `--json` for programs; exit codes are those of `commands`.
This module knows the terminal: what is done is `admin`'s.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import msgspec
import typer

from .acl import ROLES, rule
from .admin import Admin, DeadLetter
from .commands import RedisUrl, errors_as_sentences
from .embedded import default_url
from .errors import InvalidRequest
from .tables import AsJson, as_json, print_json, print_table, table, when

Queue = Annotated[
    str | None,
    typer.Option(
        help="The queue: a served model's name. [default: the only one there is]",
        envvar="PAGESTREAM_QUEUE",
    ),
]
JobId = Annotated[str, typer.Argument(help="The job's id.")]
Letters = Annotated[
    list[str] | None, typer.Argument(help="Ids of jobs, or of letters.", show_default=False)
]
Everything = Annotated[bool, typer.Option("--all", help="Every dead letter of the queue.")]

dead = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Jobs that were given up: look at them, run them again, or remove them.",
)


def show(
    job_id: JobId, redis_url: RedisUrl = None, queue: Queue = None, json: AsJson = False
) -> None:
    """Show what Redis holds of a job, and for how much longer."""
    with errors_as_sentences(), _admin(redis_url) as admin:
        job = admin.job(one_queue(admin, queue), job_id)
        if json:
            print_json(job)
            return
        shown = table("field", "value")
        for name, value in job.record.items():
            shown.add_row(name, value)
        shown.add_row("reply entries", str(job.entries))
        shown.add_row("memory", f"{job.bytes:,} bytes")
        kept = "until it has finished" if job.kept_ms is None else f"{job.kept_ms / 1000:,.0f} s"
        shown.add_row("kept for", kept)
        print_table(shown)


def delete(job_id: JobId, redis_url: RedisUrl = None, queue: Queue = None) -> None:
    """Remove all data of a job at once; a worker that runs it stops."""
    with errors_as_sentences(), _admin(redis_url) as admin:
        deleted = admin.delete(one_queue(admin, queue), job_id)
        typer.echo("deleted" if deleted else "unknown")


def drain(
    worker: Annotated[str, typer.Argument(help="The worker's name, as `pagestream info` has it.")],
    redis_url: RedisUrl = None,
    queue: Queue = None,
    now: Annotated[
        bool, typer.Option("--now", help="Hand running jobs back at once, with their progress.")
    ] = False,
) -> None:
    """Let a worker take no new job, finish what it runs within its grace, and exit with 0."""
    with errors_as_sentences(), _admin(redis_url) as admin:
        admin.drain(one_queue(admin, queue), worker, at_once=now)
        typer.echo(f"worker {worker} was told")


def acl(
    role: Annotated[str, typer.Argument(help=f"One of {', '.join(ROLES)}.")],
    queue: Annotated[
        str, typer.Option(help="A served model's name; * for a gateway or jobs: every queue.")
    ],
    user: Annotated[str | None, typer.Option(help="The user's name. [default: the role]")] = None,
    tenant: Annotated[
        str | None, typer.Option(help="A producer or reader of this tenant's jobs alone.")
    ] = None,
    redis_6: Annotated[bool, typer.Option("--redis-6", help="For Redis 6.2 to 7.1.")] = False,
) -> None:
    """Print a Redis user with the rights of a role, as a line of an ACL file.

    Its password is made here, and said once, on standard error.
    """
    with errors_as_sentences():
        if role not in ROLES:
            raise InvalidRequest(f"role {role!r} is not one of {', '.join(ROLES)}")
        password = secrets.token_urlsafe(24)
        line = rule(
            role,
            queue,
            user=user or role,
            password_sha256=hashlib.sha256(password.encode()).hexdigest(),
            tenant=tenant,
            redis_6=redis_6,
        )
        typer.echo(line)
        typer.echo(f"password of {user or role}: {password}", err=True)


@dead.command("list")
def list_letters(redis_url: RedisUrl = None, queue: Queue = None, json: AsJson = False) -> None:
    """List the dead letters, oldest first."""
    with errors_as_sentences(), _admin(redis_url) as admin:
        letters = list(admin.letters(one_queue(admin, queue)))
        if json:
            print_json([_shown(letter) for letter in letters])
            return
        shown = table("job", "died (UTC)", "reason", "crashes", "tenant", "last worker", "error")
        for one in letters:
            error = (one.error or one.message).strip().splitlines() or [""]
            cells = (when(one.died_ms), one.reason, str(one.crashes), one.tenant, one.worker)
            shown.add_row(one.id or one.letter, *cells, error[-1])
        print_table(shown)


@dead.command("show")
def show_letter(
    name: Annotated[str, typer.Argument(help="The id of the job, or of the letter.")],
    redis_url: RedisUrl = None,
    queue: Queue = None,
    json: AsJson = False,
) -> None:
    """Show one dead letter: the request, the reason, and the last error."""
    with errors_as_sentences(), _admin(redis_url) as admin:
        shown = _shown(admin.letter(one_queue(admin, queue), name))
        if json:
            print_json(shown)
            return
        fields = table("field", "value")
        for field, value in shown.items():
            fields.add_row(field, value if isinstance(value, str) else as_json(value))
        print_table(fields)


@dead.command("retry")
def retry_letters(
    names: Letters = None,
    redis_url: RedisUrl = None,
    queue: Queue = None,
    every: Everything = False,
) -> None:
    """Queue jobs again under their ids: their readers go on where they stopped.

    A job runs alone and without its old deadlines; one more death makes it a dead letter again.
    """
    _each(redis_url, queue, names, every, Admin.retry, "queued again")


@dead.command("purge")
def purge_letters(
    names: Letters = None,
    redis_url: RedisUrl = None,
    queue: Queue = None,
    every: Everything = False,
) -> None:
    """Remove dead letters and all data of their jobs."""
    _each(redis_url, queue, names, every, Admin.purge, "removed")


def register(app: typer.Typer) -> None:
    """Add the operator's commands to the command line."""
    for command in (show, delete, drain, acl):
        app.command()(command)
    app.add_typer(dead, name="dead")


def _each(
    redis_url: str | None,
    queue: str | None,
    names: Sequence[str] | None,
    every: bool,
    act: Callable[[Admin, str, DeadLetter], None],
    done: str,
) -> None:
    """Do something to the letters that are named, or to all; the first that fails ends it."""
    with errors_as_sentences(), _admin(redis_url) as admin:
        if bool(names) == every:
            raise InvalidRequest("name the dead letters, or say --all")
        queue = one_queue(admin, queue)
        wanted: Iterable[DeadLetter] = (
            list(admin.letters(queue))
            if every
            else [admin.letter(queue, name) for name in names or ()]
        )
        for letter in wanted:
            if every and act is Admin.retry and not letter.id:
                continue  # never was a job
            act(admin, queue, letter)
            typer.echo(f"{letter.id or letter.letter}: {done}")


def _admin(redis_url: str | None) -> Admin:
    return Admin(redis_url or default_url())


def one_queue(admin: Admin, queue: str | None) -> str:
    """Return the queue that is named, or the only one.

    Raises:
        InvalidRequest: none is named and there is not exactly one.
    """
    if queue is not None:
        return queue
    names = admin.queues()
    if len(names) != 1:
        raise InvalidRequest(
            f"choose a queue by --queue: {', '.join(names) or 'there is none yet'}"
        )
    return names[0]


def _shown(letter: DeadLetter) -> dict[str, Any]:
    shown = msgspec.structs.asdict(letter)
    del shown["payload"]
    return {**shown, "died": when(letter.died_ms), "request": letter.request()}

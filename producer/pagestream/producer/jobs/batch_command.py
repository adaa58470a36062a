"""The command `pagestream batch`: a file of requests in, a file of answers out.

It runs the batch itself, so it needs no jobs process; Redis keeps what is answered, so the same
command goes on where it was broken off. This module knows files on disk and the terminal.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..batch.batches import Batch, BatchNotFound, BatchStore
from ..batch.files import PIECE_BYTES, FileNotFound, FileStore, made_id
from ..batch.lines import ENDPOINTS
from ..batch.runner import Runner
from ..calls import Calls
from ..commands import FAILED, TIMEOUT_MS, RedisUrl, errors_as_sentences
from ..connection import connect_async
from ..embedded import default_url
from ..errors import InvalidRequest
from ..gateway.settings import GatewaySettings
from ..keys import DEFAULT_TENANT, check_name
from .answering import in_process

LOOK_S = 0.2

Input = Annotated[
    Path, typer.Argument(help="Requests, one a line, in the form of OpenAI's batches.")
]
Output = Annotated[Path, typer.Argument(help="Where the answers go; errors go beside it.")]
Endpoint = Annotated[
    str | None, typer.Option(help="What the lines are for. [default: the first line's url]")
]
Tenant = Annotated[str, typer.Option(help="Whose jobs these are.")]
InFlight = Annotated[int, typer.Option(min=1, help="Lines that wait for answers at a time.")]
Again = Annotated[
    bool, typer.Option("--again", help="Answer anew what has been answered or has failed before.")
]


def batch(
    input_path: Input,
    output_path: Output,
    redis_url: RedisUrl = None,
    endpoint: Endpoint = None,
    tenant: Tenant = DEFAULT_TENANT,
    in_flight: InFlight = 512,
    again: Again = False,
) -> None:
    """Answer a file of requests behind all other work. Run it again to go on after an interrupt."""
    with errors_as_sentences():
        if not input_path.is_file():
            raise InvalidRequest(f"{input_path} is not a file")
        _check_writable(output_path)
        endpoint = endpoint or _endpoint(input_path)
        run = _Run(redis_url or default_url(), check_name("tenant", tenant), in_flight, again)
        ended = asyncio.run(run.answer(input_path, output_path, endpoint))
    _say(ended, output_path, ran=run.ran)
    if ended.status != "completed" or ended.failed:
        raise typer.Exit(FAILED)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(batch)


class _Run:
    """One run of the command."""

    def __init__(self, url: str, tenant: str, in_flight: int, again: bool) -> None:
        self.ran = True
        """Whether there was anything left to answer."""
        self._url = url
        self._tenant = tenant
        self._in_flight = in_flight
        self._again = again

    async def answer(self, input_path: Path, output_path: Path, endpoint: str) -> Batch:
        """Run the batch to its end, and write its files."""
        redis = connect_async(self._url, client_name="pagestream-batch", max_connections=64)
        calls = Calls(redis, self._url, TIMEOUT_MS)
        files, batches = FileStore(calls), BatchStore(calls)
        gateway = GatewaySettings(redis_url=self._url, api_keys=None)
        try:
            async with in_process(gateway) as asked:
                batch = await self._create(files, batches, input_path, output_path, endpoint)
                self.ran = not batch.ended
                runner = Runner(files, batches, asked, in_flight=self._in_flight)
                await _watched(runner, batches, batch.about.id)
                batch = await batches.get(batch.about.id)
                await self._write(files, batch.output_file_id, output_path)
                await self._write(files, batch.error_file_id, errors_path(output_path))
                return batch
        finally:
            await redis.aclose()

    async def _create(
        self, files: FileStore, batches: BatchStore, source: Path, target: Path, endpoint: str
    ) -> Batch:
        # The same requests for the same answers are the same batch: that is how it goes on.
        digest = hashlib.blake2b(digest_size=32)
        async for part in _parts(source):
            digest.update(part)
        asked = (self._tenant, endpoint, digest.hexdigest(), str(target.absolute()))
        batch_id = await self._attempt(batches, asked)
        file_id = made_id("file-", batch_id, "input")
        try:
            await files.get(file_id, self._tenant)
        except FileNotFound:
            await files.create(
                _parts(source),
                tenant=self._tenant,
                filename=source.name,
                purpose="batch",
                file_id=file_id,
            )
        return await batches.create(
            batch_id,
            tenant=self._tenant,
            endpoint=endpoint,
            input_file_id=file_id,
            completion_window="24h",
            metadata=None,
        )

    async def _attempt(self, batches: BatchStore, asked: Sequence[str]) -> str:
        """Return the id of the last attempt; of the next if there is none, or it is to be anew."""
        last: Batch | None = None
        number = 1
        while True:
            batch_id = made_id("batch_", *asked, str(number))
            try:
                last = await batches.get(batch_id, self._tenant)
            except BatchNotFound:
                if last is None or (last.ended and self._again):
                    return batch_id
                return last.about.id
            number += 1

    async def _write(self, files: FileStore, file_id: str | None, path: Path) -> None:
        if file_id is None:
            path.unlink(missing_ok=True)
            return
        unfinished = _unfinished(path)
        with unfinished.open("wb") as out:
            async for piece in files.content(await files.get(file_id, self._tenant)):
                out.write(piece)
        unfinished.replace(path)


def errors_path(output_path: Path) -> Path:
    """Return where the lines that failed go: `out.jsonl` has `out.errors.jsonl`."""
    return output_path.with_name(f"{output_path.stem}.errors{output_path.suffix}")


def _check_writable(path: Path) -> None:
    """Find out before the work whether the answers have a place.

    Raises:
        InvalidRequest: they have none.
    """
    if not path.parent.is_dir():
        raise InvalidRequest(f"{path.parent} is not a folder: the answers go there")
    if path.is_dir():
        raise InvalidRequest(f"{path} is a folder: name a file for the answers")
    unfinished = _unfinished(path)
    try:
        unfinished.touch()
        unfinished.unlink()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}") from error


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".part")


async def _watched(runner: Runner, batches: BatchStore, batch_id: str) -> None:
    """Run a batch and show how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    running = asyncio.create_task(runner.run(batch_id))
    try:
        with Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        ) as progress:
            line = progress.add_task("validating", total=None)
            while not running.done():
                await asyncio.wait({running}, timeout=LOOK_S)
                batch = await batches.get(batch_id)
                progress.update(
                    line,
                    description=batch.status,
                    total=batch.total or None,
                    completed=batch.completed + batch.failed,
                )
        running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _say(batch: Batch, output_path: Path, *, ran: bool) -> None:
    if not ran:
        typer.echo("this file was answered before; --again answers it anew", err=True)
    for problem in batch.problems[:5]:
        where = f"line {problem.line}: " if problem.line else ""
        typer.echo(f"error: {where}{problem.message}", err=True)
    if batch.completed:
        typer.echo(f"{batch.completed:,} answers: {output_path}", err=True)
    if batch.failed:
        typer.echo(f"{batch.failed:,} errors: {errors_path(output_path)}", err=True)


def _endpoint(path: Path) -> str:
    """Return what the first line asks for."""
    with path.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    try:
        url: Any = msgspec.json.decode(first, type=dict[str, Any]).get("url")
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"the first line of {path} is no request: {error}") from error
    if url not in ENDPOINTS:
        raise InvalidRequest(f"url={url!r} is not one of {', '.join(ENDPOINTS)}")
    return url


async def _parts(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(PIECE_BYTES):
            yield part

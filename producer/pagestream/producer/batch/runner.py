"""Answers every line of a batch, whoever began it and however often it was broken off.

What is done is what Redis has an answer for; all else is asked again, under a key made of the
line's `custom_id`, so that a line whose job still runs finds it. Two runners of one batch do no
harm: a line's answer is kept once. This module knows batches; who answers a line it is told.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol, Unpack, cast

import msgspec

from ..keys import FILE_RETENTION_MS
from .batches import WINDOWS, About, Asking, Batch, BatchNotFound, BatchStore, Status
from .due import Due
from .files import File, FileNotFound, FileStore, made_id
from .lines import Kind, Line, Problem, answer_line, check_lines, read_line, unanswered_line

LOOK_S = 1.0
"""How often a runner looks whether its batch was cancelled, or ran out of time."""
PAGE_LINES = 500

RETRIED = frozenset(
    {"queue_full", "rate_limited", "queue_unavailable", "redis_full", "job_lost"},
)
"""Codes of answers that are none: the line is asked again."""


async def start(
    files: FileStore, batches: BatchStore, due: Due, batch_id: str, **asked: Unpack[Asking]
) -> Batch:
    """Create a batch and have it run; under an id that is there, return that batch.

    Raises:
        FileNotFound: the tenant has no such file.
        InvalidRequest: the batch cannot be as it is asked.
        QueueUnavailable: Redis cannot be reached.
    """
    file = await files.get(asked["input_file_id"], asked["tenant"])
    batch = await batches.create(batch_id, **asked)
    await files.keep(file, WINDOWS[batch.about.completion_window] + FILE_RETENTION_MS)
    if not batch.ended:
        await due.put(entry_of(batch_id))
    return batch


def entry_of(batch_id: str) -> str:
    """Return a batch's entry in the list of what is due."""
    return f"batch:{batch_id}"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a line got."""

    status: int
    request_id: str
    body: dict[str, Any]
    retry_after_s: float = 1.0

    @property
    def is_final(self) -> bool:
        """Whether asking again would be of no use."""
        error: Any = self.body.get("error")
        return not isinstance(error, dict) or cast(Any, error).get("code") not in RETRIED


class Asked(Protocol):
    """Who answers lines."""

    async def answer(self, about: About, line: Line) -> Answer:
        """Return a line's answer, however long it takes."""
        ...

    async def give_up(self, batch_id: str) -> None:
        """Nobody waits for a batch's open lines any more."""
        ...


class Runner:
    """Runs batches; belongs to one event loop."""

    def __init__(
        self,
        files: FileStore,
        batches: BatchStore,
        asked: Asked,
        *,
        in_flight: int,
    ) -> None:
        """At most `in_flight` lines, of all batches, wait for an answer at a time."""
        self._files = files
        self._batches = batches
        self._asked = asked
        self._window = asyncio.Semaphore(in_flight)

    async def run(self, batch_id: str) -> None:
        """Bring a batch to its end.

        Raises:
            QueueUnavailable: Redis cannot be reached; run it again.
        """
        try:
            batch = await self._batches.get(batch_id)
            file = await self._files.get(batch.about.input_file_id, batch.about.tenant)
            if batch.status == "validating":
                batch = await self._validate(batch, file)
            if batch.status == "in_progress":
                batch = await self._answer_until_over(batch, file)
            if not batch.ended:
                await self._asked.give_up(batch_id)
                await self._gather(batch, file)
            await self._batches.forget_answers(batch_id)
        except BatchNotFound:
            return
        except FileNotFound as error:
            await self._fail(batch_id, "missing_input_file", str(error))

    async def _validate(self, batch: Batch, file: File) -> Batch:
        total, problems = await check_lines(self._files.lines(file), batch.about.endpoint)
        if problems:
            told = msgspec.json.encode(problems)
            await self._batches.move(batch.about.id, ["validating"], "failed", problems=told)
        else:
            await self._batches.move(batch.about.id, ["validating"], "in_progress", total=total)
        return await self._batches.get(batch.about.id)

    async def _answer_until_over(self, batch: Batch, file: File) -> Batch:
        """Answer lines until all are, or the batch is cancelled or out of time."""
        answering = asyncio.create_task(self._answer_all(batch, file))
        try:
            while not answering.done():
                await asyncio.wait({answering}, timeout=LOOK_S)
                batch = await self._batches.get(batch.about.id)
                if batch.status != "in_progress" or await self._batches.is_late(batch):
                    return batch
            answering.result()
            return batch
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    async def _answer_all(self, batch: Batch, file: File) -> None:
        answered = await self._batches.answered(batch.about.id)
        try:
            async with asyncio.TaskGroup() as group:
                async for number, data in self._files.lines(file):
                    if number not in answered:
                        await self._window.acquire()
                        task = group.create_task(self._answer_line(batch.about, number, data))
                        task.add_done_callback(lambda _: self._window.release())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed  # one says it: Redis is away, or the file gone

    async def _answer_line(self, about: About, number: int, data: bytes) -> None:
        line = read_line(data, about.endpoint)
        while not (answer := await self._asked.answer(about, line)).is_final:
            await asyncio.sleep(answer.retry_after_s)
        kind, kept = answer_line(
            _answer_id(about, number), line.custom_id, answer.status, answer.body, answer.request_id
        )
        await self._batches.record(about.id, number, kind, kept)

    async def _gather(self, batch: Batch, file: File) -> None:
        """Make files of the answers, and say how the batch ended."""
        await self._batches.close(batch.about.id)
        batch = await self._batches.get(batch.about.id)
        ended: Status = "completed"
        if batch.status == "cancelling":
            ended = "cancelled"
        elif batch.completed + batch.failed < batch.total:
            ended = "expired"
        is_expired = ended == "expired"
        failed = batch.total - batch.completed if is_expired else batch.failed
        output = await self._make_file(batch, file, "output", False) if batch.completed else None
        errors = await self._make_file(batch, file, "errors", is_expired) if failed else None
        await self._batches.move(
            batch.about.id,
            ["finalizing", "cancelling"],
            ended,
            completed=batch.completed,
            failed=failed,
            output_file_id=output or "",
            error_file_id=errors or "",
        )

    async def _make_file(self, batch: Batch, file: File, kind: Kind, with_unanswered: bool) -> str:
        made = await self._files.create(
            self._answers(batch, file, kind, with_unanswered),
            tenant=batch.about.tenant,
            filename=f"{batch.about.id}_{kind}.jsonl",
            purpose="batch_output",
            file_id=made_id("file-", batch.about.id, kind),
        )
        return made.id

    async def _answers(
        self, batch: Batch, file: File, kind: Kind, with_unanswered: bool
    ) -> AsyncIterator[bytes]:
        """Yield the lines of one file of answers, in the order of the input's."""
        answered = await self._batches.answered(batch.about.id) if with_unanswered else set[int]()
        async for page in _pages(self._files.lines(file)):
            numbers = [number for number, _ in page]
            answers = await self._batches.answers(batch.about.id, kind, numbers)
            for (number, data), answer in zip(page, answers, strict=True):
                if answer is not None:
                    yield answer + b"\n"
                elif with_unanswered and number not in answered:
                    yield _expired(batch.about, number, data) + b"\n"

    async def _fail(self, batch_id: str, code: str, message: str) -> None:
        told = msgspec.json.encode([Problem(code=code, message=message)])
        unfinished: list[Status] = ["validating", "in_progress", "finalizing", "cancelling"]
        await self._batches.move(batch_id, unfinished, "failed", problems=told)
        await self._batches.forget_answers(batch_id)


def _answer_id(about: About, number: int) -> str:
    return made_id("batch_req_", about.id, str(number))


def _expired(about: About, number: int, data: bytes) -> bytes:
    custom_id = read_line(data, about.endpoint).custom_id
    message = f"the batch's {about.completion_window} were over before this line was answered"
    return unanswered_line(_answer_id(about, number), custom_id, "batch_expired", message)


async def _pages(
    lines: AsyncIterator[tuple[int, bytes]],
) -> AsyncIterator[Sequence[tuple[int, bytes]]]:
    page: list[tuple[int, bytes]] = []
    async for line in lines:
        page.append(line)
        if len(page) == PAGE_LINES:
            yield page
            page = []
    if page:
        yield page

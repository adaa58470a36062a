"""The producer of `make demo`: sends prompts all at once and shows their tokens as they stream.

On a terminal it is a live table, otherwise plain lines. It uses the public client alone, and reads
the worker's heartbeat for the use of the KV cache.
"""

import argparse
import asyncio
import json
import math
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pagestream.producer import AsyncClient
from pagestream.producer.errors import PagestreamError
from pagestream.producer.keys import Keys

PROMPTS = (
    "def read_lines(path):",
    "class Stack:\n    def __init__(self):",
    "def is_prime(n):",
    "import os\n\ndef walk(top):",
    "def parse_args(argv=None):",
    "class Point:\n    def __init__(self, x, y):",
    "def merge(left, right):",
    "def test_empty(self):",
)
"""Beginnings of Python code, which the demo model was trained on; it writes the line breaks."""


@dataclass
class Request:
    """One prompt and what came of it."""

    prompt: str
    began: float = 0.0
    first: float | None = None
    """When the first token arrived, on the monotonic clock."""
    ended: bool = False
    error: str = ""
    tokens: int = 0
    text: list[str] = field(default_factory=list)


@dataclass
class Board:
    """All requests of the run, and the highest use of the KV cache seen."""

    requests: list[Request]
    began: float = 0.0
    ended: float | None = None
    kv_used: float = 0.0
    """Share of the KV cache that requests held, at most."""
    kv_waste: float | None = None
    """Share of that which held no token, at the same time."""

    @property
    def tokens(self) -> int:
        """Output tokens received so far."""
        return sum(request.tokens for request in self.requests)

    @property
    def done(self) -> int:
        """Requests that have ended."""
        return sum(request.ended for request in self.requests)

    def tokens_per_second(self) -> float:
        """Output tokens a second since the first submit."""
        return self.tokens / max(1e-9, (self.ended or time.monotonic()) - self.began)

    def progress(self) -> str:
        """One line: how far the run is."""
        return (
            f"{self.done}/{len(self.requests)} requests · {self.tokens} tokens · "
            f"{self.tokens_per_second():.0f} tokens/s · KV {self.kv_used:.0%}"
        )


async def follow(client: AsyncClient, request: Request, max_tokens: int, plain: bool) -> None:
    """Submit one prompt and collect its stream."""
    request.began = time.monotonic()
    try:
        job = await client.submit(request.prompt, max_tokens=max_tokens)
        async for chunk in job.stream():
            if chunk.ids and request.first is None:
                request.first = time.monotonic()
            request.tokens += len(chunk.ids)
            request.text.append(chunk.text)
            if plain:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
    except PagestreamError as error:
        request.error = f"{error.code}: {error}"
    request.ended = True


async def watch(board: Board, url: str, queue: str) -> None:
    """Read the workers' heartbeats until cancelled, for the use of the KV cache."""
    keys = Keys(queue)
    async with Redis.from_url(url, decode_responses=True) as connection:
        redis: Any = connection  # redis-py 5 declares answers of both kinds
        while True:
            for worker, info in (await redis.hgetall(keys.model)).items():
                beat = await redis.get(keys.heartbeat(str(worker)))
                note_kv(board, json.loads(info)["kv_tokens"], json.loads(beat or "{}"))
            await asyncio.sleep(0.1)


def note_kv(board: Board, kv_tokens: int, beat: dict[str, int]) -> None:
    """Keep the beat's figures if it shows more of the cache in use than any before."""
    allocated = beat.get("allocated_slots", 0)
    if allocated and allocated / kv_tokens >= board.kv_used:
        board.kv_used = allocated / kv_tokens
        board.kv_waste = 1 - beat["used_slots"] / allocated


def tail(text: str, width: int) -> str:
    """The end of a text on one line of `width` characters, as what has just arrived is there."""
    line = " ".join(text.split())
    return line if len(line) <= width else "…" + line[1 - width :]


def picture(board: Board, console: Console) -> RenderableType:
    """What the terminal shows while the run goes on: as many requests as fit, and the progress."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(justify="right", style="dim", width=3)
    table.add_column(justify="right", style="cyan", width=5)
    table.add_column(ratio=1, no_wrap=True, overflow="crop")
    width = console.width - 12
    for number, request in enumerate(board.requests[: max(1, console.height - 4)], 1):
        style = "red" if request.error else ("dim" if request.ended else "")
        shown = request.error or (request.prompt + "".join(request.text))
        table.add_row(str(number), str(request.tokens), Text(tail(shown, width), style))
    bar = ProgressBar(total=len(board.requests), completed=board.done)
    return Group(table, bar, Text(board.progress(), "bold"))


async def show_live(board: Board, console: Console) -> None:
    """Redraw the table until cancelled; the last picture stays."""
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                live.update(picture(board, console), refresh=True)
                await asyncio.sleep(0.08)
        finally:
            live.update(picture(board, console), refresh=True)


async def show_plain(board: Board) -> None:
    """Print a progress line a second until cancelled, for logs."""
    while True:
        await asyncio.sleep(1)
        print(f"\n-- {board.progress()}", flush=True)


async def run(arguments: argparse.Namespace, console: Console) -> Board:
    """Send every prompt at once and wait for the last token."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(arguments.requests)]
    board = Board([Request(prompt) for prompt in prompts])
    plain = not console.is_terminal
    async with AsyncClient(arguments.redis_url, model=arguments.model) as client:
        board.began = time.monotonic()
        helpers = [
            asyncio.create_task(watch(board, arguments.redis_url, arguments.model)),
            asyncio.create_task(show_plain(board) if plain else show_live(board, console)),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for number, request in enumerate(board.requests):
                    # In a log, the tokens of one request are shown as they come.
                    shown = plain and number == 0
                    group.create_task(follow(client, request, arguments.max_tokens, shown))
            board.ended = time.monotonic()
        finally:
            for task in helpers:
                task.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
    return board


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summary(board: Board) -> Table:
    """The figures of the run."""
    first_ms = [(r.first - r.began) * 1000 for r in board.requests if r.first is not None]
    failed = [request for request in board.requests if request.error]
    table = Table.grid(padding=(0, 2))
    table.add_row("requests", f"{board.done - len(failed)} done, {len(failed)} failed")
    table.add_row("output", f"{board.tokens} tokens, {board.tokens_per_second():.0f} tokens/s")
    if first_ms:
        p50, p95 = percentile(first_ms, 0.5), percentile(first_ms, 0.95)
        table.add_row("time to first token", f"p50 {p50:.0f} ms, p95 {p95:.0f} ms")
    if board.kv_waste is not None:
        table.add_row(
            "KV cache",
            f"{board.kv_used:.1%} in use at most, {board.kv_waste:.1%} of that empty",
        )
    return table


def main() -> int:
    """Run the producer; the exit code says whether every request was answered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--max-tokens", type=int, default=128)
    arguments = parser.parse_args()
    console = Console(highlight=False)
    board = asyncio.run(run(arguments, console))
    console.print()
    if console.is_terminal:
        answer = board.requests[0]
        console.print(Text(answer.prompt + "".join(answer.text)), soft_wrap=True)
        console.print()
    console.print(summary(board))
    failed = [request for request in board.requests if request.error]
    for request in failed[:3]:
        console.print(Text(f"failed: {request.error}", "red"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

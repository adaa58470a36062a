"""`pagestream generate` and `pagestream chat`: a prompt in, its tokens on the terminal.

Exit codes: 0 done, 1 the job failed, 2 the request is wrong, 69 no Redis or no such model, 75 try
again later (the queue is full, the tenant sends too fast, the job was lost), 78 not installed or
settings that cannot work, 130 interrupted.
This module knows the client and the terminal: no Redis.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar, cast

import msgspec
import typer
from rich.console import Console

from .calls import Calls
from .connection import connect_async
from .embedded import default_url
from .errors import (
    BadSettings,
    InvalidRequest,
    JobLost,
    NotDurable,
    PagestreamError,
    QueueFull,
    QueueUnavailable,
    RateLimited,
    RedisFull,
    UnknownModel,
)
from .keys import Keys
from .request import SubmitOptions
from .store import JobStore
from .sync import Client, Job

T = TypeVar("T")

FAILED, WRONG, UNAVAILABLE, LATER, BAD_SETTINGS, INTERRUPTED = 1, 2, 69, 75, 78, 130
TIMEOUT_MS = 3_000
"""How long a command tries to reach Redis: somebody is looking at it."""

RedisUrl = Annotated[
    str | None,
    typer.Option(
        help="redis://, rediss://, unix:// or redis+sentinel:// URL. "
        "[default: the server of `pagestream up`, else redis://localhost:6379/0]",
        envvar="PAGESTREAM_REDIS_URL",
    ),
]
Model = Annotated[
    str | None, typer.Option(help="The name it is served by. [default: the only one there is]")
]
Queue = Annotated[
    str | None, typer.Option(help="The queue. [default: the model's]", envvar="PAGESTREAM_QUEUE")
]
MaxTokens = Annotated[
    int | None, typer.Option(help="Output tokens at most. [default: to the context's end]")
]
Temperature = Annotated[float | None, typer.Option(help="0 (greedy) to 2. [default: the model's]")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k most likely tokens; 0: all.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest p of the probability.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens below this share of the likeliest.")]
MinTokens = Annotated[int | None, typer.Option(help="No stop before this many output tokens.")]
Seed = Annotated[int | None, typer.Option(help="The same seed draws the same tokens.")]
Stop = Annotated[list[str] | None, typer.Option(help="End at this string; may be repeated.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on past the model's end.")]


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    model: Model = None,
    queue: Queue = None,
    redis_url: RedisUrl = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    min_tokens: MinTokens = None,
    seed: Seed = None,
    stop: Stop = None,
    ignore_eos: IgnoreEos = False,
    lane: Annotated[str | None, typer.Option(help="high, normal or low.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose job it is.")] = None,
    deadline_ms: Annotated[
        int | None, typer.Option(help="Expire when it has not finished by then.")
    ] = None,
    reader_timeout_ms: Annotated[
        int | None, typer.Option(help="Cancel the job when nobody has read it for so long.")
    ] = None,
    job_id: Annotated[
        str | None, typer.Option("--id", help="The job's id: running it again attaches to it.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object when it is done.")
    ] = False,
) -> None:
    """Send one prompt and print its tokens as they come. Ctrl-C cancels the job."""
    options = _given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        min_tokens=min_tokens,
        seed=seed,
        stop=stop,
        ignore_eos=ignore_eos or None,
        lane=lane,
        tenant=tenant,
        deadline_ms=deadline_ms,
        reader_timeout_ms=reader_timeout_ms,
        id=job_id or os.urandom(16).hex(),  # known before the submit: an interrupt may come in it
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    with (
        errors_as_sentences(),
        _client(redis_url, model, queue) as client,
        _cancelled_by_interrupt(client.job(options.get("id", ""))),
    ):
        job = client.submit(text, **options)
        if json:
            sys.stdout.write(msgspec.json.encode(job.result()).decode() + "\n")
        else:
            _print(job, sys.stdout.write)
            sys.stdout.write("\n")


def chat(
    model: Model = None,
    queue: Queue = None,
    redis_url: RedisUrl = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
    stop: Stop = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
) -> None:
    """Talk with a model that has a chat template.

    Ctrl-C ends an answer, Ctrl-D or /exit the conversation, /clear forgets it.
    """
    options = _given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop,
    )
    beginning = [{"role": "system", "content": system}] if system else []
    messages = list(beginning)
    with errors_as_sentences(), _client(redis_url, model, queue) as client:
        for line in _lines():
            if line == "/clear":
                messages = list(beginning)
                continue
            messages.append({"role": "user", "content": line})
            answer = _answer(client, messages, options)
            messages.append({"role": "assistant", "content": answer})


def register(app: typer.Typer) -> None:
    """Add this room's commands to the command line."""
    app.command()(generate)
    app.command()(chat)


def _answer(client: Client, messages: list[dict[str, str]], options: SubmitOptions) -> str:
    """Print one answer as it comes and return it, or what there is of it when interrupted."""
    said: list[str] = []

    def say(text: str) -> object:
        said.append(text)
        return sys.stdout.write(text)

    given: SubmitOptions = {**options, "messages": messages}
    job = client.submit(**given)
    try:
        _print(job, say)
    except KeyboardInterrupt:
        job.cancel()
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(said)


def _print(job: Job, write: Callable[[str], object]) -> None:
    for chunk in job.stream():
        write(chunk.text)
        sys.stdout.flush()


def _lines() -> Iterator[str]:
    """Yield what the user says until they leave; the prompt is shown on a terminal only."""
    console = Console(stderr=True)
    terminal = sys.stdin.isatty()
    while True:
        try:
            line = (console.input("[bold]> [/bold]") if terminal else input()).strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line:
            yield line


def _given(**options: Any) -> SubmitOptions:
    """Return the options that were given on the command line."""
    return cast(
        SubmitOptions, {name: one for name, one in options.items() if one not in (None, [])}
    )


def _client(redis_url: str | None, model: str | None, queue: str | None) -> Client:
    url = redis_url or default_url()
    if model is None and queue is None:
        queue = only_queue(url)
    return Client(url, model=model, queue=queue, timeout_ms=TIMEOUT_MS)


def only_queue(url: str) -> str:
    """Return the name of the only queue that is served now.

    Raises:
        InvalidRequest: there are several.
        UnknownModel: there is none.
    """

    async def ask() -> list[str]:
        store = JobStore(url, Keys("?"), timeout_ms=TIMEOUT_MS, reconnect_ms=TIMEOUT_MS)
        try:
            return await store.served_queues()
        finally:
            await store.aclose()

    names = asyncio.run(ask())
    if not names:
        raise UnknownModel(
            "no worker serves a model on this Redis now: start one, or name the --model"
        )
    if len(names) > 1:
        raise InvalidRequest(
            f"several models are served; choose one by --model: {', '.join(names)}"
        )
    return names[0]


@contextmanager
def _cancelled_by_interrupt(job: Job) -> Generator[None, None, None]:
    try:
        yield
    except KeyboardInterrupt:
        job.cancel()
        raise


@contextmanager
def errors_as_sentences() -> Generator[None, None, None]:
    """Turn what a user can do something about into one line and an exit code."""
    try:
        yield
    except PagestreamError as error:
        sys.stdout.flush()
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def asked(redis_url: str | None, client_name: str, ask: Callable[[Calls], Awaitable[T]]) -> T:
    """Return what `ask` finds out on a connection of its own; errors are sentences."""

    async def run() -> T:
        url = redis_url or default_url()
        redis = connect_async(url, client_name=client_name)
        try:
            return await ask(Calls(redis, url, TIMEOUT_MS))
        finally:
            await redis.aclose()

    with errors_as_sentences():
        return asyncio.run(run())


def exit_code(error: PagestreamError) -> int:
    """Return the exit code that stands for an error."""
    codes: Mapping[type[PagestreamError], int] = {
        RedisFull: LATER,
        QueueUnavailable: UNAVAILABLE,
        NotDurable: UNAVAILABLE,
        UnknownModel: UNAVAILABLE,
        QueueFull: LATER,
        RateLimited: LATER,
        JobLost: LATER,
        BadSettings: BAD_SETTINGS,
        InvalidRequest: WRONG,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), FAILED)

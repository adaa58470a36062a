"""The server-side scripts: their texts, and how to call one.

Each script runs atomically on the server and is the only writer of what it writes; the files in
`scripts/` say what each takes and returns. A script is called by its SHA-1; a server that does not
know it (it was restarted, or the cache flushed) is given the text first.
`python -m pagestream.producer.lua submit` prints a whole script, for callers in other languages.
This module knows no keys and no meaning of what the scripts return.
"""

import hashlib
import sys
from importlib.resources import files
from typing import Any, Protocol

from redis.exceptions import NoScriptError

_JOBS = ("_shared", "_limits", "_fairness", "_due", "_job")

PARTS = {
    "submit": ("_shared", "_limits", "_fairness", "_due", "submit"),
    "cancel": (*_JOBS, "cancel"),
    "delete": (*_JOBS, "delete"),
    "renew": (*_JOBS, "renew"),
    "register": (*_JOBS, "_crash", "_recover", "register"),
    "step": (*_JOBS, "_take", "step"),
    "resync": (*_JOBS, "resync"),
    "reap": (*_JOBS, "_crash", "_recover", "reap"),
    "crash": (*_JOBS, "_crash", "crash"),
    "leave": (*_JOBS, "_crash", "_recover", "leave"),
    "retry": (*_JOBS, "retry"),
    "drain": ("_shared", "drain"),
    "due": ("due",),
    "schedule": ("schedule",),
    "usage_roll": ("usage_roll",),
    "batch_move": ("batch_move",),
    "batch_record": ("batch_record",),
}
"""Script -> the files of `scripts/` that make it, in order."""

Argument = str | bytes | int | float


class Server(Protocol):
    """What takes commands: a client of redis-py, or a `HeldConnection`."""

    def execute_command(self, *words: Any) -> Any:
        """Send one command and return its answer."""


class AsyncServer(Protocol):
    """What takes commands on an event loop."""

    async def execute_command(self, *words: Any) -> Any:
        """Send one command and return its answer."""


class Script:
    """One script: `script(server, key, *args)`, or `await script.run(server, key, *args)`.

    `key` is any key of the queue: it chooses the Cluster slot, and the script takes the queue's
    prefix from it; a script around the queues is told its key. Errors are redis-py's; a
    `ResponseError` that begins with `INVALID` names an argument the script refuses, with nothing
    written.
    """

    def __init__(self, name: str) -> None:
        folder = files("pagestream.producer").joinpath("scripts")
        texts = [folder.joinpath(f"{part}.lua").read_text("utf-8") for part in PARTS[name]]
        self.name = name
        self.text = "\n".join(texts)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, server: Server, key: str, *args: Argument) -> Any:
        """Run it on a synchronous connection."""
        try:
            return server.execute_command(*self.words(key, *args))
        except NoScriptError:
            server.execute_command("SCRIPT LOAD", self.text)
            return server.execute_command(*self.words(key, *args))

    def words(self, key: str, *args: Argument) -> tuple[Argument, ...]:
        """Return the command of a call; who sends it, in a pipeline, may meet `NoScriptError`."""
        return "EVALSHA", self.sha, 1, key, *args

    async def run(self, server: AsyncServer, key: str, *args: Argument) -> Any:
        """Run it on an asyncio connection."""
        try:
            return await server.execute_command(*self.words(key, *args))
        except NoScriptError:
            await server.execute_command("SCRIPT LOAD", self.text)
            return await server.execute_command(*self.words(key, *args))


def main() -> None:
    """Print the script named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1] not in PARTS:
        sys.exit(f"usage: python -m pagestream.producer.lua {'|'.join(PARTS)}")
    sys.stdout.write(Script(sys.argv[1]).text)


if __name__ == "__main__":
    main()

"""A command of ours as a process that belongs to another: it ends when that one does, however.

Run as `python -m pagestream.producer.owned ARGUMENTS`, with those of `pagestream` and a pipe from
the owner as standard input: the kernel closes it even after a SIGKILL. This module has both sides,
and knows no command.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from .settings import PREFIX

END_S = 15.0
"""How long it may take to end: longer than a gateway lets open streams go on."""


@contextmanager
def owned_process(
    command: str, settings: Mapping[str, object | None]
) -> Generator["subprocess.Popen[bytes]", None, None]:
    """Run a command for the length of the block.

    A Ctrl-C of the terminal does not reach it: it ends with the block, after its owner's work.

    Args:
        command: the command's name.
        settings: what it is told beside what is set here for every process; None unsets.
    """
    # Not as flags: everybody on this host may read those.
    environment = dict(os.environ)
    for name, value in settings.items():
        environment.pop(f"{PREFIX}{name.upper()}", None)
        if value is not None:
            environment[f"{PREFIX}{name.upper()}"] = str(value)
    with subprocess.Popen(
        [sys.executable, "-m", __name__, command],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None, "it was started with a pipe"
    process.stdin.close()
    try:
        process.wait(END_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()


def _end_with_owner() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    from .cli import main

    threading.Thread(target=_end_with_owner, name="owner", daemon=True).start()
    main()

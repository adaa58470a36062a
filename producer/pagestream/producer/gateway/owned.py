"""A gateway that belongs to another process: it ends when that one does, however that ends.

Run as `python -m pagestream.producer.gateway.owned ARGUMENTS`, with those of `pagestream gateway`
and a pipe from the owner as standard input: the kernel closes it even after a SIGKILL. The module
has also the owner's side of it. It knows no HTTP beyond the question whether the gateway is up.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager

from ..errors import PagestreamError
from ..settings import PREFIX
from .settings import GatewaySettings

START_S = 30.0
"""How long a gateway may take to answer."""
END_S = 15.0
"""How long it may take to end: longer than it lets open streams go on."""


class GatewayFailed(PagestreamError):
    """The gateway does not come up; what it says itself is in the log."""

    code = "gateway_failed"


@contextmanager
def owned_gateway(settings: GatewaySettings) -> Generator[str, None, None]:
    """Run a gateway as a process of its own for the length of the block, and give its address.

    A Ctrl-C of the terminal does not reach it: it ends with the block, after its owner's work.

    Raises:
        GatewayFailed: it does not come up.
    """
    _check_free(settings)
    # Not as flags: everybody on this host may read those. What else is set, it reads by itself.
    told = {name: str(getattr(settings, name)) for name in ("redis_url", "port", "log_format")}
    environment = os.environ | {f"{PREFIX}{name.upper()}": value for name, value in told.items()}
    is_everywhere = settings.host in ("0.0.0.0", "::", "")
    url = f"http://{'127.0.0.1' if is_everywhere else settings.host}:{settings.port}"
    command = [sys.executable, "-m", __name__, "gateway"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, start_new_session=True, env=environment
    ) as process:
        try:
            _wait_until_up(process, url)
            yield url
        finally:
            _end(process)


def _check_free(settings: GatewaySettings) -> None:
    """Otherwise somebody else's answer would be taken for its own."""
    try:
        socket.create_server((settings.host, settings.port)).close()
    except OSError as error:
        raise GatewayFailed(
            f"the gateway cannot listen on {settings.host} port {settings.port} ({error}): choose "
            "another --port, or leave it out by --no-gateway"
        ) from error


def _wait_until_up(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise GatewayFailed(
        f"the gateway does not answer at {url} (exit status {process.poll()}): see above, or "
        "leave it out by --no-gateway"
    )


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
    from ..cli import main

    threading.Thread(target=_end_with_owner, name="owner", daemon=True).start()
    main()

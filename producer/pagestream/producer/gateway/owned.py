"""A gateway that belongs to another process: that of `pagestream up`.

This module knows no HTTP beyond the question whether the gateway is up.
"""

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager

from ..errors import PagestreamError
from ..owned import owned_process
from .settings import GatewaySettings

START_S = 30.0
"""How long a gateway may take to answer."""


class GatewayFailed(PagestreamError):
    """The gateway does not come up; what it says itself is in the log."""

    code = "gateway_failed"


@contextmanager
def owned_gateway(settings: GatewaySettings) -> Generator[str, None, None]:
    """Run a gateway as a process of its own for the length of the block, and give its address.

    Raises:
        GatewayFailed: it does not come up.
    """
    _check_free(settings)
    is_everywhere = settings.host in ("0.0.0.0", "::", "")
    url = f"http://{'127.0.0.1' if is_everywhere else settings.host}:{settings.port}"
    told = {name: getattr(settings, name) for name in ("redis_url", "port", "log_format")}
    with owned_process("gateway", told) as process:
        _wait_until_up(process, url)
        yield url


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

"""A gateway that belongs to another process: that of `pagestream up`.

This module knows no HTTP beyond the question whether the gateway is up.
"""

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager

from ..errors import BadSettings, PagestreamError
from ..owned import owned_process
from .ports import check_free
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
    try:  # otherwise somebody else's answer would be taken for its own
        check_free(settings.host, settings.port)
    except BadSettings as error:
        raise GatewayFailed(f"{error}, or leave it out by --no-gateway") from error
    is_everywhere = settings.host in ("0.0.0.0", "::", "")
    url = f"http://{'127.0.0.1' if is_everywhere else settings.host}:{settings.port}"
    told = {name: getattr(settings, name) for name in ("redis_url", "port", "log_format")}
    with owned_process("gateway", told) as process:
        _wait_until_up(process, url)
        yield url


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

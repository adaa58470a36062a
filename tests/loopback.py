"""Ports of this host for servers that tests start."""

import socket
from contextlib import closing


def free_port() -> int:
    """A port nobody listens on now."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return probe.getsockname()[1]

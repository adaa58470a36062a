"""Whether a port can be listened on, asked before anything else is started."""

import os
import socket

from ..errors import BadSettings


def check_free(host: str, port: int) -> None:
    """Find out whether a server could listen on every address of `host`.

    Raises:
        BadSettings: it could not.
    """
    try:
        addresses = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, address in addresses:
            socket.create_server(address[:2], family=family).close()
    except OSError as error:
        is_name = isinstance(error, socket.gaierror)
        why = error.strerror if is_name else os.strerror(error.errno or 0)
        raise BadSettings(
            f"the gateway cannot listen on {host} port {port} ({why}): choose another --host or "
            "--port"
        ) from error

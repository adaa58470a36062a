"""Where a webhook may go to: the open internet, and what an operator allows beside it.

Whoever submits a job chooses the URL; without this check they could have the jobs process ask what
only its own network may ask. A host's name is looked up once, and the address that was checked is
the one that is connected to. This module sends nothing.
"""

import asyncio
import ipaddress
import socket
from fnmatch import fnmatchcase

from ..errors import BadSettings, PagestreamError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class NotAllowed(PagestreamError):
    """The host has no address that a webhook may go to."""

    code = "webhook_not_allowed"


class Allowed:
    """What an operator allows beside the open internet: hosts by name, and networks."""

    def __init__(self, text: str = "") -> None:
        """Read `hooks.internal, *.example.com, 10.1.0.0/16`.

        Raises:
            BadSettings: a network is none.
        """
        self._hosts: list[str] = []
        self._networks: list[Network] = []
        for one in filter(None, (part.strip().lower() for part in text.split(","))):
            is_address = "/" in one or ":" in one or one.replace(".", "").isdigit()
            if not is_address:
                self._hosts.append(one)
                continue
            try:
                self._networks.append(ipaddress.ip_network(one))
            except ValueError as error:
                raise BadSettings(f"--webhook-allow: {error}") from error

    async def address(self, host: str, port: int) -> str:
        """Return an address of the host that a webhook may go to.

        Raises:
            NotAllowed: it has none.
            OSError: the host is not known.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
        for address in addresses:
            if self._is_allowed(host, address):
                return str(address)
        raise NotAllowed(
            f"{host} is not on the open internet ({', '.join(map(str, addresses))}), and "
            "PAGESTREAM_WEBHOOK_ALLOW does not name it"
        )

    def _is_allowed(self, host: str, address: Address) -> bool:
        if any(fnmatchcase(host.lower().rstrip("."), pattern) for pattern in self._hosts):
            return True
        address = _real(address)
        if any(address in network for network in self._networks):
            return True
        return address.is_global and not address.is_multicast


def _real(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one carries, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour or address

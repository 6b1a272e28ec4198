"""An endpoint: one server of an upstream, its addresses, its connections, and what is in flight to it."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ambassador.proxy.policies.breaker import Breaker
    from ambassador.proxy.upstream.connect import Address
    from ambassador.proxy.upstream.pool import Pool


class Endpoint:
    """`url` as configured; `host` and `port`, or `path` of a unix socket. `weight` is at least 1."""

    __slots__ = (
        "addresses", "authority", "gate", "host", "inflight", "panic", "path", "paused_until", "pool", "port", "url",
        "weight",
    )  # fmt: skip

    def __init__(self, url: str, *, host: str, port: int, path: str | None = None, weight: int = 1) -> None:
        self.url = url
        self.host = host
        self.port = port
        self.path = path
        self.weight = weight
        self.inflight = 0
        """Attempts of this worker that have not ended."""
        self.gate: Breaker | None = None
        """Its own breaker (`breaker.scope: endpoint`)."""
        self.panic = False
        """Too many of its upstream's endpoints are open: its own breaker is passed by."""
        self.paused_until = 0.0
        """It asked for a pause (`cooldown.scope: endpoint`), until this time of the lane's clock."""
        self.addresses: Sequence[Address] = ()
        if path is not None:
            self.addresses = ((socket.AF_UNIX, path),)
            self.authority = b"localhost"
        else:
            name = (f"[{host}]" if ":" in host else host).encode("ascii")
            self.authority = name if port == 80 else b"%b:%d" % (name, port)
            self.resolve([host])
        self.pool: Pool

    def resolve(self, addresses: Sequence[str]) -> None:
        """Set the IP addresses that the name has now; what is not an address is passed over."""
        found: list[Address] = []
        for text in addresses:
            try:
                address = ipaddress.ip_address(text.strip("[]"))
            except ValueError:
                continue
            if address.version == 4:
                found.append((socket.AF_INET, (str(address), self.port)))
            else:
                found.append((socket.AF_INET6, (str(address), self.port, 0, 0)))
        self.addresses = tuple(found)

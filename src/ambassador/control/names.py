"""The addresses that upstreams' host names have, known here and pushed to the workers when they change."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

import trio

from ambassador.config.schema import Config

FIRST_LOOKUP_S = 1.0
"""How long a start or a reload waits for names; what comes later is pushed."""

_AGAIN_AFTER_S = 5.0  # getaddrinfo tells no TTL


def host_names(config: Config) -> set[str]:
    """The hosts of all endpoints that are names, not addresses."""
    found = set()
    for upstream in config.upstreams.values():
        for endpoint in upstream.endpoints:
            host = urlsplit(endpoint.url).hostname
            if not endpoint.url.startswith("unix:") and host and not _is_address(host):
                found.add(host)
    return found


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Names:
    """`known` holds the last good answer for each name; a failed look-up leaves it."""

    def __init__(self, log: logging.Logger, push: Callable[[dict[str, tuple[str, ...]]], None]) -> None:
        self.known: dict[str, tuple[str, ...]] = {}
        self._wanted: set[str] = set()
        self._push = push
        self._log = log

    async def want(self, names: Iterable[str]) -> None:
        """Look these up, and be back when that is done, or after a second. They are kept up to date from then on."""
        self._wanted = set(names)
        with trio.move_on_after(FIRST_LOOKUP_S):
            await self._look_up(self._wanted - self.known.keys())

    async def run(self) -> None:
        """Look the names up again and again; tell the workers what changed."""
        while True:
            await trio.sleep(_AGAIN_AFTER_S)
            await self._look_up(self._wanted)

    async def _look_up(self, names: Iterable[str]) -> None:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self._look_up_one, name)

    async def _look_up_one(self, name: str) -> None:
        try:
            found = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError as error:
            self._log.warning("cannot resolve %s: %s", name, error)
            return
        addresses = tuple(sorted({str(where[0]) for *_, where in found}))
        if addresses and self.known.get(name) != addresses:
            self.known[name] = addresses
            self._push({name: addresses})

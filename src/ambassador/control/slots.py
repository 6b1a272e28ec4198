"""Listening sockets: one for each listener and slot, made by the supervisor and kept for its whole life.

The kernel spreads new connections over the sockets of one port (SO_REUSEPORT), and each belongs to a slot, which one
worker at a time serves. Closing one of them would reset the connections in its queue, so only the end of a listener
closes it: workers come and go, slots stay.

- The first socket of a port is bound *without* SO_REUSEPORT and gets the option after: so a second instance is refused
  instead of silently taking half of the traffic. It joins the group by listening, so it listens after that.
- A bound socket that does not listen gets no connections: a slot that is new listens when its worker is ready.
- Unix listeners cannot share: one socket for all slots, whose number is None.
- Supervisor and workers have the same sockets open, so that none of them ends the listening by closing its own: at the
  end of the service each worker does it for what it serves, once that queue is empty, and the supervisor for what is
  left when none of them accepts any more.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Mapping

from ambassador.config.addresses import split_address
from ambassador.control.host import stop_listening
from ambassador.control.orders import SocketRef
from ambassador.control.unix_socket import NamedSocket

BACKLOG = 4096
"""Connections that may wait while a worker is replaced; the kernel caps it at net.core.somaxconn."""

_REASONS: Mapping[int, str] = {
    errno.EADDRINUSE: "address already in use (is another instance running?)",
    errno.EACCES: "not permitted (ports below 1024 need a privilege)",
    errno.EADDRNOTAVAIL: "not an address of this host",
}


class BindError(Exception):
    """A listener's address cannot be had; the text says which and why."""


def bind_error(address: str, error: OSError) -> BindError:
    """`error` in words that say what to do."""
    reason = _REASONS.get(error.errno or 0, (error.strerror or str(error)).lower())
    return BindError(f"cannot listen on {address}: {reason}")


class Binding:
    """The sockets of one listener."""

    def __init__(self, address: str, slots: Iterable[int], *, key: str | None = None) -> None:
        """Bind for `slots`, not yet listening. Raises `BindError` and leaves nothing open then.

        `key` is what the listener is known by; None: its address.
        """
        self.address = address
        self._key = key or address
        self._named: NamedSocket | None = None
        self._sockets: dict[int | None, socket.socket] = {}
        self._listening: set[int | None] = set()
        try:
            if address.startswith("unix:"):
                self._named = NamedSocket(address.removeprefix("unix:"))
                self._sockets[None] = self._named.sock
            else:
                self.extend(slots)
        except OSError as error:
            self.close()
            raise bind_error(address, error) from error
        except BindError:
            self.close()
            raise

    def extend(self, slots: Iterable[int]) -> None:
        """Bind for further slots; those that have a socket keep it."""
        if self._named is not None:
            return
        for slot in slots:
            if slot not in self._sockets:
                try:
                    self._sockets[slot] = self._bind_one()
                except OSError as error:
                    raise bind_error(self.address, error) from error

    def _bind_one(self) -> socket.socket:
        first = next(iter(self._sockets.values()), None)
        if first is None:
            family, where = _resolve(self.address)
        else:
            family, where = first.family, first.getsockname()
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if first is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(where)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    def listen(self, slots: Iterable[int]) -> None:
        """Have the kernel queue connections for these slots. Raises `BindError`."""
        for slot in slots:
            key = None if self._named is not None else slot
            if key not in self._listening:
                try:
                    self._sockets[key].listen(BACKLOG)
                except OSError as error:
                    raise bind_error(self.address, error) from error
                self._listening.add(key)

    def stop_listening(self) -> None:
        """Have the kernel refuse what comes from now on. For the end: every queue is emptied before."""
        for key in self._listening:
            stop_listening(self._sockets[key])
        self._listening.clear()

    def sockets(self) -> list[tuple[SocketRef, int]]:
        """Each socket's reference and descriptor."""
        return [(SocketRef(self._key, slot), sock.fileno()) for slot, sock in self._sockets.items()]

    @property
    def port(self) -> int | None:
        """The port that it got; None for a unix listener."""
        return None if self._named is not None else self._any().getsockname()[1]

    def url(self, *, secure: bool = False) -> str:
        """Where a client connects: `http://127.0.0.1:8080`, with `secure` `https://…`, or `unix:/path`."""
        return url_of(self.address, self.port, secure=secure)

    def _any(self) -> socket.socket:
        return next(iter(self._sockets.values()))

    def close(self) -> None:
        """Close this process's descriptors; a unix listener's file goes too."""
        if self._named is not None:
            self._named.close()
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()


def url_of(address: str, port: int | None, *, secure: bool = False) -> str:
    """The URL of a configured address that got `port` (None: a unix socket). `secure`: TLS is spoken there."""
    if port is None:
        return address
    host, _ = split_address(address)
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _resolve(address: str) -> tuple[int, tuple[str, int] | tuple[str, int, int, int]]:
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)) from error
    # `localhost` has two addresses: the one that clients try first when they know only IPv4 wins.
    family, _, _, _, where = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, where  # type: ignore[return-value]

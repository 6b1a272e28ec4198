"""Accepting connections: one `Listener` for each address of the config, fed by the sockets of one or more slots.

Accepting happens in the lane, at most 64 a turn; each connection becomes a strand of the listener's nursery. Out of
descriptors or memory, accepting pauses instead of spinning on a level-triggered socket, and some connections that are
between two requests make room: else whoever holds enough of them would shut out everybody, health checks included.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import select
import socket
from math import inf
from typing import TYPE_CHECKING, Final

from ambassador.errors import Overloaded
from ambassador.proxy.fields import wire_lines
from ambassador.proxy.forwarding import Peer
from ambassador.proxy.http1 import ClientConnection
from ambassador.proxy.http1_requests import Limits
from ambassador.proxy.lane import BROKEN, READ_CLOSED, Timer
from ambassador.proxy.problem import error_reply

if TYPE_CHECKING:
    from ambassador.proxy.express import Known
    from ambassador.proxy.lane import Link, Nursery
    from ambassador.proxy.service import Service
    from ambassador.proxy.tls_socket import HasContext

_LOG = logging.getLogger(__name__)

_ACCEPTS_PER_TURN: Final = 64
_PAUSE_S: Final = 0.1
_MAKE_ROOM: Final = 32
"""Idle connections that are closed when there is no descriptor for another one (as nginx does)."""
_TOLD_EVERY_S: Final = 1.0
"""Of handshakes that fail, one is told of so often: anybody can make as many as they like."""
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_PASSING: Final = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR)


class ListenerLimits:
    """`listeners.limits` of the config, seconds and bytes; None: no limit."""

    __slots__ = (
        "body_timeout", "connections", "header_timeout", "idle", "min_rate", "requests_per_connection",
    )  # fmt: skip

    def __init__(
        self,
        *,
        connections: int = 10_000,
        idle: float = 75.0,
        header_timeout: float = 10.0,
        body_timeout: float = 30.0,
        min_rate: float | None = 256.0,
        requests_per_connection: int | None = None,
    ) -> None:
        self.connections = connections
        self.idle = idle
        self.header_timeout = header_timeout
        self.body_timeout = body_timeout
        self.min_rate = min_rate
        self.requests_per_connection = requests_per_connection


class Listener(Timer):
    """Clients of one address. `gone` are the flags of a link that mean that a waiting client has left.

    `tls`: what they are to speak TLS with; None: they do not.
    """

    __slots__ = (
        "_clients",
        "_failed",
        "_links",
        "_nursery",
        "_tell_at",
        "_trusted",
        "gone",
        "head_limits",
        "known_heads",
        "limits",
        "service",
        "tls",
    )

    def __init__(
        self,
        service: Service,
        nursery: Nursery,
        *,
        limits: ListenerLimits,
        head_limits: Limits,
        trusted: tuple[str, ...] = (),
        cancel_on_half_close: bool = False,
        tls: HasContext | None = None,
    ) -> None:
        super().__init__()
        self.service = service
        self.tls = tls
        self._failed = 0
        self._tell_at = -inf
        self.limits = limits
        self.head_limits = head_limits
        self._nursery = nursery
        self._trusted = tuple(ipaddress.ip_network(cidr, strict=False) for cidr in trusted)
        self.gone = BROKEN | READ_CLOSED if cancel_on_half_close else BROKEN
        self.known_heads: dict[bytes, Known] = {}
        """Heads of plain requests that connections with these settings sent before."""
        self._links: dict[int, Link] = {}
        self._clients: set[ClientConnection] = set()

    def configure(
        self,
        *,
        limits: ListenerLimits,
        head_limits: Limits,
        trusted: tuple[str, ...],
        cancel_on_half_close: bool,
        tls: HasContext | None = None,
    ) -> None:
        """Take other settings; connections that are open keep their limits."""
        self.known_heads = {}
        self.tls = tls
        self.limits = limits
        self.head_limits = head_limits
        self._trusted = tuple(ipaddress.ip_network(cidr, strict=False) for cidr in trusted)
        self.gone = BROKEN | READ_CLOSED if cancel_on_half_close else BROKEN

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return len(self._clients)

    def add(self, sock: socket.socket) -> None:
        """Accept from a listening socket, which stays the caller's."""
        sock.setblocking(False)

        def accept() -> None:
            self._accept(sock)

        self._links[sock.fileno()] = self.service.lane.listen(sock, accept)

    def remove(self, sock: socket.socket) -> None:
        """Accept from it no more. Call it before the socket is closed, here or elsewhere."""
        link = self._links.pop(sock.fileno(), None)
        if link is not None:
            link.release()

    def stop(self) -> None:
        """Accept from no socket any more. Call it before the nursery of the connections ends."""
        self.service.lane.disarm(self)
        while self._links:
            self._links.popitem()[1].release()

    def take_rest(self, sock: socket.socket) -> None:
        """Accept all that waits at a unix socket that was removed and that listens no more."""
        while self._accept(sock):
            pass

    def close_idle(self) -> None:
        """End the connections that are between two requests."""
        for client in list(self._clients):
            client.end_if_idle()

    def expire(self) -> None:
        """The pause after an exhaustion is over."""
        for link in self._links.values():
            self.service.lane.mask(link, silent=False)

    def _accept(self, sock: socket.socket) -> bool:
        """Accept as many as a turn may. Whether more may wait."""
        for turn in range(_ACCEPTS_PER_TURN):
            try:
                fd, address = sock._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - `accept` makes two objects
            except BlockingIOError:
                if turn == 0 and sock.family == socket.AF_UNIX and _is_ended(sock):
                    self.remove(sock)
                return False
            except OSError as error:
                if error.errno in _PASSING:
                    continue
                if error.errno in _EXHAUSTED:
                    self._make_room()
                    self._pause()
                    return False
                if error.errno == errno.EINVAL:  # another process has ended the listening of a TCP socket
                    self.remove(sock)
                    return False
                raise
            client = socket.socket(sock.family, sock.type, sock.proto, fileno=fd)
            client.setblocking(False)
            self._admit(client, address)
        return True

    def _admit(self, sock: socket.socket, address: object) -> None:
        if len(self._clients) >= self.limits.connections:
            return self._refuse(sock)
        ip = ""
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            assert isinstance(address, tuple)
            ip = _plain_ip(address[0])
        scheme = "http" if self.tls is None else "https"
        client = ClientConnection(
            self.service.lane.link(sock), self, Peer(ip, self._trusted, scheme=scheme), self.tls
        )
        self._clients.add(client)
        self.service.connections += 1
        if self.service.metrics is not None:
            self.service.metrics.client_opened()
        self._nursery.start_soon(self._serve, client)

    async def _serve(self, client: ClientConnection) -> None:
        try:
            await client.serve()
        finally:
            self._clients.discard(client)
            self.service.connections -= 1

    def handshake_failed(self, client: str, why: str) -> None:
        """No TLS connection came of one: count it, and tell of it, but not of each of many."""
        self._failed += 1
        if self.service.metrics is not None:
            self.service.metrics.client_handshake("failed")
        now = self.service.lane.now
        if now >= self._tell_at:
            more = "" if self._failed == 1 else f" ({self._failed - 1} more since the last one that was told)"
            _LOG.info("a TLS handshake with the client %s failed: %s%s", client or "-", why, more)
            self._failed = 0
            self._tell_at = now + _TOLD_EVERY_S

    def _refuse(self, sock: socket.socket) -> None:
        """Beyond the limit: say so in one write, and close."""
        if self.tls is not None:
            return sock.close()  # a handshake is what there is too much of
        reply = error_reply(
            Overloaded("too many connections"),
            pseudonym=self.service.name,
            request_id="",
            route="-",
            attempts=0,
            grpc=False,
        )
        head = wire_lines(reply.headers)
        try:
            sock.send(
                b"HTTP/1.1 503 Service Unavailable\r\n%bcontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (head, len(reply.body), reply.body)
            )
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        sock.close()

    def _make_room(self) -> None:
        """Close some that are between two requests."""
        left = _MAKE_ROOM
        for client in self._clients:
            left -= client.end_if_idle()
            if not left:
                return

    def _pause(self) -> None:
        lane = self.service.lane
        for link in self._links.values():
            lane.mask(link, silent=True)
        self.deadline = lane.now + _PAUSE_S
        lane.arm(self)


def _is_ended(sock: socket.socket) -> bool:
    """Whether another process has ended the listening of a unix socket that they share: it is readable for ever."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _plain_ip(text: str) -> str:
    """Without a zone, and IPv4 as IPv4 when it came through a v6 socket."""
    if ":" not in text:
        return text
    text = text.partition("%")[0]
    return text[7:] if text.startswith("::ffff:") and "." in text else text

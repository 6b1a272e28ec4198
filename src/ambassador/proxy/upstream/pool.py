"""The connections of one worker to one endpoint: last in, first out, bounded, with a bounded queue in front.

LIFO keeps the few connections in use warm and lets the rest run into `idle_timeout`. An idle connection costs
nothing: the lane tells of its end, so taking one asks the kernel nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ambassador.errors import ConnectFailed, Overloaded, TlsFailed
from ambassador.proxy.lane import BROKEN, HANGUP, READ, WRITE, TimedOut, Timer
from ambassador.proxy.tls_socket import TlsSocket, connect_failure, shake_hands
from ambassador.proxy.upstream.connect import begin_connect, connect, is_connected, still_wanted
from ambassador.proxy.upstream.h1 import Http1Connection
from ambassador.proxy.upstream.via import ForwardConnection, Tunnel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ambassador.proxy.lane import Lane, Link, Sock, Strand
    from ambassador.proxy.tls_socket import ClientSide
    from ambassador.proxy.upstream.connect import Address
    from ambassador.proxy.upstream.via import Way


class _Ticket:
    """A request's place in the queue. `connection` is set when it is its turn, or `may_open` when it may open one."""

    __slots__ = ("connection", "may_open", "strand")

    def __init__(self, strand: Strand) -> None:
        self.strand = strand
        self.connection: Http1Connection | None = None
        self.may_open = False


class QueueTimeout(Exception):
    """The deadline passed while a request waited for its turn."""


class Pool(Timer):
    """Connections to one endpoint. `addresses` is asked for each new connection, so that DNS changes take effect.

    `max_open` bounds open connections, `max_pending` the requests that wait for one, `idle_timeout_s` how long an
    unused one is kept. `tls`: what they speak TLS with; None: they do not.
    """

    __slots__ = (
        "_addresses",
        "_idle",
        "_lane",
        "_max_open",
        "_max_pending",
        "_retired",
        "_tls",
        "_waiting",
        "idle_timeout_s",
        "open",
        "way",
    )

    def __init__(
        self,
        lane: Lane,
        addresses: Callable[[], Sequence[Address]],
        *,
        max_open: int,
        max_pending: int,
        idle_timeout_s: float,
        tls: ClientSide | None = None,
        way: Way | None = None,
    ) -> None:
        super().__init__()
        self.way = way
        """The way through an egress proxy, whose addresses then are those that are dialled. None: there is none."""
        self._tls = tls
        self._lane = lane
        self._addresses = addresses
        self._max_open = max_open
        self._max_pending = max_pending
        self.idle_timeout_s = idle_timeout_s
        self._idle: list[Http1Connection] = []
        self._waiting: deque[_Ticket] = deque()
        self._retired = False
        self.open = 0
        """Connections open or being opened."""

    @property
    def now(self) -> float:
        """The lane's clock."""
        return self._lane.now

    @property
    def idle_count(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    def take(self) -> Http1Connection | None:
        """The idle connection used last, if there is one that is still good."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if not connection.link.ready & (READ | HANGUP) or connection.is_quiet():
                return connection
            connection.close()
        return None

    async def acquire(
        self,
        strand: Strand,
        connect_timeout_s: float,
        deadline: float,
        *,
        fresh: bool = False,
        check: Callable[[], None] = still_wanted,
    ) -> Http1Connection:
        """A new connection, or one that came free while this request queued.

        `deadline` (seconds of the lane's clock) bounds queueing and connecting together, `connect_timeout_s` connecting
        with its TLS handshake. `fresh`: make room for a new one if need be. `check` is called before each wait, and
        raises if nobody wants the connection any more; what it looks at must wake `strand`.

        Raises `ConnectFailed`, `Overloaded`, `QueueTimeout`, and what `check` raises.
        """
        while fresh and self._idle and self.open >= self._max_open:
            self._idle.pop(0).close()
        if self.open >= self._max_open:
            queued = await self._queue(strand, deadline, check)
            if queued is not None:
                return queued
        else:
            self.open += 1
        began = self._lane.now
        until = min(began + connect_timeout_s, deadline)
        try:
            link = await connect(self._lane, strand, self._addresses(), until, check=check)
            if self.way is not None and self.way.tunnels:
                await self._lead_on(self.way, link, strand, until, check)
            if self._tls is not None:
                await self._shake_hands(self._tls, link, strand, until, check)
        except BaseException:
            self.forget()
            raise
        connection = self._made(link)
        connection.opening_s = self._lane.now - began
        return connection

    def _made(self, link: Link) -> Http1Connection:
        asked_for_urls = self.way is not None and not self.way.tunnels
        connection = (ForwardConnection if asked_for_urls else Http1Connection)(link, self)
        if isinstance(link.sock, TlsSocket):
            connection.made_with = link.sock.context
            validity = link.sock.validity
            if validity is not None and self._tls is not None:
                left_s = validity[1] - self._tls.wall_s()
                link.sock.end_at(self._lane, self._lane.now + left_s, connection.outlive)
        return connection

    async def _lead_on(
        self, way: Way, link: Link, strand: Strand, until: float, check: Callable[[], None]
    ) -> None:
        try:
            tunnel = way.begin(link)
            await shake_hands(link, strand, until, check=check)
            link.sock = tunnel.sock
        except TimedOut:
            link.close()
            error = ConnectFailed("the egress proxy did not answer within the connect timeout")
            way.proxy.told(error.detail)
            raise error from None
        except BaseException:
            link.close()
            raise

    async def _shake_hands(
        self, tls: ClientSide, link: Link, strand: Strand, until: float, check: Callable[[], None]
    ) -> None:
        try:
            tls.begin(link)
            await shake_hands(link, strand, until, check=check)
        except TimedOut:
            link.close()
            raise TlsFailed("no TLS handshake within the connect timeout") from None
        except OSError as error:
            link.close()
            raise connect_failure(error) from None
        except BaseException:
            link.close()
            raise

    def open_nowait(self, strand: Strand) -> Link | None:
        """Begin to open a connection to the first of the addresses; its events are for `strand`. None: there is no
        room, or it was refused at once. Whoever called goes on with it by `opened`, or closes it and calls `forget`.
        Raises `Overloaded` when this process is out of descriptors.
        """
        addresses = self._addresses()
        if self.open >= self._max_open or not addresses:
            return None
        link = begin_connect(self._lane, strand, addresses[0])
        if link is not None:
            self.open += 1
        return link

    def opened(self, link: Link) -> Http1Connection | None:
        """The connection that `open_nowait` began, if it can be used by now. Raises `ConnectFailed`."""
        if not link.ready & self.missing(link):
            return None
        sock: Sock | None = link.sock
        if not isinstance(sock, TlsSocket | Tunnel):
            if not is_connected(link):
                raise ConnectFailed("refused")
            sock = self._begin(link)
        if isinstance(sock, Tunnel):
            if not _goes_on(link, sock):
                return None
            link.sock = sock.sock
            sock = None if self._tls is None else self._tls.begin(link)
        if isinstance(sock, TlsSocket):
            try:
                if not _goes_on(link, sock):
                    return None
            except OSError as error:
                raise connect_failure(error) from None
        return self._made(link)

    def _begin(self, link: Link) -> TlsSocket | Tunnel | None:
        """The first handshake of a new connection; None: it needs none."""
        if self.way is not None and self.way.tunnels:
            return self.way.begin(link)
        return None if self._tls is None else self._tls.begin(link)

    def missing(self, link: Link) -> int:
        """What a link that is being opened waits for."""
        sock = link.sock
        if isinstance(sock, TlsSocket | Tunnel) and sock.wanted == READ:
            return READ | HANGUP
        return WRITE | BROKEN

    async def _queue(
        self, strand: Strand, deadline: float, check: Callable[[], None]
    ) -> Http1Connection | None:
        """Wait for a connection, or for the right to open one (None; `open` then counts it)."""
        if len(self._waiting) >= self._max_pending:
            raise Overloaded("too many requests wait for a connection to the upstream")
        ticket = _Ticket(strand)
        self._waiting.append(ticket)
        try:
            while ticket.connection is None and not ticket.may_open:
                check()
                await strand.wait(deadline)
        except TimedOut:
            self._leave_queue(ticket)
            raise QueueTimeout from None
        except BaseException:
            self._leave_queue(ticket)
            raise
        return ticket.connection

    def _leave_queue(self, ticket: _Ticket) -> None:
        if ticket.connection is not None:
            self.put(ticket.connection)
        elif ticket.may_open:
            self.forget()
        else:
            self._waiting.remove(ticket)

    def put(self, connection: Http1Connection) -> None:
        """Take back a connection that can carry another request."""
        if self._waiting:
            if not self._is_current(connection):
                connection.close()  # whoever waits may open another one
                return
            ticket = self._waiting.popleft()
            ticket.connection = connection
            self._lane.wake(ticket.strand)
            return
        if self._retired:
            connection.close()
            return
        link = connection.link
        link.strand = None
        link.callback = connection.on_idle_event
        connection.idle_until = self._lane.now + self.idle_timeout_s
        self._idle.append(connection)
        if self._bucket is None:
            self.deadline = connection.idle_until
            self._lane.arm(self)

    def _is_current(self, connection: Http1Connection) -> bool:  # noqa: ARG002 - those of TLS may not be
        return True

    def drop(self, connection: Http1Connection) -> None:
        """Close an idle connection."""
        if connection in self._idle:
            self._idle.remove(connection)
        connection.close()

    def forget(self) -> None:
        """One connection fewer is open: somebody who waits may open one. Called by a connection that closed."""
        self.open -= 1
        if self._waiting and self.open < self._max_open:
            ticket = self._waiting.popleft()
            ticket.may_open = True
            self.open += 1
            self._lane.wake(ticket.strand)

    def expire(self) -> None:
        """Close what has been idle too long: those at the bottom of the stack."""
        now = self._lane.now
        idle = self._idle
        while idle and idle[0].idle_until <= now:
            idle.pop(0).close()
        if idle:
            self.deadline = idle[0].idle_until
            self._lane.arm(self)

    def retire(self) -> None:
        """The end of a config's or a worker's life: unused connections go now, the others when they come back."""
        self._retired = True
        while self._idle:
            self._idle.pop().close()
        self._lane.disarm(self)


def _goes_on(link: Link, sock: TlsSocket | Tunnel) -> bool:
    """Whether a handshake has come to its end; if not, its link waits for what is missing."""
    wanted = sock.shake_hands()
    if wanted:
        link.ready &= ~wanted
    return not wanted


class SecurePool(Pool):
    """Connections that speak TLS. One that was made with other certificates than those in use now is not used again:
    whom it was made as, or who was believed, may hold no longer. That is seen when it is taken, or handed to somebody
    who waits: 0.15 µs a request.
    """

    __slots__ = ()

    def take(self) -> Http1Connection | None:
        """The idle connection used last, if there is one that is still good."""
        idle = self._idle
        if not idle:
            return None
        assert self._tls is not None
        current = self._tls.source.context
        while idle:
            connection = idle.pop()
            if connection.made_with is current and (
                not connection.link.ready & (READ | HANGUP) or connection.is_quiet()
            ):
                return connection
            connection.close()
        return None

    def _is_current(self, connection: Http1Connection) -> bool:
        assert self._tls is not None
        return connection.made_with is self._tls.source.context

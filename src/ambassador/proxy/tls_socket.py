"""TLS on a socket of the lane: what takes the place of `Link.sock` once both sides are to speak TLS.

`TlsSocket` has those methods of a socket that the data plane uses, and keeps their contract, so that nothing else knows
of TLS, and connections without it pay nothing for it:
- BlockingIOError where it cannot go on now, any other OSError where the connection failed.
- Fewer bytes read than were asked for prove that nothing more is there. One record at a time is what OpenSSL gives, so
  the kernel is asked for the rest: 0.5 µs, where the exception of another try takes 2.
- An end of input is one only after the other side's close_notify. A FIN without it is an error, else whoever can cut
  the connection could make a part look like all of an answer that ends with it.
- What could not be written is to be written again with the same beginning, as `Wire.blocked` does: its record is
  encrypted already.

A read may have to write and a write to read (TLS 1.3: key updates, tickets that come in pieces). Both are told as
BlockingIOError, and whoever tried waits for his own direction. That is enough: an event of an edge-triggered socket
names everything that is ready, so what was missing wakes him as well.

The object of OpenSSL sits on the descriptor itself. Between memory buffers it takes one `recv` less and four calls
more, and keeps the largest of what passed: 9.9 µs for a small message, where this takes 9.4, and TCP alone 7.4.
Its methods are used directly (`SSLContext._wrap_socket`): `ssl.SSLSocket` puts two Python calls around each, 0.5 µs,
and tells of the chain that was verified only since Python 3.13.
"""

from __future__ import annotations

import fcntl
import socket
import ssl
import termios
import time
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol, cast
from weakref import ref

from ambassador.errors import CertificateRefused, ConnectFailed, TlsFailed
from ambassador.proxy.lane import BROKEN, HANGUP, READ, WRITE, Timer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ambassador.proxy.lane import Lane, Link, Strand

RECORD: Final = 16384
"""The most that a record holds (RFC 8446 5.1)."""
_RECORDS_A_READ: Final = 16
"""So many at most are put together: of a megabyte in records of one byte, one read would take a second."""
_WANTS: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
_UNREAD: Final = memoryview(bytearray(4)).cast("i")
_ioctl: Final = fcntl.ioctl
_FIONREAD: Final = termios.FIONREAD
_MISMATCHES: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
"""What OpenSSL makes of plain bytes, such as an HTTP answer, in place of a handshake."""
_CUT: Final = ("UNEXPECTED_EOF_WHILE_READING",)


class HasContext(Protocol):
    """Where contexts come from (`tls.Material` for clients, `tls.ClientTls` for an upstream)."""

    @property
    def context(self) -> ssl.SSLContext:
        """The one for connections that begin now."""


class Greets(Protocol):
    """What stands in the place of a link's socket until a handshake is done."""

    def shake_hands(self) -> int:
        """As `TlsSocket.shake_hands`."""


class TlsSocket:
    """The TLS side of a connected, non-blocking socket, which it owns. `shake_hands` first.

    `rearm` has the lane tell again what is ready. `server_name` None: this is the server's side. `session`: what
    to resume, of an earlier connection with the same context, and `until` when what was verified then is good, in unix
    seconds. `side` is told of this one's at its end.
    """

    __slots__ = (
        "__weakref__",
        "_end",
        "_fd",
        "_read",
        "_rearm",
        "_side",
        "_silent",
        "_sock",
        "_ssl",
        "_until",
        "_validity",
        "_write",
        "fileno",
        "getsockopt",
        "wanted",
    )

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        rearm: Callable[[], None],
        *,
        server_name: str | None = None,
        session: ssl.SSLSession | None = None,
        until: float = inf,
        side: ClientSide | None = None,
    ) -> None:
        self._sock = sock
        self._side = side
        self._end: _End | None = None
        self._rearm = rearm
        self._ssl = context._wrap_socket(  # type: ignore[attr-defined]  # noqa: SLF001 - see above
            sock, server_name is None, server_name, owner=self, session=session
        )
        self._read = self._ssl.read
        self._write = self._ssl.write
        self._silent = False
        self._until = until
        self._validity: tuple[float, float] | None = None
        self.wanted = READ
        """What the last step of the handshake did not have: READ or WRITE; 0 when it is done."""
        self._fd = sock.fileno()
        self.fileno = sock.fileno
        self.getsockopt = sock.getsockopt

    # The handshake

    def shake_hands(self) -> int:
        """Go on with the handshake as far as that is possible now; then `wanted`. Raises OSError, an `ssl.SSLError`
        mostly.
        """
        try:
            self._ssl.do_handshake()
            self.wanted = 0
        except ssl.SSLWantReadError:
            self.wanted = READ
        except ssl.SSLWantWriteError:
            self.wanted = WRITE
        return self.wanted

    @property
    def context(self) -> ssl.SSLContext:
        """The context in use. The one that chose by the client's name may put another one in its place."""
        context: ssl.SSLContext = self._ssl.context
        return context

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        self._ssl.context = context

    @property
    def session(self) -> ssl.SSLSession | None:
        """What another connection to the same server may resume; None: nothing yet. It costs 50 µs."""
        try:
            session: ssl.SSLSession | None = self._ssl.session
        except ValueError:  # the handshake has not come so far
            return None
        return session if session is not None and session.has_ticket else None

    @property
    def resumed(self) -> bool:
        """Whether the handshake was a resumption."""
        return bool(self._ssl.session_reused)

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """The subject alternative names of the other side's certificate, which was verified: `("DNS", name)`,
        `("URI", uri)`. None there: empty.
        """
        found = self._certificate()
        return tuple(found.get("subjectAltName", ()))

    @property
    def validity(self) -> tuple[float, float] | None:
        """From when the other side's certificate, which was verified, is good, until the first end of it and of those
        by which it was, up to its authority's. In unix seconds. None: there is none.

        A resumed session has that of the handshake before, which nobody has looked at again. To a server it brings the
        client's own certificate alone.
        """
        if self._validity is None and (found := self._certificate()):
            # What else the other side sent, but was not needed, may have ended long ago.
            chain = [found, *(each.get_info() for each in (self._ssl.get_verified_chain() or ())[1:])]
            first = float(ssl.cert_time_to_seconds(found["notBefore"]))
            last = float(min(ssl.cert_time_to_seconds(each["notAfter"]) for each in chain))
            self._validity = first, min(last, self._until if self.resumed else inf)
        return self._validity

    def _certificate(self) -> dict[str, Any]:
        if self._ssl.context.verify_mode == ssl.CERT_NONE:
            return {}
        try:
            return self._ssl.getpeercert(False) or {}
        except ValueError:  # the handshake has not come to its end
            return {}

    def end_at(self, lane: Lane, deadline: float, then: Callable[[], None]) -> None:
        """Have `then` called when the other side's certificates end, at `deadline` on the lane's clock, unless this is
        closed before.
        """
        self._end = _End(lane, deadline, then)

    # As a socket's

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As `socket.recv`. With flags (MSG_PEEK) it only tells whether anything is there, which is lost then: who
        asks so has no use for what he finds.
        """
        try:
            data: bytes = self._read(size)
        except _WANTS:
            raise BlockingIOError from None
        except ssl.SSLZeroReturnError:
            return b""
        if data and not flags and len(data) < size:
            _ioctl(self._fd, _FIONREAD, _UNREAD)  # written out, for both sides of every request pass here
            if _UNREAD[0]:
                rest = bytearray(size - len(data))
                return data + rest[: self._read_more(rest, len(rest), 0)]
        return data

    def recv_into(self, buffer: bytearray, size: int, /) -> int:
        """As `socket.recv_into`."""
        try:
            count: int = self._read(size, buffer)
        except _WANTS:
            raise BlockingIOError from None
        except ssl.SSLZeroReturnError:
            return 0
        if 0 < count < size:
            _ioctl(self._fd, _FIONREAD, _UNREAD)
            if _UNREAD[0]:
                return self._read_more(buffer, size, count)
        return count

    def _is_more(self) -> bool:
        """Whether the kernel has more. OpenSSL itself has nothing left where it gave less than it was asked for."""
        _ioctl(self._fd, _FIONREAD, _UNREAD)
        return _UNREAD[0] > 0

    def _read_more(self, buffer: bytearray, size: int, count: int) -> int:
        """Read on behind the first `count` bytes of the buffer, until `size` are there or nothing more comes."""
        with memoryview(buffer) as view:
            for _ in range(_RECORDS_A_READ):
                try:
                    more = self._read(size - count, view[count:size])
                except _WANTS:
                    return count
                except OSError:
                    self._read = _fail
                    more = 0
                if not more:
                    # What has come before the end comes first. The next read is to meet the end again, and soon: of a
                    # good-bye without a FIN nothing else would tell.
                    self._hang_up()
                    return count
                count += more
                if count == size or not self._is_more():
                    return count
        self._rearm()  # else nothing would tell of what is left
        return count

    def _hang_up(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # it was hung up

    def send(self, data: bytes | memoryview, /) -> int:
        """As `socket.send`. It may be less than what the kernel would take of plain bytes."""
        if len(data) > RECORD:
            return self._send_long(data)
        try:
            sent: int = self._write(data)
        except _WANTS:
            raise BlockingIOError from None
        return sent

    def _send_long(self, data: bytes | memoryview) -> int:
        """Record by record: of several in one call OpenSSL would not tell how many are gone."""
        view, sent = memoryview(data), 0
        for start in range(0, len(view), RECORD):
            try:
                sent += self._write(view[start : start + RECORD])
            except _WANTS:
                if not sent:
                    raise BlockingIOError from None
                return sent
        return sent

    def sendmsg(self, pieces: Iterable[bytes | memoryview], /) -> int:
        """As `socket.sendmsg`, of a head and a body. The first record holds the head and what has room behind it."""
        head, body = pieces
        room = max(0, RECORD - len(head))
        first = bytes(head) + bytes(body[:room])
        sent = self.send(first)
        if sent < len(first) or room >= len(body):
            return sent
        try:
            return sent + self.send(body[room:])
        except BlockingIOError:
            return sent

    def setsockopt(self, level: int, name: int, value: int | bytes, /) -> None:
        """As `socket.setsockopt`. After SO_LINGER, which is set for a cut, the end is one without good-bye."""
        if level == socket.SOL_SOCKET and name == socket.SO_LINGER:
            self._silent = True
        self._sock.setsockopt(level, name, value)

    def shutdown(self, how: int, /) -> None:
        """As `socket.shutdown`, with a good-bye. What still comes is not even decrypted: it is read to be discarded."""
        self._say_goodbye()
        self._read = partial(_read_raw, self._sock)
        self._sock.shutdown(how)

    def close(self) -> None:
        """Say good-bye as far as the kernel takes it now, and close."""
        if self._side is not None:
            self._side.learn(self)
        if self._end is not None:
            self._end.forget()
            self._end = None
        self._say_goodbye()
        self._sock.close()

    def _say_goodbye(self) -> None:
        if not self._silent:
            self._silent = True
            try:
                self._ssl.shutdown()
            except OSError:
                pass  # it says it, then looks for the answer, for which nobody waits


class _End(Timer):
    """Calls `then` at the end of a certificate."""

    __slots__ = ("_lane", "_then")

    def __init__(self, lane: Lane, deadline: float, then: Callable[[], None]) -> None:
        super().__init__()
        self._lane = lane
        self._then = then
        self.deadline = deadline
        lane.arm(self)

    def expire(self) -> None:
        self._then()

    def forget(self) -> None:
        """Not to be called any more."""
        self._lane.disarm(self)


def _read_raw(sock: socket.socket, size: int, buffer: memoryview | bytearray | None = None) -> bytes | int:
    return sock.recv(size) if buffer is None else sock.recv_into(buffer, size)


def _fail(*_: object) -> int:
    raise ConnectionResetError("the connection failed before")


def begin_server(link: Link, tls: HasContext) -> TlsSocket:
    """Have a client's connection, whose link has a plain socket, speak TLS: the handshake is to come."""
    sock = TlsSocket(_plain(link), tls.context, partial(link.lane.rearm, link.fd))
    link.sock = sock
    return sock


class ClientSide:
    """TLS of the connections to one endpoint. They resume the latest session that is known, as long as the certificates
    that were verified at its beginning are good.

    `server_name` is the name or the IP address that its certificate must be for. `wall_s`: unix time.
    """

    __slots__ = ("_context", "_ends", "_latest", "_server_name", "_session", "source", "wall_s")

    def __init__(self, tls: HasContext, server_name: str, wall_s: Callable[[], float] = time.time) -> None:
        self.source = tls
        self.wall_s = wall_s
        self._ends = inf
        self._server_name = server_name
        self._context: ssl.SSLContext | None = None
        self._session: ssl.SSLSession | None = None
        self._latest: ref[TlsSocket] | None = None

    def begin(self, link: Link) -> TlsSocket:
        """Have a new connection, whose link has a plain socket, speak TLS: the handshake is to come."""
        context = self.source.context
        if context is not self._context:  # sessions are a context's own
            self._context, self._session, self._latest = context, None, None
        latest = None if self._latest is None else self._latest()
        if latest is not None:
            self.learn(latest)
        if self.wall_s() >= self._ends:  # a full handshake looks at the certificate that there is now
            self._session, self._ends = None, inf
        sock = TlsSocket(
            _plain(link),
            context,
            partial(link.lane.rearm, link.fd),
            server_name=self._server_name,
            session=self._session,
            until=self._ends,
            side=self,
        )
        link.sock = sock
        self._latest = ref(sock)
        return sock

    def learn(self, sock: TlsSocket) -> None:
        """Take the session of a connection to be resumed, if it is the latest one and has a ticket by now."""
        if self._latest is not None and self._latest() is sock:
            session = sock.session
            if session is not None:
                validity = sock.validity
                self._session, self._ends = session, inf if validity is None else validity[1]


async def shake_hands(
    link: Link, strand: Strand, deadline: float, *, check: Callable[[], None] = lambda: None
) -> None:
    """The handshake of a connection that has begun to speak TLS, or to ask an egress proxy; its strand is `strand`.

    `deadline` is in seconds of the lane's clock. `check` is called before each wait, and raises if nobody wants the
    connection any more. Raises what it raises, `TimedOut`, and OSError.
    """
    sock = cast("Greets", link.sock)
    while wanted := sock.shake_hands():
        link.ready &= ~wanted
        # Only reading meets a FIN: whoever waits to write would go round and round.
        wanted |= HANGUP if wanted == READ else BROKEN
        while not link.ready & wanted:
            check()
            link.interest = wanted
            try:
                await strand.wait(deadline)
            finally:
                link.interest = 0


def connect_failure(error: OSError) -> ConnectFailed:
    """Why a handshake with an upstream failed, for whoever asked for it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CertificateRefused(f"TLS: {reason(error)}")
    return TlsFailed(f"TLS: {reason(error)}")


def lost(error: OSError) -> str:
    """What became of a connection that was in use. An alert may be the answer to our own certificate, which a server of
    TLS 1.3 looks at after the handshake is over for us.
    """
    if isinstance(error, ssl.SSLError) and error.reason and error.reason not in _CUT:
        return f"TLS: {reason(error)}"
    return "the upstream reset the connection"


def reason(error: OSError) -> str:
    """What went wrong, in few words that name no host."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _MISMATCHES:
            return "the certificate is for another name"
        return error.verify_message.lower()
    if isinstance(error, ssl.SSLError) and error.reason and error.reason not in _CUT:
        said = error.reason.replace("_", " ").lower()
        return f"{said} (does it speak TLS at all?)" if error.reason in _NOT_TLS else said
    return "the other side closed the connection"


def _plain(link: Link) -> socket.socket:
    assert isinstance(link.sock, socket.socket)
    return link.sock

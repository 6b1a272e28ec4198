"""A client's HTTP/1 connection: requests in, answers out, until one side has had enough.

The exchange asks for body bytes with `fill` or `read_raw`, answers with `start_response`, `write_body` and `end_body`,
and waits while `blocked`. After each exchange this module decides whether the connection goes on: only if
the request was read to its end and the answer was complete.
"""

from __future__ import annotations

import logging
import socket
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Final

from ambassador.errors import BadRequest, ProxyError, RequestTimeout
from ambassador.proxy.exchange import Exchange
from ambassador.proxy.express import ride
from ambassador.proxy.fields import wire_lines
from ambassador.proxy.http1_answers import status_line
from ambassador.proxy.http1_requests import RequestReader
from ambassador.proxy.lane import BROKEN, HANGUP, NOT_READ, READ, READ_CLOSED, TimedOut
from ambassador.proxy.pace import Pace
from ambassador.proxy.tls_socket import begin_server, reason, shake_hands
from ambassador.proxy.transfer import ClientGone
from ambassador.proxy.wire import READ_SIZE, SCRATCH, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ambassador.messages import Fields, Request
    from ambassador.proxy.forwarding import Peer
    from ambassador.proxy.lane import Link, Strand
    from ambassador.proxy.listener import Listener
    from ambassador.proxy.tls_socket import HasContext, TlsSocket

_LOG = logging.getLogger(__name__)

_LINGER_S: Final = 1.0
_LINGER_BYTES: Final = 262144
"""A connection that ends is read on for so long, and so many bytes, after the answer."""
_LONG_LINGER_S: Final = 30.0
_LONG_LINGER_SILENCE_S: Final = 5.0
_LONG_LINGER_BYTES: Final = 64 * 1024 * 1024
"""The same where a body is on its way: many clients write all of it before they read, and whoever closes earlier
takes the answer from them. The times are those of nginx (`lingering_time`, `lingering_timeout`)."""
_LONG_LINGERING: Final = 256
"""So many connections of a worker at most: beyond, the short bounds hold."""
_LINGER_BYTES_PER_TURN: Final = 262144
_DRAINED_BYTES: Final = 65536
"""An unread body of at most this size is read and thrown away to keep the connection."""
_PIPELINED_PER_TURN: Final = 16

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NOT_TLS: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 45\r\nconnection: close\r\n\r\n"
    b"This port is for https; the request was http\n"
)
"""What a client is told that speaks HTTP without TLS where TLS is spoken, as nginx does."""
_join_field: Final = b": ".join


class ClientConnection(Wire):
    """One accepted connection; `serve` is its whole life."""

    __slots__ = (
        "_chunked", "_served", "answered", "close_after", "expired", "holding", "idle", "known_heads", "limits", "listener", "peer", "raw_left", "reader",
        "rest_until", "stays", "strand", "tls",
    )  # fmt: skip

    def __init__(self, link: Link, listener: Listener, peer: Peer, tls: HasContext | None = None) -> None:
        super().__init__(link)
        self.listener = listener
        self.tls = tls
        """What it has to speak TLS with, if it has."""
        self.limits = listener.limits
        self.peer = peer
        self.known_heads = listener.known_heads
        self.reader = RequestReader(listener.head_limits)
        self.strand: Strand
        self.holding: Request | None = None
        """The request on the short way for which policies hold something: given back also if a defect ends that."""
        self.close_after = False
        """No further request is read after the present answer."""
        self.answered = False
        """The head of the present answer was written."""
        self.raw_left = 0
        """Bytes of the present request's body that are read past the parser."""
        self._chunked = False
        self._served = 0
        self.expired = False
        """The certificate that the client showed has ended: no further request is taken."""
        self.idle = False
        """Between two requests."""
        self.rest_until = inf
        """The present request has no time for more (`resting_until`)."""
        self.stays = False
        """The present request goes on even if the client leaves, since the answer is kept for its repeat."""

    async def serve(self) -> None:
        """Answer requests until the connection ends. Never raises but for cancellation."""
        lane = self.link.lane
        strand = self.strand = self.link.strand = lane.strand()
        express = self.limits.requests_per_connection is None
        try:
            if self.tls is not None and not await self._shake_hands(self.tls):
                return
            while True:
                exchange = await ride(self) if express and self.reader.at_rest else None
                if exchange is None:
                    request = await self._next_request()
                    if request is None or self.expired:
                        break
                    exchange = Exchange(self, request)
                if not await self._carry_out(exchange):
                    break
        except ClientGone:
            pass
        except Exception:  # one of the two catch-alls: a defect here costs one connection
            _LOG.exception("a connection failed")
        finally:
            if self.holding is not None:
                self.holding.end(0, 0.0)
            await lane.finish(strand)
            self.link.close()

    async def _shake_hands(self, tls: HasContext) -> bool:
        """The TLS handshake, within the time that a request's head may take. False: there is nobody to serve."""
        link, peer, listener = self.link, self.peer, self.listener
        deadline = link.lane.now + self.limits.header_timeout
        try:
            first = await self._first_byte(deadline)
            if not first:  # somebody who looks whether the port is open, as load balancers do
                return False
            if first.isalpha():
                listener.handshake_failed(peer.ip, "it speaks HTTP without TLS")
                self.write(_NOT_TLS)
                await self._linger(for_body=False)
                return False
            await self._handshake_is_due(deadline)
            sock = begin_server(link, tls)
            await shake_hands(link, self.strand, deadline)
        except TimedOut:
            listener.handshake_failed(peer.ip, "it did not come in time")
            return False
        except OSError as error:
            listener.handshake_failed(peer.ip, reason(error))
            await self._linger(for_body=False)  # OpenSSL has told why, and it should be heard
            return False
        if listener.service.metrics is not None:
            listener.service.metrics.client_handshake("resumed" if sock.resumed else "full")
        peer.names = sock.names
        peer.validity = sock.validity
        return peer.validity is None or self._is_good(sock, peer.validity[1])

    def _is_good(self, sock: TlsSocket, until: float) -> bool:
        """Whether the client's certificate is still good: a resumed session may have outlived it. The connection ends
        with it, so that the next one has to show another.
        """
        left_s = until - self.listener.service.wall_s()
        if left_s <= 0:
            self.listener.handshake_failed(self.peer.ip, "certificate has expired")
            return False
        sock.end_at(self.link.lane, self.link.lane.now + left_s, self._expire)
        return True

    def _expire(self) -> None:
        self.expired = True
        self.known_heads.clear()  # what is not known is learned, and that is refused to this connection
        self.end_if_idle()

    async def _first_byte(self, deadline: float) -> bytes:
        """What the client begins with, left where it is; empty if it ends instead."""
        link = self.link
        while True:
            try:
                return link.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                link.ready &= NOT_READ
            await self.strand.readable(link, deadline)

    async def _handshake_is_due(self, deadline: float) -> None:
        """Wait until others are through with theirs."""
        while not self.listener.service.may_shake_hands():
            if self.link.lane.now >= deadline:
                raise TimedOut
            await self.strand.pause()

    async def _carry_out(self, exchange: Exchange) -> bool:
        """Run an exchange. Whether the connection goes on after it. Reads the rest of a small body; takes turns."""
        request = exchange.request
        self.answered = self.stays = False
        self._served += 1
        limit = self.limits.requests_per_connection
        self.close_after = (
            not request.keep_alive
            or self.expired
            or self.listener.service.draining
            or (limit is not None and self._served >= limit)
        )
        await exchange.run()
        return not (
            (self.close_after or not request.complete or self.reader.requests)
            and await self._is_over(request)
        )

    async def _is_over(self, request: Request) -> bool:
        """After an answer: whether the connection ends here. Reads the rest of a small body; takes turns."""
        if not request.complete and not self.close_after and not await self._drain_body(request):
            self.close_after = True
        if self.close_after:
            # A client that did not ask for the end may have another request on its way.
            if request.keep_alive or not request.complete or self.link.ready & READ or self.reader.requests:
                await self._linger(for_body=not request.complete)
            return True
        if self._served % _PIPELINED_PER_TURN == 0:
            await self.strand.pause()
        return False

    def end_if_idle(self) -> bool:
        """Close a connection that is between two requests: the strand then meets an end of input. Whether it is."""
        if not self.idle or self.link.ready & READ:
            return False
        try:
            self.link.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        return True

    def gone(self, request: Request) -> int:
        """The flags of `link` that mean that the client has left the request. A FIN inside it is met by who reads its
        body.
        """
        if self.stays:
            return 0
        return self.listener.gone if request.complete else BROKEN

    def leaving(self, request: Request) -> int:
        """What to wait for with `link.interest` besides a wait's own end, while nobody reads the request's body: a
        client that may have left. `check_presence` says whether it has.
        """
        if request.complete:
            return self.gone(request)
        return HANGUP

    def check_presence(self, request: Request) -> None:
        """Raises `ClientGone` if the client has left the request. Call it before each wait and after it.

        A FIN inside the request is one too. Whether it is inside, what came before it must tell: it is read, up to
        64 KiB, and kept in the request. Raises what is wrong with it.
        """
        link = self.link
        if link.ready & READ_CLOSED:
            while (
                not request.complete and sum(map(len, request.body)) < _DRAINED_BYTES and self.fill(request)
            ):
                pass
        if link.ready & self.gone(request):
            raise ClientGone

    # Waiting, for a policy (`messages.Waiter`)

    async def rest(self, until: float) -> None:
        """Wait until `wake` is called or `until`. Raises `ClientGone` when the client leaves meanwhile, and `TimedOut`
        at `rest_until`.
        """
        link = self.link
        if until > self.rest_until:
            if link.lane.now >= self.rest_until:
                raise TimedOut
            until = self.rest_until
        if self.stays:
            gone = 0
        else:  # a FIN inside a body is met by its reader
            gone = self.listener.gone if self.reader.at_rest else BROKEN
        if not link.ready & gone:
            link.interest = gone
            self.strand.exact = True
            try:
                await self.strand.wait(until)
            except TimedOut:
                return
            finally:
                self.strand.exact = False
                link.interest = 0
        if link.ready & gone:
            raise ClientGone

    @contextmanager
    def resting_until(self, at: float) -> Iterator[None]:
        """Inside, whatever waits for the present request by `rest` or `read_body` raises `TimedOut` at `at`."""
        self.rest_until = at
        try:
            yield
        finally:
            self.rest_until = inf

    def wake(self) -> None:
        """End a `rest`."""
        self.link.lane.wake(self.strand)

    # Reading

    async def _next_request(self) -> Request | None:
        """The next request, or None when the connection is at its end (what had to be said was said)."""
        reader = self.reader
        lane = self.link.lane
        idle_at = lane.now + self.limits.idle
        header_at: float | None = None
        while not reader.requests:
            if reader.error is not None:
                await self._refuse(reader.error)
                return None
            if self.link.ready & (READ | HANGUP):
                count = self._read()
                if count == 0:
                    if reader.in_head:
                        await self._refuse(BadRequest("the connection ended inside a request head"))
                    return None
                if count is not None:
                    continue
            if not reader.has_input:
                self.idle = True
            elif reader.in_head and header_at is None:
                header_at = lane.now + self.limits.header_timeout
            try:
                if not self.link.ready & (READ | HANGUP):
                    self.link.interest = READ | HANGUP
                    await self.strand.wait(idle_at if header_at is None else header_at)
            except TimedOut:
                if header_at is not None:
                    await self._refuse(RequestTimeout("the request's head did not come in time"))
                return None
            finally:
                self.link.interest = 0
                self.idle = False
        return reader.requests.popleft()

    def _read(self) -> int | None:
        """One read into the parser: how many bytes, 0 at the end of input, None if there was nothing."""
        try:
            count = self.read(READ_SIZE)
        except OSError:
            raise ClientGone from None
        if count:
            self.reader.feed(SCRATCH[:count])
        return count

    def fill(self, request: Request) -> bool:
        """Read more of the request's body. False: nothing there. Raises `ClientGone`, and what is wrong with it."""
        count = self._read()
        if count == 0:
            raise ClientGone
        if request.error is not None:
            raise request.error
        return count is not None

    async def read_body(self, request: Request, take: Callable[[bytes], bool]) -> None:
        """Have `take` see the request's body, piece by piece, until it has seen all or says False. What it has seen is
        not in the request any more.

        Raises `ClientGone`, `RequestTimeout`, `TimedOut` at `rest_until`, and what is wrong with the body.
        """
        if request.expects_continue:
            self.send_continue(request)
        pace = None if self.limits.min_rate is None else Pace(self.limits.min_rate)
        seen = reads = 0
        while True:
            while request.body:
                piece = request.body.pop(0)
                seen += len(piece)
                if not take(piece):
                    return
            if request.complete:
                return
            if request.error is not None:
                raise request.error
            if not self.link.ready & (READ | HANGUP) or not self.fill(request):
                await self._wait_for_body(pace, seen)
                continue
            reads += 1
            if reads % _PIPELINED_PER_TURN == 0:
                await self.strand.pause()

    async def _wait_for_body(self, pace: Pace | None, seen: int) -> None:
        """Wait until more of a body can be read, of which so many bytes were seen."""
        lane, too_late = self.link.lane, RequestTimeout("the request's body did not come in time")
        since = lane.now
        try:
            await self.strand.readable(self.link, min(since + self.limits.body_timeout, self.rest_until))
        except TimedOut:
            if lane.now >= self.rest_until:
                raise
            raise too_late from None
        if pace is not None and pace.is_too_slow(lane.now - since, seen):
            raise too_late

    def read_raw(self, size: int) -> int | None:
        """Up to `size` bytes of a body of known length into `SCRATCH`. None: nothing there. Raises `ClientGone`."""
        try:
            count = self.read(size)
        except OSError:
            raise ClientGone from None
        if count == 0:
            raise ClientGone
        return count

    def go_raw(self, request: Request) -> int:
        """Take the rest of the body out of the parser's hands: how many bytes `read_raw` must bring. 0: it cannot."""
        self.raw_left = self.reader.raw_body(request)
        return self.raw_left

    async def _drain_body(self, request: Request) -> bool:
        """Read the rest of a small body that nobody wanted. False if it is not small, or does not come."""
        if request.error is not None or not self._rest_is_small(request):
            return False
        deadline = self.link.lane.now + self.limits.body_timeout
        drained = 0
        while not request.complete and request.error is None:
            if self.raw_left:
                count = (
                    self.read_raw(min(self.raw_left, READ_SIZE))
                    if self.link.ready & (READ | HANGUP)
                    else None
                )
                if count:
                    self.raw_left -= count
                    request.complete = self.raw_left == 0
                    continue
            elif self.link.ready & (READ | HANGUP):
                count = self._read()
                drained += sum(map(len, request.body))
                request.body.clear()
                if count == 0 or drained > _DRAINED_BYTES:
                    return False
                if count:
                    continue
            try:
                await self.strand.readable(self.link, deadline)
            except TimedOut:
                return False
        return request.complete

    def _rest_is_small(self, request: Request) -> bool:
        if request.expects_continue:
            return False
        return self.raw_left <= _DRAINED_BYTES and (
            request.content_length is None or request.content_length <= _DRAINED_BYTES
        )

    # Writing

    def send_continue(self, request: Request) -> None:
        """`100 Continue`, once, to a client that waits for it."""
        request.expects_continue = False
        if not request.complete:
            self.write(_CONTINUE)

    def write_interim(self, request: Request, status: int, fields: Fields) -> None:
        """Pass on a 1xx answer; never to HTTP/1.0, which does not know them."""
        if request.minor and self.blocked is None:
            self.write(status_line(status) + wire_lines(fields) + b"\r\n")

    def start_response(
        self,
        request: Request,
        status: int,
        fields: Fields,
        body: bytes | memoryview,
        *,
        sized: bool,
        complete: bool,
        reason: bytes = b"",
    ) -> None:
        """Write a head and the body at hand.

        `sized`: the fields say how long the body is (or it can have none); else it is chunked for HTTP/1.1 and ends
        with the connection for HTTP/1.0. `complete`: `body` is all of it. `reason`: the phrase of the status, if it
        is not to be the standard one.
        """
        self.answered = True
        self._chunked = False
        if not sized:
            if request.minor:
                self._chunked = True
                fields.append((b"transfer-encoding", b"chunked"))
                if body:
                    body = b"%x\r\n%b\r\n" % (len(body), bytes(body))
            else:
                self.close_after = True
        if self.listener.service.draining or (not request.complete and not self._rest_is_small(request)):
            self.close_after = True
        if self.close_after:
            fields.append((b"connection", b"close"))
        elif not request.minor:
            fields.append((b"connection", b"keep-alive"))
        if complete and self._chunked:
            body = bytes(body) + b"0\r\n\r\n"
        head = b"".join((status_line(status, reason), b"\r\n".join(map(_join_field, fields)), b"\r\n\r\n"))
        self.write_with(head, body)

    def write_body(self, data: bytes | memoryview) -> None:
        """Write a piece of the body. Not while `blocked`."""
        self.write(b"%x\r\n%b\r\n" % (len(data), bytes(data)) if self._chunked else data)

    def end_body(self, trailers: Fields) -> None:
        """Finish the body. What is `blocked` goes first."""
        if not self._chunked:
            return
        end = b"0\r\n%b\r\n" % wire_lines(trailers)
        if self.blocked is None:
            self.write(end)
        else:
            self.blocked = memoryview(bytes(self.blocked) + end)

    async def drained(self, deadline_s: float) -> None:
        """Wait until the kernel has taken everything. Raises `ClientGone` after `deadline_s` without progress, and when
        the client takes less than `min_rate`.
        """
        pace: Pace | None = None
        while self.blocked is not None and not self.write_failed:
            if self.link.ready & BROKEN:
                raise ClientGone
            since = self.link.lane.now
            try:
                await self.strand.writable(self.link, since + deadline_s)
            except TimedOut:
                self.abort()
                raise ClientGone from None
            if self.limits.min_rate is not None:
                pace = pace or Pace(self.limits.min_rate)
                if pace.is_too_slow(self.link.lane.now - since, self.bytes_written):
                    self.abort()
                    raise ClientGone
            self.flush()
        if self.write_failed:
            raise ClientGone

    def abort(self) -> None:
        """Cut the connection so that the client cannot take what it has for a complete answer."""
        self.close_after = True
        self.cut()

    async def _refuse(self, error: ProxyError) -> None:
        """Answer what could not be parsed, and close so that the answer is seen."""
        self.close_after = True
        self.answered = False
        await Exchange.refuse(self, error)
        await self._linger(for_body=True)

    async def _linger(self, *, for_body: bool) -> None:
        """Close so that the peer sees the answer before the reset its unread bytes would cause (RFC 9112 9.6).

        `for_body`: it may be in the middle of a body.
        """
        if self.link.closed:
            return
        service = self.listener.service
        is_long = for_body and not service.shedding and service.lingering < _LONG_LINGERING
        service.lingering += is_long
        try:
            await self.drained(_LINGER_S)
            self.link.sock.shutdown(socket.SHUT_WR)
            if is_long:
                await self._discard(_LONG_LINGER_BYTES, _LONG_LINGER_S, _LONG_LINGER_SILENCE_S)
            else:
                await self._discard(_LINGER_BYTES, _LINGER_S, _LINGER_S)
        except (OSError, TimedOut, ClientGone):
            return
        finally:
            service.lingering -= is_long

    async def _discard(self, most: int, within_s: float, silence_s: float) -> None:
        """Read to the end of input, but no more than `most` bytes. Raises `TimedOut` after `within_s`, and when nothing
        comes for `silence_s`.
        """
        link, lane = self.link, self.link.lane
        end = lane.now + within_s
        discarded, turn_end = 0, _LINGER_BYTES_PER_TURN
        while discarded < most:
            count = self.read(READ_SIZE) if link.ready & (READ | HANGUP) else None
            if count == 0:
                return
            if count is None:
                await self.strand.readable(link, min(end, lane.now + silence_s))
                continue
            discarded += count
            if discarded >= turn_end:
                turn_end += _LINGER_BYTES_PER_TURN
                if lane.now >= end:
                    raise TimedOut
                await self.strand.pause()

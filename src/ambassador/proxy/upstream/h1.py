"""An HTTP/1.1 connection to an endpoint: the small protocol that an exchange speaks with any upstream connection.

`start` a request, `write_body` (never while `blocked`), `flush`, `receive` until `reader.head` is set, take
`reader.body`, and in the end `release` or `close`. Nothing here waits: who calls waits on `link` for what these
methods say is missing. The syntax of a request is written here and nowhere else, but for the heads that
`proxy/express.py` remembers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ambassador.errors import UpstreamReset
from ambassador.proxy.fields import wire_lines
from ambassador.proxy.http1_answers import ResponseReader
from ambassador.proxy.tls_socket import lost
from ambassador.proxy.wire import READ_SIZE, SCRATCH, Wire

if TYPE_CHECKING:
    import ssl

    from ambassador.messages import Fields, RequestHead
    from ambassador.proxy.lane import Link, Strand
    from ambassador.proxy.upstream.pool import Pool

_join_field: Final = b": ".join


class Http1Connection(Wire):
    """One connection; carries one exchange at a time. Owned by its `pool` while idle, by an exchange otherwise."""

    __slots__ = (
        "_chunked",
        "idle_until",
        "made_with",
        "on_idle_event",
        "opening_s",
        "pool",
        "reader",
        "used",
        "written_before",
    )

    def __init__(self, link: Link, pool: Pool) -> None:
        super().__init__(link)
        self.pool = pool
        self.reader = ResponseReader()
        self.used = False
        """It has carried a complete exchange: the other side may close it at any moment."""
        self.made_with: ssl.SSLContext | None = None
        """Of a connection with TLS, what it was made with."""
        self.written_before = 0
        self.opening_s = 0.0
        """How long it took to open."""
        self._chunked = False
        self.idle_until = 0.0
        self.on_idle_event = self._on_idle_event

    def outlive(self) -> None:
        """The server's certificate has ended: the connection is not to be used for another request."""
        self.made_with = None

    @property
    def untouched(self) -> bool:
        """Not one byte of the present request was taken by the kernel."""
        return self.bytes_written == self.written_before

    def start(self, strand: Strand, head: RequestHead, body: bytes, trailers: Fields | None) -> None:
        """Begin a request with what there is of its body; events of this connection wake `strand`.

        `trailers`: those that end the body if all of it is here, None if more will come.
        """
        fields = head.fields
        if head.takes_trailers:
            fields += [(b"te", b"trailers"), (b"connection", b"te")]
        self._chunked = not head.sized
        if self._chunked:
            fields.append((b"transfer-encoding", b"chunked"))
        data = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n\r\n" % (
            head.method.encode(), head.path, head.authority, b"\r\n".join(map(_join_field, fields)),
        )  # fmt: skip
        if body or self._chunked:
            data += self._framed(body, trailers)
        self.reader.begin(for_head=head.method == "HEAD")
        self.begin(strand, data)

    def begin(self, strand: Strand, data: bytes) -> None:
        """`start` of a request that is written already, and without the reader, for whoever may not need it."""
        link = self.link
        link.callback = None
        link.strand = strand
        self.written_before = self.bytes_written
        self.write(data)

    def write_body(self, data: bytes | memoryview, trailers: Fields | None = None) -> None:
        """Write more of the request's body, and its end if `trailers` are given. Not while `blocked`."""
        framed = self._framed(data, trailers) if self._chunked else data
        if framed:
            self.write(framed)

    def _framed(self, data: bytes | memoryview, trailers: Fields | None) -> bytes | memoryview:
        if not self._chunked:
            return data
        framed = b"%x\r\n%b\r\n" % (len(data), bytes(data)) if data else b""
        return framed if trailers is None else b"%b0\r\n%b\r\n" % (framed, wire_lines(trailers))

    def receive(self) -> bool:
        """One read into the reader. False: nothing there. Raises `UpstreamReset` and what the reader raises."""
        count = self.receive_raw(READ_SIZE)
        if count is None:
            return False
        if count:
            self.reader.feed(SCRATCH[:count])
        else:
            self.reader.end_of_input()
        return True

    def receive_body(self) -> bool:
        """`receive` inside a body that stays in the reader. Raises the same."""
        left = self.reader.raw_body()
        if left is None:
            return self.receive()
        count = self.receive_raw(min(left, READ_SIZE))
        if count is None:
            return False
        if not count:
            raise UpstreamReset("the upstream closed the connection inside its answer")
        self.reader.keep_raw(bytes(SCRATCH[:count]))
        return True

    def receive_raw(self, size: int) -> int | None:
        """Like `read`, with a connection that failed as `UpstreamReset`."""
        try:
            return self.read(size)
        except OSError as error:
            raise UpstreamReset(lost(error)) from None

    def release(self) -> None:
        """Give the connection back after its exchange: to the pool if it may carry another one, else closed."""
        if self.reader.reusable and self.blocked is None and not self.write_failed and self.is_quiet():
            self.used = True
            self.pool.put(self)
        else:
            self.close()

    def close(self) -> None:
        """Close at once; a no-op the second time. An exchange that is given up ends with a reset.

        After a FIN the other side may take it that its answer is still read, and go on: another proxy with all the
        attempts that it has. A reset it cannot take for anything else.
        """
        if self.link.closed:
            return
        if self.is_waited_for:
            self.cut()
        else:
            self.link.close()
        self.pool.forget()

    @property
    def is_waited_for(self) -> bool:
        """A request was begun on it, and its answer is not complete."""
        return not (self.reader.complete or self.untouched)

    def _on_idle_event(self) -> None:
        """Bytes or a FIN on an idle connection: either way it carries no further request."""
        if not self.is_quiet():
            self.pool.drop(self)

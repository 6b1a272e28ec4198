"""HTTP/1 bytes to messages, both directions, sans I/O: the one door to httptools (llhttp).

httptools tokenises strictly (2.4 us a message); what it does not check is checked here, at the end of each head: one
`Host`, `Transfer-Encoding` exactly `chunked` and never in HTTP/1.0, the version, sizes and counts. In doubt a request
is refused and nothing after it is read.

Traps of httptools that this module contains
- It takes spaces without number between the parts of a request line, and RTSP's and ICE's for HTTP's: the line is held
  against what was made of it. So that a line's place is known, no feed goes beyond the end of a message.
- "Data after close" raises in the feed that completed a good request: that request stands.
- After an `Upgrade` the parser stops, body unread. We take no upgrade here, so the body is framed by a fresh parser
  that is fed a head of our own, and the next request does not begin inside it.
- It calls bytes of a body that HEAD's answer cannot have a chunk header, and swallows them.
- No skip-body for HEAD, no end-of-input call: `ResponseReader` frames both.
- Trailers come through `on_header`, and are checked as if they framed something: `Content-Length` there is an error,
  `Connection: close` ends the connection. But they are to be dropped (RFC 9110 6.5.1): it is told to let them pass once
  a head is accepted, and the next message gets a parser that knows nothing of it. A length twice, or one that is no
  number, is still malformed.
"""

from __future__ import annotations

import http
import re
from collections import deque
from typing import TYPE_CHECKING, Final

import httptools

from ambassador.errors import (
    BadRequest,
    BodyTooLarge,
    ExpectationFailed,
    HeaderTooLarge,
    NotImplementedByProxy,
    ProxyError,
    UpstreamProtocol,
    UpstreamReset,
    UriTooLong,
    VersionNotSupported,
)
from ambassador.messages import Request, ResponseHead
from ambassador.proxy.fields import REQUEST_FIELDS, RESPONSE_FIELDS, wire_lines

if TYPE_CHECKING:
    from ambassador.messages import Fields

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in http.HTTPStatus
}


_ODD_IN_REASON: Final = re.compile(rb"[^\t -~\x80-\xff]")


def status_line(status: int, reason: bytes = b"") -> bytes:
    """The first line of an answer, ended; with the standard reason phrase where the upstream gave none."""
    if reason and not _ODD_IN_REASON.search(reason):
        return b"HTTP/1.1 %d %b\r\n" % (status, reason)
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


_METHODS: Final = {
    name.encode(): name
    for name in (
        "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "ACL", "BIND", "CHECKOUT", "COPY", "LINK",
        "LOCK", "M-SEARCH", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE", "NOTIFY", "PROPFIND", "PROPPATCH",
        "PURGE", "QUERY", "REBIND", "REPORT", "SEARCH", "SUBSCRIBE", "UNBIND", "UNLINK", "UNLOCK", "UNSUBSCRIBE",
    )
}  # fmt: skip
"""The methods of HTTP. llhttp speaks RTSP and ICE too (`DESCRIBE / RTSP/1.0`); nothing of theirs is passed on."""

_METHOD_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) [!-~]+ HTTP/1\.[01]\r\n")
_LINE_TO_VERSION: Final = re.compile(rb"[A-Z-]+ [!-~]+ HTTP/")
_LINE_AROUND_TARGET: Final = 48
"""More than the longest method, two spaces and the version take."""
_END: Final = b"\r\n\r\n"
"""Of a head, and of a chunked body: httptools takes no other line ends."""
HEALTH_TARGET: Final = b"/.well-known/ambassador/health"
"""What load balancers ask; it needs no Host."""
HEALTH_TARGETS: Final = frozenset({HEALTH_TARGET, HEALTH_TARGET + b"?"})
"""Answered here, before any route is looked at (contract 7.12)."""

_VERSIONS_OR_NONE: Final = frozenset({"1.1", "1.0", "0.0"})
"""What the parser says of the version before it has met one is 0.0, or the version of the request before."""

_MAX_CHUNK_OVERHEAD: Final = 65536
"""Chunk headers, extensions and trailers may cost this many bytes, plus 16 for each byte of body (a chunk of one
byte costs 5): a chunk extension without end is an attack."""

_SEEN_BYTES: Final = 2048
_SEEN_BLOCKS: Final = 512
"""Of each kind: at most 1 MiB of heads, with what they were parsed into about 4 MiB a worker."""
_PLAIN_LINE: Final = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) (/[!-\"$-~]*) HTTP/1\.1\r\n")
_SEEN_MESSAGE_BYTES: Final = 16384
_SECOND_LOOK: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
OWN_IDS: Final = frozenset({b"x-request-id", b"traceparent", b"tracestate"})
_PLAIN_SPECIAL: Final = frozenset({b"host", b"connection", b"content-length"}) | OWN_IDS

_FEED_BYTES: Final = 65536
"""A feed is at most this long. So much of what is counted for an unfinished head may be of the message before it."""

_MAX_ANSWER_HEAD: Final = 262144
"""Bytes of an answer's head, with the interim answers before it."""

_MAX_INTERIM: Final = 16
"""1xx answers before a final one: more is a flood."""


class Limits:
    """What a request head may have: `listeners.limits` of the config. `body` None: no limit.

    `seen` remembers field blocks that were accepted under these limits (see `RequestReader`), out of heads of at most
    `seen_bytes`: no target can make a head with one of them too large.
    """

    __slots__ = ("body", "header_bytes", "headers", "seen", "seen_bytes", "uri")

    def __init__(
        self, header_bytes: int = 65536, headers: int = 100, uri: int = 8192, body: int | None = None
    ) -> None:
        self.header_bytes = header_bytes
        self.headers = headers
        self.uri = uri
        self.body = body
        self.seen: dict[bytes, Request] = {}
        self.seen_bytes = min(_SEEN_BYTES, header_bytes)


class RequestReader:
    """The client's byte stream as a queue of requests.

    Clients repeat themselves: the block of fields of one request is, to the byte, that of the last one. A block that
    the parser accepted is remembered, with all that was worked out for it; a later request that comes alone in one
    piece, with a plain request line, a remembered block and a body of just the right length, is not tokenised again
    (3 us less). Any doubt goes to the parser. The memory is bounded, and shared by connections with the same limits.

    `feed` never raises: a malformed stream sets `error` (a request whose head was accepted has its `error` set too),
    and everything after it is ignored. Requests before it stand. What follows a request that said `Connection: close`
    is ignored as well (RFC 9112 9.6). The outcome does not depend on how the stream is cut into feeds, but for the
    code of an unknown method (501 when its whole line is in one feed, else 400) and limits, which an unfinished head
    or a chunk extension may exceed by one feed.
    """

    __slots__ = (
        "_body_bytes", "_current", "_ended", "_fed", "_headers", "_in_head", "_limits", "_line", "_parser", "_synthetic",
        "_tail", "_url", "error", "requests",
    )  # fmt: skip

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._current: Request | None = None
        self._headers: Fields = []
        self._url = b""
        self._line = b""
        self._tail = b""
        self._in_head = False
        self._ended = False
        self._synthetic = False
        self._fed = 0
        self._body_bytes = 0
        self.requests: deque[Request] = deque()
        self.error: ProxyError | None = None

    @property
    def at_rest(self) -> bool:
        """Between two requests: none has begun, none waits to be taken, nothing was wrong."""
        return not (
            self._fed or self.requests or self._ended or self._current is not None or self.error is not None
        )

    @property
    def in_head(self) -> bool:
        """A head has begun and is not complete."""
        return self._in_head

    @property
    def head_fields(self) -> Fields:
        """The fields of a head that was refused, but for the last before the fault, which the parser may keep."""
        return self._headers if self._current is None else []

    @property
    def refused_method(self) -> str:
        """The method of a head that was refused, as far as it matters for the answer: HEAD's has no body. Else `-`."""
        return "HEAD" if self._current is None and self._line.startswith(b"HEAD ") else "-"

    @property
    def has_input(self) -> bool:
        """Bytes of a message that is not complete have been fed (an empty line before a request counts)."""
        return self._fed > 0

    def feed(self, data: bytes | memoryview) -> None:
        """Parse the next bytes of the stream; afterwards look at `requests`, their bodies, and `error`."""
        if self.error is not None or self._ended:
            return
        block = b""
        if self._fed == 0 and len(data) <= _SEEN_MESSAGE_BYTES and self._current is None:
            message = bytes(data)
            line_end = message.find(b"\r\n") + 2
            end = message.find(b"\r\n\r\n") + 4
            if line_end < end <= self._limits.seen_bytes:
                block = message[line_end:end]
                seen = self._limits.seen.get(block)
                line = _PLAIN_LINE.match(message) if seen is not None else None
                if line is not None and line.end() == line_end and len(line[2]) <= self._limits.uri:
                    assert seen is not None
                    if len(message) - end == (seen.content_length or 0):
                        self.requests.append(_same_fields(seen, line[1], line[2], message[end:]))
                        return
            data = message
            if len(message) == end > line_end > 1 and message[0] > 32:
                self._line = message[:line_end]
                self._feed_message(message)  # one head and nothing else: nothing to search for
            else:
                self._feed_messages(message)
            if block and self._fed == 0 and len(self.requests) == 1:
                self._remember(message, block, self.requests[0])
        else:
            self._feed_messages(data)

    def _feed_messages(self, data: bytes | memoryview) -> None:
        """Parse bytes of any number of messages, each for itself."""
        at, size = 0, len(data)
        while at < size and self.error is None and not self._ended:
            request = self._current
            if request is not None and not request.chunked:
                end = min(size, at + (request.content_length or 0) - self._body_bytes)
            else:
                data = bytes(data)
                end = self._message_end(data, at)
            self._feed_message(data if end - at == size else data[at:end])
            at = end

    def _message_end(self, data: bytes, at: int) -> int:
        """How far `data` may be parsed from `at` on: not behind the end of the head or chunked body that is there."""
        tail = self._tail
        if tail:
            across = (tail + data[at : at + 3]).find(_END)
            if across >= 0:
                return at + across + 4 - len(tail)
        found = data.find(_END, at)
        return found + 4 if found >= 0 else len(data)

    def _feed_message(self, data: bytes | memoryview) -> None:
        """Parse bytes of one message."""
        if self._current is None and self._line[-1:] != b"\n":
            self._take_line(data)
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._go_on_after_upgrade()
        except httptools.HttpParserCallbackError as error:
            self._fail(error.__context__ if isinstance(error.__context__, ProxyError) else BadRequest())
        except httptools.HttpParserError as error:
            self._fail_parse(error)
        if self._fed:
            self._tail = (self._tail + bytes(data[-3:]))[-3:]
            self._check_sizes()
        else:
            self._tail = b""

    def _take_line(self, data: bytes | memoryview) -> None:
        """Keep what `data` has of the request line, unless it is longer than any can be."""
        if len(self._line) <= self._limits.uri + _LINE_AROUND_TARGET:
            line = (self._line + bytes(data)).lstrip(b"\r\n")
            self._line = line[: line.find(b"\n") + 1] or line

    def _remember(self, message: bytes, block: bytes, request: Request) -> None:
        if message[0] < 32:
            return  # behind an empty line, what looked like the block is the whole request
        special = request.special
        if (
            request.minor
            and request.keep_alive
            and b"host" in special
            and not _SECOND_LOOK.intersection(special)
        ):
            if special.keys() <= _PLAIN_SPECIAL:
                request.lines = wire_lines(request.passing)
            if not OWN_IDS.isdisjoint(special):
                return  # it will not come again
            seen = self._limits.seen
            if len(seen) >= _SEEN_BLOCKS:
                seen.clear()
            seen[block] = _same_fields(request, b"GET", b"/", b"")  # without what this one brought

    def raw_body(self, request: Request) -> int:
        """Bytes of `request`'s body that are still to come, if its length is known and nothing follows it yet.

        Calling it hands the rest of the body to the caller, who reads exactly that many bytes past this parser and
        then sets `complete`. 0: not possible, go on feeding.
        """
        if request.content_length is None or request is not self._current or self.error is not None:
            return 0
        rest = request.content_length - self._body_bytes
        self._parser = httptools.HttpRequestParser(self)
        self._current = None
        self._ended = not request.keep_alive
        self._fed = 0
        self._line = self._tail = b""
        return rest

    # Callbacks of httptools

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if not self._synthetic:
            self._headers = []
            self._url = b""
            self._in_head = True

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._url += url
        if len(self._url) > self._limits.uri:
            raise UriTooLong(f"the request target is longer than {self._limits.uri} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or a trailer."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The end of a head: everything httptools does not check is checked here."""
        if self._synthetic:
            self._synthetic = False
            return
        self._in_head = False
        parser = self._parser
        headers = self._headers
        name = parser.get_method()
        version = self._check_line(name, parser.get_http_version())
        method = _METHODS.get(name)
        if method is None:
            raise NotImplementedByProxy("CONNECT is for listeners in forward mode, other methods are unknown")
        request = Request(method, self._url, headers, 1 if version == "1.1" else 0)
        request.passing, special = REQUEST_FIELDS.sort(headers)
        request.special = special
        request.keep_alive = parser.should_keep_alive()
        if len(headers) > self._limits.headers:
            raise HeaderTooLarge(f"more than {self._limits.headers} header fields")
        if self._fed > self._limits.header_bytes:
            self._check_head_bytes(headers)
        authority = special.get(b"host")
        if authority is not None:
            if b"," in authority:
                raise BadRequest("more than one Host field")
            request.authority = authority
        elif request.minor and self._url not in HEALTH_TARGETS:
            raise BadRequest("HTTP/1.1 requests need one Host field")
        if b"content-length" in special:
            request.content_length = self._length(special)
        if b"transfer-encoding" in special:
            self._check_coding(request, special)
        if b"expect" in special:
            self._check_expect(request, special)
        if request.chunked:
            parser.set_dangerous_leniencies(lenient_chunked_length=True, lenient_transfer_encoding=True)
        self._headers = request.trailers
        self._body_bytes = 0
        self._current = request
        self.requests.append(request)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        request = self._current
        if request is None:
            return
        request.body.append(body)
        self._body_bytes += len(body)
        limit = self._limits.body
        if limit is not None and self._body_bytes > limit:
            raise BodyTooLarge(f"the body is larger than {limit} bytes")

    def on_message_complete(self) -> None:
        """The end of a request."""
        request = self._current
        if request is None:
            return
        if b"upgrade" in request.special and self._parser.should_upgrade() and _has_body(request):
            return
        if request.trailers and len(request.trailers) > self._limits.headers:
            raise HeaderTooLarge(f"more than {self._limits.headers} trailer fields")
        if request.chunked:
            self._parser = httptools.HttpRequestParser(self)
        request.complete = True
        self._current = None
        self._ended = not request.keep_alive
        self._fed = 0
        self._line = b""

    # Checks

    def _check_line(self, method: bytes, version: str) -> str:
        """The version. Of what the line has but should not (RFC 9112 3), the parser says nothing."""
        if self._line != b"%b %b HTTP/%b\r\n" % (method, self._url, version.encode()):
            raise BadRequest("the request line is not METHOD SP TARGET SP HTTP/VERSION")
        if version not in ("1.1", "1.0"):
            raise VersionNotSupported(f"HTTP/{version} is not spoken here")
        return version

    def _length(self, special: dict[bytes, bytes]) -> int:
        value = special[b"content-length"]
        if not value.isdigit() or len(value) > 18:
            raise BadRequest("Content-Length is not one decimal number")
        length = int(value)
        limit = self._limits.body
        if limit is not None and length > limit:
            raise BodyTooLarge(f"the body is larger than {limit} bytes")
        return length

    def _check_coding(self, request: Request, special: dict[bytes, bytes]) -> None:
        if not request.minor:
            raise BadRequest("HTTP/1.0 has no Transfer-Encoding")
        if request.content_length is not None:
            raise BadRequest("Content-Length and Transfer-Encoding exclude each other")
        if special[b"transfer-encoding"].lower() != b"chunked":
            raise NotImplementedByProxy("the only transfer coding is chunked")
        request.chunked = True

    def _check_expect(self, request: Request, special: dict[bytes, bytes]) -> None:
        if special[b"expect"].lower() != b"100-continue":
            raise ExpectationFailed("the only expectation is 100-continue")
        request.expects_continue = request.minor == 1 and (request.chunked or bool(request.content_length))

    def _check_head_bytes(self, headers: Fields) -> None:
        size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in headers)
        if size > self._limits.header_bytes:
            raise HeaderTooLarge(f"the head is larger than {self._limits.header_bytes} bytes")

    def _check_sizes(self) -> None:
        """After a feed that left a message incomplete."""
        if self.error is not None:
            return
        request = self._current
        if request is None:
            if self._fed > self._limits.header_bytes + _FEED_BYTES:
                self._fail(HeaderTooLarge(f"the head is larger than {self._limits.header_bytes} bytes"))
        elif (
            request.chunked
            and self._fed > _MAX_CHUNK_OVERHEAD + self._limits.header_bytes + 17 * self._body_bytes
        ):
            self._fail(BadRequest("chunk extensions or trailers without end"))
        elif len(request.trailers) > self._limits.headers:
            self._fail(HeaderTooLarge(f"more than {self._limits.headers} trailer fields"))

    # Failures

    def _fail(self, error: ProxyError) -> None:
        self.error = error
        if self._current is not None:
            self._current.error = error

    def _fail_parse(self, error: httptools.HttpParserError) -> None:
        line = self._line
        version = self._parser.get_http_version()
        if (
            self._in_head
            and not self._headers
            and version not in _VERSIONS_OR_NONE
            and _LINE_TO_VERSION.match(line)
        ):
            self._fail(VersionNotSupported("only HTTP/1.0 and HTTP/1.1 are spoken here"))
            return
        method = _METHOD_LINE.match(line)
        if isinstance(error, httptools.HttpParserInvalidMethodError) and method and method[1] not in _METHODS:
            self._fail(NotImplementedByProxy("unknown method"))
        else:
            self._fail(BadRequest("malformed request"))

    def _go_on_after_upgrade(self) -> None:
        request = self._current
        self._parser = httptools.HttpRequestParser(self)
        if request is not None:
            self._synthetic = True
            self._headers = []
            framing = b"Transfer-Encoding: chunked"
            if not request.chunked:
                framing = b"Content-Length: %d" % (request.content_length or 0)
            end = b"keep-alive" if request.keep_alive else b"close"
            self._parser.feed_data(b"POST / HTTP/1.1\r\nConnection: %b\r\n%b\r\n\r\n" % (end, framing))
            if request.chunked:
                self._parser.set_dangerous_leniencies(
                    lenient_chunked_length=True, lenient_transfer_encoding=True
                )
            self._headers = request.trailers


def _same_fields(seen: Request, method: bytes, target: bytes, body: bytes) -> Request:
    """A complete request with the fields of one that was accepted. The fields are shared: nobody changes them."""
    request = Request(_METHODS[method], target, seen.headers, 1)
    request.passing = seen.passing
    request.special = seen.special
    request.lines = seen.lines
    request.authority = seen.authority
    request.content_length = seen.content_length
    request.complete = True
    if body:
        request.body.append(body)
    return request


def _has_body(request: Request) -> bool:
    return request.chunked or bool(request.content_length)


class ResponseReader:
    """The upstream's byte stream as one response at a time.

    `begin` for each request; then `feed` until `head` is set, `body` pieces come, and `complete` is true. `feed` and
    `end_of_input` raise `UpstreamProtocol` or `UpstreamReset`. After a response the reader is `reusable` only if the
    exchange is provably complete and no byte follows it.
    """

    __slots__ = (
        "_body_bytes", "_close_delimited", "_fed_after", "_for_head", "_headers", "_maybe_seen", "_parser", "_reason", "_received", "body", "complete",
        "head", "interim", "trailers",
    )  # fmt: skip

    def __init__(self) -> None:
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: Fields = []
        self._reason = b""
        self._for_head = False
        self._close_delimited = False
        self._received = 0
        self._body_bytes = 0
        self._fed_after = False
        self._maybe_seen: bytes | None = None
        self.head: ResponseHead | None = None
        self.body: list[bytes | memoryview] = []
        self.trailers: Fields = []
        self.interim: list[ResponseHead] = []
        self.complete = False

    def begin(self, *, for_head: bool) -> None:
        """Expect the response to a request; `for_head`: to HEAD, which has no body whatever its fields say."""
        if self._parser is None or (self.head is not None and self.head.chunked):
            self._parser = httptools.HttpResponseParser(self)
        self._for_head = for_head
        self._close_delimited = False
        self._received = 0
        self._body_bytes = 0
        self._maybe_seen = None
        self.head = None
        self.complete = False
        if self.interim:
            self.interim = []
        if self.trailers:
            self.trailers = []
        self.body = []

    @property
    def reusable(self) -> bool:
        """The connection may carry another request: complete, kept alive, not a byte too many."""
        head = self.head
        return self.complete and head is not None and head.keep_alive and not self._fed_after

    @property
    def started(self) -> bool:
        """At least one byte of an answer has come."""
        return self._received > 0

    def feed(self, data: bytes | memoryview) -> None:
        """Parse the next bytes of the response."""
        if self._received == 0 and not self._for_head and self._take_seen(data):
            return
        self._received += len(data)
        if self._parser is None or self.complete:
            self._fed_after = True
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise UpstreamProtocol("the upstream switched protocols unasked") from None
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, ProxyError):
                raise error.__context__ from None
            raise UpstreamProtocol("malformed answer") from None
        except httptools.HttpParserError:
            if not self.complete:
                # An alert or a handshake record (RFC 8446 5.1), from a port that speaks TLS only.
                is_tls = self._received == len(data) and bytes(data[:2]) in (b"\x15\x03", b"\x16\x03")
                detail = (
                    "the upstream answers in TLS: is its URL to be https?" if is_tls else "malformed answer"
                )
                raise UpstreamProtocol(detail) from None
            self._fed_after = True
        self._check_fed(data)

    def _check_fed(self, data: bytes | memoryview) -> None:
        if self.head is None:
            if self._received > _MAX_ANSWER_HEAD:
                raise UpstreamProtocol("the head of the answer is too large")
        elif self._parser is None:
            # The answer to HEAD: its head is the last that was fed, or else there is a byte too many.
            tail = bytes(data[-4:])
            if not b"\r\n\r\n".endswith(tail):
                self._fed_after = True
        elif (
            self.head.chunked
            and self._received > _MAX_ANSWER_HEAD + _MAX_CHUNK_OVERHEAD + 17 * self._body_bytes
        ):
            raise UpstreamProtocol("chunk extensions or trailers without end")

    def _take_seen(self, data: bytes | memoryview) -> bool:
        """Take an answer whose head was seen before, to the byte (3 us less). False: the parser's turn.

        A body that is not complete stays where it was read: it must be written on before the next read.
        """
        start = bytes(data[:_SEEN_BYTES])
        end = start.find(b"\r\n\r\n") + 4
        head = SEEN_HEADS.get(start[:end])
        if head is None:
            self._maybe_seen = start[:end] if end >= 4 and start.startswith(b"HTTP/1.") else None
            return False
        length = head.content_length
        assert length is not None
        here = len(data) - end
        if here > length:
            return False
        if here == length:
            if length:
                self.body.append(start[end:] if len(start) == len(data) else bytes(data[end:]))
            self.complete = True
        elif type(data) is memoryview:
            self._parser = None
            if here:
                self.body.append(data[end:])
        else:
            return False
        self.head = head
        self._body_bytes = here
        self._received = len(data)
        return True

    def take_body(self) -> bytes | memoryview:
        """What has come of the body and was not taken. A view holds only until the next read from any connection."""
        pieces = self.body
        if not pieces:
            return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    def hold_body(self) -> bytes:
        """What has come of the body and was not taken, in one piece that holds for ever. It stays to be taken."""
        if self.body:
            self.body = [b"".join(self.body)]
            return self.body[0]  # type: ignore[return-value]  # a join gives bytes
        return b""

    @property
    def held(self) -> int:
        """How much of the body is here and was not taken, if none was."""
        return self._body_bytes

    def keep_raw(self, data: bytes) -> None:
        """Add to the body what was read past the parser, after `raw_body` has told that so much is still to come."""
        self.body.append(data)
        self._body_bytes += len(data)
        head = self.head
        self.complete = head is not None and self._body_bytes == head.content_length

    def end_of_input(self) -> None:
        """The upstream sent FIN: completes a close-delimited body, else raises `UpstreamReset`."""
        if self.complete:
            return
        if self.head is None or not self._close_delimited:
            raise UpstreamReset("the upstream closed the connection before its answer was complete")
        self.complete = True
        self._parser = None

    def raw_body(self) -> int | None:
        """Hand the rest of the body to the caller, who reads it past this parser and sets `complete`.

        Returns how many bytes are still to come; None when that is not known or the body is chunked.
        """
        head = self.head
        if head is None or self.complete or head.content_length is None:
            return None
        self._parser = None  # it may be inside the body; another is made for the next answer
        return head.content_length - self._body_bytes

    # Callbacks of httptools

    def on_message_begin(self) -> None:
        """The first byte of an answer."""
        if self.complete:
            self._fed_after = True
        self._headers = []
        self._reason = b""

    def on_status(self, reason: bytes) -> None:
        """A piece of the reason phrase."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or a trailer."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The end of a head, interim or final."""
        if self.complete:
            return
        parser = self._parser
        assert parser is not None
        status = parser.get_status_code()
        head = ResponseHead(status, self._headers)
        head.reason = self._reason
        head.passing, special = RESPONSE_FIELDS.sort(self._headers)
        head.special = special
        if status < 200:
            self._take_interim(head)
            return
        if parser.get_http_version() not in ("1.1", "1.0"):
            raise UpstreamProtocol("the upstream speaks another version of HTTP")
        head.keep_alive = parser.should_keep_alive()
        bodiless = self._for_head or status in (204, 304)
        if b"content-length" in special:
            head.content_length = _response_length(special)
        if b"transfer-encoding" in special:
            self._check_coding(head, special, parser.get_http_version())
        if head.chunked:
            parser.set_dangerous_leniencies(lenient_chunked_length=True)
        self.head = head
        self._headers = self.trailers
        if bodiless:
            self.complete = True
            if self._for_head and (head.chunked or head.content_length != 0):
                self._parser = None
                head.keep_alive = head.keep_alive or _says_keep_alive(head, parser.get_http_version())
        elif head.content_length is None and not head.chunked:
            self._close_delimited = True
            head.keep_alive = False
        elif self._maybe_seen is not None and head.content_length is not None and head.keep_alive:
            head.lines = wire_lines(head.passing)
            if len(SEEN_HEADS) >= _SEEN_BLOCKS:
                SEEN_HEADS.clear()
            SEEN_HEADS[self._maybe_seen] = head

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self.complete:
            self._fed_after = True
            return
        self.body.append(body)
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        """The end of an answer, interim or final."""
        if self.complete and self._parser is None:
            self._fed_after = True  # a chunked body of no bytes, after the head that answers HEAD
        elif self.head is not None:
            self.complete = True

    def _take_interim(self, head: ResponseHead) -> None:
        self._maybe_seen = None  # what came first was not the head of the answer
        if head.status < 100:
            raise UpstreamProtocol("the status is not of HTTP")
        if head.status == 101:
            raise UpstreamProtocol("the upstream switched protocols unasked")
        self.interim.append(head)
        if len(self.interim) > _MAX_INTERIM:
            raise UpstreamProtocol("a flood of interim answers")

    def _check_coding(self, head: ResponseHead, special: dict[bytes, bytes], version: str) -> None:
        if head.content_length is not None:
            raise UpstreamProtocol("Content-Length and Transfer-Encoding exclude each other")
        if version == "1.0":
            raise UpstreamProtocol("HTTP/1.0 has no Transfer-Encoding")
        if special[b"transfer-encoding"].lower() != b"chunked":
            raise UpstreamProtocol("the only transfer coding is chunked")
        head.chunked = True


SEEN_HEADS: Final[dict[bytes, ResponseHead]] = {}
"""Heads of answers that were accepted, by their bytes: a function's memory, for all connections of the worker."""


def _response_length(special: dict[bytes, bytes]) -> int:
    value = special[b"content-length"]
    if not value.isdigit() or len(value) > 18:
        raise UpstreamProtocol("Content-Length is not one decimal number")
    return int(value)


def _says_keep_alive(head: ResponseHead, version: str) -> bool:
    connection = head.special.get(b"connection", b"").lower()
    return b"close" not in connection and (version == "1.1" or b"keep-alive" in connection)

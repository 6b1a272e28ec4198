"""HTTP/1 requests out of a client's bytes, sans I/O. With `http1_answers.py` the one door to httptools (llhttp).

httptools tokenises strictly (2.4 us a message); what it does not check is checked here, at the end of each head: one
`Host`, `Transfer-Encoding` exactly `chunked` and never in HTTP/1.0, the version, sizes and counts. In doubt a request
is refused and nothing after it is read.

Traps of httptools that this module contains
- It takes spaces without number between the parts of a request line, and RTSP's and ICE's for HTTP's: the line is held
  against what was made of it. So that a line's place is known, no feed goes beyond the end of a message.
- "Data after close" raises in the feed that completed a good request: that request stands.
- After an `Upgrade` the parser stops, body unread. We take no upgrade here, so the body is framed by a fresh parser
  that is fed a head of our own, and the next request does not begin inside it.
- Trailers come through `on_header`, and are checked as if they framed something: `Content-Length` there is an error,
  `Connection: close` ends the connection. But they are to be dropped (RFC 9110 6.5.1): it is told to let them pass once
  a head is accepted, and the next message gets a parser that knows nothing of it. A length twice, or one that is no
  number, is still malformed.
"""

from __future__ import annotations

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
    UriTooLong,
    VersionNotSupported,
)
from ambassador.messages import Request
from ambassador.proxy.fields import OWS, REQUEST_FIELDS, wire_lines
from ambassador.proxy.methods import KNOWN

if TYPE_CHECKING:
    from ambassador.messages import Fields

_METHODS: Final = {name.encode(): name for name in KNOWN}
"""llhttp speaks RTSP and ICE too (`DESCRIBE / RTSP/1.0`); nothing of theirs is passed on."""

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

MAX_CHUNK_OVERHEAD: Final = 65536
"""Chunk headers, extensions and trailers may cost this many bytes, plus 16 for each byte of body (a chunk of one
byte costs 5): a chunk extension without end is an attack."""

SEEN_BYTES: Final = 2048
SEEN_BLOCKS: Final = 512
"""Of each kind: at most 1 MiB of heads, with what they were parsed into about 4 MiB a worker."""
_PLAIN_LINE: Final = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) (/[!-\"$-~]*) HTTP/1\.1\r\n")
_SEEN_MESSAGE_BYTES: Final = 16384
_SECOND_LOOK: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
OWN_IDS: Final = frozenset({b"x-request-id", b"traceparent", b"tracestate"})
_PLAIN_SPECIAL: Final = frozenset({b"host", b"connection", b"content-length"}) | OWN_IDS

_FEED_BYTES: Final = 65536
"""A feed is at most this long. So much of what is counted for an unfinished head may be of the message before it."""


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
        self.seen_bytes = min(SEEN_BYTES, header_bytes)


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
            if len(seen) >= SEEN_BLOCKS:
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
        self._headers.append((name, value.rstrip(OWS)))  # httptools leaves what is behind it

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
            and self._fed > MAX_CHUNK_OVERHEAD + self._limits.header_bytes + 17 * self._body_bytes
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

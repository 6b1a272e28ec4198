"""HTTP/1 bytes to messages, both directions, sans I/O: the one door to httptools (llhttp).

httptools tokenises strictly (2.4 us a message); what it does not check is checked here, at the end of each head: one
`Host`, `Transfer-Encoding` exactly `chunked` and never in HTTP/1.0, the version, sizes and counts. In doubt a request
is refused and nothing after it is read.

Traps of httptools that this module contains
- Pipelined messages all fire in one feed: requests queue up in `RequestReader.requests`.
- "Data after close" raises in the feed that completed a good request: that request stands.
- After an `Upgrade` the parser stops, body unread. We take no upgrade here, so the body is framed by a fresh parser
  that is fed a head of our own, and the next request does not begin inside it.
- No skip-body for HEAD, no end-of-input call: `ResponseReader` frames both.
- Trailers come through `on_header`.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final

import httptools

from ambassador.errors import (
    BadRequest,
    BodyTooLarge,
    ClientError,
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
from ambassador.proxy.fields import REQUEST_FIELDS, RESPONSE_FIELDS

if TYPE_CHECKING:
    from ambassador.messages import Fields

_METHODS: Final = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}
_VERSION: Final = re.compile(rb" HTTP/(\d+(?:\.\d+)?)[\r\n]")
_METHOD_LINE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} +[!-~]+ +HTTP/1\.[01]\r\n")
HEALTH_TARGET: Final = b"/.well-known/ambassador/health"
"""What load balancers ask; the one target that needs no Host."""

_CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"

_MAX_CHUNK_OVERHEAD: Final = 65536
"""Chunk headers, extensions and trailers may cost this many bytes, plus 16 for each byte of body (a chunk of one
byte costs 5): a chunk extension without end is an attack."""

_SEEN_BYTES: Final = 2048
_SEEN_BLOCKS: Final = 512
"""Of each kind: at most 1 MiB of heads, with what they were parsed into about 4 MiB a worker."""
_PLAIN_LINE: Final = re.compile(rb"(GET|HEAD|OPTIONS|DELETE) (/[!-\"$-~]*) HTTP/1\.1\r\n")
_SECOND_LOOK: Final = frozenset({b"content-length", b"transfer-encoding", b"expect", b"upgrade"})
_PLAIN_SPECIAL: Final = frozenset({b"host", b"connection"})

_MAX_INTERIM: Final = 16
"""1xx answers before a final one: more is a flood."""


class Limits:
    """What a request head may have: `listeners.limits` of the config. `body` None: no limit.

    `seen` remembers field blocks that were accepted under these limits (see `RequestReader`).
    """

    __slots__ = ("body", "header_bytes", "headers", "seen", "uri")

    def __init__(
        self, header_bytes: int = 65536, headers: int = 100, uri: int = 8192, body: int | None = None
    ) -> None:
        self.header_bytes = header_bytes
        self.headers = headers
        self.uri = uri
        self.body = body
        self.seen: dict[bytes, Request] = {}


class RequestReader:
    """The client's byte stream as a queue of requests.

    Clients repeat themselves: the block of fields of one request is, to the byte, that of the last one. A block that
    the parser accepted for a bodiless request is remembered, with all that was worked out for it; a later head that
    comes alone in one piece, with a plain request line and a remembered block, is not tokenised again (3 us less). Any
    doubt goes to the parser. The memory is bounded, and shared by connections with the same limits.

    `feed` never raises: a malformed stream sets `error` (a request whose head was accepted has its `error` set too),
    and everything after it is ignored. Requests before it stand.
    """

    __slots__ = (
        "_body_bytes", "_current", "_fed", "_headers", "_in_head", "_limits", "_parser", "_synthetic", "_url",
        "error", "requests",
    )  # fmt: skip

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._current: Request | None = None
        self._headers: Fields = []
        self._url = b""
        self._in_head = False
        self._synthetic = False
        self._fed = 0
        self._body_bytes = 0
        self.requests: deque[Request] = deque()
        self.error: ProxyError | None = None

    @property
    def in_head(self) -> bool:
        """A head has begun and is not complete."""
        return self._in_head

    @property
    def has_input(self) -> bool:
        """Bytes of a message that is not complete have been fed (an empty line before a request counts)."""
        return self._fed > 0

    def feed(self, data: bytes | memoryview) -> None:
        """Parse the next bytes of the stream; afterwards look at `requests`, their bodies, and `error`."""
        if self.error is not None:
            return
        block = b""
        if self._fed == 0 and len(data) <= _SEEN_BYTES and self._current is None:
            head = bytes(data)
            line_end = head.find(b"\r\n") + 2
            if head.find(b"\r\n\r\n") == len(head) - 4 and line_end < len(head) - 2:
                block = head[line_end:]
                seen = self._limits.seen.get(block)
                line = _PLAIN_LINE.match(head) if seen is not None else None
                if line is not None and line.end() == line_end and len(line[2]) <= self._limits.uri:
                    assert seen is not None
                    self.requests.append(_same_fields(seen, line[1], line[2]))
                    return
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_after_upgrade(bytes(data[upgrade.args[0] :]))
        except httptools.HttpParserCallbackError as error:
            self._fail(error.__context__ if isinstance(error.__context__, ProxyError) else BadRequest())
        except httptools.HttpParserError as error:
            self._fail_parse(error, bytes(data))
        if self._fed:
            self._check_sizes()
        elif block and len(self.requests) == 1:
            self._remember(block, self.requests[0])

    def _remember(self, block: bytes, request: Request) -> None:
        special = request.special
        if request.minor and request.keep_alive and b"host" in special and not _SECOND_LOOK.intersection(special):
            seen = self._limits.seen
            if len(seen) >= _SEEN_BLOCKS:
                seen.clear()
            seen[block] = request
            if special.keys() <= _PLAIN_SPECIAL:
                request.lines = _lines(request.passing)

    def raw_body(self, request: Request) -> int:
        """Bytes of `request`'s body that are still to come, if its length is known and nothing follows it yet.

        Calling it hands the rest of the body to the caller, who reads exactly that many bytes past this parser and
        then sets `complete`. 0: not possible, go on feeding.
        """
        if request.content_length is None or request.complete or request is not self._current:
            return 0
        rest = request.content_length - self._body_bytes
        self._parser = httptools.HttpRequestParser(self)
        self._current = None
        self._fed = 0
        return rest

    # Callbacks of httptools

    def on_message_begin(self) -> None:
        if not self._synthetic:
            self._headers = []
            self._url = b""
            self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > self._limits.uri:
            raise UriTooLong(f"the request target is longer than {self._limits.uri} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._synthetic:
            self._synthetic = False
            return
        self._in_head = False
        parser = self._parser
        headers = self._headers
        version = parser.get_http_version()
        if version != "1.1" and version != "1.0":
            raise VersionNotSupported(f"HTTP/{version} is not spoken here")
        method = parser.get_method()
        request = Request(
            _METHODS.get(method) or method.decode("ascii"), self._url, headers, 1 if version == "1.1" else 0
        )
        request.passing, special = REQUEST_FIELDS.sort(headers)
        request.special = special
        request.keep_alive = parser.should_keep_alive()
        if len(headers) > self._limits.headers:
            raise HeaderTooLarge(f"more than {self._limits.headers} header fields")
        if self._fed > self._limits.header_bytes:
            self._check_head_bytes(headers)
        authority = special.get(b"host")
        if authority is not None:
            request.authority = authority
        elif request.minor and self._url != HEALTH_TARGET:
            raise BadRequest("HTTP/1.1 requests need one Host field")
        if b"content-length" in special:
            request.content_length = self._length(special)
        if b"transfer-encoding" in special:
            self._check_coding(request, special)
        if b"expect" in special:
            self._check_expect(request, special)
        if method == b"CONNECT":
            raise NotImplementedByProxy("CONNECT is for listeners in forward mode")
        self._headers = request.trailers
        self._body_bytes = 0
        self._current = request
        self.requests.append(request)

    def on_body(self, body: bytes) -> None:
        request = self._current
        if request is None:
            return
        request.body.append(body)
        self._body_bytes += len(body)
        limit = self._limits.body
        if limit is not None and self._body_bytes > limit:
            raise BodyTooLarge(f"the body is larger than {limit} bytes")

    def on_message_complete(self) -> None:
        request = self._current
        if request is None:
            return
        if b"upgrade" in request.special and self._parser.should_upgrade() and _has_body(request):
            return
        request.complete = True
        self._current = None
        self._fed = 0

    # Checks

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
        request.expects_continue = request.minor == 1 and (
            request.chunked or bool(request.content_length)
        )

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
            if self._fed > self._limits.header_bytes:
                self._fail(HeaderTooLarge(f"the head is larger than {self._limits.header_bytes} bytes"))
        elif request.chunked and self._fed > _MAX_CHUNK_OVERHEAD + self._limits.header_bytes + 17 * self._body_bytes:
            self._fail(BadRequest("chunk extensions or trailers without end"))
        elif len(request.trailers) > self._limits.headers:
            self._fail(HeaderTooLarge(f"more than {self._limits.headers} trailer fields"))

    # Failures

    def _fail(self, error: ProxyError) -> None:
        self.error = error
        if self._current is not None:
            self._current.error = error

    def _fail_parse(self, error: httptools.HttpParserError, data: bytes) -> None:
        if self._current is None and not self._in_head and self.requests and not self.requests[-1].keep_alive:
            return  # what follows a request that said `Connection: close` is ignored (RFC 9112 9.6)
        self._fail(_classify(error, data, in_url=self._in_head and not self._headers))

    def _go_on_after_upgrade(self, rest: bytes) -> None:
        request = self._current
        self._parser = httptools.HttpRequestParser(self)
        if request is not None:
            self._synthetic = True
            self._parser.feed_data(
                _CHUNKED_HEAD
                if request.chunked
                else b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (request.content_length or 0)
            )
            self._headers = request.trailers
        if rest:
            self.feed(rest)


def _same_fields(seen: Request, method: bytes, target: bytes) -> Request:
    """A bodiless request with the fields of one that was accepted. The fields are shared: nobody changes them."""
    request = Request(_METHODS[method], target, seen.headers, 1)
    request.passing = seen.passing
    request.special = seen.special
    request.lines = seen.lines
    request.authority = seen.authority
    request.complete = True
    return request


def _lines(fields: Fields) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def _has_body(request: Request) -> bool:
    return request.chunked or bool(request.content_length)


def _classify(error: httptools.HttpParserError, data: bytes, *, in_url: bool) -> ClientError:
    """The coded error for what httptools refused. It gives no code of its own but the exception's class."""
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _METHOD_LINE.match(data.lstrip(b"\r\n")):
        return NotImplementedByProxy("unknown method")
    if in_url:
        version = _VERSION.search(data)
        if version is not None and version[1] not in (b"1.0", b"1.1"):
            return VersionNotSupported("only HTTP/1.0 and HTTP/1.1 are spoken here")
    return BadRequest("malformed request")


class ResponseReader:
    """The upstream's byte stream as one response at a time.

    `begin` for each request; then `feed` until `head` is set, `body` pieces come, and `complete` is true. `feed` and
    `end_of_input` raise `UpstreamProtocol` or `UpstreamReset`. After a response the reader is `reusable` only if the
    exchange is provably complete and no byte follows it.
    """

    __slots__ = (
        "_body_bytes", "_close_delimited", "_fed_after", "_for_head", "_headers", "_maybe_seen", "_parser", "_received", "body", "complete", "head",
        "interim", "trailers",
    )  # fmt: skip

    def __init__(self) -> None:
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: Fields = []
        self._for_head = False
        self._close_delimited = False
        self._received = 0
        self._body_bytes = 0
        self._fed_after = False
        self._maybe_seen: bytes | None = None
        self.head: ResponseHead | None = None
        self.body: list[bytes] = []
        self.trailers: Fields = []
        self.interim: list[ResponseHead] = []
        self.complete = False

    def begin(self, *, for_head: bool) -> None:
        """Expect the response to a request; `for_head`: to HEAD, which has no body whatever its fields say."""
        if self._parser is None:
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
        if self._received == 0 and not self._for_head and len(data) <= _SEEN_ANSWER_BYTES and self._take_seen(data):
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
                raise UpstreamProtocol("malformed answer") from None
            self._fed_after = True
        if self.head is None and self._received > 262144:
            raise UpstreamProtocol("the head of the answer is too large")

    def _take_seen(self, data: bytes | memoryview) -> bool:
        """Take a whole answer whose head was seen before, to the byte, and whose length is right (3 us less)."""
        answer = bytes(data)
        end = answer.find(b"\r\n\r\n") + 4
        head = _SEEN_HEADS.get(answer[:end])
        if head is None:
            self._maybe_seen = answer[:end] if 4 <= end <= _SEEN_BYTES else None
            return False
        if head.content_length != len(answer) - end:
            return False
        self.head = head
        if head.content_length:
            self.body.append(answer[end:])
        self._received = len(answer)
        self.complete = True
        return True

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
        self._parser = None
        return head.content_length - self._body_bytes

    # Callbacks of httptools

    def on_message_begin(self) -> None:
        if self.complete:
            self._fed_after = True
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        parser = self._parser
        assert parser is not None
        status = parser.get_status_code()
        head = ResponseHead(status, self._headers)
        head.passing, special = RESPONSE_FIELDS.sort(self._headers)
        head.special = special
        if status < 200:
            self._take_interim(head)
            return
        if parser.get_http_version() not in ("1.1", "1.0"):
            raise UpstreamProtocol("the upstream speaks another version of HTTP")
        head.keep_alive = parser.should_keep_alive()
        bodiless = self._for_head or status == 204 or status == 304
        if b"content-length" in special:
            head.content_length = _response_length(special)
        if b"transfer-encoding" in special:
            self._check_coding(head, special, parser.get_http_version())
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
            if not self.interim:
                head.lines = _lines(head.passing)
                if len(_SEEN_HEADS) >= _SEEN_BLOCKS:
                    _SEEN_HEADS.clear()
                _SEEN_HEADS[self._maybe_seen] = head

    def on_body(self, body: bytes) -> None:
        if self.complete:
            self._fed_after = True
            return
        self.body.append(body)
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        if self.head is not None:
            self.complete = True

    def _take_interim(self, head: ResponseHead) -> None:
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


_SEEN_ANSWER_BYTES: Final = 8192
_SEEN_HEADS: Final[dict[bytes, ResponseHead]] = {}
"""Heads of answers that were accepted, by their bytes: a function's memory, for all connections of the worker."""


def _response_length(special: dict[bytes, bytes]) -> int:
    value = special[b"content-length"]
    if not value.isdigit() or len(value) > 18:
        raise UpstreamProtocol("Content-Length is not one decimal number")
    return int(value)


def _says_keep_alive(head: ResponseHead, version: str) -> bool:
    connection = head.special.get(b"connection", b"").lower()
    return b"close" not in connection and (version == "1.1" or b"keep-alive" in connection)

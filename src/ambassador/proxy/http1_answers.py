"""HTTP/1 answers out of an upstream's bytes, sans I/O. With `http1_requests.py` the one door to httptools (llhttp).

What was said there of httptools holds here: it tokenises strictly, and the rest is checked at the end of each head. An
answer in doubt is an error, and the connection that it came by is not used again.

Traps of httptools that this module contains
- It calls bytes of a body that HEAD's answer cannot have a chunk header, and swallows them.
- No skip-body for HEAD, no end-of-input call: both are framed here.
- Trailers that would frame something: as with requests.
"""

from __future__ import annotations

import http
import re
from typing import TYPE_CHECKING, Final

import httptools

from ambassador.errors import ProxyError, UpstreamProtocol, UpstreamReset
from ambassador.messages import ResponseHead
from ambassador.proxy.fields import OWS, RESPONSE_FIELDS, wire_lines
from ambassador.proxy.http1_requests import MAX_CHUNK_OVERHEAD, SEEN_BLOCKS, SEEN_BYTES

if TYPE_CHECKING:
    from ambassador.messages import Fields

_MAX_ANSWER_HEAD: Final = 262144
"""Bytes of an answer's head, with the interim answers before it."""

_MAX_INTERIM: Final = 16
"""1xx answers before a final one: more is a flood."""


_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in http.HTTPStatus
}


_ODD_IN_REASON: Final = re.compile(rb"[^\t -~\x80-\xff]")


def status_line(status: int, reason: bytes = b"") -> bytes:
    """The first line of an answer, ended; with the standard reason phrase where the upstream gave none."""
    if reason and not _ODD_IN_REASON.search(reason):
        return b"HTTP/1.1 %d %b\r\n" % (status, reason)
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


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
            and self._received > _MAX_ANSWER_HEAD + MAX_CHUNK_OVERHEAD + 17 * self._body_bytes
        ):
            raise UpstreamProtocol("chunk extensions or trailers without end")

    def _take_seen(self, data: bytes | memoryview) -> bool:
        """Take an answer whose head was seen before, to the byte (3 us less). False: the parser's turn.

        A body that is not complete stays where it was read: it must be written on before the next read.
        """
        start = bytes(data[:SEEN_BYTES])
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
        self._headers.append((name, value.rstrip(OWS)))  # httptools leaves what is behind it

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
            if len(SEEN_HEADS) >= SEEN_BLOCKS:
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

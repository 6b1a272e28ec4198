"""What is passed around: requests, heads of responses, and answers made here.

Plain slotted classes, made once per message by a codec and filled in on the way. Field names and values are bytes as
received: order, case and duplicates are kept. Nothing here reads a socket or knows a protocol version's syntax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from ambassador.errors import ProxyError

Field: TypeAlias = tuple[bytes, bytes]
Fields: TypeAlias = list[Field]

_NO_FIELDS: Fields = []


class Request:
    """One request as a codec delivers it: the head at once, the body piece by piece.

    `body` holds the pieces that have arrived and were not yet taken; `complete` says that no more will come. A request
    that turned out malformed after its head was accepted has `error` set, and `complete` stays false.
    """

    __slots__ = (
        "authority", "body", "chunked", "client", "client_ip", "complete", "content_length", "error",
        "expects_continue", "headers", "host", "keep_alive", "lines", "method", "minor", "params", "passing", "path", "port",
        "query", "request_id", "route", "scheme", "special", "target", "trailers",
    )  # fmt: skip

    def __init__(self, method: str, target: bytes, headers: Fields, minor: int) -> None:
        self.method = method
        self.target = target
        """As received."""
        self.headers = headers
        """Every field as received."""
        self.minor = minor
        """HTTP/1.x of the message: 0 or 1."""
        self.passing: Fields = _NO_FIELDS
        """The fields that go on to the upstream unless something changes them."""
        self.special: dict[bytes, bytes] = {}
        """Fields that the proxy itself understands, by lower-case name; repeated ones joined with a comma."""
        self.lines: bytes | None = None
        """`passing` as it goes on the wire, each line ended, if nothing in the head needs a second look; else None."""
        self.content_length: int | None = None
        self.chunked = False
        self.keep_alive = True
        self.expects_continue = False
        self.body: list[bytes] = []
        self.complete = False
        self.trailers: Fields = []
        self.error: ProxyError | None = None
        self.scheme = "http"
        self.authority = b""
        """Host and port as the client wrote them."""
        self.host = ""
        """Lower case, without port; empty for HTTP/1.0 without Host."""
        self.port: int | None = None
        self.path = b""
        """Normalised, without the query."""
        self.query: bytes | None = None
        self.client_ip = ""
        self.client: str | None = None
        self.request_id = b""
        self.route = "-"
        self.params: dict[str, str] | None = None

    @property
    def version(self) -> tuple[int, int]:
        """(major, minor)."""
        return (1, self.minor)


class ResponseHead:
    """The head of an upstream's answer. It may stand for several answers with the same head: never changed.

    `content_length` None without `chunked` means that the body ends with the connection, if there can be a body.
    """

    __slots__ = (
        "chunked",
        "content_length",
        "headers",
        "keep_alive",
        "lines",
        "passing",
        "special",
        "status",
    )

    def __init__(self, status: int, headers: Fields) -> None:
        self.status = status
        self.headers = headers
        self.passing: Fields = _NO_FIELDS
        self.special: dict[bytes, bytes] = {}
        self.lines: bytes | None = None
        """`passing` as it goes on the wire, each line ended; None where that was not worked out."""
        self.content_length: int | None = None
        self.chunked = False
        self.keep_alive = True


class Reply:
    """An answer made by the ambassador itself."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Fields, body: bytes = b"") -> None:
        self.status = status
        self.headers = headers
        self.body = body

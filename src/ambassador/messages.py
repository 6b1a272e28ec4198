"""What is passed around: requests, heads of responses, and answers made here.

Plain slotted classes, made once per message by a codec and filled in on the way. Field names and values are bytes as
received: order, case and duplicates are kept. Nothing here reads a socket or knows a protocol version's syntax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from ambassador.errors import ProxyError

Field: TypeAlias = tuple[bytes, bytes]
Fields: TypeAlias = list[Field]

_NO_FIELDS: Fields = []


class Waiter(Protocol):
    """How a policy that must wait does so, for one request: only its coroutine rests, anybody may wake it."""

    async def rest(self, until: float) -> None:
        """Return when `wake` is called, or at `until` (seconds of the lane's clock), or for no reason at all.

        Raises when the client is gone.
        """

    def wake(self) -> None:
        """Have `rest` return soon; never runs the coroutine inside this call. Without effect when nobody rests."""


class Keeper(Protocol):
    """Who keeps the answer of a request for its repeats. Told by the exchange, which goes on with such a request even
    if its client leaves.
    """

    @property
    def most(self) -> int:
        """The longest body that is kept, in bytes."""

    reached: bool
    """Set when the first byte has gone up."""

    def see(self, data: bytes | memoryview) -> None:
        """A piece of the request's body, on its way up."""

    def keep(self, status: int, fields: Fields, body: bytes | None, *, whole: bool) -> None:
        """The answer, before it is passed on; `body` None: longer, or not all of it is here. `whole`: all of the
        request was seen. Only the first call counts.
        """

    def free(self) -> None:
        """There is no answer to keep. After `keep` without effect."""

    def refused(self) -> None:
        """The answer says that nothing was carried out, and nothing was before: it is not to be kept."""

    async def told(self, waiter: Waiter) -> None:
        """After `keep` or `free`: return when repeats elsewhere know of it, or after a short while.

        Raises what the waiter's `rest` raises.
        """


class Request(msgspec.Struct, gc=False, eq=False):
    """One request as a codec delivers it: the head at once, the body piece by piece.

    `body` holds the pieces that have arrived and were not yet taken; `complete` says that no more will come. A request
    that turned out malformed after its head was accepted has `error` set, and `complete` stays false.
    """

    method: str
    target: bytes
    """As received."""
    headers: Fields
    """Every field as received."""
    minor: int
    """HTTP/1.x of the message: 0 or 1."""
    passing: Fields = []
    """The fields that go on to the upstream unless something changes them."""
    special: dict[bytes, bytes] = {}
    """Fields that the proxy itself understands, by lower-case name; repeated ones joined with a comma."""
    lines: bytes | None = None
    """`passing` as it goes on the wire, each line ended, if nothing in the head needs a second look; else None."""
    content_length: int | None = None
    chunked: bool = False
    keep_alive: bool = True
    expects_continue: bool = False
    body: list[bytes] = []
    complete: bool = False
    trailers: Fields = []
    error: ProxyError | None = None
    scheme: str = "http"
    authority: bytes = b""
    """Host and port as the client wrote them."""
    host: str = ""
    """Lower case, without port; empty for HTTP/1.0 without Host."""
    port: int | None = None
    path: bytes = b""
    """Normalised, without the query."""
    query: bytes | None = None
    client_ip: str = ""
    client: str | None = None
    """Who asks, by the name in the config; None: that is not known."""
    proof: tuple[bytes, ...] = ()
    """Names of the fields that prove it, lower case: no part of what the request says."""
    spent: tuple[bytes, ...] = ()
    """Those of them that do not go on to the upstream."""
    doubt: str | None = None
    """Why it is not known, one of `proxy.clients.who.DOUBTS`; None: nothing says who it is, or it is known."""
    request_id: bytes = b""
    route: str = "-"
    params: dict[str, str] | None = None
    waiter: Waiter | None = None
    """None: policies must decide at once."""
    held_s: float = 0.0
    """How long the state store was waited for, over all limits, breakers and attempts."""
    keeper: Keeper | None = None
    ends: list[Callable[[int, float], None]] | None = None
    """What policies want to be called when the request has ended, whatever became of it: `end` does that."""

    def at_end(self, give_back: Callable[[int, float], None]) -> None:
        """Have `give_back` called exactly once when the request ends, with the status of its answer (0: none, or it is
        not known) and the seconds that it took. It must not raise.
        """
        if self.ends is None:
            self.ends = [give_back]
        else:
            self.ends.append(give_back)

    def end(self, status: int, seconds: float) -> None:
        """The request has ended: give back what policies hold for it, the last first. Again: nothing."""
        ends, self.ends = self.ends, None
        while ends:
            ends.pop()(status, seconds)

    @property
    def version(self) -> tuple[int, int]:
        """(major, minor)."""
        return (1, self.minor)


class RequestHead(msgspec.Struct, gc=False, eq=False):
    """The head of a request as it goes to an upstream; how it is written is the connection's business.

    `fields` holds neither the host nor what frames a body of unknown length. It is the connection's to change.
    """

    method: str
    path: bytes
    """With the query."""
    authority: bytes
    fields: Fields
    sized: bool = True
    """The fields say how long the body is, or there is none."""
    body: bytes | None = None
    """All of the body, for whoever signs it. None: it is not at hand, or nobody does."""
    takes_trailers: bool = False
    """The client would have the answer's trailers (`TE: trailers`)."""


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
        "reason",
        "special",
        "start",
        "status",
    )

    def __init__(self, status: int, headers: Fields) -> None:
        self.status = status
        self.headers = headers
        self.reason = b""
        """The reason phrase; empty where the upstream gave none."""
        self.passing: Fields = _NO_FIELDS
        self.special: dict[bytes, bytes] = {}
        self.lines: bytes | None = None
        """`passing` as it goes on the wire, each line ended; None where that was not worked out."""
        self.start: bytes | None = None
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

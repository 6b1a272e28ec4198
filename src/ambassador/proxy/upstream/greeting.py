"""What is said to an egress proxy before a connection leads to an endpoint: HTTP CONNECT (RFC 9110 9.3.6), SOCKS5
(RFC 1928, with user and password as in RFC 1929).

Pure: bytes in, bytes out, so that the lane and the health checks speak by the same code. `begin` says what to send
first; then, until `wants` is 0, at most so many bytes are read and fed. Never a byte is taken that belongs to the
endpoint: of SOCKS messages, whose length their beginning tells, only so many are wanted, and behind the answer to
CONNECT nothing may stand, since the endpoint has not been asked anything yet: what is there, the proxy has made up.

No library has these few messages in pieces: `socksio` takes whole ones only, so what is left for it is to pack them.

All failures are `ConnectFailed`. Their words go to clients, so they name no address.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final, Protocol

from ambassador.errors import ConnectFailed, ProxyError
from ambassador.proxy.http1_answers import ResponseReader

if TYPE_CHECKING:
    from collections.abc import Callable

_LARGEST_ANSWER: Final = 16384
"""Bytes of the head of the answer to CONNECT. squid's refusals, with their error page, have their body behind it."""
_MOST_HEADS: Final = 8
"""With those of interim answers (1xx) before it."""
_SOCKS: Final = 5
_ANYBODY, _PASSWORD, _NOBODY = 0, 2, 0xFF
_ADDRESS_BYTES: Final = {1: 4, 4: 16}
_REFUSALS: Final = {
    1: "it failed",
    2: "its rules forbid it",
    3: "the network is unreachable",
    4: "the host is unreachable",
    5: "the connection was refused",
    6: "the time to live expired",
    7: "it does not know the command",
    8: "it does not know the type of address",
}


class Greeting(Protocol):
    """One conversation with a proxy."""

    wants: int
    """How many bytes may be read at most; 0: the connection leads to the endpoint."""

    def begin(self) -> bytes:
        """What is sent first."""

    def feed(self, data: bytes) -> bytes:
        """Take what was read, and give what is sent in answer. Raises `ConnectFailed`."""


class Connect:
    """CONNECT to `target` (`host:port`). `authorization`: the value of Proxy-Authorization."""

    def __init__(self, target: bytes, authorization: bytes | None = None) -> None:
        self._target = target
        self._authorization = authorization
        self._reader = ResponseReader()
        self._held = b""
        self._heads = 0
        self.wants = _LARGEST_ANSWER

    def begin(self) -> bytes:
        """The request."""
        self._reader.begin(for_head=True)  # as of an answer to HEAD, its fields say nothing of a body
        shown = b""
        if self._authorization is not None:
            shown = b"proxy-authorization: %b\r\n" % self._authorization
        return b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (self._target, self._target, shown)

    def feed(self, data: bytes) -> bytes:
        """Take of the answer; nothing is said to it."""
        self._held += data
        while self._heads < _MOST_HEADS:
            head, end, rest = self._held.partition(b"\r\n\r\n")
            if not end and len(head) < _LARGEST_ANSWER:
                return b""
            if not end:
                break
            self._held = rest
            self._heads += 1
            try:
                self._reader.feed(head + end)
            except ProxyError:
                break
            if self._reader.head is not None:
                self._take(self._reader.head.status)
                return b""
        raise ConnectFailed("the egress proxy sent a malformed answer")

    def _take(self, status: int) -> None:
        if status == 407:
            raise ConnectFailed(
                "the egress proxy wants credentials"
                if self._authorization is None
                else "the egress proxy does not take the credentials"
            )
        if not 200 <= status < 300:
            raise ConnectFailed(f"the egress proxy refuses the connection with status {status}")
        if self._held:
            raise ConnectFailed("the egress proxy sent bytes behind its answer")
        self.wants = 0


class Socks5:
    """CONNECT of SOCKS5 to `host` and `port`. A name is left to the proxy to resolve. `user` and `password`: what it is
    shown if it asks.
    """

    def __init__(self, host: str, port: int, user: str | None = None, password: str | None = None) -> None:
        self._request = bytes((_SOCKS, 1, 0)) + _packed(host) + port.to_bytes(2, "big")
        self._login: bytes | None = None
        if user is not None:
            parts = user.encode(), (password or "").encode()
            if any(not 0 < len(part) < 256 for part in parts):
                raise ConnectFailed("the egress proxy's user and password must have 1 to 255 bytes each")
            self._login = b"\1" + b"".join(bytes((len(part),)) + part for part in parts)
        self._held = b""
        self._take: Callable[[bytes], bytes] = self._take_method
        self.wants = 2

    def begin(self) -> bytes:
        """The methods that may be chosen of."""
        return bytes((_SOCKS, 1, _ANYBODY) if self._login is None else (_SOCKS, 2, _ANYBODY, _PASSWORD))

    def feed(self, data: bytes) -> bytes:
        """Take of the present message; what is said when it is whole."""
        self._held += data
        self.wants -= len(data)
        if self.wants:
            return b""
        message, self._held = self._held, b""
        return self._take(message)

    def _take_method(self, message: bytes) -> bytes:
        version, method = message
        if version != _SOCKS:
            raise ConnectFailed("the egress proxy does not speak SOCKS5")
        if method == _PASSWORD and self._login is not None:
            self._take, self.wants = self._take_login, 2
            return self._login
        if method != _ANYBODY:
            raise ConnectFailed(
                "the egress proxy wants credentials"
                if method == _NOBODY and self._login is None
                else "the egress proxy wants to know who asks in a way that is not known here"
            )
        return self._ask()

    def _take_login(self, message: bytes) -> bytes:
        if message[1] != 0:
            raise ConnectFailed("the egress proxy does not take the credentials")
        return self._ask()

    def _ask(self) -> bytes:
        self._take, self.wants = self._take_answer, 5
        return self._request

    def _take_answer(self, message: bytes) -> bytes:
        """The beginning of the answer, of which the length follows."""
        version, refusal, _, kind, first = message
        if version != _SOCKS:
            raise ConnectFailed("the egress proxy sent a malformed answer")
        if refusal:
            why = _REFUSALS.get(refusal, "it does not say why")
            raise ConnectFailed(f"the egress proxy refuses the connection: {why}")
        length = first + 1 if kind == 3 else _ADDRESS_BYTES.get(kind)
        if length is None:
            raise ConnectFailed("the egress proxy sent a malformed answer")
        self._take, self.wants = self._take_rest, length - 1 + 2
        return b""

    def _take_rest(self, _: bytes) -> bytes:
        """The address that the proxy calls from, which says nothing to us."""
        return b""


def _packed(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("ascii")
        return bytes((3, len(name))) + name
    return bytes((1 if address.version == 4 else 4,)) + address.packed

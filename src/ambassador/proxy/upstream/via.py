"""The way to an upstream through an egress proxy (`connections.via`).

A connection is opened to the proxy, and led on to the endpoint by a greeting (`greeting.py`). From then on it is one
like others: TLS with the endpoint on top of it, pools, policies and the way of plain requests know nothing of it. To
plain http endpoints an HTTP proxy is not asked for a tunnel but with the whole URL (RFC 9112 3.2.2): that is what such
proxies let through, where squid's first rules forbid CONNECT to any port but 443.

What the proxy is shown goes to the proxy only: it is in the greeting, or in the head of a `ForwardConnection`, which is
a connection to the proxy. A 407 that asks for credentials is never passed on: they are for the proxy.
"""

from __future__ import annotations

import logging
import socket
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from msgspec import Meta

from ambassador.errors import ConnectFailed, EgressProxyRefused, UpstreamReset
from ambassador.proxy.lane import READ, WRITE
from ambassador.proxy.upstream.greeting import Connect, Greeting, Socks5
from ambassador.proxy.upstream.h1 import Http1Connection
from ambassador.secret import SecretError
from ambassador.settings import HeaderValue, Section
from ambassador.settings import Secret as Reference

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ambassador.messages import Fields, RequestHead
    from ambassador.proxy.lane import Link, Strand
    from ambassador.proxy.upstream.pool import Pool
    from ambassador.secret import Secret

_BEHIND_S: Final = 1.0
"""A close so soon after an answer belongs to it. Idle connections are kept for longer, by squid for 2 minutes."""

WANTS_OTHERS: Final = "the egress proxy does not take the credentials, or wants some"
"""What a 407 to a whole URL means."""

ProxyUrl = Annotated[str, Meta(extra={"form": "proxy_url"})]
"""`http://host:port` or `socks5://host:port`."""

_log = logging.getLogger(__name__)


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An egress proxy. `via: URL` is short for `{url: URL}`."""

    shorthand: ClassVar[str | None] = "url"

    url: ProxyUrl
    """`http://host:port`: CONNECT for `https` endpoints, whole URLs for `http` ones. `socks5://host:port`: for both.
    The proxy resolves the names of endpoints."""

    user: HeaderValue | None = None
    """The user that the proxy knows."""

    password: Reference | None = None
    """Its password: `env:NAME` or `file:/path`."""

    @property
    def is_socks(self) -> bool:
        """Whether it speaks SOCKS5, not HTTP."""
        return self.url.startswith("socks5:")

    @property
    def place(self) -> tuple[str, int]:
        """The proxy's host, without brackets, and its port."""
        host, _, port = self.url.partition("://")[2].rpartition(":")
        return host.strip("[]"), int(port)

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Half of the credentials; a user of whom a part would be read as the password."""
        if self.user is not None and self.password is None:
            yield "user", "needs its 'password'"
        if self.password is not None and self.user is None:
            yield "password", "needs its 'user'"
        if self.user is not None and not self.is_socks and ":" in self.user:
            yield "user", "must not hold a ':'"


class Proxy:
    """The egress proxy of one upstream. `addresses`: what its host's name resolves to."""

    __slots__ = ("_config", "_password", "_problem", "_upstream", "addresses", "host", "port")

    def __init__(self, config: Config, upstream: str, password: Secret | None) -> None:
        self._config = config
        self._upstream = upstream
        self._password = password
        self._problem = ""
        self.host, self.port = config.place
        self.addresses: Sequence[str] = ()

    def is_asked_for_urls(self, *, secure: bool) -> bool:
        """Whether requests to an endpoint, which speaks TLS or not, have the whole URL."""
        return not secure and not self._config.is_socks

    def greeting(self, host: str, port: int) -> Greeting:
        """What leads a new connection to an endpoint. Raises `ConnectFailed`."""
        return greeting(self._config, self._secret(), host, port)

    def authorization(self) -> bytes | None:
        """The value of Proxy-Authorization. Raises `ConnectFailed`."""
        return basic(self._config.user, self._secret())

    def _secret(self) -> str | None:
        try:
            return None if self._password is None else self._password.value
        except SecretError as error:
            self.told(str(error))
            raise ConnectFailed("the egress proxy's password cannot be read") from None

    def told(self, problem: str) -> None:
        """Have the log hear why connections are not led on, once until it is something else; empty: they are."""
        if problem != self._problem:
            self._problem = problem
            if problem:
                _log.warning("upstream %s: via %s: %s", self._upstream, self._config.url, problem)
            else:
                _log.info("upstream %s: via %s: it leads on again", self._upstream, self._config.url)


class Way:
    """The way to one endpoint through `proxy`. `secure`: the endpoint speaks TLS."""

    __slots__ = ("_host", "_port", "closes", "proxy", "target", "tunnels")

    def __init__(self, proxy: Proxy, host: str, port: int, *, secure: bool) -> None:
        self.proxy = proxy
        self._host, self._port = host, port
        self.tunnels = not proxy.is_asked_for_urls(secure=secure)
        """The connection is led on; else its requests have the whole URL."""
        self.closes = False
        """The proxy was seen to close a connection behind an answer that did not say so. Not forgotten."""
        self.target = authority(host, port).removesuffix(b":80")

    def begin(self, link: Link) -> Tunnel:
        """Have a connection to the proxy, whose link has a plain socket, led on: the greeting is to come."""
        assert isinstance(link.sock, socket.socket)
        tunnel = Tunnel(link.sock, self.proxy.greeting(self._host, self._port), self.proxy)
        link.sock = tunnel
        return tunnel


class Tunnel:
    """A connection to a proxy that is being led on, in the place of its `sock` until `shake_hands` says 0."""

    __slots__ = (
        "_greeting",
        "_proxy",
        "_unsent",
        "fileno",
        "getsockopt",
        "setsockopt",
        "shutdown",
        "sock",
        "wanted",
    )

    def __init__(self, sock: socket.socket, greeting: Greeting, proxy: Proxy) -> None:
        self.sock = sock
        self._greeting = greeting
        self._proxy = proxy
        self._unsent = greeting.begin()
        self.wanted = WRITE
        """What the last step did not have: READ or WRITE; 0 when it is done."""
        self.fileno = sock.fileno
        self.getsockopt = sock.getsockopt
        self.setsockopt = sock.setsockopt
        self.shutdown = sock.shutdown

    def shake_hands(self) -> int:
        """Go on as far as that is possible now; then `wanted`. Raises `ConnectFailed`."""
        try:
            self.wanted = self._go_on()
        except ConnectFailed as error:
            self._proxy.told(error.detail)
            raise
        if not self.wanted:
            self._proxy.told("")
        return self.wanted

    def _go_on(self) -> int:
        greeting = self._greeting
        while self._unsent or greeting.wants:
            try:
                if self._unsent:
                    self._unsent = self._unsent[self.sock.send(self._unsent) :]
                    continue
                data = self.sock.recv(greeting.wants)
            except BlockingIOError:
                return WRITE if self._unsent else READ
            except OSError:
                raise ConnectFailed("the egress proxy reset the connection") from None
            if not data:
                raise ConnectFailed("the egress proxy closed the connection")
            self._unsent = greeting.feed(data)
        try:
            early = self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return 0
        except OSError:
            raise ConnectFailed("the egress proxy reset the connection") from None
        if early:
            raise ConnectFailed("the egress proxy sent bytes behind its answer")
        raise ConnectFailed("the egress proxy closed the connection")

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As a socket's, where it is only looked whether anything is there."""
        return self.sock.recv(size, flags)

    def recv_into(self, buffer: bytearray, size: int, /) -> int:
        """As a socket's."""
        return self.sock.recv_into(buffer, size)

    def send(self, data: bytes | memoryview, /) -> int:
        """As a socket's."""
        return self.sock.send(data)

    def sendmsg(self, pieces: Iterable[bytes | memoryview], /) -> int:
        """As a socket's."""
        return self.sock.sendmsg(pieces)

    def close(self) -> None:
        """As a socket's."""
        self.sock.close()


class ForwardConnection(Http1Connection):
    """A connection to an HTTP proxy that is asked for one plain http endpoint by whole URLs.

    There are proxies that close behind each answer and say nothing of it (tinyproxy 1.11): a request that is written
    while the FIN is on its way meets a closed connection, and a POST must not be sent again then. So a proxy that was
    seen to do that gets a new connection for each request.
    """

    __slots__ = ("_is_kept",)

    def __init__(self, link: Link, pool: Pool) -> None:
        super().__init__(link, pool)
        self._is_kept = False
        """The proxy has answered more than one request on it."""

    def is_quiet(self) -> bool:
        """As of any connection; of one that is not, it is learned whether the proxy closes behind its answers."""
        quiet = super().is_quiet()
        if not quiet:
            self._learn()
        return quiet

    def release(self) -> None:
        """As of any connection. Behind a proxy that closes it anyhow it ends here."""
        way = self.pool.way
        assert way is not None
        self._is_kept = self.used
        if way.closes and not self._is_kept:
            self.close()
        else:
            super().release()

    def _learn(self) -> None:
        way = self.pool.way
        assert way is not None
        if self._is_kept:
            return
        idle_s = self.pool.now - self.idle_until + self.pool.idle_timeout_s
        if idle_s < _BEHIND_S if self.used else self.reader.complete:
            way.closes = True

    def start(self, strand: Strand, head: RequestHead, body: bytes, trailers: Fields | None) -> None:
        """As of any connection; Host is the endpoint's, which such a proxy would put there anyhow."""
        way = self.pool.way
        assert way is not None
        path = b"" if head.path == b"*" else head.path
        head.path, head.authority = b"http://%b%b" % (way.target, path), way.target
        shown = way.proxy.authorization()
        if shown is not None:
            head.fields.append((b"proxy-authorization", shown))
        super().start(strand, head, body, trailers)

    def receive(self) -> bool:
        """As of any connection. Raises `EgressProxyRefused` too.

        A 407 that does not say what it wants (RFC 9110 15.5.8) is some answer of the upstream.
        """
        try:
            received = super().receive()
        except UpstreamReset:
            if self.used and not self.reader.started:
                self._learn()
            raise
        head = self.reader.head
        if head is not None:
            way = self.pool.way
            assert way is not None
            if head.status == 407 and any(name.lower() == b"proxy-authenticate" for name, _ in head.headers):
                error = EgressProxyRefused(WANTS_OTHERS)
                way.proxy.told(error.detail)
                raise error
            way.proxy.told("")
        return received


def greeting(config: Config, password: str | None, host: str, port: int) -> Greeting:
    """What has an egress proxy lead a new connection on. Raises `ConnectFailed`."""
    if config.is_socks:
        return Socks5(host, port, config.user, password)
    return Connect(authority(host, port), basic(config.user, password))


def authority(host: str, port: int) -> bytes:
    """`host:port` as a proxy is asked for it."""
    return (
        b"[%b]:%d" % (host.encode("ascii"), port) if ":" in host else b"%b:%d" % (host.encode("ascii"), port)
    )


def basic(user: str | None, password: str | None) -> bytes | None:
    """The value of Proxy-Authorization (RFC 7617); None: nothing is shown."""
    return None if user is None else b"Basic " + b64encode(f"{user}:{password or ''}".encode())

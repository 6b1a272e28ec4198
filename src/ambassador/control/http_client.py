"""The ambassador's own HTTP calls: the one module that imports httpcore.

Each call has a connection of its own, which ends with it: a pool would tell of the connection that it kept, not of
whether one can be made now, and nothing is left over by a call that is cancelled (encode/httpcore #1093: its pool keeps
the places of such calls taken). Errors of the library end here as `CallFailed`. Times are trio's.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import httpcore
import trio
from msgspec import Struct

from ambassador.errors import ConnectFailed
from ambassador.proxy.egress import Egress
from ambassador.proxy.loopback import is_loopback
from ambassador.proxy.upstream.greeting import Greeting
from ambassador.proxy.upstream.passage import Passage
from ambassador.proxy.upstream.via import WANTS_OTHERS

Header: TypeAlias = tuple[bytes, bytes]

LARGEST_BODY: Final = 64 * 1024 * 1024
LONGEST_LINE: Final = 16 * 1024 * 1024
_NEXT_AFTER_S: Final = 1.0  # a host's address that does not answer so soon is given up for its next
_FAREWELL_S = 1.0  # TLS says good-bye, to a peer that may not listen

# A peer that is gone without a word is noticed within a minute, where a stream may be silent for longer.
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
# The last is what the resolver says of a name that cannot be one.
_FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError, UnicodeError)


class CallFailed(Exception):
    """There was no answer; the text says why, in few words."""


class TooSlow(CallFailed):
    """There was none in time."""


class Place(Struct, frozen=True):
    """Where to connect: an IP `address` and `port`, or the `path` of a unix socket."""

    address: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Tls(Struct, frozen=True):
    """`context`: whom to trust, and as whom to call. `name`: what the certificate must be for, and is asked for."""

    context: ssl.SSLContext
    name: str


class _Network(httpcore.TrioBackend):
    """Opens connections, and closes their sockets at the end whatever has become of them: httpcore leaves that of a TLS
    handshake that is cancelled open.
    """

    def __init__(
        self,
        greeting: Greeting | None = None,
        egress: Egress | None = None,
        *,
        only_loopback: bool = False,
        through: Passage | None = None,
    ) -> None:
        self._opened: list[httpcore.AsyncNetworkStream] = []
        self._greeting = greeting
        self._egress = egress
        self._only_loopback = only_loopback
        self._through = through

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **options: Any
    ) -> httpcore.AsyncNetworkStream:
        """As the library's, where egress lets it be, and led on if there is a greeting. Raises `ConnectFailed` too."""
        addresses, greeting = [host], self._greeting
        if self._through is not None:
            greeting = self._through.greeting()
            addresses = await self._to_proxy(self._through, host)
            port = self._through.proxy[1]
        elif self._egress is not None or self._only_loopback:
            addresses = await _permitted(
                self._egress or Egress(), host, port, only_loopback=self._only_loopback
            )
        try:
            stream = await self._first(addresses, port, *args, **options)
        except httpcore.ConnectError:
            if self._through is None:
                raise
            raise ConnectFailed("the egress proxy cannot be reached") from None
        self._opened.append(stream)
        if greeting is not None:
            await _greet(greeting, stream.write, stream.read)
        return stream

    async def _to_proxy(self, through: Passage, host: str) -> list[str]:
        """The addresses of the egress proxy that may be dialled for this host."""
        if self._only_loopback:
            raise ConnectFailed("what is for this host only goes through no egress proxy")
        proxy, port = through.proxy
        return await _permitted(self._egress or Egress(), host, port, only_loopback=False, via=proxy)

    async def _first(
        self, addresses: Sequence[str], port: int, *args: Any, **options: Any
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address that takes one."""
        for address in addresses[:-1]:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await super().connect_tcp(address, port, **options | {"timeout": _NEXT_AFTER_S})
        return await super().connect_tcp(addresses[-1], port, *args, **options)

    async def connect_unix_socket(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        """As the library's."""
        self._opened.append(await super().connect_unix_socket(*args, **options))
        return self._opened[-1]

    def close(self) -> None:
        """Close what is still open."""
        for stream in self._opened:
            stream.get_extra_info("socket").close()


async def _permitted(
    egress: Egress, host: str, port: int, *, only_loopback: bool, via: str | None = None
) -> list[str]:
    """The addresses of a host, or of the egress proxy `via` that leads there, that egress lets be dialled: these are
    dialled, so nothing is resolved again.

    `only_loopback`: those beyond this host are not for what is sent in plain text, whatever the host is called.
    """
    refusal = egress.of_endpoint(host, written=True, via=via)
    try:
        found = await trio.socket.getaddrinfo(via or host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(f"{via}: {error}" if via else str(error)) from None
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    permitted = [address for address in addresses if refusal(address) is None]
    if not permitted:
        raise httpcore.ConnectError(f"egress: {refusal(addresses[0])}")
    if only_loopback:
        permitted = [address for address in permitted if is_loopback(address)]
        if not permitted:
            raise httpcore.ConnectError(f"{host} is not on this host, and the URL is plaintext HTTP")
    return permitted


async def _greet(
    greeting: Greeting,
    write: Callable[[bytes], Awaitable[None]],
    read: Callable[[int], Awaitable[bytes | bytearray]],
) -> None:
    """Have an egress proxy lead a connection on. Raises `ConnectFailed`."""
    said = greeting.begin()
    while True:
        if said:
            await write(said)
        if not greeting.wants:
            return
        data = await read(greeting.wants)
        if not data:
            raise ConnectFailed("the egress proxy closed the connection")
        said = greeting.feed(bytes(data))


async def get_status(
    place: Place,
    target: str,
    *,
    authority: bytes,
    agent: bytes,
    timeout_s: float,
    tls: Tls | None = None,
    greeting: Greeting | None = None,
    shown: Sequence[Header] = (),
) -> int:
    """The status that `GET target` is answered with, over a connection of its own.

    `authority` is sent as Host, `agent` as User-Agent; `timeout_s` bounds all of it, connecting too. `tls` None: in
    plain text. Where `place` is an egress proxy, `greeting` has it lead on; or `target` is the whole URL, and `shown`
    is what it is shown. Raises `CallFailed`.
    """
    headers = [
        (b"host", authority), (b"user-agent", agent), (b"accept", b"*/*"), (b"connection", b"close"), *shown,
    ]  # fmt: skip
    try:
        with trio.fail_after(timeout_s):
            return await _status(place, target, headers, tls, greeting)
    except trio.TooSlowError:
        raise CallFailed(f"no answer within {timeout_s:g} s") from None
    except ConnectFailed as error:
        raise CallFailed(error.detail) from None
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
        raise CallFailed(_tls_reason(error) or "cannot connect") from None
    except httpcore.NetworkError as error:
        raise CallFailed(_tls_reason(error) or "the connection was reset") from None
    except httpcore.ProtocolError:
        raise CallFailed("what came is not HTTP/1.1") from None


async def _status(
    place: Place,
    target: str,
    headers: Sequence[tuple[bytes, bytes]],
    tls: Tls | None,
    greeting: Greeting | None,
) -> int:
    host, port = place.address.encode("ascii") or b"localhost", place.port or 80
    scheme = b"http" if tls is None else b"https"
    network = _Network(greeting)
    # httpcore sets the context's ALPN to what it is already.
    connection = httpcore.AsyncHTTPConnection(
        httpcore.Origin(scheme, host, port),
        ssl_context=None if tls is None else tls.context,
        uds=place.path,
        http2=False,
        retries=0,
        network_backend=network,
    )
    try:
        url = httpcore.URL(scheme=scheme, host=host, port=port, target=target.encode("ascii"))
        extensions = {} if tls is None else {"sni_hostname": tls.name}
        response = await connection.handle_async_request(
            httpcore.Request("GET", url, headers=headers, extensions=extensions)
        )
        return response.status
    finally:
        try:
            await connection.aclose()
        finally:
            network.close()


async def can_connect(
    place: Place, *, timeout_s: float, tls: Tls | None = None, greeting: Greeting | None = None
) -> None:
    """Whether a connection can be made, with the handshake of `tls`, behind an egress proxy's `greeting`. Raises
    `CallFailed`.
    """
    try:
        with trio.fail_after(timeout_s):
            stream = (
                await trio.open_unix_socket(place.path)
                if place.path is not None
                else await trio.open_tcp_stream(place.address, place.port)
            )
            async with stream:
                if greeting is not None:
                    await _greet(greeting, stream.send_all, stream.receive_some)
                if tls is not None:
                    secure = trio.SSLStream(
                        stream, tls.context, server_hostname=tls.name, https_compatible=True
                    )
                    await secure.do_handshake()
    except trio.TooSlowError:
        raise CallFailed(f"no connection within {timeout_s:g} s") from None
    except ConnectFailed as error:
        raise CallFailed(error.detail) from None
    except trio.BrokenResourceError as error:
        raise CallFailed(_tls_reason(error) or "the connection was reset") from None
    except OSError:
        raise CallFailed("cannot connect") from None


class Incoming:
    """An answer whose body still comes, line by line."""

    def __init__(self, response: httpcore.Response) -> None:
        self.status = response.status
        self.headers: Sequence[Header] = response.headers
        self._parts = response.aiter_stream()
        self._lines: deque[bytes] = deque()
        self._rest = b""

    async def body(self, limit: int = LARGEST_BODY) -> bytes:
        """All of it, `limit` bytes at most. Raises `CallFailed`."""
        parts: list[bytes] = []
        length = 0
        while (part := await self._part()) is not None:
            parts.append(part)
            length += len(part)
            if length > limit:
                raise CallFailed(f"the answer is longer than {limit} bytes")
        return b"".join(parts)

    async def line(self, limit: int = LONGEST_LINE) -> bytes | None:
        """Its next line, without the end, `limit` bytes at most; None at the end. Raises `CallFailed`."""
        while not self._lines:
            if len(self._rest) > limit:
                raise CallFailed(f"a line of the answer is longer than {limit} bytes")
            part = await self._part()
            if part is None:
                last, self._rest = self._rest, b""
                return last or None
            *whole, self._rest = (self._rest + part).split(b"\n")
            self._lines.extend(whole)
        return self._lines.popleft()

    async def _part(self) -> bytes | None:
        try:
            return await anext(self._parts, None)
        except httpcore.ProtocolError as error:
            raise CallFailed("what came is not a whole answer of HTTP/1.1") from error
        except _FAILURES as error:
            raise CallFailed(_reason(error)) from error

    async def abandon(self) -> None:
        """Let the rest go, whose connection is closed already.

        The body is generators inside of generators, of which only the outermost can be closed from here; so they are
        run to the error that they meet.
        """
        with contextlib.suppress(CallFailed):
            while await self._part() is not None:
                pass


@asynccontextmanager
async def get(
    origin: str,
    target: str,
    headers: Sequence[Header] = (),
    *,
    tls: ssl.SSLContext | None = None,
    timeout_s: float,
    idle_s: float,
    egress: Egress | None = None,
    only_loopback: bool = False,
    through: Passage | None = None,
) -> AsyncIterator[Incoming]:
    """GET `target` (path and query) from `http://host:port` or `https://host:port`; its body is read in the context.

    `headers` need no Host. `tls`: whom to trust, and as whom; None: the system's authorities. `egress`: what judges the
    addresses of the host; None: nothing does. `only_loopback`: no others are dialled. `through`: the egress proxy that
    leads there, whose addresses are dialled and judged then. The answer's head comes within `timeout_s` seconds; its
    body may take for ever, but ends when nothing comes for `idle_s`. Leaving the context closes the connection.
    Redirects are answers like others. Raises `CallFailed`, inside of the context too.
    """
    async with _call(
        "GET",
        origin,
        target,
        headers,
        b"",
        tls=tls,
        timeout_s=timeout_s,
        idle_s=idle_s,
        egress=egress,
        only_loopback=only_loopback,
        through=through,
    ) as incoming:
        yield incoming


class Answer(Struct, frozen=True):
    """An answer that is here. Names of `headers` are as they came."""

    status: int
    headers: Sequence[Header]
    body: bytes

    def header(self, name: bytes) -> bytes:
        """The first field of this name (in lower case); empty where there is none."""
        return next((value for each, value in self.headers if each.lower() == name), b"")


async def post(
    origin: str,
    target: str,
    headers: Sequence[Header],
    content: bytes,
    *,
    tls: ssl.SSLContext | None = None,
    timeout_s: float,
    limit: int,
    egress: Egress | None = None,
    only_loopback: bool = False,
    through: Passage | None = None,
) -> Answer:
    """POST `content` to `target` (path and query) of `http://host:port` or `https://host:port`.

    `headers` need neither Host nor a length; `tls`, `egress`, `only_loopback` and `through` as for `get`. `timeout_s`
    seconds bound all of it, connecting and the body too; of the body no more than `limit` bytes are taken. Redirects
    are answers like others. Raises `CallFailed`, and of its kind `TooSlow`.
    """
    try:
        with trio.fail_after(timeout_s):
            async with _call(
                "POST",
                origin,
                target,
                headers,
                content,
                tls=tls,
                timeout_s=timeout_s,
                idle_s=timeout_s,
                egress=egress,
                only_loopback=only_loopback,
                through=through,
            ) as incoming:
                return Answer(incoming.status, incoming.headers, await incoming.body(limit))
    except trio.TooSlowError:
        raise TooSlow(f"no answer within {timeout_s:g} s") from None


@asynccontextmanager
async def _call(
    method: str,
    origin: str,
    target: str,
    headers: Sequence[Header],
    content: bytes,
    *,
    tls: ssl.SSLContext | None,
    timeout_s: float,
    idle_s: float,
    egress: Egress | None,
    only_loopback: bool,
    through: Passage | None,
) -> AsyncIterator[Incoming]:
    url = httpcore.URL(origin)
    if url.scheme == b"https" and tls is None:
        tls = ssl.create_default_context()
    network = _Network(egress=egress, only_loopback=only_loopback, through=through)
    connection = httpcore.AsyncHTTPConnection(
        url.origin,
        ssl_context=tls,
        http2=False,
        retries=0,
        socket_options=_KEEPALIVE,
        network_backend=network,
    )
    asked, shown = (target, []) if through is None else (through.target(target), through.fields())
    length = [(b"content-length", b"%d" % len(content))] if content else []
    incoming = None
    try:
        request = httpcore.Request(
            method,
            httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=asked.encode("ascii")),
            headers=[(b"host", _authority(url)), *headers, *length, (b"connection", b"close"), *shown],
            content=content or None,
            extensions={"timeout": {"read": idle_s}},
        )
        try:
            with trio.fail_after(timeout_s):
                incoming = Incoming(await connection.handle_async_request(request))
        except trio.TooSlowError:
            raise TooSlow(f"no answer within {timeout_s:g} s") from None
        except ConnectFailed as error:
            raise CallFailed(error.detail) from None
        except _FAILURES as error:
            raise CallFailed(_reason(error)) from error
        if through is not None and through.is_refusal(incoming.status):
            raise CallFailed(WANTS_OTHERS)
        yield incoming
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _FAREWELL_S):
            with contextlib.suppress(*_FAILURES):
                await connection.aclose()
            network.close()
            if incoming is not None:
                await incoming.abandon()


def _authority(url: httpcore.URL) -> bytes:
    host = b"[%b]" % url.host if b":" in url.host else url.host
    return host if url.port is None else b"%b:%d" % (host, url.port)


def _is_silence(error: httpcore.ProtocolError) -> bool:
    """Whether nothing came at all: of that httpcore tells in words of its own, of the rest in those of h11."""
    return error.__cause__ is None


def _tls_reason(error: BaseException) -> str | None:
    """What TLS says, if it is what failed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {_reason(cause)}"
        cause = cause.__cause__ or cause.__context__
    return None


def _reason(error: BaseException) -> str:
    """The text of the error, or of what caused it: libraries wrap errors in others that say nothing.

    Not of an error of the protocol, whose text quotes what came: that may be a token.
    """
    if isinstance(error, httpcore.ProtocolError):
        return (
            "the connection was closed without an answer"
            if _is_silence(error)
            else "what came is not HTTP/1.1"
        )
    cause: BaseException | None = error
    while cause is not None:
        # What raced for several addresses says less than what each of them said.
        if isinstance(cause, BaseExceptionGroup):
            return _reason(cause.exceptions[0])
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return getattr(cause, "verify_message", "") or cause.reason
        if str(cause) and cause.__cause__ is None:
            return str(cause)
        cause = cause.__cause__
    return str(error) or type(error).__name__

"""A small HTTP/1.1 server for the admin API, on trio and h11. This is the only module that imports h11.

Admin traffic is light and comes from people and scrapers: what counts is that it is simple and cannot hurt the
supervisor. Bodies, times and connections are bounded; a handler that raises is a 500, and the loop goes on.
"""

from __future__ import annotations

import http
import json
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import trio

_BODY_BYTES = 1024 * 1024
_HEAD_BYTES = 32 * 1024
_IDLE_S = 60.0
_REQUEST_S = 10.0  # to send a request
_ANSWER_S = 30.0  # to take an answer
_CONNECTIONS = 256
_READ = 32 * 1024
_WRITE = 128 * 1024  # copying some megabytes at once would hold up the loop
_UCRED = struct.Struct("3i")  # pid, uid, gid


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request. Header names are in lower case; repeated ones are joined, so that none is passed over.

    `uid` is the user of the process that asks, known on unix sockets only.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer, its body in one or in pieces. `content-length` is added when it is sent."""

    status: int
    body: bytes | list[bytes]
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


def problem(status: int, title: str, detail: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """A problem document (RFC 9457)."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return Response(status, json.dumps(body).encode() + b"\n", "application/problem+json", headers or {})


async def serve(listener: socket.socket, handler: Handler, log: logging.Logger) -> None:
    """Serve connections of a listening socket until cancelled. The socket stays open."""
    listener.settimeout(0)
    accepting = trio.socket.from_stdlib_socket(socket.socket(fileno=_dup(listener)))
    connections = trio.CapacityLimiter(_CONNECTIONS)
    with accepting:
        async with trio.open_nursery() as nursery:
            while True:
                async with connections:
                    pass
                try:
                    sock, _ = await accepting.accept()
                except OSError:
                    # Out of descriptors, or the peer has gone: neither is a reason to end, nor to spin.
                    await trio.sleep(0.1)
                    continue
                nursery.start_soon(_connection, trio.SocketStream(sock), handler, connections, log)


def _dup(sock: socket.socket) -> int:
    return sock.dup().detach()


async def _connection(
    stream: trio.SocketStream, handler: Handler, connections: trio.CapacityLimiter, log: logging.Logger
) -> None:
    async with stream, connections:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
        try:
            uid = _uid(stream.socket)
            while await _exchange(connection, stream, handler, uid, log):
                connection.start_next_cycle()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            return


def _uid(sock: trio.socket.SocketType) -> int | None:
    if sock.family != socket.AF_UNIX:
        return None
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    return int(uid)


async def _exchange(
    connection: h11.Connection,
    stream: trio.SocketStream,
    handler: Handler,
    uid: int | None,
    log: logging.Logger,
) -> bool:
    """One request and its answer; whether there may be another."""
    request = None
    try:
        request = await _receive(connection, stream, uid)
        if request is None:
            return False
        response = await _handle(handler, request, log)
    except h11.RemoteProtocolError as error:
        if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        response = problem(error.error_status_hint, "Bad request", str(error))
    with trio.move_on_after(_ANSWER_S) as timer:
        await _send(connection, stream, response, with_body=request is None or request.method != "HEAD")
    return (
        not timer.cancelled_caught and connection.our_state is h11.DONE and connection.their_state is h11.DONE
    )


async def _handle(handler: Handler, request: Request, log: logging.Logger) -> Response:
    try:
        return await handler(request)
    except Exception:
        # A fault of the API must not end the service that it reports on.
        log.exception("admin: %s %s failed", request.method, request.path)
        return problem(500, "Internal error")


async def _receive(connection: h11.Connection, stream: trio.SocketStream, uid: int | None) -> Request | None:
    """The next request, or None when the client is done or too slow."""
    with trio.move_on_after(_IDLE_S):
        head = await _next_event(connection, stream)
        if not isinstance(head, h11.Request):
            return None
        with trio.move_on_after(_REQUEST_S):
            body = await _body(connection, stream)
            return _request(head, body, uid)
    return None


async def _next_event(connection: h11.Connection, stream: trio.SocketStream) -> h11.Event | type[h11.PAUSED]:
    while (event := connection.next_event()) is h11.NEED_DATA:
        if connection.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            await stream.send_all(connection.send(go_on) or b"")
        connection.receive_data(await stream.receive_some(_READ))
    return event  # type: ignore[return-value]


async def _body(connection: h11.Connection, stream: trio.SocketStream) -> bytes:
    body = bytearray()
    while isinstance(event := await _next_event(connection, stream), h11.Data):
        body += event.data
        if len(body) > _BODY_BYTES:
            raise h11.RemoteProtocolError("the body is too large", error_status_hint=413)
    return bytes(body)


def _request(head: h11.Request, body: bytes, uid: int | None) -> Request:
    try:
        target = urlsplit(head.target.decode("ascii", "replace"))
    except ValueError:
        raise h11.RemoteProtocolError("the target is no URL") from None
    query = {name: values[-1] for name, values in parse_qs(target.query, keep_blank_values=True).items()}
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if target.scheme:
        headers["host"] = target.netloc  # RFC 9112 3.2.2: what the target says replaces the field
    return Request(head.method.decode("ascii"), unquote(target.path), query, headers, body, uid)


async def _send(
    connection: h11.Connection, stream: trio.SocketStream, response: Response, *, with_body: bool
) -> None:
    pieces = [response.body] if isinstance(response.body, bytes) else response.body
    headers = [("content-type", response.content_type), ("content-length", str(sum(map(len, pieces))))]
    headers += [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        *response.headers.items(),
    ]
    out = (
        connection.send(
            h11.Response(status_code=response.status, headers=headers, reason=_reason(response.status))
        )
        or b""
    )
    for part in _parts(pieces) if with_body else ():
        await stream.send_all(out + (connection.send(h11.Data(data=part)) or b""))
        out = b""
    await stream.send_all(out + (connection.send(h11.EndOfMessage()) or b""))


def _parts(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same in parts of a good size to send."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _WRITE:
            yield b"".join(held)
            held.clear()
            size = 0
    yield b"".join(held)


def _reason(status: int) -> bytes:
    try:
        return http.HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""

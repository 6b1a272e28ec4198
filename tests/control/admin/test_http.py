from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from ambassador.control.admin.http import Request, Response, problem, serve

LOG = logging.getLogger("test")


async def echo(request: Request) -> Response:
    await trio.lowlevel.checkpoint()
    if request.path == "/fail":
        raise RuntimeError("on purpose")
    if request.path == "/pieces":
        return Response(200, [b"%d\n" % number for number in range(100_000)], "text/plain")
    text = f"{request.method} {request.path} {dict(request.query)} {request.body.decode()} {request.uid}"
    return Response(200, text.encode(), "text/plain")


@pytest.fixture
async def client(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[trio.SocketStream]:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        nursery.start_soon(serve, listener, echo, LOG)
        async with await trio.open_unix_socket(path) as stream:
            assert isinstance(stream, trio.SocketStream)
            yield stream
        nursery.cancel_scope.cancel()


async def answer(client: trio.SocketStream, request: bytes) -> tuple[bytes, bytes]:
    """(head, body) of the answer to a request."""
    await client.send_all(request)
    received = b""
    while b"\r\n\r\n" not in received:
        data = await client.receive_some()
        assert data, received
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length and not request.startswith(b"HEAD"):
        body += await client.receive_some()
    return head, body


async def test_who_asks_is_known_on_a_unix_socket_only(
    client: trio.SocketStream, nursery: trio.Nursery
) -> None:
    assert (await answer(client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"))[1].endswith(b" %d" % os.getuid())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nursery.start_soon(serve, listener, echo, LOG)
        async with await trio.open_tcp_stream(*listener.getsockname()) as other:
            assert (await answer(other, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"))[1].endswith(b" None")
        nursery.cancel_scope.cancel()


async def test_an_answer_may_be_in_pieces(client: trio.SocketStream) -> None:
    for _ in range(2):
        _, body = await answer(client, b"GET /pieces HTTP/1.1\r\nhost: a\r\n\r\n")
        assert body.split() == [b"%d" % number for number in range(100_000)]
    head, body = await answer(client, b"HEAD /pieces HTTP/1.1\r\nhost: a\r\n\r\n")
    assert b"content-length: 588890" in head.lower()
    assert body == b""


async def test_several_requests_on_one_connection(client: trio.SocketStream) -> None:
    head, body = await answer(client, b"GET /a%20b?x=1&y HTTP/1.1\r\nhost: a\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == f"GET /a b {{'x': '1', 'y': ''}}  {os.getuid()}".encode()
    _, body = await answer(client, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi")
    assert body == f"POST / {{}} hi {os.getuid()}".encode()


async def test_head_has_no_body(client: trio.SocketStream) -> None:
    head, body = await answer(client, b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert b"content-length: " in head
    assert body == b""
    head, _ = await answer(client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")


async def test_a_fault_of_a_handler_is_a_500_and_no_more(
    client: trio.SocketStream, caplog: pytest.LogCaptureFixture
) -> None:
    head, body = await answer(client, b"GET /fail HTTP/1.1\r\nhost: a\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"application/problem+json" in head
    assert b"on purpose" not in body
    assert "GET /fail failed" in caplog.text
    head, _ = await answer(client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 100000 + b"\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2000000\r\n\r\n" + b"a" * 1100000, b"413"),
    ],
    ids=["no host", "nonsense", "head", "body"],
)
async def test_what_is_wrong_is_refused_and_the_connection_closed(
    client: trio.SocketStream, request_: bytes, status: bytes
) -> None:
    head, _ = await answer(client, request_)
    assert head.split()[1] == status


async def test_an_idle_client_is_let_go(
    client: trio.SocketStream, autojump_clock: trio.testing.MockClock
) -> None:
    assert await client.receive_some() == b""


def test_a_problem_is_a_document() -> None:
    response = problem(404, "Not found", "there is no /x")
    assert response.content_type == "application/problem+json"
    assert b'"status": 404' in response.body

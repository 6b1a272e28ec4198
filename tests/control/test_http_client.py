from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ambassador.control.http_client import CallFailed, Place, can_connect, get_status

Serve = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve, path: Path | None = None) -> AsyncIterator[Place]:
    async with trio.open_nursery() as nursery:
        if path is None:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            place = Place("127.0.0.1", listeners[0].socket.getsockname()[1])
        else:
            sock = trio.socket.socket(trio.socket.AF_UNIX)
            await sock.bind(str(path))
            sock.listen()
            listeners = [trio.SocketListener(sock)]
            place = Place(path=str(path))
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield place
        nursery.cancel_scope.cancel()


def answering(head: bytes, seen: list[bytes] | None = None) -> Serve:
    async def serve(stream: trio.SocketStream) -> None:
        got = b""
        while b"\r\n\r\n" not in got:
            got += await stream.receive_some(4096)
        if seen is not None:
            seen.append(got)
        await stream.send_all(head)
        await stream.aclose()

    return serve


async def ask(place: Place, timeout_s: float = 20.0) -> int:
    return await get_status(place, "/up?deep=1", authority=b"a.test:81", agent=b"test", timeout_s=timeout_s)


async def test_get_status_sends_target_and_host_and_returns_the_status() -> None:
    seen: list[bytes] = []
    async with server(answering(b"HTTP/1.1 204 No Content\r\n\r\n", seen)) as place:
        assert await ask(place) == 204
    assert seen[0].startswith(b"GET /up?deep=1 HTTP/1.1\r\n")
    assert b"host: a.test:81\r\n" in seen[0].lower()
    assert b"connection: close\r\n" in seen[0].lower()


async def test_get_status_does_not_wait_for_the_body() -> None:
    async with server(answering(b"HTTP/1.1 503 No\r\ncontent-length: 1000000\r\n\r\n")) as place:
        assert await ask(place) == 503


async def test_get_status_reaches_a_unix_socket(tmp_path: Path) -> None:
    async with server(answering(b"HTTP/1.1 200 OK\r\n\r\n"), tmp_path / "s") as place:
        assert str(place) == f"unix:{tmp_path}/s"
        assert await ask(place) == 200
        await can_connect(place, timeout_s=20.0)


@pytest.mark.parametrize("answer", [b"SSH-2.0-x\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n"])
async def test_get_status_fails_where_no_answer_comes(answer: bytes) -> None:
    async with server(answering(answer)) as place:
        with pytest.raises(CallFailed, match=r"not HTTP|reset"):
            await ask(place)


async def test_get_status_fails_where_nobody_listens() -> None:
    async with server(answering(b"")) as place:
        pass
    with pytest.raises(CallFailed, match="cannot connect"):
        await ask(place)
    with pytest.raises(CallFailed, match="cannot connect"):
        await can_connect(place, timeout_s=20.0)


async def test_get_status_is_bounded_in_time() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with server(silent) as place:
        with pytest.raises(CallFailed, match=r"no answer within 0\.01 s"):
            await ask(place, 0.01)
        await can_connect(place, timeout_s=20.0)


def test_place_shows_an_address_as_it_is_written() -> None:
    assert str(Place("10.0.0.1", 80)) == "10.0.0.1:80"
    assert str(Place("::1", 80)) == "[::1]:80"

"""Clients that send or read a few bytes a second: `min_rate` ends them, and they hold nothing that others need.

Time is the mock clock's. Where a client reads, the kernel's buffers before it are made as small as they can be: what it
is slow at is then seen after 2 KiB.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from ambassador.proxy.http1 import ClientConnection
from ambassador.proxy.listener import ListenerLimits
from tests.proxy.harness import GET, OK, Origin, Plane, Talk, a_plane, config, until

MIN_RATE = 256.0
WINDOW_S = 30
FOREVER_S = 1e6
LARGE = 300_000
"""A body that goes past the parser."""
BUFFER = 2048

UPLOADS = {
    "length": (b"content-length: 200\r\n\r\n", b"x", b"x"),
    "long length": (b"content-length: %d\r\n\r\n" % LARGE + b"x" * (LARGE // 2), b"x", b"x"),
    "chunks": (b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n", b"1\r\nx\r\n"),
}
"""The end of a request's head with what comes at once of its body; then a byte, as sent, and as it comes upstream."""
DOWNLOADS = {
    "length": b"content-length: 1000000",
    "chunks": b"transfer-encoding: chunked",
    "close": b"x: y",
}
WHOLE = {
    "whole": b"content-length: 60000\r\nx: y",
    "whole and plain": b"content-length: 60000\r\ndate: x",
}
"""Answers that the proxy has in hand at once; the second takes the short way through `express.py`."""


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


@asynccontextmanager
async def patient_plane(origin: Origin, *, min_rate: float | None = MIN_RATE) -> AsyncIterator[Plane]:
    """Nothing but `min_rate` ends a client that makes any progress at all."""
    limits = ListenerLimits(body_timeout=FOREVER_S, min_rate=min_rate)
    async with a_plane(config(origin.url, timeout="{idle: 10000m}"), limits) as plane:
        yield plane


async def pass_time(clock: trio.testing.MockClock, seconds: float) -> None:
    """While everybody waits."""
    await trio.testing.wait_all_tasks_blocked(0.005)
    clock.jump(seconds)


async def others_are_served(plane: Plane, origin: Origin) -> bool:
    client = await plane.connect()
    await client.send(GET)
    talk = await origin.takes()
    answer = await client.answer()
    client.close()
    talk.close()
    return answer == (200, b"ok")


async def is_ended(talk: Talk) -> bool:
    """Waits for the end of a connection, by FIN or reset."""
    try:
        await talk.rest()
    except trio.BrokenResourceError:
        pass
    return True


@asynccontextmanager
async def an_upload(plane: Plane, origin: Origin, framing: str) -> AsyncIterator[tuple[Talk, Talk]]:
    """A request whose body has begun: the client, and its connection upstream."""
    client = await plane.connect()
    start, _, _ = UPLOADS[framing]
    await client.send(b"POST / HTTP/1.1\r\nhost: a\r\n" + start)
    talk = await origin.accept()
    await talk.head()
    await talk.exactly(len(start.partition(b"\r\n\r\n")[2]))
    yield client, talk
    client.close()
    talk.close()


@pytest.mark.parametrize("framing", UPLOADS)
async def test_client_that_sends_a_byte_a_second_is_ended(
    mock_clock: trio.testing.MockClock, origin: Origin, framing: str
) -> None:
    _, sent, seen = UPLOADS[framing]
    async with patient_plane(origin) as plane, an_upload(plane, origin, framing) as (client, talk):
        for _ in range(WINDOW_S - 1):
            await pass_time(mock_clock, 1)
            await client.send(sent)
            assert await talk.exactly(len(seen)) == seen
        assert await others_are_served(plane, origin)
        assert plane.service.inflight == 1
        await pass_time(mock_clock, 2)
        await client.send(sent)
        status, body = await client.answer()
        assert (status, b'"request_timeout"' in body) == (408, True)
        assert await is_ended(talk)
        client.close()
        await until(lambda: plane.service.connections == 0)
        assert not any(plane.leftovers().values()), plane.leftovers()


@pytest.mark.parametrize("min_rate", [None, 1.0])
async def test_client_that_sends_a_byte_a_second_may_be_put_up_with(
    mock_clock: trio.testing.MockClock, origin: Origin, min_rate: float | None
) -> None:
    async with (
        patient_plane(origin, min_rate=min_rate) as plane,
        an_upload(plane, origin, "length") as (client, talk),
    ):
        for _ in range(200):
            mock_clock.jump(0.9)
            await client.send(b"x")
            assert await talk.exactly(1) == b"x"
        await talk.send(OK)
        assert await client.answer() == (200, b"ok")


@asynccontextmanager
async def a_download(
    plane: Plane, origin: Origin, framing: bytes
) -> AsyncIterator[tuple[Talk, Talk, ClientConnection]]:
    """An endless answer to a client that reads when the test says so; a whole one is the last of its connection."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    await sock.connect(plane.address)
    client = Talk(trio.SocketStream(sock))
    await until(lambda: plane.listener.connections)
    (connection,) = plane.listener._clients
    connection.link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    await client.send(GET)
    whole = framing in WHOLE.values()
    talk = await origin.takes(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing + whole * 60000 * b"a")
    async with trio.open_nursery() as nursery:
        if whole:
            await talk.stream.send_eof()
        else:
            nursery.start_soon(pour, talk)
        yield client, talk, connection
        nursery.cancel_scope.cancel()
    client.close()
    talk.close()


async def pour(talk: Talk) -> None:
    try:
        while True:
            await talk.send(b"1000\r\n" + b"a" * 4096 + b"\r\n")
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def read_a_little(client: Talk, connection: ClientConnection) -> bool:
    """Until the proxy can send more: about `BUFFER`. False when it has cut the connection."""
    before = connection.bytes_written
    try:
        while connection.bytes_written == before:
            if not await client.stream.receive_some(256):
                return False
    except trio.BrokenResourceError:
        return False
    return True


@pytest.mark.parametrize("framing", [*DOWNLOADS, *WHOLE])
async def test_client_that_reads_too_slowly_is_ended(
    mock_clock: trio.testing.MockClock, origin: Origin, framing: str
) -> None:
    async with (
        patient_plane(origin) as plane,
        a_download(plane, origin, (DOWNLOADS | WHOLE)[framing]) as (client, talk, connection),
    ):
        await pass_time(mock_clock, 0)
        assert await read_a_little(client, connection)  # the buffers are full from here on
        assert await others_are_served(plane, origin)
        gap_s = 2 * BUFFER / MIN_RATE  # so it reads half as fast as is due
        for _ in range(int(WINDOW_S / gap_s)):
            await pass_time(mock_clock, gap_s)
            assert await read_a_little(client, connection)
        await pass_time(mock_clock, gap_s)
        assert not await read_a_little(client, connection)
        assert await is_ended(talk)
        await until(lambda: plane.service.connections == 0)
        assert not any(plane.leftovers().values()), plane.leftovers()
        assert plane.endpoint.pool.open == 0


@pytest.mark.parametrize("framing", DOWNLOADS)
async def test_client_that_reads_fast_enough_is_put_up_with(
    mock_clock: trio.testing.MockClock, origin: Origin, framing: str
) -> None:
    async with (
        patient_plane(origin) as plane,
        a_download(plane, origin, DOWNLOADS[framing]) as (client, _, connection),
    ):
        for _ in range(60):
            await pass_time(mock_clock, BUFFER / MIN_RATE / 2)  # twice as fast as is due
            assert await read_a_little(client, connection)
        assert plane.service.inflight == 1

"""A client's connection: how long it lasts, and what it is told before it ends."""

from __future__ import annotations

import pytest
import trio.testing

from ambassador.proxy.http1 import ClientConnection
from ambassador.proxy.listener import ListenerLimits
from tests.proxy.harness import GET, Plane, a_plane, until

ANSWERED_HERE = "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, respond: {status: 200, body: hi}}]"


async def test_connection_carries_one_request_after_the_other() -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        for _ in range(3):
            await client.send(GET)
            assert await client.answer() == (200, b"hi")
        client.close()


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        await client.send(GET * 40)
        for _ in range(40):
            assert await client.answer() == (200, b"hi")
        client.close()


async def test_request_may_come_byte_by_byte() -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        for at in range(len(GET)):
            await client.send(GET[at : at + 1])
        assert await client.answer() == (200, b"hi")
        client.close()


@pytest.mark.parametrize(
    "request_", [GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), GET.replace(b"1.1", b"1.0")]
)
async def test_connection_ends_when_the_client_wants_it(request_: bytes) -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        await client.send(request_)
        answer = await client.rest()
        assert answer.endswith(b"hi")
        assert b"connection: close" in answer
        client.close()


async def test_connection_ends_after_its_number_of_requests() -> None:
    async with a_plane(ANSWERED_HERE, ListenerLimits(requests_per_connection=2)) as plane:
        client = await plane.connect()
        await client.send(GET * 3)
        answers = await client.rest()
        assert answers.count(b"HTTP/1.1 200 OK") == 2
        assert answers.count(b"connection: close") == 1
        client.close()


async def test_answers_reach_a_client_that_pipelines_beyond_the_last_request() -> None:
    async with a_plane(ANSWERED_HERE, ListenerLimits(requests_per_connection=2)) as plane:
        client = await plane.connect()
        for _ in range(2):
            await client.send(GET)
        await until(lambda: plane.counts.settlements == [2, 2])
        await client.send(GET)
        assert (await client.rest()).count(b"HTTP/1.1 200 OK") == 2
        client.close()


async def test_draining_says_close() -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        await client.send(GET)
        await client.answer()
        plane.service.draining = True
        await client.send(GET)
        assert b"connection: close" in await client.rest()
        client.close()


async def test_idle_connection_ends_without_a_word(mock_clock: trio.testing.MockClock) -> None:
    async with a_plane(ANSWERED_HERE, ListenerLimits(idle=10.0)) as plane:
        client = await plane.connect()
        await until(lambda: plane.service.connections == 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(10.1)
        assert await client.rest() == b""
        client.close()


async def test_slow_head_is_a_timeout(mock_clock: trio.testing.MockClock) -> None:
    async with a_plane(ANSWERED_HERE, ListenerLimits(header_timeout=5.0)) as plane:
        client = await plane.connect()
        await client.send(b"GET / HT")
        (connection,) = await _connections(plane)
        await until(lambda: connection.reader.in_head)
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(5.1)
        assert (await client.answer())[0] == 408
        client.close()


async def test_head_that_ends_early_is_refused() -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        await client.send(b"GET / HT")
        await client.stream.send_eof()
        assert (await client.answer())[0] == 400
        client.close()


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET  / /\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]
)
async def test_garbage_is_refused_and_the_connection_closed(garbage: bytes) -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        await client.send(garbage)
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 400 ")
        client.close()
        await until(lambda: plane.service.connections == 0)
        assert plane.counts.settlements == [4]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"HEAD / HTTP/1.1\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nhost: a\r\nb@d: x\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nhost: a\r\nexpect: x\r\n\r\n", 417),
        (b"HEAD / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"HEAD /%b HTTP/1.1\r\nhost: a\r\n\r\n" % (b"x" * 9000), 414),
        (b"HEAD / HTTP/1.1\r\nhost: a\r\nx: %b\r\n\r\n" % (b"x" * 70000), 431),
        (GET.replace(b"GET", b"HEAD") + b"HEAD / HTTP/1.1\r\n\r\n", 400),
        (b"HEAD /other HTTP/1.1\r\nhost: b\r\n\r\n", 404),
    ],
)
async def test_a_refusal_of_head_has_no_body(request_: bytes, status: int) -> None:
    async with a_plane(ANSWERED_HERE.replace("name: r", "name: r, match: {host: a}")) as plane:
        client = await plane.connect()
        await client.send(request_)
        await client.stream.send_eof()
        answers = await client.rest()
        assert b"HTTP/1.1 %d " % status in answers
        assert b"content-length: 0" not in answers
        assert answers.endswith(b"\r\n\r\n")
        client.close()


LARGE = 20_000_000
UPLOAD = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % LARGE
REFUSED_UPLOAD = UPLOAD.replace(b"host: a\r\n", b"")


@pytest.mark.parametrize(("head", "status"), [(UPLOAD, b"200"), (REFUSED_UPLOAD, b"400")])
async def test_an_early_answer_reaches_a_client_that_writes_all_of_its_body_first(
    head: bytes, status: bytes
) -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        await client.send(head + bytes(LARGE))
        assert (await client.rest()).startswith(b"HTTP/1.1 " + status)
        client.close()
        await until(lambda: plane.service.connections == 0)
        assert plane.service.lingering == 0


@pytest.mark.parametrize("crowded", [True, False])
async def test_few_connections_are_read_for_long(crowded: bool) -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        plane.service.lingering = 256 if crowded else 255
        client = await plane.connect()
        await client.send(UPLOAD)
        await until(lambda: plane.counts.settlements == [2])
        try:
            await client.send(bytes(LARGE))
            cut = await client.is_cut()
        except trio.BrokenResourceError:
            cut = True
        assert cut is crowded
        client.close()
        await until(lambda: plane.service.connections == 0)
        assert plane.service.lingering == (256 if crowded else 255)


async def test_a_client_that_sends_nothing_more_is_read_for_five_seconds(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        await client.send(UPLOAD)
        assert (await client.answer())[0] == 200
        await until(lambda: plane.service.lingering == 1)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked(0.01)
            mock_clock.jump(4.8)
            await client.send(b"x")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert plane.service.lingering == 1
        mock_clock.jump(5.1)
        await until(lambda: plane.service.connections == 0)
        client.close()


async def test_a_client_that_goes_on_sending_is_read_for_thirty_seconds(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        await client.send(UPLOAD)
        assert (await client.answer())[0] == 200
        for _ in range(7):
            await trio.testing.wait_all_tasks_blocked(0.01)
            mock_clock.jump(4.5)
            await client.send(b"x")
        await until(lambda: plane.service.connections == 0)
        client.close()


async def _connections(plane: Plane) -> list[ClientConnection]:
    await until(lambda: plane.listener.connections)
    return list(plane.listener._clients)

"""Accepting: the bound on connections, exhaustion, and who is trusted."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from ambassador.proxy.listener import ListenerLimits, _plain_ip
from tests.proxy.harness import GET, Origin, Talk, a_plane, config, until

ANSWERED_HERE = "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, respond: {status: 200, body: hi}}]"


async def test_connections_are_counted() -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        first, second = await plane.connect(), await plane.connect()
        await until(lambda: plane.service.connections == 2)
        assert plane.listener.connections == 2
        first.close()
        await until(lambda: plane.service.connections == 1)
        await second.send(GET)
        assert await second.answer() == (200, b"hi")
        second.close()
        await until(lambda: plane.service.connections == 0)


async def test_connection_too_many_is_told_so() -> None:
    async with a_plane(ANSWERED_HERE, ListenerLimits(connections=1)) as plane:
        first = await plane.connect()
        await until(lambda: plane.service.connections == 1)
        second = await plane.connect()
        answer = await second.rest()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in answer
        assert b'"overloaded"' in answer
        assert plane.service.connections == 1
        first.close()
        second.close()
        await until(lambda: plane.service.connections == 0)
        third = await plane.connect()
        await third.send(GET)
        assert await third.answer() == (200, b"hi")
        third.close()


async def test_accepting_pauses_without_descriptors(
    mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket._accept  # type: ignore[attr-defined]
    calls = 0

    def exhausted(sock: socket.socket) -> object:
        nonlocal calls
        calls += 1
        raise OSError(errno.EMFILE, "exhausted")

    async with a_plane(ANSWERED_HERE) as plane:
        monkeypatch.setattr(socket.socket, "_accept", exhausted)
        client = await plane.connect()
        await until(lambda: calls == 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert calls == 1
        monkeypatch.setattr(socket.socket, "_accept", real)
        mock_clock.jump(0.2)
        await client.send(GET)
        assert await client.answer() == (200, b"hi")
        client.close()


async def test_exhaustion_closes_connections_between_two_requests(
    mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever holds all the descriptors would shut out everybody."""
    real = socket.socket._accept  # type: ignore[attr-defined]

    def exhausted(sock: socket.socket) -> object:
        raise OSError(errno.EMFILE, "exhausted")

    async with a_plane(ANSWERED_HERE) as plane:
        idle, busy = await plane.connect(), await plane.connect()
        await until(lambda: plane.service.connections == 2)
        await busy.send(b"GET / HTTP/1.1\r\n")  # it is inside a request
        await trio.testing.wait_all_tasks_blocked(0.01)
        monkeypatch.setattr(socket.socket, "_accept", exhausted)
        late = await plane.connect()
        assert await idle.rest() == b""
        await until(lambda: plane.service.connections == 1)
        monkeypatch.setattr(socket.socket, "_accept", real)
        mock_clock.jump(0.2)
        await late.send(GET)
        assert await late.answer() == (200, b"hi")
        await busy.send(b"host: a\r\n\r\n")
        assert await busy.answer() == (200, b"hi")
        for client in (idle, busy, late):
            client.close()


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO])
async def test_client_that_left_the_queue_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = socket.socket._accept  # type: ignore[attr-defined]
    failures = [number]

    def flaky(sock: socket.socket) -> object:
        if failures:
            raise OSError(failures.pop(), "gone")
        return real(sock)

    monkeypatch.setattr(socket.socket, "_accept", flaky)
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        await client.send(GET)
        assert await client.answer() == (200, b"hi")
        client.close()


@pytest.mark.parametrize(
    ("trusted", "expected"),
    [((), b"x-forwarded-for: 127.0.0.1"), (("127.0.0.0/8",), b"x-forwarded-for: 10.9.9.9, 127.0.0.1")],
    ids=["untrusted", "trusted"],
)
async def test_forwarded_for_is_believed_from_the_trusted(trusted: tuple[str, ...], expected: bytes) -> None:
    origin = Origin()
    async with a_plane(config(origin.url)) as plane:
        plane.listener.configure(
            limits=plane.listener.limits,
            head_limits=plane.listener.head_limits,
            trusted=trusted,
            cancel_on_half_close=False,
        )
        client = await plane.connect()
        await client.send(b"GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.9.9.9\r\n\r\n")
        talk = await origin.accept()
        assert expected in (await talk.head()).lower()
        talk.close()
        client.close()
    origin.close()


async def test_removed_socket_accepts_no_more() -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        await until(lambda: plane.service.connections == 1)
        plane.listener.remove(plane._sock)
        plane.listener.remove(plane._sock)
        late = await plane.connect()
        await client.send(GET)
        assert await client.answer() == (200, b"hi")
        assert plane.service.connections == 1
        client.close()
        late.close()


async def test_stopped_listener_accepts_no_more() -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        await until(lambda: plane.service.connections == 1)
        plane.listener.stop()
        plane.listener.stop()
        assert plane.lane.link_count == 1
        late = await plane.connect()
        await client.send(GET)
        assert await client.answer() == (200, b"hi")
        assert plane.service.connections == 1
        client.close()
        late.close()


async def test_idle_connections_are_closed_on_demand() -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        client = await plane.connect()
        await client.send(GET)
        await client.answer()
        await until(lambda: plane.service.inflight == 0)
        await trio.testing.wait_all_tasks_blocked(0.01)
        plane.listener.close_idle()
        assert await client.rest() == b""
        client.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10.0.0.1", "10.0.0.1"), ("fe80::1%eth0", "fe80::1"), ("::ffff:10.0.0.1", "10.0.0.1"), ("::1", "::1")],
)
def test_addresses_are_plain(text: str, expected: str) -> None:
    assert _plain_ip(text) == expected


async def test_what_waits_at_a_socket_that_was_ended_is_still_served(tmp_path: Path) -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "s"))
            sock.listen(200)
            clients = [Talk(await trio.open_unix_socket(str(tmp_path / "s"))) for _ in range(100)]
            sock.setblocking(False)
            sock.shutdown(socket.SHUT_RD)
            plane.listener.take_rest(sock)
            assert plane.service.connections == 100
            for client in clients:
                await client.send(GET)
                assert await client.answer() == (200, b"hi")
                client.close()


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
async def test_a_socket_that_another_process_has_ended_is_let_go(
    tmp_path: Path, family: socket.AddressFamily
) -> None:
    async with a_plane(ANSWERED_HERE) as plane:
        with socket.socket(family) as sock:
            sock.bind(str(tmp_path / "s") if family == socket.AF_UNIX else ("127.0.0.1", 0))
            sock.listen()
            plane.listener.add(sock)
            before = plane.lane.link_count
            sock.shutdown(socket.SHUT_RD)
            await until(lambda: plane.lane.link_count == before - 1)
            plane.listener.remove(sock)
        client = await plane.connect()
        await client.send(GET)
        assert await client.answer() == (200, b"hi")
        client.close()

"""Connecting: addresses raced within one deadline, and nothing left behind."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from ambassador.errors import ConnectFailed, Overloaded
from ambassador.proxy.lane import Lane, Link, Strand
from ambassador.proxy.upstream.connect import Address, connect
from tests.proxy.harness import Origin, a_lane, until, unused_port


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    async with a_lane() as lane:
        yield lane


@contextmanager
def an_origin() -> Iterator[Origin]:
    origin = Origin()
    try:
        yield origin
    finally:
        origin.close()


def loopback(port: int) -> Address:
    return (socket.AF_INET, ("127.0.0.1", port))


@contextmanager
def a_black_hole() -> Iterator[Address]:
    """An address that never answers: a listener whose queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as sock:
        address = sock.getsockname()
        held = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(address)
            held.append(client)
        try:
            yield (socket.AF_INET, address)
        finally:
            for client in held:
                client.close()


async def try_connect(lane: Lane, addresses: Sequence[Address], timeout_s: float = 5.0) -> Link:
    """The connected link; closed again before this returns."""
    strand = lane.strand()
    try:
        link = await connect(lane, strand, addresses, lane.now + timeout_s)
        link.close()
        return link
    finally:
        await lane.finish(strand)


async def peer(lane: Lane, addresses: Sequence[Address]) -> object:
    """The address that a connection ended up at."""
    strand = lane.strand()
    try:
        link = await connect(lane, strand, addresses, lane.now + 5.0)
        assert isinstance(link.sock, socket.socket)
        name = link.sock.getpeername()
        link.close()
        return name
    finally:
        await lane.finish(strand)


async def test_one_address_answers(lane: Lane) -> None:
    with an_origin() as origin:
        assert await peer(lane, [loopback(origin.address[1])]) == origin.address
    assert lane.link_count == 0


async def test_next_address_is_tried_after_a_refusal(lane: Lane) -> None:
    with an_origin() as origin:
        refusing = [loopback(unused_port()), loopback(unused_port())]
        assert await peer(lane, [*refusing, loopback(origin.address[1])]) == origin.address
    assert lane.link_count == 0


async def test_all_refuse(lane: Lane) -> None:
    with pytest.raises(ConnectFailed):
        await try_connect(lane, [loopback(unused_port()), loopback(unused_port())])
    assert lane.link_count == 0


async def test_no_address_is_known(lane: Lane) -> None:
    with pytest.raises(ConnectFailed, match="no address"):
        await try_connect(lane, [])


async def test_unix_socket(lane: Lane, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with pytest.raises(ConnectFailed):
        await try_connect(lane, [(socket.AF_UNIX, path)])
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        assert await peer(lane, [(socket.AF_UNIX, path)]) == path
    assert lane.link_count == 0


class Left(Exception):
    """Nobody wants the connection any more."""


async def test_who_leaves_ends_the_race_at_once(lane: Lane) -> None:
    stays: list[Strand] = []
    gone: list[bool] = []

    def check() -> None:
        if not stays:
            raise Left

    async def run(address: Address) -> None:
        strand = lane.strand()
        stays.append(strand)
        try:
            with pytest.raises(Left):
                await connect(lane, strand, [address, address], lane.now + 5.0, check=check)
            gone.append(True)
        finally:
            await lane.finish(strand)

    with a_black_hole() as silent:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, silent)
            await until(lambda: lane.link_count == 1)
            lane.wake(stays[0])
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not gone
            lane.wake(stays.pop())
            await until(lambda: bool(gone))
        assert lane.link_count == 0


async def test_deadline_ends_a_silent_race(mock_clock: trio.testing.MockClock, lane: Lane) -> None:
    with a_black_hole() as silent:
        failures: list[ConnectFailed] = []

        async def run() -> None:
            try:
                await try_connect(lane, [silent], 1.0)
            except ConnectFailed as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await until(lambda: lane.link_count == 1)
            mock_clock.jump(0.9)
            await trio.lowlevel.checkpoint()
            assert not failures
            mock_clock.jump(0.2)
            await until(lambda: failures)
    assert lane.link_count == 0


async def test_second_address_overtakes_a_silent_first(
    mock_clock: trio.testing.MockClock, lane: Lane
) -> None:
    with a_black_hole() as silent, an_origin() as origin:
        names: list[object] = []

        async def run() -> None:
            names.append(await peer(lane, [silent, loopback(origin.address[1])]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await until(lambda: lane.link_count == 1)
            mock_clock.jump(0.3)
            await until(lambda: names)
        assert names == [origin.address]
    assert lane.link_count == 0


async def test_cancellation_leaves_nothing(lane: Lane) -> None:
    with a_black_hole() as silent:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(try_connect, lane, [silent])
            await until(lambda: lane.link_count == 1)
            nursery.cancel_scope.cancel()
    assert lane.link_count == 0


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
async def test_no_descriptor_is_our_own_overload(
    lane: Lane, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def exhausted(*args: object) -> socket.socket:
        raise OSError(number, "exhausted")

    real: Callable[..., socket.socket] = socket.socket
    monkeypatch.setattr(socket, "socket", exhausted)
    try:
        with pytest.raises(Overloaded):
            await try_connect(lane, [loopback(1)])
    finally:
        monkeypatch.setattr(socket, "socket", real)
    assert lane.link_count == 0

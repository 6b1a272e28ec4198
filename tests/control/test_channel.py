from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest
import trio

from ambassador.control.channel import Channel, Closed
from ambassador.control.orders import Order, Reopen, Serve, SocketRef, Sockets

ORDERS: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)


def pair() -> tuple[Channel[Order], Channel[Order]]:
    ours, theirs = socket.socketpair()
    return Channel(ours, ORDERS), Channel(theirs, ORDERS)


async def test_messages_arrive_in_order(nursery: trio.Nursery) -> None:
    ours, theirs = pair()
    nursery.start_soon(ours.run)
    ours.post(Serve(slots=(0, 1)))
    ours.post(Reopen())
    assert await theirs.receive() == Serve(slots=(0, 1))
    assert await theirs.receive() == Reopen()
    nursery.cancel_scope.cancel()
    ours.close()
    theirs.close()


async def test_more_descriptors_than_one_message_may_carry(nursery: trio.Nursery, tmp_path: Path) -> None:
    ours, theirs = pair()
    nursery.start_soon(ours.run)
    file = (tmp_path / "file").open("w")
    refs = tuple(SocketRef("a", slot) for slot in range(450))
    ours.post(Sockets(sockets=refs), [file.fileno()] * 450)
    file.close()
    ours.post(Reopen())
    assert await theirs.receive() == Sockets(sockets=refs)
    received = theirs.take(450)
    assert {os.fstat(fd).st_ino for fd in received} == {(tmp_path / "file").stat().st_ino}
    assert not any(os.get_inheritable(fd) for fd in received)
    for fd in received:
        os.close(fd)
    assert await theirs.receive() == Reopen()
    nursery.cancel_scope.cancel()
    ours.close()
    theirs.close()


async def test_posting_never_waits_for_a_peer_that_does_not_read(nursery: trio.Nursery) -> None:
    ours, theirs = pair()
    nursery.start_soon(ours.run)
    for _ in range(1000):
        ours.post(Serve(slots=tuple(range(1000))))
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(1000):
        assert isinstance(await theirs.receive(), Serve)
    nursery.cancel_scope.cancel()
    ours.close()
    theirs.close()


async def test_the_end_of_the_other_side_is_told() -> None:
    ours, theirs = pair()
    ours.close()
    with pytest.raises(Closed):
        await theirs.receive()
    with pytest.raises(Closed):
        theirs.take(1)
    theirs.close()


async def test_a_length_that_cannot_be_closes_the_channel() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs, ORDERS)
    ours.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(Closed):
        await channel.receive()
    ours.close()
    channel.close()

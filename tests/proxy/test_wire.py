"""Reading and writing without waiting, over socket pairs: what each outcome leaves in the flags and in `blocked`."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from ambassador.proxy.lane import BROKEN, READ, READ_CLOSED, WRITE, Lane, Link
from ambassador.proxy.wire import READ_SIZE, SCRATCH, Wire


@pytest.fixture
def pair() -> Iterator[tuple[Wire, socket.socket]]:
    """A wire and its other end, with small buffers."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    lane = Lane()
    wire = Wire(lane.link(ours))
    yield wire, theirs
    wire.link.close()
    theirs.close()
    lane._stop()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    return ours, theirs


def empty(sock: socket.socket) -> bytes:
    """All that can be read now."""
    got = bytearray()
    try:
        while data := sock.recv(65536):
            got += data
    except BlockingIOError:
        pass
    return bytes(got)


def test_write_that_fits_leaves_nothing_blocked(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    wire.write(b"hello")
    assert theirs.recv(100) == b"hello"
    assert wire.blocked is None
    assert wire.bytes_written == 5
    assert wire.link.ready & WRITE


def test_write_beyond_the_buffer_blocks_and_flush_sends_the_rest_in_order(
    pair: tuple[Wire, socket.socket],
) -> None:
    wire, theirs = pair
    data = bytes(range(256)) * 1024
    wire.write(data)
    assert wire.blocked is not None
    assert not wire.link.ready & WRITE
    assert wire.bytes_written + len(wire.blocked) == len(data)
    got = bytearray()
    while not wire.flush():
        got += empty(theirs)
    got += empty(theirs)
    assert got == data
    assert wire.bytes_written == len(data)


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 65536])
@pytest.mark.parametrize("view", [False, True])
def test_two_pieces_are_written_as_one(pair: tuple[Wire, socket.socket], size: int, view: bool) -> None:
    wire, theirs = pair
    SCRATCH[:READ_SIZE] = bytes(range(256)) * (READ_SIZE // 256)
    body = bytes(SCRATCH[:size])
    wire.write_with(b"head", SCRATCH[:size] if view else body)
    SCRATCH[:READ_SIZE] = bytes(READ_SIZE)
    got = bytearray()
    while not wire.flush():
        got += empty(theirs)
    got += empty(theirs)
    assert got == b"head" + body
    assert wire.bytes_written == len(got)


@pytest.mark.parametrize("taken", [None, 0, 3, 4, 5, 10_003])
def test_what_is_not_taken_of_two_pieces_is_blocked(taken: int | None) -> None:
    class Kernel:
        def fileno(self) -> int:
            return -1

        def sendmsg(self, pieces: tuple[bytes, bytes]) -> int:
            if taken is None:
                raise BlockingIOError
            return taken

    lane = Lane()
    wire = Wire(Link(lane, Kernel()))  # type: ignore[arg-type]
    wire.link.ready = READ | WRITE
    body = bytes(range(250)) * 40
    wire.write_with(b"head", body)
    assert wire.blocked is not None
    assert bytes(wire.blocked) == (b"head" + body)[taken or 0 :]
    assert wire.bytes_written == (taken or 0)
    assert wire.link.ready == READ
    lane._stop()


def test_two_pieces_to_a_peer_that_is_gone_fail_without_an_error(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    theirs.close()
    wire.write_with(b"head", bytes(10_000))
    assert wire.write_failed
    assert wire.blocked is None


def test_write_to_a_full_buffer_blocks_all_of_it(pair: tuple[Wire, socket.socket]) -> None:
    wire, _ = pair
    wire.write(bytes(262144))
    written = wire.bytes_written
    wire.blocked = None
    wire.write(b"more")
    assert wire.blocked == b"more"
    assert wire.bytes_written == written
    assert not wire.flush()
    assert wire.blocked == b"more"


def test_blocked_bytes_do_not_change_with_the_scratch_buffer(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    SCRATCH[:READ_SIZE] = b"a" * READ_SIZE
    wire.write(SCRATCH[:READ_SIZE])
    assert wire.blocked is not None
    SCRATCH[:READ_SIZE] = b"b" * READ_SIZE
    got = bytearray()
    while not wire.flush():
        got += empty(theirs)
    got += empty(theirs)
    assert got == b"a" * READ_SIZE


def test_write_to_a_peer_that_is_gone_fails_without_an_error(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    theirs.close()
    wire.write(b"hello")
    assert wire.write_failed
    assert wire.blocked is None
    assert wire.bytes_written == 0


def test_flush_is_done_when_the_peer_takes_no_more(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    wire.write(bytes(262144))
    theirs.close()
    assert wire.flush()
    assert wire.write_failed
    assert wire.blocked is None


def test_flush_of_nothing_is_done(pair: tuple[Wire, socket.socket]) -> None:
    assert pair[0].flush()


def test_read_of_nothing_clears_the_flag(pair: tuple[Wire, socket.socket]) -> None:
    wire, _ = pair
    assert wire.read(READ_SIZE) is None
    assert not wire.link.ready & READ
    assert wire.link.ready & WRITE


def test_short_read_proves_the_socket_empty(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    theirs.send(b"abc")
    assert wire.read(READ_SIZE) == 3
    assert bytes(SCRATCH[:3]) == b"abc"
    assert not wire.link.ready & READ


def test_full_read_proves_nothing(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    theirs.send(b"abcdef")
    assert wire.read(3) == 3
    assert wire.link.ready & READ
    assert wire.read(3) == 3
    assert bytes(SCRATCH[:3]) == b"def"
    assert wire.link.ready & READ
    assert wire.read(3) is None


def test_short_read_before_a_known_end_keeps_the_flag(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    theirs.send(b"abc")
    theirs.shutdown(socket.SHUT_WR)
    wire.link.ready |= READ_CLOSED
    assert wire.read(READ_SIZE) == 3
    assert wire.link.ready & READ
    assert wire.read(READ_SIZE) == 0


def test_read_from_a_reset_connection_raises() -> None:
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    lane = Lane()
    wire = Wire(lane.link(ours))
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    with pytest.raises(ConnectionResetError):
        wire.read(READ_SIZE)
    wire.link.close()
    lane._stop()


def test_quiet_asks_the_kernel_only_when_the_flags_leave_it_open(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    assert wire.is_quiet()
    assert not wire.link.ready & READ
    theirs.send(b"late")
    assert wire.is_quiet()  # the lane has not told of it yet
    wire.link.ready |= READ
    assert not wire.is_quiet()
    assert wire.read(READ_SIZE) == 4  # a look takes nothing away


@pytest.mark.parametrize("flags", [READ | READ_CLOSED, READ_CLOSED, BROKEN])
def test_a_connection_at_its_end_is_not_quiet(pair: tuple[Wire, socket.socket], flags: int) -> None:
    wire, theirs = pair
    theirs.close()
    wire.link.ready = flags
    assert not wire.is_quiet()


def test_a_hang_up_with_nothing_to_read_is_not_quiet(pair: tuple[Wire, socket.socket]) -> None:
    wire, _ = pair
    wire.link.ready = READ | BROKEN
    assert not wire.is_quiet()
    assert not wire.link.ready & READ


def test_a_reset_connection_is_not_quiet() -> None:
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    lane = Lane()
    wire = Wire(lane.link(ours))
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    assert not wire.is_quiet()
    wire.link.close()
    lane._stop()

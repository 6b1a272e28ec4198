"""Bodies through a pipe: nothing lost, nothing doubled, and no pipe with bytes in it used twice."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from ambassador.errors import UpstreamReset
from ambassador.proxy.lane import READ, WRITE, Lane, Link
from ambassador.proxy.splice import Splice, SplicePool


class Plumbing:
    """upstream -> source, sink -> client: two TCP connections, the inner ends with the lane."""

    def __init__(self) -> None:
        self.lane = Lane()
        self.upstream, source = tcp_pair()
        self.client, sink = tcp_pair()
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        for sock in (self.upstream, self.client, source, sink):
            sock.setblocking(False)
        self.source = self.lane.link(source)
        self.sink = self.lane.link(sink)

    def close(self) -> None:
        self.source.close()
        self.sink.close()
        self.upstream.close()
        self.client.close()
        self.lane._stop()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    return ours, theirs


@pytest.fixture
def plumbing() -> Iterator[Plumbing]:
    made = Plumbing()
    yield made
    made.close()


@pytest.fixture
def splice() -> Iterator[Splice]:
    made = Splice()
    yield made
    made.close()


def fill(link: Link) -> int:
    """Send until the kernel takes no more."""
    count = 0
    try:
        while True:
            count += link.sock.send(bytes(65536))
    except BlockingIOError:
        return count


def test_a_body_passes_whole_and_in_order_whatever_blocks(plumbing: Plumbing, splice: Splice) -> None:
    body = os.urandom(1_000_000)
    unsent, left, got = memoryview(body), len(body), bytearray()
    while left:
        if unsent:
            try:
                unsent = unsent[plumbing.upstream.send(unsent) :]
            except BlockingIOError:
                pass
        left -= splice.move(plumbing.source, plumbing.sink, left)
        assert 0 <= splice.held <= left
        try:
            got += plumbing.client.recv(65536)
        except BlockingIOError:
            pass
    plumbing.client.setblocking(True)
    while len(got) < len(body):
        got += plumbing.client.recv(65536)
    assert got == body
    assert splice.held == 0
    assert not splice.ended


def test_move_takes_no_more_than_is_left(plumbing: Plumbing, splice: Splice) -> None:
    plumbing.upstream.send(b"bodyNEXT")
    assert splice.move(plumbing.source, plumbing.sink, 4) == 4
    assert plumbing.client.recv(100) == b"body"
    assert splice.move(plumbing.source, plumbing.sink, 0) == 0
    assert plumbing.source.sock.recv(100) == b"NEXT"


def test_an_empty_source_clears_only_its_flag(plumbing: Plumbing, splice: Splice) -> None:
    assert splice.move(plumbing.source, plumbing.sink, 100) == 0
    assert not plumbing.source.ready & READ
    assert plumbing.sink.ready & WRITE
    assert not splice.ended


def test_a_full_sink_clears_its_flag_and_the_pipe_keeps_the_bytes(plumbing: Plumbing, splice: Splice) -> None:
    filled = fill(plumbing.sink)
    plumbing.upstream.send(b"held")
    assert splice.move(plumbing.source, plumbing.sink, 100) == 0
    assert splice.held == 4
    assert not plumbing.sink.ready & WRITE
    assert plumbing.source.ready & READ
    plumbing.upstream.send(b"more")
    plumbing.client.setblocking(True)
    while filled:
        filled -= len(plumbing.client.recv(min(filled, 65536)))
    assert splice.move(plumbing.source, plumbing.sink, 100) == 4  # what is held first, and alone
    assert plumbing.client.recv(100) == b"held"


def test_a_partial_move_is_tried_again_before_the_sink_counts_as_full(
    plumbing: Plumbing, splice: Splice, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.splice

    def interrupted(source: int, sink: int, count: int, *, flags: int) -> int:
        return real(source, sink, count if sink != plumbing.sink.fd else 3, flags=flags)

    plumbing.upstream.send(b"interrupted")
    with monkeypatch.context() as patch:
        patch.setattr(os, "splice", interrupted)
        assert splice.move(plumbing.source, plumbing.sink, 11) == 3
    assert splice.held == 8
    assert plumbing.sink.ready & WRITE
    assert splice.move(plumbing.source, plumbing.sink, 8) == 8
    assert plumbing.client.recv(100) == b"interrupted"


def test_the_end_of_the_source_is_told(plumbing: Plumbing, splice: Splice) -> None:
    plumbing.upstream.send(b"half")
    plumbing.upstream.shutdown(socket.SHUT_WR)
    assert splice.move(plumbing.source, plumbing.sink, 8) == 4
    assert not splice.ended
    assert splice.move(plumbing.source, plumbing.sink, 4) == 0
    assert splice.ended


def test_a_reset_source_is_the_upstreams_fault(plumbing: Plumbing, splice: Splice) -> None:
    plumbing.upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plumbing.upstream.close()
    with pytest.raises(UpstreamReset):
        splice.move(plumbing.source, plumbing.sink, 8)
    assert splice.held == 0


def test_a_sink_that_is_gone_is_told_without_an_error(plumbing: Plumbing, splice: Splice) -> None:
    plumbing.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plumbing.client.close()
    plumbing.upstream.send(b"late")
    assert splice.move(plumbing.source, plumbing.sink, 4) == 0
    assert splice.write_failed
    assert splice.held == 4


def test_the_pool_keeps_an_empty_pipe() -> None:
    pool = SplicePool()
    splice = pool.take()
    assert splice is not None
    pool.give_back(splice)
    assert pool.take() is splice
    pool.give_back(splice)
    pool.close()
    assert pool.take() is not splice


@pytest.mark.parametrize("accident", ["held", "ended", "write_failed"])
def test_the_pool_closes_a_pipe_that_was_in_an_accident(accident: str) -> None:
    pool = SplicePool()
    splice = pool.take()
    assert splice is not None
    setattr(splice, accident, 1)
    pool.give_back(splice)
    with pytest.raises(OSError):
        os.fstat(splice._read_fd)
    with pytest.raises(OSError):
        os.fstat(splice._write_fd)


def test_the_pool_is_bounded_and_closes_its_pipes() -> None:
    before = len(os.listdir("/proc/self/fd"))
    pool = SplicePool()
    taken = [pool.take() for _ in range(20)]
    for splice in taken:
        assert splice is not None
        pool.give_back(splice)
    assert len(os.listdir("/proc/self/fd")) == before + 2 * 16
    pool.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_pool_gives_none_when_the_system_has_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "pipe2", none_left)
    assert SplicePool().take() is None


def test_a_pipe_that_may_not_grow_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def refused(fd: int, command: int, arg: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(errno.EPERM, "beyond the user's share")
        return real(fd, command, arg)

    monkeypatch.setattr(fcntl, "fcntl", refused)
    splice = Splice()
    assert splice._size == real(splice._write_fd, fcntl.F_GETPIPE_SZ)
    splice.close()

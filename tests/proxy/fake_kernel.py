"""Sockets in memory, with an epoll that tells of them: what the kernel does is what the test says, to the byte.

A `Lane` made inside `Kernel.in_charge` serves them like any others. Real descriptors (its own eventfd, listening
sockets) are passed on to a real epoll. What is imitated of TCP: reads take all that is there; a write takes what there
is room for; FIN and RST; a write to a side that is gone is taken and answered with RST; close with unread bytes resets;
events are edge-triggered and tell of everything that holds at that moment.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

import ambassador.proxy.upstream.pool
from ambassador.errors import ConnectFailed
from ambassador.proxy.lane import WRITE, Lane, Link, Strand
from ambassador.proxy.upstream.connect import Address

_RealEpoll = select.epoll
_FIRST_FD = 1 << 20


class FakeSocket:
    """One end of a connection. The test holds the far end, the lane the near one."""

    family = socket.AF_INET
    type = socket.SOCK_STREAM
    proto = 0

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self._kernel = kernel
        self._fd = fd
        self.peer: FakeSocket
        self.inbox = bytearray()
        self.room: int | None = None
        """Bytes that this end may still write; None: any number."""
        self.has_ended = False
        """FIN has come."""
        self.was_reset = False
        self._error = False
        self._shut = False
        self._lingers = True
        self.closed = False

    # What the lane and those on it call

    def fileno(self) -> int:
        return self._fd

    def recv(self, size: int, flags: int = 0) -> bytes:
        self._check_open()
        if self.inbox:
            data = bytes(self.inbox[:size])
            if not flags & socket.MSG_PEEK:
                del self.inbox[:size]
            return data
        if self._error:
            self._error = False
            raise ConnectionResetError
        if self.has_ended or self.was_reset:
            return b""
        raise BlockingIOError

    def recv_into(self, buffer: bytearray, size: int = 0) -> int:
        data = self.recv(size or len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: bytes | memoryview) -> int:
        self._check_open()
        if self._error:
            self._error = False
            raise ConnectionResetError
        if self._shut or self.was_reset:
            raise BrokenPipeError
        count = len(data) if self.room is None else min(len(data), self.room)
        if data and not count:
            raise BlockingIOError
        if self.room is not None:
            self.room -= count
        if self.peer.closed:
            self._be_reset()
        else:
            self.peer.inbox += data[:count]
            self.peer.tell()
        return count

    def sendmsg(self, pieces: Sequence[bytes | memoryview]) -> int:
        return self.send(b"".join(pieces))

    def shutdown(self, how: int) -> None:
        self._check_open()
        if self.was_reset:
            raise OSError(errno.ENOTCONN, "not connected")
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            self._shut = True
            self.peer.has_ended = True
            self.peer.tell()
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self.has_ended = True
            self.tell()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._kernel.forget(self._fd)
        if self.peer.closed or self.was_reset:
            return
        if self.inbox or not self._lingers:
            self.peer._be_reset()
        elif not self._shut:
            self.peer.has_ended = True
            self.peer.tell()

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self._check_open()
        if option == socket.SO_LINGER:
            self._lingers = value[-4:] != bytes(4) if isinstance(value, bytes) else True

    def getsockopt(self, level: int, option: int) -> int:
        return 0

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    # What a test calls as well

    def take(self) -> bytes:
        """All that has come and was not taken."""
        data = bytes(self.inbox)
        self.inbox.clear()
        return data

    def reset(self) -> None:
        self._lingers = False
        self.close()

    def make_room(self, size: int | None) -> None:
        """Let the other end write `size` bytes from now on; None: any number."""
        self.peer.room = size
        self.peer.tell()

    def vanish(self) -> None:
        """RST comes to the other end, but its epoll does not know yet: `tell` of it."""
        self.peer.was_reset = True

    def _be_reset(self) -> None:
        if not self.was_reset:
            self.was_reset = self._error = True
            self.tell()

    def _check_open(self) -> None:
        if self.closed:
            raise OSError(errno.EBADF, "closed")

    def tell(self) -> None:
        """Its epoll learns of its state."""
        self._kernel.tell(self)

    @property
    def state(self) -> int:
        """What an epoll says of it."""
        flags = 0
        if self.inbox or self.has_ended or self.was_reset:
            flags |= select.EPOLLIN
        if self.room != 0 or self.was_reset:
            flags |= select.EPOLLOUT
        if self.has_ended or self.was_reset:
            flags |= select.EPOLLRDHUP
        if self.was_reset or (self.has_ended and self._shut):
            flags |= select.EPOLLHUP
        if self._error:
            flags |= select.EPOLLERR
        return flags


class FakeEpoll:
    """Tells of fake sockets by itself and of all others through a real epoll."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._real = _RealEpoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._real.register(self._bell, select.EPOLLIN)
        self._registered: set[int] = set()
        self._pending: dict[int, FakeSocket] = {}

    @property
    def closed(self) -> bool:
        return self._real.closed

    def fileno(self) -> int:
        return self._real.fileno()

    def register(self, fd: int, mask: int) -> None:
        if fd < _FIRST_FD:
            self._real.register(fd, mask)
            return
        self._registered.add(fd)
        self.tell(self._kernel.sockets[fd])

    def modify(self, fd: int, mask: int) -> None:
        self._real.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        if fd < _FIRST_FD:
            self._real.unregister(fd)
        else:
            self._registered.remove(fd)
            self._pending.pop(fd, None)

    def tell(self, sock: FakeSocket) -> None:
        if sock.fileno() in self._registered:
            if not self._pending:
                os.eventfd_write(self._bell, 1)
            self._pending[sock.fileno()] = sock

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        """Never waits: after a batch there is nothing to come but what the test does."""
        events = [event for event in self._real.poll(0, most) if event[0] != self._bell]
        told = list(self._pending)[: most - len(events)]
        events += [(fd, self._pending.pop(fd).state) for fd in told]  # as it is now
        if not self._pending:
            try:
                os.eventfd_read(self._bell)
            except BlockingIOError:
                pass
        return events

    def close(self) -> None:
        self._real.close()
        os.close(self._bell)


class Kernel:
    """All sockets of a test. `upstreams` are the far ends of connections that the lane opened, in their order."""

    def __init__(self) -> None:
        self.sockets: dict[int, FakeSocket] = {}
        self.upstreams: list[FakeSocket] = []
        self.refused: set[str] = set()
        """Addresses where nobody listens."""
        self._epoll: FakeEpoll | None = None
        self._next_fd = _FIRST_FD

    @contextmanager
    def in_charge(self) -> Iterator[None]:
        """Lanes made in here are told of fake sockets, and their pools open such."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ambassador.proxy.upstream.pool, "connect", self._connect)
            patch.setattr(select, "epoll", self._make_epoll)
            yield

    def _make_epoll(self) -> FakeEpoll:
        self._epoll = FakeEpoll(self)
        return self._epoll

    def pair(self) -> tuple[FakeSocket, FakeSocket]:
        """A connection: the near end and the far one."""
        near, far = (FakeSocket(self, self._next_fd + at) for at in (0, 1))
        self._next_fd += 2
        near.peer, far.peer = far, near
        self.sockets[near.fileno()], self.sockets[far.fileno()] = near, far
        return near, far

    async def _connect(
        self,
        lane: Lane,
        strand: Strand,
        addresses: Sequence[Address],
        deadline: float,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> Link:
        """In place of `upstream.connect.connect`."""
        check()
        await strand.pause()
        ((_, where),) = addresses
        if where[0] in self.refused:
            raise ConnectFailed("refused")
        near, far = self.pair()
        self.upstreams.append(far)
        link = lane.link(near)  # type: ignore[arg-type]
        link.strand = strand
        link.ready = WRITE
        return link

    def forget(self, fd: int) -> None:
        del self.sockets[fd]

    def tell(self, sock: FakeSocket) -> None:
        if self._epoll is not None:
            self._epoll.tell(sock)

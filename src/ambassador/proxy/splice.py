"""Moving a body from one socket to another without copying it through this process: splice(2) through a pipe.

Only for bodies of known length that nothing reads, between plain sockets, and only where much is left of them: see
`MIN_SPLICE`. A pipe that is not provably empty after its use is
closed, for what is left in it would reach another client.
"""

from __future__ import annotations

import fcntl
import os
import socket
from typing import TYPE_CHECKING, Final

from ambassador.errors import UpstreamReset
from ambassador.proxy.lane import NOT_READ, NOT_WRITE

if TYPE_CHECKING:
    from ambassador.proxy.lane import Link

MIN_SPLICE: Final = 131072
"""Two reads' worth: for less, taking a pipe and its extra system calls cost more than the copy saves."""
_PIPE_BYTES: Final = 131072
"""What is moved in a turn (see `transfer`). An ordinary user may hold 64 MiB of pipe pages: 512 of these."""
_KEPT: Final = 16
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


def can_splice(source: Link, sink: Link) -> bool:
    """Whether bytes pass between the two as they are: not where one of them is encrypted."""
    return type(source.sock) is socket.socket and type(sink.sock) is socket.socket


class Splice:
    """One pipe. `held` bytes are in it."""

    __slots__ = ("_read_fd", "_size", "_write_fd", "ended", "held", "write_failed")

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._size = fcntl.fcntl(self._write_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            # Beyond the user's share of pages: as the system gives it.
            self._size = fcntl.fcntl(self._write_fd, fcntl.F_GETPIPE_SZ)
        self.held = 0
        self.ended = False
        self.write_failed = False

    def move(self, source: Link, sink: Link, left: int) -> int:
        """Move up to `left` bytes as far as both sides allow now; how many reached `sink`.

        Clears the flags of a side that would block. Sets `ended` at the source's end of input, `write_failed` when
        the sink is gone. Raises `UpstreamReset` when the source was reset.
        """
        if left and not self.held:
            self._take(source, min(left, self._size))
        return self._put(sink) if self.held else 0

    def _take(self, source: Link, size: int) -> None:
        try:
            count = os.splice(source.fd, self._write_fd, size, flags=_FLAGS)
        except BlockingIOError:
            source.ready &= NOT_READ
            return
        except OSError:
            raise UpstreamReset("the upstream reset the connection") from None
        if count == 0:
            self.ended = True
        self.held += count

    def _put(self, sink: Link) -> int:
        try:
            count = os.splice(self._read_fd, sink.fd, self.held, flags=_FLAGS)
        except BlockingIOError:
            sink.ready &= NOT_WRITE
            return 0
        except OSError:
            self.write_failed = True
            return 0
        self.held -= count  # a rest proves nothing, a signal ends a splice as well: the next try meets EAGAIN
        return count

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read_fd)
        os.close(self._write_fd)


class SplicePool:
    """Pipes that are not in use."""

    __slots__ = ("_idle",)

    def __init__(self) -> None:
        self._idle: list[Splice] = []

    def take(self) -> Splice | None:
        """A pipe, or None when the system gives no more: copy instead."""
        if self._idle:
            return self._idle.pop()
        try:
            return Splice()
        except OSError:
            return None

    def give_back(self, splice: Splice) -> None:
        """Keep a pipe for another use if it is empty and was not in an accident."""
        if splice.held or splice.ended or splice.write_failed or len(self._idle) >= _KEPT:
            splice.close()
        else:
            self._idle.append(splice)

    def close(self) -> None:
        """Close all pipes."""
        while self._idle:
            self._idle.pop().close()

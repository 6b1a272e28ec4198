"""What both sides of an exchange do with a plain socket: write what the kernel takes, read what is there.

Nothing here waits. `blocked` holds what the kernel has not taken (never more than one write); while it is set nothing
else may be written: that is the back pressure.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

from ambassador.proxy.lane import HANGUP, NOT_READ, NOT_WRITE, READ

if TYPE_CHECKING:
    from ambassador.proxy.lane import Link

READ_SIZE: Final = 65536
SCRATCH_SIZE: Final = 131072
"""Bytes: an answer of 64 KiB comes in one read with its head."""
WORTH_A_VECTOR: Final = 8192
"""Bytes: below, joining two pieces is cheaper than a system call with two of them."""
SCRATCH_BYTES: Final = bytearray(SCRATCH_SIZE)
SCRATCH: Final = memoryview(SCRATCH_BYTES)
"""One receive buffer for the whole worker: what is read into it is used before the next read."""
_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: the end of the connection does not wait for what is still to be sent; a reset takes its place."""


class Wire:
    """One connected socket of the lane."""

    __slots__ = ("blocked", "bytes_written", "link", "write_failed")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.blocked: memoryview | None = None
        self.write_failed = False
        """The other side takes no more; what it sent may still be read."""
        self.bytes_written = 0
        """Taken by the kernel since the connection began."""

    def write(self, data: bytes | memoryview) -> None:
        """Send what the kernel takes; the rest is `blocked`. Never raises: see `write_failed`. Not while `blocked`."""
        link = self.link
        try:
            sent = link.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.write_failed = True
            return
        self.bytes_written += sent
        if sent < len(data):
            link.ready &= NOT_WRITE
            if type(data) is memoryview and data.obj is SCRATCH_BYTES:
                data = bytes(data[sent:])
                sent = 0
            self.blocked = memoryview(data)[sent:]

    def write_with(self, head: bytes, body: bytes | memoryview) -> None:
        """`write` of both, without joining them first where that would copy much."""
        if len(body) < WORTH_A_VECTOR and type(body) is bytes:
            self.write(head + body)
            return
        try:
            sent = self.link.sock.sendmsg((head, body))
        except BlockingIOError:
            sent = 0
        except OSError:
            self.write_failed = True
            return
        self.bytes_written += sent
        if sent < len(head) + len(body):
            self.link.ready &= NOT_WRITE
            self.blocked = memoryview(head[sent:] + bytes(body[max(0, sent - len(head)) :]))

    def flush(self) -> bool:
        """Send more of what is blocked. True if nothing is left, also when the other side takes no more."""
        rest = self.blocked
        if rest is not None:
            self.blocked = None
            self.write(rest)
        return self.blocked is None

    def read(self, size: int) -> int | None:
        """Up to `size` (1 to SCRATCH_SIZE) bytes into `SCRATCH`: how many, 0 at the end of input, None when nothing
        is there. Raises OSError when the connection was reset.
        """
        link = self.link
        try:
            count = link.sock.recv_into(SCRATCH_BYTES, size)
        except BlockingIOError:
            link.ready &= NOT_READ
            return None
        if count < size and not link.ready & HANGUP:
            link.ready &= NOT_READ  # a short read has emptied the socket: spare the EAGAIN
        return count

    def is_quiet(self) -> bool:
        """Nothing is left to read. Asks the kernel only if the last read left that open."""
        link = self.link
        if not link.ready & (READ | HANGUP):
            return True
        try:
            link.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            link.ready &= NOT_READ
            return not link.ready & HANGUP
        except OSError:
            return False
        return False

    def cut(self) -> None:
        """Close with a reset instead of a FIN, which would pass for the end of something whole. Unix sockets know no
        resets: their end is seen at once.
        """
        try:
            self.link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        except OSError:
            pass  # it has failed already
        self.link.close()

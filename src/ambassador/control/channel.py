"""Framed messages with descriptors between two processes of one host, over a unix stream socket.

A frame is a length in four bytes, big-endian, and a msgpack message. Descriptors ride on the first bytes of the frame
they belong to (a stream socket delivers them with those bytes at the latest), so when a frame is whole, all its
descriptors are here; `take` hands them out in order.

`post` never waits: a peer that has stalled must not stall the one who talks to it. What it has not read is held here,
and is little, since a stalled worker is replaced.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec
import trio

from ambassador.control.orders import Message

Received = TypeVar("Received")

_LENGTH = struct.Struct("!I")
_LONGEST = 256 * 1024 * 1024  # far beyond any config; a larger number is a framing error
_READ = 64 * 1024
_DESCRIPTORS = 200  # a message may carry; Linux: SCM_MAX_FD is 253
_ENCODER = msgspec.msgpack.Encoder()


class Closed(Exception):
    """The other side is gone."""


class Channel(Generic[Received]):
    """One end. `run` sends what was posted; `receive` is called by one task at a time.

    `received` decodes what this side gets.
    """

    def __init__(self, sock: socket.socket, received: msgspec.msgpack.Decoder[Received]) -> None:
        sock.settimeout(0)
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._decoder = received
        self._out: deque[tuple[bytes, list[int]]] = deque()
        self._posted = trio.Event()
        self._sending = trio.Lock()
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    def post(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send when possible. The descriptors are duplicated at once, so the caller may close its own."""
        body = _ENCODER.encode(message)
        self._out.append((_LENGTH.pack(len(body)) + body, [os.dup(fd) for fd in descriptors]))
        self._posted.set()

    async def run(self) -> None:
        """Send what is posted, until the other side is gone or this is cancelled."""
        try:
            while True:
                await self._posted.wait()
                self._posted = trio.Event()
                await self.flush()
        except OSError:
            return

    async def flush(self) -> None:
        """Send all that is posted. Raises OSError when the other side is gone."""
        async with self._sending:
            while self._out:
                await self._send(*self._out.popleft())

    async def _send(self, frame: bytes, descriptors: Sequence[int]) -> None:
        try:
            rest = await self._send_descriptors(memoryview(frame), descriptors)
            while rest:
                rest = rest[await self._sock.send(rest) :]
        finally:
            for fd in descriptors:
                os.close(fd)

    async def _send_descriptors(self, frame: memoryview, descriptors: Sequence[int]) -> memoryview:
        for start in range(0, len(descriptors), _DESCRIPTORS):
            batch = array.array("i", descriptors[start : start + _DESCRIPTORS])
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, batch)
            frame = frame[await self._sock.sendmsg([frame[:1]], [rights]) :]
        return frame

    async def receive(self) -> Received:
        """The next message. Raises `Closed`."""
        while True:
            message = self._whole_frame()
            if message is not None:
                return self._decoder.decode(message)
            await self._read()

    def _whole_frame(self) -> bytes | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > _LONGEST:
            raise Closed
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        message = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return message

    async def _read(self) -> None:
        space = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
        try:
            data, ancillary, _, _ = await self._sock.recvmsg(_READ, space, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            raise Closed from None
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                self._descriptors.extend(received)
        if not data:
            raise Closed
        self._buffer += data

    def take(self, count: int) -> list[int]:
        """The next `count` descriptors; they belong to the caller. Raises `Closed` if they did not come."""
        if len(self._descriptors) < count:
            raise Closed
        return [self._descriptors.popleft() for _ in range(count)]

    def close(self) -> None:
        """Close the socket and every descriptor in hand."""
        self._sock.close()
        for _, descriptors in self._out:
            for fd in descriptors:
                os.close(fd)
        self._out.clear()
        while self._descriptors:
            os.close(self._descriptors.popleft())

"""Frames between a worker and its supervisor's store, on a unix stream socket that the worker is given at its start.

The worker's end is the third descriptor of `control.orders.Start`, after the page and the log pipe; whoever opens the
data plane (`control/worker.py`) gets it as `store_fd`.

A frame is a length in four bytes, big-endian, and so many bytes of msgpack. Both sides say `HELLO` first, without
waiting for the other's; a side that reads another greeting than its own closes. After that
- the worker sends `[number, [operation, …]]`, numbers from 1 upwards, at most MOST_OPERATIONS in each; it need not
  wait for answers;
- the store sends `[number, [answer, …]]` for each, in the same order, and `[0, [event, …]]` in between.

Either side closes when it reads what it cannot understand, or a length above LONGEST. A worker's socket is made for it
once: one that has lost it is replaced by its supervisor.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from ambassador.state.protocol import VERSION, Answer, Event, Operation

LONGEST: Final = 16 * 1024 * 1024
"""Of a frame, in bytes, its length not counted: 204 of the longest values; a larger number is a framing error."""

MOST_OPERATIONS: Final = 200
"""Of a frame: so one takes half a millisecond of the supervisor's loop, and 200 of the longest values fit into it."""

_LENGTH = struct.Struct("!I")
_BEYOND: Final = _LENGTH.size + LONGEST
_ENCODER = msgspec.msgpack.Encoder()


class Malformed(Exception):
    """What came is no frame."""


class Questions(msgspec.Struct, array_like=True, frozen=True):
    """What a worker sends."""

    number: int
    operations: list[Operation]


class Answers(msgspec.Struct, array_like=True, frozen=True):
    """What the store sends for it."""

    number: int
    answers: list[Answer]


class Tidings(msgspec.Struct, array_like=True, frozen=True):
    """Events, as the store sends them: `number` is 0."""

    number: int
    events: list[Event]


class Reply(msgspec.Struct, array_like=True, frozen=True):
    """What the worker reads first: whether it is `Answers` or, with `number` 0, `Tidings`."""

    number: int
    rest: msgspec.Raw


decode_questions = msgspec.msgpack.Decoder(Questions).decode
_decode_reply = msgspec.msgpack.Decoder(Reply).decode
_decode_answers = msgspec.msgpack.Decoder(list[Answer]).decode
_decode_events = msgspec.msgpack.Decoder(list[Event]).decode


def pack(message: object) -> bytes:
    """A whole frame."""
    body = _ENCODER.encode(message)
    return _LENGTH.pack(len(body)) + body


HELLO: Final = pack(["ambassador state", VERSION])
"""The greeting, as a whole frame."""
GREETING: Final = HELLO[_LENGTH.size :]
"""Its body."""


def decode_reply(body: bytes) -> Answers | Tidings:
    """What the store sent. Raises msgspec.MsgspecError."""
    reply = _decode_reply(body)
    if reply.number:
        return Answers(reply.number, _decode_answers(reply.rest))
    return Tidings(0, _decode_events(reply.rest))


class Unpacker:
    """Cuts a stream of bytes into the bodies of frames. What is held of an unfinished frame is bounded by LONGEST."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are whole now. Raises `Malformed` for a length above LONGEST."""
        held = self._held
        if held:
            held += data
            if len(held) < _LENGTH.size or len(held) < _LENGTH.size + _LENGTH.unpack_from(held)[0] <= _BEYOND:
                return []
            data = bytes(held)
            held.clear()
        bodies = []
        start, end = 0, len(data)
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, start)
            if length > LONGEST:
                raise Malformed("a length that cannot be")
            stop = start + _LENGTH.size + length
            if stop > end:
                break
            bodies.append(data[start + _LENGTH.size : stop])
            start = stop
        if start < end:
            held += data[start:]
        return bodies

from __future__ import annotations

import msgspec
import pytest

from ambassador.state.frames import (
    GREETING,
    HELLO,
    LONGEST,
    Answers,
    Malformed,
    Questions,
    Tidings,
    Unpacker,
    decode_questions,
    decode_reply,
    pack,
)
from ambassador.state.protocol import VERSION, Event, Get, Named

QUESTIONS = Questions(7, [Get("a"), Get("b")])


def test_unpacker_gives_frames_wherever_the_bytes_are_split() -> None:
    whole = HELLO + pack(QUESTIONS) + pack(Questions(8, []))
    for split in range(len(whole) + 1):
        unpacker = Unpacker()
        bodies = unpacker.feed(whole[:split]) + unpacker.feed(whole[split:])
        assert bodies[0] == GREETING
        assert [decode_questions(body) for body in bodies[1:]] == [QUESTIONS, Questions(8, [])]


def test_unpacker_gives_a_frame_that_comes_byte_by_byte() -> None:
    unpacker = Unpacker()
    bodies = [body for byte in pack(QUESTIONS) for body in unpacker.feed(bytes([byte]))]
    assert bodies == [pack(QUESTIONS)[4:]]


@pytest.mark.parametrize("split", [0, 1, 3, 4])
def test_unpacker_refuses_a_length_that_cannot_be(split: int) -> None:
    header = (LONGEST + 1).to_bytes(4, "big")
    unpacker = Unpacker()
    with pytest.raises(Malformed):
        unpacker.feed(header[:split]) + unpacker.feed(header[split:])


def test_reply_is_answers_or_tidings() -> None:
    answers = Answers(3, [Named(1, 0, b"", 0, done=False)])
    tidings = Tidings(0, [Event("value", "a", b"x")])
    assert decode_reply(pack(answers)[4:]) == answers
    assert decode_reply(pack(tidings)[4:]) == tidings


@pytest.mark.parametrize("body", [b"", b"\xc0", b"\x92\x01\x91\x01", GREETING])
def test_reply_that_is_none_is_an_error(body: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_reply(body)


def test_greeting_tells_the_layout() -> None:
    assert msgspec.msgpack.decode(GREETING) == ["ambassador state", VERSION]

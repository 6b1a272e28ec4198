from __future__ import annotations

import typing

import msgspec
import pytest

from ambassador.state import protocol
from ambassador.state.protocol import (
    Answer,
    Beat,
    Beaten,
    Event,
    Force,
    Get,
    Lease,
    Leased,
    Member,
    Named,
    Operation,
    Permit,
    Permitted,
    Probe,
    Probed,
    Put,
    Refused,
    Report,
    Restore,
    Roll,
    Rolled,
    Row,
    Rules,
    State,
    Token,
    Tokened,
    Verb,
    decode_answers,
    decode_named,
    decode_operations,
    decode_row,
    encode,
    tag_of,
)

RULES = Rules(0.5, 0.8, 20, 10_000, 0.3, 5_000, 60_000, 3)
ROW = Row(1, State.OPEN, 2, 3, 4, 5, "open", 6, "ada", "drill", 7, 8, 9, 10, 11)

OPERATIONS: list[Operation] = [
    Lease("k", 0.5, 10, 3, 1, 2.5, True, 0.25, 1.5, 60, 4, 7, 3.5),
    Report("b", "a", 1, 2, RULES, 3, 4, 5, True, 6, 7),
    Probe("b", "id", Verb.LOST, RULES, 250),
    Force("b", "open", RULES, 1000, "ada", "drill"),
    Restore("b", ROW),
    Token("t", "store", "me", 3, b"\x00\xff", 1000, 2000),
    Beat("a", 1, b"info", True),
    Roll(),
    Put("v", b"x", 1000, 2, True, True),
    Get("v"),
    Permit("k", "h", 10, 3, 5, 6, 4, [0.5, 0.25], 1),
]
ANSWERS: list[Answer] = [
    Leased(1, 2, 3.5, 4, 5, 6, 7, 8),
    ROW,
    Probed(True, ROW),
    Tokened(1, 2, b"x", 3, True),
    Beaten(1, 2, 3, 4),
    Rolled(1, [Member("a", 0, 1, b"")]),
    Named(1, 2, b"x", 3, False),
    Permitted(1, 2, 3, 4, 5, 6),
    Refused("why"),
]


def test_every_operation_and_answer_is_here() -> None:
    assert {type(each) for each in OPERATIONS} == set(typing.get_args(Operation))
    assert {type(each) for each in ANSWERS} == set(typing.get_args(Answer))


def test_operations_come_back_as_they_were() -> None:
    assert decode_operations(encode(OPERATIONS)) == OPERATIONS


def test_answers_come_back_as_they_were() -> None:
    assert decode_answers(encode(ANSWERS)) == ANSWERS


@pytest.mark.parametrize("message", [*OPERATIONS, *ANSWERS], ids=lambda message: type(message).__name__)
def test_message_is_an_array_of_its_tag_and_fields(message: Operation | Answer) -> None:
    array = msgspec.msgpack.decode(encode(message))
    assert array[0] == type(message).__name__.lower()
    assert len(array) == 1 + len(message.__struct_fields__)


def test_fields_that_an_older_sender_does_not_know_have_defaults() -> None:
    shortened = msgspec.msgpack.encode([["lease", "k", 1, 2, 3], ["token", "t", "read"]])
    assert decode_operations(shortened) == [Lease("k", 1.0, 2.0, 3), Token("t", "read")]


def test_fields_that_a_newer_sender_adds_are_passed_over() -> None:
    assert decode_operations(msgspec.msgpack.encode([["get", "v", "more"]])) == [Get("v")]


@pytest.mark.parametrize(
    "wrong", [["get"], ["get", 1], ["steal", "v"], ["probe", "b", "id", 9, []], [], "get"]
)
def test_what_is_no_operation_is_an_error(wrong: object) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_operations(msgspec.msgpack.encode([wrong]))


def test_bodies_of_events_are_messages() -> None:
    event = Event("circuit", "b", encode(ROW))
    assert decode_row(event.body) == ROW
    assert decode_named(encode(ANSWERS[6])) == ANSWERS[6]
    assert msgspec.msgpack.decode(encode(event), type=Event) == event


def test_tags_are_the_same_everywhere_and_spread() -> None:
    assert tag_of("123456789") == 0xCBF43926 % 64  # the check value of CRC-32
    counts = [0] * 64
    for n in range(6400):
        counts[tag_of(f"key {n}")] += 1
    assert min(counts) > 50
    assert max(counts) < 150


def test_epochs_divide_seconds_evenly() -> None:
    assert (1 / protocol.EPOCH_S).is_integer()

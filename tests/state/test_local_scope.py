"""A worker's side of the supervisor's store: real sockets, a store that the test plays, time that it moves."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec
import pytest

from ambassador.state.frames import HELLO, Questions, Unpacker, decode_questions, pack
from ambassador.state.local_scope import LocalScope
from ambassador.state.protocol import Answer, Beat, Beaten, Event, Get, Named, Operation, Put


def named(name: str, version: int = 1) -> Named:
    return Named(now_us=1, version=version, value=name.encode(), ttl_ms=0)


class Peer:
    """The supervisor's end: reads questions, and answers when the test says so. `scope` is the worker's."""

    def __init__(self) -> None:
        self.sock, worker = socket.socketpair()
        self.sock.setblocking(False)
        self.now = 100.0
        self.alarms: list[float] = []
        self.greetings = 0
        self._unpacker = Unpacker()
        self._greeted = False
        self.scope = LocalScope(worker, lambda: self.now, self.alarms.append)
        self.scope.on_up(self._greet)

    def _greet(self) -> None:
        self.greetings += 1

    def hello(self) -> None:
        self.send(HELLO)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)
        self.scope.ready()

    def heard(self) -> list[Questions]:
        """What came since the last call."""
        data = b""
        try:
            while more := self.sock.recv(1 << 20):
                data += more
        except BlockingIOError:
            pass
        bodies = self._unpacker.feed(data)
        if bodies and not self._greeted:
            self._greeted = True
            assert pack(msgspec.Raw(bodies.pop(0))) == HELLO
        return [decode_questions(body) for body in bodies]

    def answer(self, number: int, *answers: Answer) -> None:
        self.send(pack([number, answers]))

    def pass_time(self, seconds: float) -> None:
        """Time goes by, and the alarm is heard whenever it is due."""
        until = self.now + seconds
        while self.alarms and self.alarms[-1] <= until:
            self.now = max(self.now, self.alarms.pop())
            self.alarms.clear()
            self.scope.pulse()
        self.now = until

    def close(self) -> None:
        self.sock.close()
        self.scope.close(0.0)
        self.scope.sock.close()
        self.scope.bell.close()
        self.scope.bell.sock.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def names(questions: list[Questions]) -> list[tuple[int, list[str]]]:
    return [(each.number, [name_of(operation) for operation in each.operations]) for each in questions]


def name_of(operation: Operation) -> str:
    assert isinstance(operation, Get | Put)
    return operation.name


def test_first_question_is_sent_at_once_and_answered_outside_ask(peer: Peer) -> None:
    answers: list[Answer | None] = []
    peer.scope.ask(Get("a"), answers.append)
    assert names(peer.heard()) == [(1, ["a"])]
    peer.hello()
    assert answers == []
    assert peer.scope.losses == 0
    peer.answer(1, named("a"))
    assert answers == [named("a")]
    assert peer.greetings == 1


def test_questions_asked_meanwhile_go_out_together(peer: Peer) -> None:
    peer.hello()
    order: list[str] = []
    for name in "abc":
        peer.scope.ask(Get(name), lambda _, name=name: order.append(name))  # type: ignore[misc]
    assert names(peer.heard()) == [(1, ["a"])]
    peer.answer(1, named("a"))
    assert names(peer.heard()) == [(2, ["b", "c"])]
    peer.answer(2, named("b"), named("c"))
    assert order == ["a", "b", "c"]
    assert peer.scope.operations == 3


def test_questions_asked_by_callbacks_go_out_together(peer: Peer) -> None:
    peer.hello()

    def ask_two(_: Answer | None) -> None:
        peer.scope.ask(Get("x"))
        peer.scope.ask(Get("y"))

    peer.scope.ask(Get("a"), ask_two)
    peer.answer(1, named("a"))
    assert names(peer.heard()) == [(1, ["a"]), (2, ["x", "y"])]


def test_batches_are_bounded(peer: Peer) -> None:
    peer.hello()
    for number in range(450):
        peer.scope.ask(Get(str(number)))
    sizes = []
    for number, count in ((1, 1), (2, 200), (3, 200), (4, 49)):
        sizes += [len(each.operations) for each in peer.heard()]
        peer.answer(number, *[named("")] * count)
    assert sizes == [1, 200, 200, 49]


def test_long_batch_is_sent_in_parts(peer: Peer) -> None:
    peer.hello()
    answers: list[Answer | None] = []
    value = b"v" * 60_000
    peer.scope.ask(Get("first"))
    for number in range(100):
        peer.scope.ask(Put(str(number), value), answers.append)
    peer.answer(1, named("first"))
    heard: list[Questions] = []
    while len(heard) < 2:
        heard += peer.heard()
        peer.scope.ready()
    assert len(heard[1].operations) == 100
    peer.answer(2, *[named("")] * 100)
    assert len(answers) == 100


def test_answers_may_come_byte_by_byte(peer: Peer) -> None:
    answers: list[Answer | None] = []
    peer.scope.ask(Get("a"), answers.append)
    for byte in HELLO + pack([1, [named("a")]]):
        peer.send(bytes([byte]))
    assert answers == [named("a")]


def test_error_of_a_callback_does_not_lose_the_others(peer: Peer) -> None:
    peer.hello()
    answers: list[Answer | None] = []

    def fail(_: Answer | None) -> None:
        raise ZeroDivisionError

    peer.scope.ask(Get("first"))
    peer.scope.ask(Get("a"), fail)
    peer.scope.ask(Get("b"), answers.append)
    peer.answer(1, named("first"))
    with pytest.raises(ZeroDivisionError):
        peer.answer(2, named("a"), named("b"))
    assert answers == [named("b")]
    peer.scope.ready()


def test_errors_of_callbacks_are_raised_together(peer: Peer) -> None:
    peer.hello()

    def fail(_: Answer | None) -> None:
        raise ZeroDivisionError

    def fail_too(_: Event) -> None:
        raise IndexError

    peer.scope.ask(Get("a"), fail)
    peer.scope.listen("value", fail_too)
    with pytest.raises(ExceptionGroup) as raised:
        peer.send(pack([1, [named("a")]]) + pack([0, [Event("value", "x", b"")]]))
    assert {type(error) for error in raised.value.exceptions} == {ZeroDivisionError, IndexError}


def test_events_are_told_by_kind(peer: Peer) -> None:
    peer.hello()
    heard: list[str] = []
    peer.scope.listen("circuit", lambda event: heard.append(event.name))
    peer.send(pack([0, [Event("circuit", "a", b""), Event("value", "b", b""), Event("circuit", "c", b"")]]))
    assert heard == ["a", "c"]


def test_store_that_does_not_answer_in_time_is_lost(peer: Peer) -> None:
    peer.hello()
    answers: list[Answer | None] = []
    peer.scope.ask(Get("a"), answers.append)
    peer.scope.ask(Get("b"), answers.append)
    peer.pass_time(0.24)
    assert answers == []
    peer.pass_time(0.02)
    assert answers == [None, None]
    assert (peer.scope.up, peer.scope.losses) == (False, 1)


def test_question_to_a_lost_store_is_answered_none_without_being_sent(peer: Peer) -> None:
    peer.hello()
    peer.scope.ask(Get("a"))
    peer.pass_time(0.3)
    peer.heard()
    answers: list[Answer | None] = []
    peer.scope.ask(Get("b"), answers.append)
    assert answers == []
    assert peer.scope.bell.sock.recv(8)
    peer.scope.ready()
    assert answers == [None]
    assert peer.heard() == []


def test_late_answer_is_dropped_and_says_that_the_store_is_back(peer: Peer) -> None:
    peer.hello()
    answers: list[Answer | None] = []
    peer.scope.ask(Get("a"), answers.append)
    peer.pass_time(1.0)
    peer.answer(1, named("a"))
    assert answers == [None]
    assert peer.scope.up
    assert peer.greetings == 2
    peer.scope.ask(Get("b"), answers.append)
    peer.answer(2, named("b"))
    assert answers == [None, named("b")]


def test_worker_that_stood_still_does_not_take_the_store_for_lost(peer: Peer) -> None:
    peer.hello()
    answers: list[Answer | None] = []
    peer.scope.ask(Get("a"), answers.append)
    peer.now += 3.0
    peer.alarms.clear()
    peer.scope.pulse()
    assert peer.scope.up
    peer.pass_time(0.3)
    assert answers == [None]


def test_answer_that_is_there_counts_even_if_it_is_read_late(peer: Peer) -> None:
    peer.hello()
    answers: list[Answer | None] = []
    peer.scope.ask(Get("a"), answers.append)
    peer.sock.sendall(pack([1, [named("a")]]))
    peer.pass_time(0.26)
    assert answers == [named("a")]
    assert peer.scope.up


@pytest.mark.parametrize(
    "sent",
    [
        pack(["ambassador state", 99]),
        HELLO + pack("nonsense"),
        HELLO + b"\xff\xff\xff\xff",
        HELLO + pack([1, [named("a"), named("b")]]),
    ],
    ids=["another version", "no message", "too long", "too many answers"],
)
def test_store_that_cannot_be_understood_is_lost_for_good(peer: Peer, sent: bytes) -> None:
    answers: list[Answer | None] = []
    peer.scope.ask(Get("a"), answers.append)
    peer.send(sent)
    assert answers == [None]
    assert not peer.scope.up
    peer.scope.ready()


def test_store_that_is_gone_is_lost_for_good(peer: Peer) -> None:
    peer.hello()
    answers: list[Answer | None] = []
    peer.scope.ask(Get("a"), answers.append)
    peer.sock.close()
    peer.scope.ready()
    peer.scope.ask(Get("b"), answers.append)
    peer.scope.ready()
    assert answers == [None, None]
    assert not peer.scope.up


def test_beats_tell_who_lives_and_that_data_were_lost(peer: Peer) -> None:
    peer.hello()
    assert (peer.scope.replicas, peer.scope.workers) == (1, 1)
    peer.scope.ask(Beat("r", 0))
    peer.answer(1, Beaten(now_us=1, born_us=1, replicas=3, workers=12))
    assert (peer.scope.replicas, peer.scope.workers) == (3, 12)
    assert peer.greetings == 1
    peer.scope.ask(Beat("r", 0))
    peer.answer(2, Beaten(now_us=9, born_us=5, replicas=1, workers=1))
    assert (peer.scope.replicas, peer.scope.workers) == (3, 12)
    assert (peer.greetings, peer.scope.losses) == (2, 1)


def test_close_sends_what_was_asked(peer: Peer) -> None:
    peer.hello()
    for name in "abc":
        peer.scope.ask(Get(name))
    peer.scope.close(1.0)
    assert names(peer.heard()) == [(1, ["a"]), (2, ["b", "c"])]

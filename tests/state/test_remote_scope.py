"""The fleet's store from the worker's side: answers, loss and return, with real threads and a store that hangs."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from ambassador.state.protocol import (
    Answer,
    Beat,
    Beaten,
    Event,
    Get,
    Lease,
    Put,
    Report,
    Roll,
    Rules,
    StoreLost,
)
from ambassador.state.remote_scope import is_urgent
from tests.state.waiting import Remote, answer_to

RULES = Rules(
    errors=0.5, slow=2.0, min_requests=1, window_ms=1, quorum=0.3, open_ms=1, max_open_ms=1, probes=1
)


@pytest.fixture
def remote() -> Iterator[Remote]:
    made = Remote()
    yield made
    made.close()


def test_store_is_up_when_it_has_answered_the_greeting(remote: Remote) -> None:
    assert not remote.scope.up
    assert remote.scope.reason
    remote.start()
    assert (remote.scope.replicas, remote.scope.workers) == (2, 6)
    assert remote.scope.reason == ""


def test_data_began_no_later_than_it_did(remote: Remote) -> None:
    remote.store.age_s = 3.0
    remote.start()
    assert remote.scope.born_at == 97.0


def test_question_before_the_store_is_there_is_answered_none(remote: Remote) -> None:
    answers: list[Answer | None] = []
    remote.ask("a", answers)
    assert answers == []
    remote.until(lambda: answers)
    assert answers == [None]
    assert remote.scope.operations == 0


def test_answers_come_in_order(remote: Remote) -> None:
    remote.start()
    answers: list[Answer | None] = []
    for name in "abc":
        remote.ask(name, answers)
    assert answers == []
    remote.until(lambda: len(answers) == 3)
    assert answers == [answer_to(Put(name, b"")) for name in "abc"]
    assert remote.scope.operations == 3


def test_error_of_a_callback_does_not_lose_the_others(remote: Remote) -> None:
    remote.start()
    answers: list[Answer | None] = []

    def fail(_: Answer | None) -> None:
        raise ZeroDivisionError

    remote.store.hold()
    remote.ask("first")
    remote.until(lambda: remote.store.batches)
    remote.scope.ask(Put("a", b""), fail)
    remote.ask("b", answers)
    remote.store.release()
    with pytest.raises(ZeroDivisionError):
        remote.until(lambda: answers)
    assert answers == [answer_to(Put("b", b""))]


def test_store_that_hangs_is_lost_while_the_thread_still_waits(remote: Remote) -> None:
    remote.start()
    answers: list[Answer | None] = []
    remote.store.hold()
    remote.ask("a", answers)
    remote.until(lambda: remote.store.batches)
    remote.ask("b", answers)
    remote.pass_time(0.24)
    assert answers == []
    remote.pass_time(0.1)
    assert answers == [None, None]
    assert not remote.scope.up
    assert "250 ms" in remote.scope.reason
    remote.ask("c", answers)
    remote.until(lambda: len(answers) == 3)
    assert answers == [None] * 3
    assert remote.store.batches == [["a"]]


def test_late_answer_is_dropped_and_says_that_the_store_is_back(remote: Remote) -> None:
    remote.start()
    answers: list[Answer | None] = []
    remote.store.hold()
    remote.ask("a", answers)
    remote.until(lambda: remote.store.batches)
    remote.pass_time(1.0)
    before = remote.ups
    remote.store.release()
    remote.until(lambda: remote.scope.up)
    assert answers == [None]
    assert remote.ups == before + 1
    assert remote.store.connects == 1
    remote.ask("b", answers)
    remote.until(lambda: len(answers) == 2)
    assert answers == [None, answer_to(Put("b", b""))]


def test_hanging_store_that_is_lost_in_the_end_is_connected_again(remote: Remote) -> None:
    remote.start()
    answers: list[Answer | None] = []
    remote.store.hold()
    remote.ask("a", answers)
    remote.until(lambda: remote.store.batches)
    remote.pass_time(1.0)
    remote.store.release(StoreLost("timed out"))
    remote.until(lambda: remote.scope.up)
    assert answers == [None]
    assert remote.store.connects == 2


def test_worker_that_stood_still_does_not_take_the_store_for_lost(remote: Remote) -> None:
    remote.start()
    answers: list[Answer | None] = []
    remote.store.hold()
    remote.ask("a", answers)
    remote.until(lambda: remote.store.batches)
    remote.now += 3.0
    remote.scope.pulse()
    assert remote.scope.up
    remote.store.release()
    remote.until(lambda: answers)
    assert answers == [answer_to(Put("a", b""))]


@pytest.mark.parametrize("error", [StoreLost("gone"), RuntimeError("a defect of the client")])
def test_lost_store_answers_none_and_comes_back(remote: Remote, error: Exception) -> None:
    remote.start()
    answers: list[Answer | None] = []
    remote.store.error = error
    remote.ask("a", answers)
    remote.until(lambda: answers)
    assert answers == [None]
    remote.until(lambda: remote.scope.up)
    assert remote.store.connects == 2
    remote.ask("b", answers)
    remote.until(lambda: len(answers) == 2)
    assert answers == [None, answer_to(Put("b", b""))]


def test_store_that_refuses_is_tried_until_it_is_there(remote: Remote) -> None:
    remote.store.refusing = True
    remote.scope.start()
    remote.until(lambda: remote.store.connects >= 3 and remote.scope.reason == "connection refused")
    assert not remote.scope.up
    remote.store.refusing = False
    remote.until(lambda: remote.scope.up)


def test_store_that_was_wiped_while_away_is_told(remote: Remote) -> None:
    remote.start()
    remote.store.beaten = Beaten(now_us=9, born_us=9, replicas=1, workers=1)
    before = remote.ups
    remote.scope.ask(Beat("replica", 0))
    remote.now += 1.0
    remote.until(lambda: remote.ups > before)
    assert (remote.scope.replicas, remote.scope.workers) == (2, 6)


def test_losses_are_counted_and_nothing_else_that_is_told(remote: Remote) -> None:
    remote.start()
    told = remote.ups
    remote.store.subscription.lose()
    remote.until(lambda: remote.ups > told)
    assert remote.scope.losses == 0
    remote.store.error = StoreLost("the connection ended")
    remote.ask("a")
    remote.until(lambda: not remote.scope.up)
    assert remote.scope.losses == 1


def test_events_are_told_by_kind_and_in_order(remote: Remote) -> None:
    remote.start()
    heard: list[str] = []
    remote.scope.listen("circuit", lambda event: heard.append(event.name))
    for number in range(500):
        remote.store.subscription.publish(Event("circuit", str(number), b""))
        remote.store.subscription.publish(Event("value", "other", b""))
    remote.until(lambda: len(heard) == 500)
    assert heard == [str(number) for number in range(500)]


def test_lost_subscription_is_made_again_and_that_is_told(remote: Remote) -> None:
    remote.start()
    before = remote.ups
    remote.store.subscription.lose()
    remote.until(lambda: remote.ups > before)
    assert len(remote.store.subscriptions) == 2
    assert remote.scope.up


def test_subscription_is_made_anew_after_the_store_was_lost(remote: Remote) -> None:
    remote.start()
    first = remote.store.subscription
    remote.store.error = StoreLost("gone")
    remote.ask("a")
    remote.until(lambda: len(remote.store.subscriptions) > 1)
    assert first.stopped.is_set()


def test_store_counts_without_its_events(remote: Remote) -> None:
    remote.store.refuses_subscriptions = True
    remote.scope.start()
    answers: list[Answer | None] = []
    remote.until(lambda: remote.scope.up)
    remote.ask("a", answers)
    remote.until(lambda: answers)
    assert answers == [answer_to(Put("a", b""))]


def test_close_has_done_what_was_asked(remote: Remote) -> None:
    remote.start()
    answers: list[Answer | None] = []
    remote.store.hold()
    remote.ask("a", answers)
    remote.until(lambda: remote.store.batches)
    remote.ask("b", answers)
    remote.ask("c", answers)
    remote.store.release()
    remote.scope.close(10.0)
    assert remote.store.batches == [["a"], ["b", "c"]]
    assert remote.store.closed
    remote.until(lambda: len(answers) == 3)
    assert None not in answers
    remote.ask("d", answers)
    remote.until(lambda: len(answers) == 4)
    assert answers[3] is None
    assert not remote.scope.up


def test_close_does_not_wait_for_a_store_that_hangs(remote: Remote) -> None:
    remote.start()
    answers: list[Answer | None] = []
    remote.store.hold()
    remote.ask("a", answers)
    remote.until(lambda: remote.store.batches)
    remote.scope.close(0.0)
    remote.pass_time(0.5)
    assert answers == [None]
    remote.store.release()
    remote.until(lambda: remote.store.closed)
    remote.scope.ready()
    assert not remote.scope.up


@pytest.mark.parametrize(
    ("operation", "urgent"),
    [
        (Lease("k", 1.0, 1.0, 5, least=1), True),
        (Lease("k", 1.0, 1.0, 5), False),
        (Report("b", "r", 0, 0, RULES, requests=5), False),
        (Report("b", "r", 0, 0, RULES, requests=5, failures=1), True),
        (Report("b", "r", 0, 0, RULES, vote=True), True),
        (Get("n"), True),
        (Beat("r", 0), False),
        (Roll(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, msgspec.Struct) else str(value),
)
def test_operation_is_urgent_when_somebody_waits_or_must_know(operation: Lease, urgent: bool) -> None:
    assert is_urgent(operation) is urgent

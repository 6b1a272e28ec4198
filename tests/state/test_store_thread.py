"""What the threads behind a store do by themselves: batches, spacing, reconnecting, too many events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ambassador.state import store_thread
from ambassador.state.protocol import Answer, CannotServe, Event, Lease
from ambassador.state.scope import MISSED
from ambassador.state.store_thread import reconnect_delay_s
from tests.state.waiting import Remote


@pytest.fixture
def remote() -> Iterator[Remote]:
    made = Remote()
    made.start()
    yield made
    made.close()


def prefetch(key: str) -> Lease:
    return Lease(key, 1.0, 1.0, 1)


def test_what_is_asked_while_a_batch_is_under_way_goes_out_together(remote: Remote) -> None:
    answers: list[Answer | None] = []
    remote.store.hold()
    for name in "abc":
        remote.ask(name, answers)
        remote.until(lambda: remote.store.batches)
    remote.store.release()
    remote.until(lambda: len(answers) == 3)
    assert remote.store.batches == [["a"], ["b", "c"]]


def test_batches_that_nobody_waits_for_are_spaced(remote: Remote) -> None:
    answers: list[Answer | None] = []
    remote.scope.ask(prefetch("a"), answers.append)
    remote.until(lambda: answers)
    remote.scope.ask(prefetch("b"), answers.append)
    remote.scope.ask(prefetch("c"), answers.append)
    assert remote.store.batches == [["a"]]
    remote.now += store_thread.MIN_SPACING_S
    remote.until(lambda: len(answers) == 3)
    assert remote.store.batches == [["a"], ["b", "c"]]


def test_urgent_operation_takes_the_others_along_at_once(remote: Remote) -> None:
    answers: list[Answer | None] = []
    remote.scope.ask(prefetch("a"), answers.append)
    remote.until(lambda: answers)
    remote.scope.ask(prefetch("b"), answers.append)
    remote.ask("c", answers)
    remote.until(lambda: len(answers) == 3)
    assert remote.store.batches == [["a"], ["b", "c"]]


def test_batches_are_bounded(remote: Remote) -> None:
    answers: list[Answer | None] = []
    remote.store.hold()
    remote.ask("first", answers)
    remote.until(lambda: remote.store.batches)
    for number in range(1000):
        remote.ask(str(number), answers)
    remote.store.release()
    remote.until(lambda: len(answers) == 1001)
    assert [len(batch) for batch in remote.store.batches] == [1, 512, 488]


def test_events_beyond_what_is_held_are_told_as_missed(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_thread, "_UNHEARD", 10)
    heard: list[str] = []
    remote.scope.listen("circuit", lambda event: heard.append(event.name))
    before = remote.ups
    for number in range(100):
        remote.store.subscription.publish(Event("circuit", str(number), b""))
    remote.store.subscription.lose()
    remote.wait(lambda: len(remote.store.subscriptions) == 2)
    remote.until(lambda: remote.ups >= before + 2)
    assert heard == [str(number) for number in range(10)]


def test_defect_in_the_way_of_events_is_logged_once_and_the_next_are_heard(
    remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    remote.scope.listen("circuit", lambda event: heard.append(event.name))
    for subscriptions in (2, 3):
        remote.store.subscription.lose(ZeroDivisionError("a defect"))
        remote.wait(lambda: len(remote.store.subscriptions) == subscriptions)  # noqa: B023 - done with in its turn
    remote.store.subscription.publish(Event("circuit", "a", b""))
    remote.until(lambda: heard)
    assert len(caplog.records) == 1
    assert "a defect" in caplog.text


def test_reconnecting_waits_longer_up_to_half_a_second() -> None:
    assert [reconnect_delay_s(failures, 1.0) for failures in range(6)] == [0.025, 0.05, 0.1, 0.2, 0.4, 0.5]
    assert reconnect_delay_s(1_000, 1.0) == 0.5
    assert reconnect_delay_s(3, 0.0) == 0.0


def test_who_may_not_subscribe_is_told_to_look_and_asks_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_thread, "LOOK_S", 0.001)
    remote = Remote()
    remote.store.forbids_subscriptions = True
    missed: list[str] = []
    remote.scope.listen(MISSED, lambda event: missed.append(event.kind))
    remote.scope.start()
    remote.until(lambda: len(missed) >= 1 + 2 + 4 + 8 + 16 + 32 + 32)
    assert remote.store.subscribes <= 8
    assert remote.scope.up
    remote.store.forbids_subscriptions = False
    remote.until(lambda: remote.store.subscriptions)
    remote.close()


def test_store_that_is_soon_full_again_is_back_only_when_it_has_taken_writes_for_a_while(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_thread, "_PROVE_EVERY_S", 0.001)
    monkeypatch.setattr(store_thread, "PROOF_S", (0.02, 0.08))
    greetings = []
    for _ in range(4):
        before = remote.store.greetings
        remote.store.error = CannotServe("OOM")
        answers: list[Answer | None] = []
        remote.ask("a", answers)
        remote.until(lambda answers=answers: answers == [None] and remote.scope.up)  # type: ignore[misc]
        greetings.append(remote.store.greetings - before)
    # And one more is the greeting itself.
    assert greetings == [21, 41, 81, 81]


def test_store_that_worked_for_a_while_is_back_at_once(remote: Remote) -> None:
    before = remote.store.greetings
    returns: list[int] = []
    remote.scope.on_up(lambda: returns.append(remote.store.greetings))
    for number in (1, 2):
        remote.now += 10.0
        remote.store.error = CannotServe("OOM")
        answers: list[Answer | None] = []
        remote.ask("a", answers)
        # Its return, not that it is still taken for there: the next time begins when the thread knows of this one.
        remote.until(lambda n=number: before + n in returns)  # type: ignore[misc]
        assert answers == [None]
    assert remote.store.greetings == before + 2


def test_store_that_refuses_the_greeting_is_not_there(remote: Remote) -> None:
    remote.store.refuses_beats = True
    remote.store.error = CannotServe("OOM")
    remote.ask("a")
    greetings = remote.store.greetings
    remote.until(lambda: remote.store.greetings > greetings + 2)
    assert not remote.scope.up
    assert remote.scope.reason == "out of memory"
    remote.store.refuses_beats = False
    remote.until(lambda: remote.scope.up)

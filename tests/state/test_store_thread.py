"""What the threads behind a store do by themselves: batches, spacing, reconnecting, too many events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ambassador.state import store_thread
from ambassador.state.protocol import Answer, Event, Lease
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


def test_reconnecting_waits_longer_up_to_half_a_second() -> None:
    assert [reconnect_delay_s(failures, 1.0) for failures in range(6)] == [0.025, 0.05, 0.1, 0.2, 0.4, 0.5]
    assert reconnect_delay_s(1_000, 1.0) == 0.5
    assert reconnect_delay_s(3, 0.0) == 0.0

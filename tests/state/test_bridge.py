from __future__ import annotations

import select
import threading

from ambassador.state.bridge import ANSWER_WITHIN_S, Asked, Batch, Bell, Bridge
from ambassador.state.protocol import Alive, Event, Get, encode
from tests.state.still import Still


def rings(bell: Bell) -> bool:
    return bool(select.select([bell.sock], [], [], 0)[0])


def close(bell: Bell) -> None:
    bell.close()
    bell.sock.close()


def test_bell_rings_until_it_is_heard() -> None:
    bell = Bell()
    assert not rings(bell)
    bell.ring()
    bell.ring()
    assert rings(bell)
    bell.hush()
    assert not rings(bell)
    bell.ring()
    assert rings(bell)
    close(bell)


def test_who_comes_counts_at_once() -> None:
    scope = Still()
    scope.publish(Event("alive", "", encode(Alive(2, 3))))
    assert (scope.replicas, scope.workers) == (2, 3)
    scope.publish(Event("alive", "", encode(Alive(1, 1))))
    assert (scope.replicas, scope.workers) == (2, 3)


def test_bell_of_another_thread_is_never_missed() -> None:
    bell = Bell()
    told: list[int] = []

    def tell() -> None:
        for number in range(2_000):
            told.append(number)
            bell.ring()

    thread = threading.Thread(target=tell)
    thread.start()
    heard = 0
    while heard < 2_000:
        assert select.select([bell.sock], [], [], 10.0)[0], "a ring was missed"
        bell.hush()
        heard = len(told)
    thread.join()
    close(bell)


def test_bell_that_is_closed_rings_for_nobody() -> None:
    bell = Bell()
    close(bell)
    bell.ring()


def test_batch_is_overdue_after_its_time() -> None:
    batch = Batch([Asked(Get("a"), None)], 10.0)
    assert batch.operations == [Get("a")]
    assert not batch.is_overdue(10.0 + ANSWER_WITHIN_S - 0.001)
    assert batch.is_overdue(10.0 + ANSWER_WITHIN_S)


def test_batch_is_excused_once_when_nobody_looked() -> None:
    batch = Batch([], 10.0)
    assert not batch.is_overdue(20.0)
    assert not batch.is_overdue(20.0 + ANSWER_WITHIN_S - 0.001)
    assert batch.is_overdue(30.0)


def test_bridge_leaves_the_asking_to_its_scopes() -> None:
    bridge = Bridge(lambda: 0.0, lambda _when: None)
    assert not bridge.up
    assert (bridge.replicas, bridge.workers) == (1, 1)
    close(bridge.bell)

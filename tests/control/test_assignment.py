from __future__ import annotations

from ambassador.control.assignment import assign


def test_each_ready_slot_serves_itself() -> None:
    assert assign([], [0, 1]) == {0: (0,), 1: (1,)}


def test_an_orphan_goes_to_the_next_in_the_circle() -> None:
    assert assign([1], [0, 2, 3]) == {0: (0,), 2: (1, 2), 3: (3,)}
    assert assign([3], [0, 1]) == {0: (0, 3), 1: (1,)}


def test_several_orphans_are_spread() -> None:
    assert assign([1, 3], [0, 2]) == {0: (0, 3), 2: (1, 2)}


def test_nobody_ready_serves_nothing() -> None:
    assert assign([0, 1], []) == {}

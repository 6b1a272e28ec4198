"""What a worker makes of the rows that it hears of."""

from __future__ import annotations

import msgspec
import pytest

from ambassador.state.known_circuit import KnownCircuit, Word
from ambassador.state.protocol import Row, State
from ambassador.state.store_time import StoreTime

STORE_US = 1_700_000_000_000_000
"""The store's clock at 100.0 of this worker's."""
NOW = 100.0


def at(seconds: float) -> int:
    """A time of this worker, as the store tells it."""
    return STORE_US + round((seconds - NOW) * 1e6)


def row(**changes: object) -> Row:
    plain = Row(STORE_US, State.CLOSED, 5, at(NOW), 0, 0, "", 0, "", "", 9, 3, 1, 2, 1)
    return msgspec.structs.replace(plain, **changes)


def knowing(**changes: object) -> KnownCircuit:
    known = KnownCircuit(StoreTime())
    known.hear(row(**changes), NOW, NOW)
    known.take(row(**changes), NOW)
    return known


def test_nothing_is_known_at_first() -> None:
    known = KnownCircuit(StoreTime())
    assert (known.forced(NOW), known.state(NOW), known.word()) == ("", State.CLOSED, "closed")
    assert known.is_plain
    assert known.closed_since == float("-inf")
    assert known.window(NOW, 10_000) is None
    assert known.compare(row(), NOW, NOW) is Word.NEWER


def test_force_ends_with_its_time_and_one_that_was_open_is_half_open_then() -> None:
    known = knowing(state=State.OPEN, forced="open", forced_until_us=at(NOW + 5))
    assert (known.forced(NOW + 4), known.state(NOW + 4)) == ("open", State.OPEN)
    assert known.forced_wait(NOW + 4, 2000) == pytest.approx(1.0)
    assert (known.forced(NOW + 5), known.state(NOW + 5)) == ("", State.HALF_OPEN)


def test_force_without_end_is_looked_at_again_after_the_open_time() -> None:
    known = knowing(forced="closed")
    assert known.forced(NOW + 1e6) == "closed"
    assert known.forced_wait(NOW, 2000) == 2.0
    assert known.forced_wait(NOW, 900_000) == 60.0


def test_open_time_is_told_by_this_workers_clock() -> None:
    known = knowing(state=State.OPEN, open_until_us=at(NOW + 3))
    assert known.open_left(NOW + 1) == pytest.approx(2.0)
    assert not known.is_plain


def test_ramp_begins_when_it_closed() -> None:
    assert knowing(since_us=at(NOW - 2)).closed_since == pytest.approx(NOW - 2)
    assert knowing(state=State.OPEN).closed_since == float("-inf")


@pytest.mark.parametrize(
    ("known", "epoch", "asked_at", "word"),
    [
        ({}, 6, NOW - 1, Word.NEWER),
        ({}, 5, NOW - 1, Word.SAME),
        ({}, 4, NOW, Word.OF_BEFORE),
        ({}, 4, NOW + 1, Word.GIVEN_UP),
        ({"state": State.OPEN}, 4, NOW + 1, Word.LOST),
        ({"state": State.HALF_OPEN}, 4, NOW + 1, Word.LOST),
        ({"forced": "closed"}, 4, NOW + 1, Word.LOST),
        ({"state": State.OPEN, "forced": "open", "forced_until_us": 1}, 4, NOW + 1, Word.GIVEN_UP),
    ],
)
def test_answer_is_newer_the_same_of_before_or_tells_of_a_loss(
    known: dict[str, object], epoch: int, asked_at: float, word: Word
) -> None:
    assert knowing(**known).compare(row(epoch=epoch), asked_at, NOW + 2) is word


def test_override_is_put_back_though_it_says_closed() -> None:
    known = knowing()
    known.override(row())
    assert known.compare(row(epoch=4), NOW + 1, NOW + 2) is Word.LOST


def test_circuit_is_closed_here_while_the_store_is_away() -> None:
    known = knowing(state=State.OPEN)
    known.close_here()
    assert known.state(NOW) is State.CLOSED
    assert known.row is not None
    assert known.row.epoch == 5


def test_what_is_known_is_inherited() -> None:
    old = knowing(state=State.OPEN)
    new = KnownCircuit(StoreTime())
    new.inherit(old)
    assert new.row is old.row
    assert new.compare(row(epoch=4), NOW, NOW) is Word.OF_BEFORE


def test_window_is_told_while_it_is_young() -> None:
    known = knowing()
    assert known.window(NOW + 9, 10_000) == (9, 3, 1)
    assert known.window(NOW + 11, 10_000) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "closed"),
        ({"state": State.HALF_OPEN}, "half_open"),
        ({"state": State.OPEN, "open_until_us": at(NOW + 2), "trips": 1},
         "open for 2.0 s (trip 1): 3 of 9 failed, 1 were slow, seen by 1 of 2"),
        ({"state": State.OPEN, "open_until_us": at(NOW + 4), "trips": 2, "reporters": 0},
         "open for 4.0 s (trip 2): a probe failed"),
        ({"forced": "open", "forced_by": "me\n", "forced_reason": "why"}, "forced open by me\\x0a: why"),
    ],
)  # fmt: skip
def test_state_is_told_with_what_caused_it(changes: dict[str, object], says: str) -> None:
    assert knowing(**changes).text(row(state=State.HALF_OPEN)) == says

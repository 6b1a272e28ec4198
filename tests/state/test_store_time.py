"""The store's clock as seen from here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.state.store_time import DRIFT, StoreTime

AHEAD_S = 1_700_000_000


def us(here: float) -> int:
    return round((here + AHEAD_S) * 1e6)


def test_nothing_is_known_before_the_first_answer() -> None:
    time = StoreTime()
    assert not time.known
    time.heard(us(5), 4.9, 5.1)
    assert time.known


def test_event_is_better_than_nothing_and_worse_than_any_answer() -> None:
    time = StoreTime()
    time.heard(us(5), None, 5.3)
    assert time.here(us(7)) == pytest.approx(7.3, abs=1e-5)
    time.heard(us(6), 5.9, 6.1)
    assert time.here(us(7)) == pytest.approx(7, abs=1e-5)
    time.heard(us(6), None, 6.5)
    assert time.here(us(7)) == pytest.approx(7, abs=1e-5)


@given(
    trips=st.lists(
        st.tuples(st.floats(0.001, 0.2), st.floats(0, 1)),  # round trip, and when within it the store looked
        min_size=1,
        max_size=20,
    )
)
def test_error_is_at_most_half_of_a_round_trip_and_what_clocks_drift_since(
    trips: list[tuple[float, float]],
) -> None:
    time = StoreTime()
    now = 100.0
    for trip, share in trips:
        time.heard(us(now + trip * share), now, now + trip)
        now += 1.0
    # What one says is wrong by more as it grows old.
    ages = range(len(trips), 0, -1)
    least = min(trip / 2 + age * DRIFT for (trip, _), age in zip(trips, ages, strict=True))
    assert abs(time.here(us(now)) - now) <= least + 1e-5


def test_clock_that_was_set_is_believed_at_once() -> None:
    time = StoreTime()
    time.heard(us(5), 5.0, 5.001)
    time.heard(us(6 - 120), 6.0, 6.1)
    assert time.here(us(6 - 120)) == pytest.approx(6.05, abs=1e-5)


def test_best_answer_is_believed_until_clocks_may_have_drifted_by_more_than_a_newer_one_is_wrong() -> None:
    time = StoreTime()
    time.heard(us(5), 5.0, 5.0)
    time.heard(us(70.09), 70.0, 70.1)
    assert time.here(us(71)) == pytest.approx(71, abs=1e-5)
    time.heard(us(80.009), 80.0, 80.01)
    assert time.here(us(81)) == pytest.approx(80.996, abs=1e-5)


def test_answer_that_was_long_under_way_is_not_believed_though_the_best_one_is_old() -> None:
    time = StoreTime()
    time.heard(us(5), 5.0, 5.001)
    time.heard(us(95), 68.0, 95.0)
    assert time.here(us(100)) == pytest.approx(100, abs=0.001)


def test_there_is_the_inverse_of_here() -> None:
    time = StoreTime()
    time.heard(us(5), 5.0, 5.0)
    assert time.here(time.there(9.5)) == pytest.approx(9.5, abs=1e-5)

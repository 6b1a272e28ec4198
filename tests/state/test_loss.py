from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.state.loss import Part, debt_after, part_of, replicas_for, start_level

amounts = st.floats(0.01, 1e6)


def test_part_is_the_limit_over_the_replicas() -> None:
    assert part_of(100.0, 50.0, 4) == Part(25.0, 12.5)


def test_part_of_a_small_burst_lets_one_through() -> None:
    assert part_of(100.0, 2.0, 4) == Part(25.0, 1.0)


@given(amounts, st.floats(1, 1e6), st.integers(1, 500))
def test_parts_add_up_to_the_limit(rate: float, burst: float, replicas: int) -> None:
    part = part_of(rate, burst, replicas)
    assert part.rate * replicas == pytest.approx(rate)
    assert part.burst * replicas == pytest.approx(max(burst, replicas))


@pytest.mark.parametrize(
    ("known", "expected", "replicas"), [(3, None, 3), (3, 8, 3), (None, 8, 8), (None, None, 1)]
)
def test_replicas_are_those_last_known_else_those_expected(
    known: int | None, expected: int | None, replicas: int
) -> None:
    assert replicas_for(known, expected) == replicas


def test_key_that_was_not_seen_starts_with_what_it_gained_since_the_loss() -> None:
    part = Part(10.0, 5.0)
    assert start_level(part, 0.0) == 0.0
    assert start_level(part, 0.2) == pytest.approx(2.0)
    assert start_level(part, 60.0) == 5.0
    assert start_level(part, -1.0) == 0.0


@given(amounts, amounts, st.floats(-1e6, 1e6))
def test_debt_is_what_lacks_and_never_more_than_the_burst(rate: float, burst: float, left: float) -> None:
    part = Part(rate, burst)
    debt = debt_after(part, left)
    assert 0.0 <= debt <= burst
    if 0.0 <= left <= burst:
        assert debt == pytest.approx(burst - left)

"""When a token is due, when it ends, and how long a token service is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.proxy.tokens.life import hold, lead_s, margin_s, pause_s

chances = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("life_s", "least", "most"),
    [(3600, 576, 864), (300, 48, 72), (100, 48, 50), (20, 10, 10), (1, 0.5, 0.5)],
)
def test_lead_is_a_fifth_of_the_life_but_a_minute_and_never_more_than_half(
    life_s: float, least: float, most: float
) -> None:
    assert lead_s(life_s, 0.0) == pytest.approx(least)
    assert lead_s(life_s, 0.999999) == pytest.approx(most, rel=1e-3)


@given(st.floats(0.001, 1e6), chances)
def test_hold_has_a_token_due_before_it_ends_and_end_before_it_expires(life_s: float, chance: float) -> None:
    token = hold("t", life_s, 1000.0 + life_s, now=1000.0, chance=chance)
    assert 1000.0 <= token.due_at <= token.ends_at <= token.expires_at
    assert token.line == b"\r\nauthorization: Bearer t"


@pytest.mark.parametrize(("life_s", "margin"), [(3600, 10), (50, 5), (1, 0.1)])
def test_margin_is_ten_seconds_or_a_tenth_of_a_short_life(life_s: float, margin: float) -> None:
    assert margin_s(life_s) == pytest.approx(margin)


def test_hold_shows_no_token_when_it_is_printed() -> None:
    assert "s3cret" not in repr(hold("s3cret", 1.0, 1.0, now=0.0, chance=0.5))


def test_pause_doubles_from_one_second_to_thirty() -> None:
    pauses = [pause_s(failures, 0.0, 0.999999) for failures in range(1, 8)]
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 30, 30], rel=1e-3)
    assert pause_s(10_000, 0.0, 0.5) <= 30


@given(st.integers(1, 100), chances)
def test_pause_is_by_chance_down_to_three_quarters(failures: int, chance: float) -> None:
    whole = pause_s(failures, 0.0, 1.0)
    assert 0.75 * whole <= pause_s(failures, 0.0, chance) <= whole


def test_pause_is_what_the_service_asks_for_if_that_is_longer() -> None:
    assert pause_s(1, 120.0, 0.5) == 120.0

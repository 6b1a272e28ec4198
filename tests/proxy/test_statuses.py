"""Statuses as people name them."""

from __future__ import annotations

import pytest

from ambassador.proxy.statuses import spelt_out, status_range


@pytest.mark.parametrize(
    ("text", "expected"),
    [("429", (429, 429)), ("502-504", (502, 504)), ("5xx", (500, 599)), ("5XX", (500, 599))],
)
def test_statuses_are_ranges(text: str, expected: tuple[int, int]) -> None:
    assert status_range(text) == expected


@pytest.mark.parametrize("text", ["", "42", "6xx", "5x", "5-6", "502-", "-504", "500-5040", "٤٢٩"])
def test_what_is_no_status_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a status"):
        status_range(text)


def test_conditions_that_are_words_are_no_statuses() -> None:
    assert spelt_out(("connect", "429", "502-504"), ("connect",)) == {429, 502, 503, 504}

"""Statuses as people name them: `429`, `502-504`, `5xx`. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def status_range(text: str) -> tuple[int, int]:
    """First and last status of `429`, `502-504` or `5xx`. ValueError if it is none of these."""
    if len(text) == 3 and text[1:].lower() == "xx" and text[0] in "12345":
        return int(text[0]) * 100, int(text[0]) * 100 + 99
    low, _, high = text.partition("-")
    if not (_three_digits(low) and (_three_digits(high) or text == low)):
        raise ValueError(f"{text!r} is not a status, a range or a class of statuses")
    return int(low), int(high or low)


def _three_digits(text: str) -> bool:
    return len(text) == 3 and text.isascii() and text.isdigit()


def spelt_out(conditions: Iterable[str], words: Iterable[str]) -> frozenset[int]:
    """The statuses that are named among `conditions`, one by one; `words` are the conditions that are none."""
    found: set[int] = set()
    for condition in conditions:
        if condition not in words:
            low, high = status_range(condition)
            found.update(range(low, high + 1))
    return frozenset(found)

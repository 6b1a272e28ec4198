from __future__ import annotations

from email.utils import formatdate

import pytest

from ambassador.proxy.retry_after import delay_s, retry_after_s

NOW = 1_700_000_000.0
SOON = formatdate(NOW + 30, usegmt=True).encode()
PAST = formatdate(NOW - 10, usegmt=True).encode()
ASCTIME = b"Tue Nov 14 22:14:20 2023"


@pytest.mark.parametrize(
    ("value", "seconds", "longest"),
    [
        (b"5", 5.0, 5.0),
        (b" 120 ", 120.0, 120.0),
        (b"99999999999999", 1e9, 1e9),
        (SOON, None, 30.0),
        (PAST, None, None),
        (b"soon", None, None),
        (b"-1", None, None),
        (b"1.5", None, None),
        (b"", None, None),
        (b",", None, None),
        (b"\xff", None, None),
        (b"5, 10", 10.0, 10.0),
        (b"10, 5", 10.0, 10.0),
        (b"5, soon", 5.0, 5.0),
        (b"5, " + SOON, 5.0, 30.0),
        (SOON + b", 5", 5.0, 30.0),
        (SOON + b", 60", 60.0, 60.0),
        (PAST + b", " + SOON + b", 7", 7.0, 30.0),
        (b"0", 0.0, 0.0),
        (b"0, " + PAST, 0.0, 0.0),
    ],
)
def test_longest_of_what_is_said_holds(value: bytes, seconds: float | None, longest: float | None) -> None:
    assert delay_s(value) == seconds
    assert retry_after_s(value, NOW) == longest


def test_date_without_a_comma_is_one() -> None:
    assert retry_after_s(b"3, " + ASCTIME, NOW) == 60.0

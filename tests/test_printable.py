from __future__ import annotations

import pytest

from ambassador.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("maintenance of 日本 – 10 %", "maintenance of 日本 – 10 %"),
        ("a\nb\x00 \x1b[31m", "a\\x0ab\\x00 \\x1b[31m"),
        ("\x7f\x85\xa0", "\\x7f\\x85\\xa0"),
        ("\u202eabc\u2028", "\\u202eabc\\u2028"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_printable_escapes_what_does_not_print(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()

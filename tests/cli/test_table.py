from __future__ import annotations

from ambassador.cli.table import table


def test_numbers_are_to_the_right_and_what_is_missing_is_a_dash() -> None:
    rows = [("a", 1, 0.25, "x"), ("longer", 1000, None, "y z"), ("b", None, 10.0, "")]
    assert table(("NAME", "COUNT", "MEAN ms", "WHY"), rows).splitlines() == [
        "NAME    COUNT  MEAN ms  WHY",
        "a           1      0.2  x",
        "longer   1000        -  y z",
        "b           -     10.0",
    ]


def test_a_column_with_a_text_in_it_is_to_the_left() -> None:
    assert table(("A",), [(1,), ("text",)]).splitlines() == ["A", "1", "text"]


def test_text_of_others_stays_in_its_cell() -> None:
    assert table(("A", "B"), [("a\nb\0", "\x1b[31m")]).splitlines() == [
        "A           B",
        r"a\x0ab\x00  \x1b[31m",
    ]


def test_without_rows_there_is_the_head() -> None:
    assert table(("A", "B"), []) == "A  B"

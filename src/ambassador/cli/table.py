"""Tables for people. Cheap to import."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ambassador.printable import printable


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as they must be, under `head`; numbers to the right, None as `-`.

    Texts may be of others: what does not print is escaped.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    right = [all(isinstance(row[column], _Number) for row in cells) for column in range(len(head))]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = (
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        )
        for line in ([*head], *cells)
    )
    return "\n".join(line.rstrip() for line in lines)


class _Number(str):
    """The text of a number, or of one that is missing."""

    __slots__ = ()


def _cell(value: object) -> str:
    if value is None:
        return _Number("-")
    if isinstance(value, float):
        return _Number(f"{value:.1f}")
    return _Number(value) if isinstance(value, int) else printable(str(value))

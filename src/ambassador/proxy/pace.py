"""The slowest transfer that is put up with: `listeners.limits.min_rate`. Pure: times and counts come as arguments.

Only time in which the client was waited for counts, and all bytes that moved between client and proxy in the
meantime: a fast client of a slow upstream is never at fault, one that reads or sends a byte a second always is.
"""

from __future__ import annotations

from typing import Final

_WINDOW_S: Final = 30.0
"""Over so much waiting the rate is measured (contract 2)."""


class Pace:
    """One client's pace during one exchange; `floor` in bytes a second."""

    __slots__ = ("_floor", "_from", "_waited_s")

    def __init__(self, floor: float) -> None:
        self._floor = floor
        self._waited_s = 0.0
        self._from = 0

    def is_too_slow(self, waited_s: float, moved: int) -> bool:
        """After a wait of `waited_s` for the client: whether it moved too little over the window that ends here.

        `moved`: all bytes moved from and to the client so far, those of this wait not included.
        """
        if not self._waited_s:
            self._from = moved
        self._waited_s += waited_s
        if self._waited_s < _WINDOW_S:
            return False
        too_slow = moved - self._from < self._floor * _WINDOW_S
        self._waited_s = 0.0
        return too_slow

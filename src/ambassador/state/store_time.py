"""The store's clock as this process sees it: microseconds over there to seconds of the monotonic clock here.

Pure: both times come as arguments. An answer bounds the difference of the clocks by half of its round trip, so the
answer with the smallest one is believed (Cristian's algorithm), until clocks may have drifted by more than a newer one
can be wrong by. An answer that was long under way is never believed for its age alone: it may be wrong by half of that
time. One that contradicts what is believed means that the store's clock was set, or that another store answers; then
the newer one is believed at once.
"""

from __future__ import annotations

from math import inf
from typing import Final

DRIFT: Final = 1e-4
"""Quartz drifts by up to 50 µs a second, and there are two clocks: 6 ms in a minute."""
_SLACK_S: Final = 0.02
"""Answers are met once a batch of the lane, so a round trip may look shorter than it was by a batch or two."""


class StoreTime:
    """One store's clock. Before the first answer `known` is False and nothing else means anything."""

    __slots__ = ("_at", "_error_s", "_offset_s", "known")

    def __init__(self) -> None:
        self.known = False
        self._offset_s = 0.0
        self._error_s = inf
        self._at = 0.0

    def heard(self, now_us: int, asked_at: float | None, now: float) -> None:
        """The store's clock said `now_us`, some time between `asked_at` and `now` (monotonic seconds).

        `asked_at` None: it came by itself, nobody knows how long it took.
        """
        if asked_at is None:
            offset, error = now_us / 1e6 - now, inf
            if self.known:
                return
        else:
            offset, error = now_us / 1e6 - (asked_at + now) / 2, (now - asked_at) / 2
        believed_error = self._error_s + (now - self._at) * DRIFT
        contradicted = abs(offset - self._offset_s) > error + believed_error + _SLACK_S
        if error <= believed_error or contradicted:
            self._offset_s, self._error_s, self._at = offset, error, now
        self.known = True

    def here(self, us: int) -> float:
        """When it was, or will be, `us` over there, in monotonic seconds."""
        return us / 1e6 - self._offset_s

    def there(self, now: float) -> int:
        """What the store's clock says now, in microseconds."""
        return int((now + self._offset_s) * 1e6)

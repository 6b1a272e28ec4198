"""What one worker saw of an upstream since the last change of its circuit, and how much of that is told already.

Pure. Counters only ever grow between two changes; the window is what they grew by since its first bucket began, and
what is pending is what they grew by since the last report. So counting an outcome is one addition.
"""

from __future__ import annotations

from collections import deque
from math import inf

from ambassador.state.protocol import BUCKETS, Rules


def crosses(rules: Rules, requests: int, failures: int, slow: int, *, least: int) -> bool:
    """Whether so many of at least `least` requests cross a threshold."""
    return requests >= max(1, least) and (
        failures >= rules.errors * requests or slow >= rules.slow * requests
    )


class Outcomes:
    """`requests` may be counted up by whoever has looked at `rotate_at`; everything else goes through `add`.

    `window_ms` as in `Rules`. Times are seconds of a monotonic clock.
    """

    __slots__ = (
        "_late", "_lost", "_lost_marks", "_marks", "_reported", "_width_s", "failures", "in_row", "requests", "rotate_at", "slow",
    )  # fmt: skip

    def __init__(self, window_ms: int) -> None:
        self._width_s = window_ms / 1000 / BUCKETS
        self._marks: deque[tuple[int, int, int]] = deque(((0, 0, 0),), BUCKETS)
        self.requests = self.failures = self.slow = 0
        self.in_row = 0
        """Failures without an answer in a row."""
        self.rotate_at = -inf
        """When the next bucket begins."""
        self._reported = (0, 0, 0)
        self._late = (0, 0, 0)
        self._lost = (0, 0)
        self._lost_marks: deque[tuple[int, int]] = deque(((0, 0),), BUCKETS)

    def add(self, now: float, *, failed: bool, slow: bool, hard: bool) -> None:
        """Count an outcome. `hard`: there was no answer."""
        self._rotate(now)
        self.requests += 1
        self.failures += failed
        self.slow += slow
        self.in_row = self.in_row + 1 if hard else 0

    def add_late(self, *, failed: bool, slow: bool) -> None:
        """Count an outcome of before the last change: to be told, but not part of the window."""
        requests, failures, slows = self._late
        self._late = requests + 1, failures + failed, slows + slow

    def window(self, now: float) -> tuple[int, int, int]:
        """(requests, failures, slow) of the window."""
        self._rotate(now)
        before = self._marks[0]
        return self.requests - before[0], self.failures - before[1], self.slow - before[2]

    def lose(self, now: float, failures: int, slow: int) -> None:
        """A report of so many was not answered: whoever else decides may not know of them."""
        self._rotate(now)
        self._lost = self._lost[0] + failures, self._lost[1] + slow

    def told(self, now: float) -> tuple[int, int, int]:
        """The window as whoever else decides may have it at worst: without failures and slow ones that were lost, but
        with everything good, since a report that is not answered may have been counted.
        """
        requests, failures, slow = self.window(now)
        lost, before = self._lost, self._lost_marks[0]
        # What is lost is known a little later than it was seen, and so leaves the window later.
        return requests, max(0, failures - lost[0] + before[0]), max(0, slow - lost[1] + before[1])

    def text(self, now: float) -> str:
        """The window in words."""
        requests, failures, slow = self.window(now)
        return f"{failures} of {requests} failed, {slow} were slow"

    def crosses(self, now: float, rules: Rules, least: int) -> bool:
        """Whether the window crosses a threshold, given that it has at least `least` requests."""
        return crosses(rules, *self.window(now), least=least)

    def take(self) -> tuple[int, int, int]:
        """What is not told yet; it counts as told from now on."""
        pending = self._pending()
        self._reported = self.requests, self.failures, self.slow
        self._late = 0, 0, 0
        return pending

    def restart(self, now: float, *, same_epoch: bool) -> None:
        """A change: the window is empty. What is not told yet is worth telling only within the epoch."""
        self._late = self._pending() if same_epoch else (0, 0, 0)
        self.requests = self.failures = self.slow = self.in_row = 0
        self._reported = 0, 0, 0
        self._lost = 0, 0
        self._marks.clear()
        self._marks.append((0, 0, 0))
        self._lost_marks.clear()
        self._lost_marks.append((0, 0))
        self.rotate_at = now + self._width_s

    def _pending(self) -> tuple[int, int, int]:
        told, late = self._reported, self._late
        return (
            self.requests - told[0] + late[0],
            self.failures - told[1] + late[1],
            self.slow - told[2] + late[2],
        )

    def _rotate(self, now: float) -> None:
        if now < self.rotate_at:
            return
        width = self._width_s
        elapsed = BUCKETS if self.rotate_at == -inf else int((now - self.rotate_at) / width) + 1
        # What was counted without looking at the clock belongs to the bucket that has just ended.
        self._marks.extend([(self.requests, self.failures, self.slow)] * min(BUCKETS, elapsed))
        self._lost_marks.extend([self._lost] * min(BUCKETS, elapsed))
        self.rotate_at = self.rotate_at + elapsed * width if elapsed < BUCKETS else now + width

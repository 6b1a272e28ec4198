"""How soon a route is answered at best: an attempt that has less time than that left cannot finish in time.

The rule is gRPC's and the SRE book's ("Addressing Cascading Failures", deadline propagation): do not begin what
will not be waited for. It must never refuse what could have been done, so
- what is known is a lower bound: the fastest head of an answer among `_ENOUGH` attempts or more that were answered,
  whatever they were answered with; too few of them say nothing;
- what is older than three windows of `_WINDOW_S` is forgotten (two, where somebody asks all the time), and so is all
  of it when nobody has asked for two. Where every attempt is refused, none teaches anything: they are made again then;
- attempts that were given up teach nothing: else short deadlines would be taken for fast answers.

One object for each route in a worker. Learning costs the way of a plain request one comparison (0.03 µs); counts are
read from the route's counters when somebody asks. Pure: time and counts come as arguments.
"""

from __future__ import annotations

from math import inf
from typing import Final

_WINDOW_S: Final = 10.0
_ENOUGH: Final = 100
_AMPLE: Final = 4.0
"""Most answers take no longer than so many times the fastest."""
_KEPT: Final = (1 / 8, 1 / 2)
"""The least and the most: the fastest may be one that says nothing (a 304, an error), and the wait wants time too."""


class Soonest:
    """The fastest answer of the last 10 to 30 s. Times are of one monotonic clock, in seconds."""

    __slots__ = ("_answered", "_before", "_before_s", "_since", "fastest_s")

    def __init__(self) -> None:
        self.fastest_s = inf
        """The fastest answer of this window: whoever hears of a faster one says so here."""
        self._since = -inf
        self._answered = 0
        self._before = 0
        self._before_s = inf

    def ample_s(self, left_s: float) -> float:
        """How much of `left_s` seconds to keep for an attempt that may yet be made: `_AMPLE` times the fastest answer
        that was seen of late, if one was, within `_KEPT`.
        """
        fastest_s = min(self.fastest_s, self._before_s)
        least, most = (left_s * part for part in _KEPT)
        return least if fastest_s == inf else min(max(least, _AMPLE * fastest_s), most)

    def least_s(self, now: float, answered: int) -> float:
        """What an answer takes at least; 0 while that is not known.

        `answered`: attempts that were answered so far, a count that only grows.
        """
        age_s = now - self._since
        if age_s >= _WINDOW_S:
            recent = age_s < 2 * _WINDOW_S
            self._before = answered - self._answered if recent else 0
            self._before_s = self.fastest_s if recent else inf
            self._since, self._answered, self.fastest_s = now, answered, inf
        if answered - self._answered + self._before < _ENOUGH:
            return 0.0
        fastest_s = min(self.fastest_s, self._before_s)
        return fastest_s if fastest_s < inf else 0.0

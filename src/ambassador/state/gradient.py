"""How many requests an upstream can work on at once, found from how long its answers take: the adaptive limit.

Pure arithmetic of one limit: times and durations come as arguments. The gradient of Netflix' concurrency-limits
(`Gradient2Limit`: the limit follows the quotient of a latency without queueing and the present one, plus a margin of
its square root) with the minimum of Envoy's adaptive concurrency filter: the latency without queueing is *measured*,
by letting the limit dip below what the upstream works on at once. A long average in its place, as Gradient2 has it,
takes a queue that lasts for the normal state, and grows it.

- A *window* collects what requests took that began after the last change, so that each step sees what the one before
  has brought. Its median counts: a few slow clients or slow answers say nothing about the upstream.
- Latency up to TOLERANCE over the base is put up with. With a limit of 100 and a margin of half its square root that is
  a queue of a quarter of a latency at the upstream, enough to keep it busy.
- Every DIP_EVERY_S, or after two windows in a row in which nothing helped (the upstream itself has become slower), the
  limit falls for one window below what the upstream works on at once, which empties its queue, and that window's median
  is the new base. It costs a quarter of the throughput for two latencies.
- What limits nothing teaches nothing: with less than half of the limit in use it stays, and the base is what it sees.
- Answers that say that it is too much (429, 503, 504), from a tenth of all on, take a tenth off, as AIMD would.

`tests/state/test_gradient.py` simulates upstreams whose capacity halves and doubles.
"""

from __future__ import annotations

from math import sqrt
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

BEGIN: Final = 20
"""The limit before anything is known (Netflix: 20)."""
TOLERANCE: Final = 1.3
"""Envoy: 25 % over the minimum."""
UNNOTICED: Final = 1.15
"""Latency up to this much over the base is no queue: the limit grows by a quarter."""
WINDOW_S: Final = 0.1
"""Envoy: 100 ms."""
WINDOW_LATENCIES: Final = 1.5
"""A window lasts as many latencies at least: what began with it must have ended."""
ENOUGH: Final = 25
"""Samples of a window, unless it lasts for LONGEST_S."""
LONGEST_S: Final = 4.0
MOST_SAMPLES: Final = 2000
DIP_EVERY_S: Final = 3.0
DIP_LATENCIES: Final = 20.0
"""Nor more often than this: slow upstreams are not measured all the time."""
DIP: Final = 0.75
"""Of what the upstream seems to work on at once. A base that is too high makes that too much, so a dip may not empty
the queue at once: then the base falls by a quarter with each."""
_AGAIN: Final = 0.9
"""A dip that finds the base lower than this part of the last one is followed by another soon."""
_SOON_LATENCIES: Final = 5.0
STUCK: Final = 1.6
"""A latency so many times the base, two windows in a row: the base is not true any more."""
NOISE: Final = 0.75
"""Medians differ by so much by chance, where durations are spread evenly from nothing to the double."""
_SLOWLY: Final = 0.25
_DROPS: Final = 0.1
_BACKOFF: Final = 0.9


class Adaptive:
    """One limit. `least` and `most` bound it; times are microseconds of a clock that never goes backwards."""

    __slots__ = (
        "_base_s", "_dip_at_us", "_dips", "_drops", "_from_us", "_high", "_last_s", "_least", "_limit", "_most", "_samples",
        "_stuck",
    )  # fmt: skip

    def __init__(self, least: int, most: int, now_us: int) -> None:
        self._least = float(least)
        self._most = float(max(least, most))
        self._limit = min(max(float(BEGIN), self._least), self._most)
        self._base_s: float | None = None
        self._last_s = 0.0
        self._samples: list[float] = []
        self._drops = 0
        self._high = 0
        """The most that was in use or wanted in this window."""
        self._from_us = now_us
        self._dip_at_us: float = now_us + DIP_EVERY_S * 1e6
        self._dips: float | None = None
        """The limit while it does not dip; None: it does not."""
        self._stuck = 0

    @property
    def limit(self) -> int:
        """So many requests at once."""
        return int(self._limit)

    @property
    def base_s(self) -> float | None:
        """The latency without queueing, in seconds; None: not known yet."""
        return self._base_s

    def bound(self, least: int, most: int) -> None:
        """Take other bounds."""
        if (least, max(least, most)) != (self._least, self._most):
            self._least, self._most = float(least), float(max(least, most))
            self._limit = self._clamp(self._limit)

    def take(self, samples: Iterable[float], drops: int, in_use: int, now_us: int) -> bool:
        """Requests ended, after so many seconds each; `drops` others were refused by the upstream. `in_use`: how many
        run or wait now. Only those that began after the last change count. Whether the limit has changed.
        """
        self._samples.extend(samples)
        self._drops += drops
        self._high = max(self._high, in_use)
        passed_s = (now_us - self._from_us) / 1e6
        seen = len(self._samples) + self._drops
        if not seen or passed_s < max(WINDOW_S, WINDOW_LATENCIES * self._last_s):
            return False
        if seen < ENOUGH and passed_s < LONGEST_S:
            return False
        before = self.limit
        self._close(now_us)
        self._samples, self._drops, self._high = [], 0, 0
        self._from_us = now_us
        return self.limit != before

    def _close(self, now_us: int) -> None:
        """The window is over."""
        if self._drops > _DROPS * (len(self._samples) + self._drops):
            self._limit = self._clamp((self._dips or self._limit) * _BACKOFF)
            self._dips = None
            return
        sample_s = self._last_s = max(1e-6, median(self._samples[:MOST_SAMPLES]))
        busy = 2 * self._high >= self._limit
        if self._dips is not None:
            self._limit, self._dips = self._clamp(self._dips), None
            self._learn(sample_s, now_us)
        elif self._base_s is None:
            self._learn(sample_s, now_us)
        elif not busy:
            self._base_s += _SLOWLY * (sample_s - self._base_s)
        elif sample_s <= self._base_s:
            # Slowly where it may be chance: the least of many medians is not a latency that can be kept up.
            part = _SLOWLY if sample_s > NOISE * self._base_s else 1.0
            self._base_s += part * (sample_s - self._base_s)
            self._step(1.0, now_us)
        else:
            self._step(sample_s / self._base_s, now_us)

    def _learn(self, base_s: float, now_us: int) -> None:
        before = self._base_s
        again = before is None or base_s < _AGAIN * before
        if before is not None and before * NOISE < base_s < before / NOISE:
            base_s = (before + base_s) / 2
        self._base_s = base_s
        after_s = _SOON_LATENCIES * base_s if again else max(DIP_EVERY_S, DIP_LATENCIES * base_s)
        self._dip_at_us = now_us + 1e6 * after_s
        self._stuck = 0

    def _step(self, ratio: float, now_us: int) -> None:
        """The latency is `ratio` times the base, with the limit in use."""
        self._stuck = self._stuck + 1 if ratio >= STUCK else 0
        if now_us >= self._dip_at_us or self._stuck >= 2:
            self._dips = self._limit
            self._limit = self._clamp(self._limit / ratio * DIP)
            return
        margin = sqrt(self._limit) / 2
        gain = 1.25 if ratio <= UNNOTICED else max(0.5, TOLERANCE / ratio)
        self._limit = self._clamp(self._limit * gain + margin)

    def _clamp(self, limit: float) -> float:
        return min(max(limit, self._least), self._most)

"""A worker's own breaker: what only this worker sees, or what it decides while the store is away.

Pure. Open for the circuit's open time, doubling with each failed probe; then one probe at a time, and one good one
closes it. A probe under way outlives what it was for: until it has ended there is no other, however often the breaker
closes and opens meanwhile (a store that comes and goes had one worker send three at once).
"""

from __future__ import annotations

from math import inf
from typing import Final

from ambassador.state.protocol import Rules

CALM: Final = 10
"""A breaker that stayed closed for this many times its first open time has recovered: the next trip is a first."""
JITTER: Final = 0.1
"""Of an open time, either way: so that workers do not return together."""


class OwnBreaker:
    """Closed when made. Times are seconds of a monotonic clock, `random` is in [0, 1)."""

    __slots__ = ("_calm_at", "_rules", "_trips", "alone", "is_open", "probe_until", "until", "why")

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._trips = 0
        self._calm_at = inf
        self.is_open = False
        """Open, or due for a probe."""
        self.alone = False
        """It stands in for a circuit whose store is away."""
        self.until = -inf
        """When probing may begin."""
        self.probe_until = -inf
        """Until then a probe may be under way, in monotonic seconds."""
        self.why = ""

    def trip(self, now: float, random: float, why: str) -> float:
        """Open; returns for how long."""
        if now >= self._calm_at:
            self._trips = 0
        self._open(now + self._next_open_s(random), why, alone=False)
        return self.until - now

    def stand_in(self, until: float, why: str) -> None:
        """Be open until then, in the place of a circuit that cannot be asked."""
        self._open(until, why, alone=True)

    def _open(self, until: float, why: str, *, alone: bool) -> None:
        self.is_open = True
        self.alone = alone
        self.until = until
        self.why = why

    def _next_open_s(self, random: float) -> float:
        open_ms = min(self._rules.max_open_ms, self._rules.open_ms * 2 ** min(self._trips, 30))
        self._trips += 1
        return float(open_ms) / 1000 * (1 + JITTER * (2 * random - 1))

    def left(self, now: float) -> float:
        """How long until a probe may be made; 0: now. Of a probe under way nobody knows: 1 s."""
        if now < self.until:
            return self.until - now
        return 1.0 if self.is_probing(now) else 0.0

    def is_probing(self, now: float) -> bool:
        """Whether its probe is under way, open or not."""
        return now < self.probe_until

    def begin_probe(self, until: float) -> None:
        """A probe begins, which will have ended by then, if nobody says so earlier."""
        self.probe_until = until

    def end_probe(self) -> None:
        """It has ended, whatever has become of the breaker meanwhile."""
        self.probe_until = -inf

    def probed(self, now: float, random: float, *, good: bool | None) -> None:
        """What came of the probe; None: nothing."""
        if good:
            self.close()
            self._calm_at = now + CALM * self._rules.open_ms / 1000
        elif good is not None:
            self.until = now + self._next_open_s(random)

    def close(self) -> None:
        """The circuit itself decides."""
        self.is_open = self.alone = False

    def inherit(self, other: OwnBreaker) -> None:
        """Go on from where another is."""
        for name in ("_calm_at", "_trips", "alone", "is_open", "until", "why"):
            setattr(self, name, getattr(other, name))

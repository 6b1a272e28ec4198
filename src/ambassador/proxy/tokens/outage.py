"""Whether a token service answers at all, where many tokens come from it: one that is down is not asked for each.

Pure: times and chance come as arguments. What it refuses (`invalid_grant`) is an answer, and says nothing here.
"""

from __future__ import annotations

from ambassador.proxy.tokens.answer import OK, REFUSED, Failure, Granted
from ambassador.proxy.tokens.life import pause_s

TRUST = 3
"""So many questions in a row without an answer, and no more are asked than one after each pause."""


class Outage:
    """What one worker knows of one token service."""

    __slots__ = ("_failures", "_last", "_until")

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0
        self._last: Failure | None = None

    def refusal(self, now: float) -> Failure | None:
        """What a question that would be asked now fails with; None: it may be asked, and the next one not before a
        pause if this is the one that tries again.
        """
        last = self._last
        if last is None or self._failures < TRUST:
            return None
        if now < self._until:
            return Failure(last.result, last.why, last.code, after_s=self._until - now)
        self._until = now + pause_s(self._failures, 0.0, 1.0)
        return None

    def heard(self, result: Granted | Failure, now: float, chance: float) -> None:
        """A question that was asked ended so."""
        word = OK if isinstance(result, Granted) else result.result
        if word in (OK, REFUSED):
            self._failures, self._last = 0, None
        elif isinstance(result, Failure):
            self._failures += 1
            self._last = result
            self._until = now + pause_s(self._failures, result.after_s, chance)

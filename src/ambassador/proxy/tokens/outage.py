"""Whether a token service answers at all, where many tokens come from it: one that is down is not asked for each.

Pure: times and chance come as arguments. What it refuses (`invalid_grant`) is an answer, and says nothing here.

Whose token it is that fails must not decide for the others: anybody can make up tokens by which a service stumbles.
- That it could not be reached says something about the service, whoever asked; so does that it did not answer in time.
- What it answered, as 500, may be about the one token: it counts once different callers were answered so in a row.
  `caller` is who cannot be made up along with a token: the client that is known, and its address.
- Neither counts while others get answers: within CALM_S, or since it was asked. Connections that fail do.
- After a pause one question tries again, of another caller than the last one if another comes soon.
"""

from __future__ import annotations

from math import inf
from typing import Final

from ambassador.proxy.tokens.answer import CONNECT, OK, REFUSED, SECRET, TIMEOUT, Failure, Granted
from ambassador.proxy.tokens.life import pause_s

TRUST: Final = 3
"""So many questions in a row without an answer, and no more are asked than one after each pause; so many callers, where
the service did answer."""
CALM_S: Final = 5.0
"""So soon after an answer a service is not down because one question failed. Requests wait no longer for a token."""
QUIET_S: Final = 10.0
_AT_ONCE: Final = frozenset({CONNECT, SECRET})
_OF_THE_SERVICE: Final = frozenset({*_AT_ONCE, TIMEOUT})
_OTHERS_FIRST: Final = 0.5
"""Of a pause: so much longer waits the caller whose question was the last to try, for another to come."""


class Outage:
    """What one worker knows of one token service."""

    __slots__ = (
        "_answered_at",
        "_callers",
        "_failures",
        "_last",
        "_probed_by",
        "_since",
        "_told_at",
        "_until",
        "_yields_until",
    )

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0
        self._yields_until = 0.0
        self._since = -inf
        """What was asked before then says nothing new: the service was known to be down, or somebody tried again."""
        self._last: Failure | None = None
        self._callers: set[str] = set()
        """Those who were answered with failures since the last answer, TRUST at most."""
        self._probed_by: str | None = None
        self._answered_at = -inf
        self._told_at = -inf

    def refusal(self, now: float, caller: str = "") -> Failure | None:
        """What a question of this caller that would be asked now fails with; None: it may be asked, and the next one
        not before a pause if this is the one that tries again.
        """
        last = self._last
        if last is None or self._failures < TRUST:
            return None
        until = self._yields_until if caller == self._probed_by else self._until
        if now < until:
            return Failure(last.result, last.why, last.code, after_s=until - now)
        self._probed_by = caller
        self._since = now
        self._pause(now, pause_s(self._failures, 0.0, 1.0))
        return None

    def heard(
        self, result: Granted | Failure, now: float, chance: float, caller: str = "", *, asked_at: float = inf
    ) -> None:
        """A question that was asked for this caller, at that time, ended so."""
        word = OK if isinstance(result, Granted) else result.result
        if word in (OK, REFUSED):
            self._failures, self._last, self._probed_by = 0, None, None
            self._callers.clear()
            self._answered_at = now
        elif isinstance(result, Failure) and self._counts(word, now, caller, asked_at):
            self._failures += 1
            self._last = result
            if self._failures == TRUST:
                self._since = now
            self._pause(now, pause_s(self._failures, result.after_s, chance))

    def may_tell(self, now: float) -> bool:
        """Whether a failure may be told in the log: not for each token that anybody makes up."""
        if now < self._told_at + QUIET_S:
            return False
        self._told_at = now
        return True

    def _counts(self, word: str, now: float, caller: str, asked_at: float) -> bool:
        """Whether a failure says that the service is down, or still is."""
        if self._failures >= TRUST:
            return asked_at >= self._since
        if word in _AT_ONCE:
            return True
        if now < self._answered_at + CALM_S or asked_at <= self._answered_at:
            return False
        if word in _OF_THE_SERVICE:
            return True
        if caller in self._callers:
            return False
        self._callers.add(caller)
        return True

    def _pause(self, now: float, pause: float) -> None:
        self._until = now + pause
        self._yields_until = now + pause * (1 + _OTHERS_FIRST)

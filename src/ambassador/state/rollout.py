"""A worker's part in a change of the config, replica by replica: it tells its limits' terms, and obeys the lowest.

See `accord.py` for what holds and what travels. Here it is told, asked for, and carried to the limits:
- When the config changes, its terms are put into the store before the next beat names them. The first to put them also
  publishes them, so the others go by what is lower after milliseconds, not after their next beat.
- A worker that is told a name that it does not know reads what it says, once. What is not there yet is asked for again
  with the next beat.
- While the store is away, what was known last holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from ambassador.state import accord
from ambassador.state.accord import Accord
from ambassador.state.holding import Terms, terms, window_terms
from ambassador.state.protocol import Beaten, Get, Named, Put, decode_named

if TYPE_CHECKING:
    from ambassador.state.protocol import Answer, Event
    from ambassador.state.scope import Scope

TTL_MS: Final = 3_600_000
"""How long the store keeps terms that nobody puts again: a config that is served no more."""
RENEW_BEATS: Final = 900
"""They are put again after so many answered beats, one a second."""
_MOST_NAMED: Final = 3
"""Limits that the log names."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Governed(Protocol):
    """A limit that all replicas share."""

    @property
    def id(self) -> str:
        """The same in all replicas that have this limit."""

    @property
    def configured(self) -> Terms:
        """What the config says."""

    @property
    def terms(self) -> Terms:
        """What holds."""

    def obey(self, terms: Terms) -> None:
        """Have these hold, for all its keys."""


class Rollout:
    """`scope` is the fleet's; `say` is told in words when limits are lowered, and when they are not any more."""

    def __init__(self, scope: Scope, say: Callable[[str], None]) -> None:
        self._scope = scope
        self._say = say
        self._accord = Accord()
        self._limits: tuple[Governed, ...] = ()
        self._lowered: list[str] = []
        self._asked: set[tuple[str, int]] = set()
        self._beats = 0
        self._is_told = False
        self.settled = False
        """Of all that lived at the last answered beat the terms are known."""
        self.when_settled: Callable[[], None] = _nothing
        """Called whenever that is so."""
        scope.listen("value", self._heard)
        scope.on_up(self._put)

    @property
    def name(self) -> str:
        """Of this config's terms, for beats to tell. May be read from any thread."""
        return self._accord.name

    def govern(self, limits: Sequence[Governed]) -> None:
        """These limits are served from now on: at once by the lowest terms that are known, and no others are told."""
        self._limits = tuple(limits)
        own = {_key(limit): (limit.configured.rate, limit.configured.burst) for limit in limits}
        self._accord.have(own, alone=self._scope.replicas == 1)
        self._put()
        self._lower()

    def begin_anew(self) -> None:
        """The store is another one: what is known holds until that has answered a beat."""
        self._is_told = self.settled = False

    def beaten(self, answer: Answer | None) -> None:
        """The answer to a beat."""
        if not isinstance(answer, Beaten):
            return
        self._beats += 1
        if self._beats % RENEW_BEATS == 0:
            self._put(renews=True)
        self._accord.hear_names(answer.terms)
        self._is_told = True
        for place in self._accord.missing():
            if place not in self._asked:
                self._asked.add(place)
                self._scope.ask(Get(accord.key_of(*place)), partial(self._is_answered, place))
        self._lower()
        self._settle()

    def _put(self, *, renews: bool = False) -> None:
        """Have the store know what the name says."""
        if not self._scope.up:
            return  # when it is there, `on_up` says so
        for part, value in enumerate(self._accord.parts):
            key = accord.key_of(self._accord.name, part)
            if renews:
                self._scope.ask(Put(key, value, TTL_MS))
            else:
                self._scope.ask(
                    Put(key, value, TTL_MS, expect=0, publish=True), partial(self._is_put, key, value)
                )

    def _is_put(self, key: str, value: bytes, answer: Answer | None) -> None:
        if isinstance(answer, Named) and not answer.done and 0 < answer.ttl_ms < TTL_MS / 2:
            self._scope.ask(Put(key, value, TTL_MS))  # left behind by a config that was served before

    def _heard(self, event: Event) -> None:
        place = accord.place_of(event.name)
        if place is not None:
            self._accord.hear_part(*place, decode_named(event.body).value)
            self._lower()

    def _is_answered(self, place: tuple[str, int], answer: Answer | None) -> None:
        self._asked.discard(place)
        if isinstance(answer, Named) and answer.version and place in self._accord.missing():
            self._accord.hear_part(*place, answer.value)
            self._lower()
        self._settle()

    def _settle(self) -> None:
        self.settled = self._is_told and not self._accord.missing()
        if self.settled:
            self.when_settled()

    def _lower(self) -> None:
        """Have the lowest terms hold."""
        lowered = []
        for limit in self._limits:
            configured = limit.configured
            rate, burst = self._accord.lowest(_key(limit))
            if (rate, burst) == (configured.rate, configured.burst):
                lowest = configured
            elif configured.window_s:
                lowest = window_terms(int(burst), configured.window_s)
            else:
                lowest = terms(rate, burst)
            if lowest is not configured:
                lowered.append(f"{limit.id} to {_words(lowest)}")
            if lowest != limit.terms:
                limit.obey(lowest)
        if lowered != self._lowered:
            self._lowered = lowered
            self._say(_text(lowered))


def _key(limit: Governed) -> accord.Key:
    return limit.id, limit.configured.window_s


def _words(terms: Terms) -> str:
    """What holds, as somebody would write it."""
    for unit, seconds in _UNITS.items():
        if terms.window_s == seconds:
            return f"{terms.burst:.15g}/{unit} by the calendar"
        amount = terms.rate * seconds
        if not terms.window_s and (amount >= 1 or unit == "d"):
            return f"{amount:g}/{unit} with a burst of {terms.burst:.15g}"
    return f"{terms.burst:.15g} in {terms.window_s} s by the calendar"


def _text(lowered: list[str]) -> str:
    if not lowered:
        return "limits: all replicas have the same rates and bursts, or there is no other one: the config's hold again"
    more = f" and {len(lowered) - _MOST_NAMED} more" if len(lowered) > _MOST_NAMED else ""
    return (
        "limits: replicas have different configs, and until they agree the lower rate and burst hold: "
        f"{', '.join(lowered[:_MOST_NAMED])}{more}"
    )


def _nothing() -> None:
    """Nobody waits."""

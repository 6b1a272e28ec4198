"""Choosing one of the endpoints that are in use (`tiers.py` says which these are): a `Choice` for each `balance`.

`p2c` compares two at random by requests in flight times latency (`endpoint.py` has the estimate), each in proportion
to the weight. Sources: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"; Finagle's and Linkerd's
p2c over peak EWMA. The two are always distinct: with replacement a bad endpoint keeps 6 % of four. Latencies within
half of one another are taken for the same, so that equal endpoints share alike, and in proportion to their weights,
however the noise falls; then what is in flight decides.

`round_robin` is nginx's smooth weighted round robin: of weights 5, 1, 1 not five of the first in a row. Each tier has
its own turn. `least_request`
looks at all of them and at nothing but what is in flight. `ring_hash` is in `ring.py`.

Measured (CPython 3.11, timeit, best of 9): p2c of two takes 0.16 µs.
"""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Final, Protocol

from ambassador.proxy.upstream.endpoint import DECAY_S
from ambassador.proxy.upstream.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ambassador.proxy.upstream.endpoint import Endpoint
    from ambassador.proxy.upstream.tiers import Tier

    Random = Callable[[], float]

_ALIKE: Final = DECAY_S * log(1.5)
"""Latencies that differ by less are the same: 1.5 times."""


class Choice(Protocol):
    """How one is chosen of those in use. `random` gives numbers in [0, 1)."""

    def choose(self, tier: Tier, key: int | None, random: Random, /) -> Endpoint:
        """One of the tier's endpoints, of which there is one at least. `key`: the hash of what should stay together."""

    def know(self, endpoints: Sequence[Endpoint]) -> None:
        """These are all endpoints of the upstream from now on."""


def less_loaded(first: Endpoint, second: Endpoint, random: Random) -> Endpoint:
    """The better of two of the same weight."""
    gap = first.level - second.level
    if gap >= _ALIKE or gap <= -_ALIKE:
        gap += DECAY_S * log((first.inflight + 1) / (second.inflight + 1))
        return second if gap > 0 else first
    # As fast as one another, or one is not known yet.
    if first.inflight != second.inflight:
        return first if first.inflight < second.inflight else second
    return first if random() < 0.5 else second


def _less_loaded_by_share(first: Endpoint, second: Endpoint) -> Endpoint:
    """The better of two; `first`, which is drawn by weight, where they are alike."""
    gap = first.level - second.level
    ours, theirs = first.inflight / first.share, second.inflight / second.share
    if gap >= _ALIKE or gap <= -_ALIKE:
        return second if gap + DECAY_S * log((ours + 1) / (theirs + 1)) > 0 else first
    return second if theirs < ours else first


class TwoChoices:
    """`p2c`."""

    __slots__ = ()

    def choose(self, tier: Tier, _key: int | None, random: Random) -> Endpoint:
        """See `Choice`."""
        if len(tier.endpoints) == 1:
            return tier.endpoints[0]
        first = tier.draw(random())
        second = tier.draw_other(first, random())
        if tier.even:
            return less_loaded(first, second, random)
        return _less_loaded_by_share(first, second)

    def know(self, endpoints: Sequence[Endpoint]) -> None:
        """See `Choice`."""


class RoundRobin:
    """`round_robin`."""

    __slots__ = ("_turns",)

    def __init__(self) -> None:
        self._turns: dict[Endpoint, float] = {}

    def choose(self, tier: Tier, _key: int | None, random: Random) -> Endpoint:
        """See `Choice`."""
        endpoints = tier.endpoints
        if tier.even:
            # Workers begin anywhere, else all would begin with the first. The turn is the tier's own: with one for all,
            # a level that spills over, and the tiers that retries are given, would put one another out of step.
            at = int(random() * len(endpoints)) if tier.turn is None else tier.turn
            tier.turn = at + 1 if at + 1 < len(endpoints) else 0
            return endpoints[at]
        turns = self._turns
        total = 0.0
        best = endpoints[0]
        for endpoint in endpoints:
            total += endpoint.share
            turns[endpoint] = turns.get(endpoint, 0.0) + endpoint.share
            if turns[endpoint] > turns[best]:
                best = endpoint
        turns[best] -= total
        return best

    def know(self, endpoints: Sequence[Endpoint]) -> None:
        """See `Choice`."""
        known = frozenset(endpoints)
        self._turns = {each: turn for each, turn in self._turns.items() if each in known}


class LeastRequest:
    """`least_request`."""

    __slots__ = ()

    def choose(self, tier: Tier, _key: int | None, random: Random) -> Endpoint:
        """See `Choice`."""
        least = min(endpoint.inflight / endpoint.share for endpoint in tier.endpoints)
        found = [endpoint for endpoint in tier.endpoints if endpoint.inflight / endpoint.share <= least]
        if len(found) == 1:
            return found[0]
        mark = random() * sum(endpoint.share for endpoint in found)
        for endpoint in found:
            mark -= endpoint.share
            if mark < 0:
                return endpoint
        return found[-1]

    def know(self, endpoints: Sequence[Endpoint]) -> None:
        """See `Choice`."""


class RingHash:
    """`ring_hash`; requests without a key go as with `p2c`."""

    __slots__ = ("_known", "_others", "_ring")

    def __init__(self) -> None:
        self._known: list[tuple[str, int]] = []
        self._ring: Ring | None = None
        self._others = TwoChoices()

    def choose(self, tier: Tier, key: int | None, random: Random) -> Endpoint:
        """See `Choice`."""
        found = None if key is None or self._ring is None else self._ring.choose(key, tier)
        return found or self._others.choose(tier, key, random)

    def know(self, endpoints: Sequence[Endpoint]) -> None:
        """See `Choice`."""
        known = [(endpoint.url, endpoint.weight) for endpoint in endpoints]
        if known != self._known or self._ring is None:
            self._known = known
            self._ring = Ring(endpoints)


CHOICES: Final[dict[str, Callable[[], Choice]]] = {
    "p2c": TwoChoices,
    "round_robin": RoundRobin,
    "least_request": LeastRequest,
    "ring_hash": RingHash,
}
"""What each `balance` of the config is."""

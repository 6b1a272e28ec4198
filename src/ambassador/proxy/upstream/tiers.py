"""Which endpoints are in use, and for what share of the requests: health, priorities, zones, panic. Pure.

As Envoy has it ("Priority levels", "Panic threshold", "Zone aware routing"):
- Priority 1 takes what priority 0 falls short of. A level is as good as whole down to 1/1.4 of its endpoints
  (overprovisioning), so losing a few moves nothing; below that its share falls with them, and returns with them.
- Where all levels together fall short of the whole, a level with less than half of its endpoints able uses all of
  them (panic): more likely it is the check that is wrong, and the few would go under next. With all levels in panic
  each has its part by the number of its endpoints.
- One's own zone comes before the others' within a level, by the same 1.4.
"""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from ambassador.proxy.upstream.endpoint import Endpoint

OVERPROVISIONED: Final = 1.4
"""By so much more than it needs a level or a zone is taken to have. Envoy: 140 %."""
PANIC_BELOW: Final = 0.5
"""Envoy: 50 %."""
_NOTHING: Final = 1e-9
"""What rounding leaves of a share."""


class Tier:
    """Endpoints of which one is chosen for requests whose draw is below `below`, and not below that of a tier before.

    Their shares stay as they are for its life.
    """

    __slots__ = ("_marks", "_places", "below", "endpoints", "even", "turn", "whole")

    def __init__(self, endpoints: Sequence[Endpoint], below: float = 1.0) -> None:
        self.endpoints = tuple(endpoints)
        self.below = below
        self.whole = sum(endpoint.share for endpoint in endpoints)
        """Of all their shares."""
        self.even = len({endpoint.share for endpoint in endpoints}) <= 1
        """All have the same weight."""
        self.turn: int | None = None
        """Whose turn it is where all have the same weight and take turns; None: nobody has begun."""
        self._marks: list[float] = []
        self._places: dict[Endpoint, int] = {}
        if not self.even:
            self._marks = list(accumulate(endpoint.share for endpoint in endpoints))
            self._places = {endpoint: place for place, endpoint in enumerate(self.endpoints)}

    def draw(self, at: float) -> Endpoint:
        """One by weight; `at` in [0, 1)."""
        endpoints = self.endpoints
        if self.even:
            return endpoints[int(at * len(endpoints))]
        return endpoints[min(bisect(self._marks, at * self._marks[-1]), len(endpoints) - 1)]

    def draw_other(self, first: Endpoint, at: float) -> Endpoint:
        """One that is not `first`, by weight. There are two at least."""
        endpoints, last = self.endpoints, len(self.endpoints) - 1
        if self.even:
            found = endpoints[int(at * last)]
            return found if found is not first else endpoints[last]
        place, marks = self._places[first], self._marks
        before = marks[place - 1] if place else 0.0
        mark = at * (marks[-1] - first.share)
        if mark >= before:
            mark += first.share
        found = endpoints[min(bisect(marks, mark), last)]
        if found is first:  # rounding
            found = endpoints[place - 1 if place else 1]
        return found


def standing(endpoints: Sequence[Endpoint], now: float) -> Sequence[Endpoint]:
    """Those that their breakers and cool-downs let be picked; all of them when there is none.

    At most half of an upstream's endpoints, and at least one, may be open; if more are, their breakers are passed by
    (`Endpoint.panic`): then it is not the endpoints (Envoy's max_ejection_percent and panic threshold). Breakers that
    are due are made to ask for a probe on the way.
    """
    shut = 0
    able = []
    for endpoint in endpoints:
        if endpoint.gate is not None and not endpoint.gate.welcomes(now):
            shut += 1
        elif endpoint.paused_until <= now:
            able.append(endpoint)
    panic = shut > max(1, len(endpoints) // 2)
    for endpoint in endpoints:
        endpoint.panic = panic
    if panic:
        able = [endpoint for endpoint in endpoints if endpoint.paused_until <= now]
    return able or endpoints


def spread(
    endpoints: Sequence[Endpoint], able: Collection[Endpoint], standing: Collection[Endpoint], zone: str = ""
) -> list[Tier]:
    """The tiers of an upstream, with the first ones first; none if it has no endpoint.

    `able` are well; `standing` is what there is in panic (not those that have asked for a pause). `zone`: one's own;
    empty: all zones are alike.
    """
    tiers: list[Tier] = []
    below = 0.0
    shares = list(_levels(endpoints, frozenset(able), frozenset(standing)))
    whole = sum(share for share, _, _ in shares)
    for share, level, panic in shares:
        for part, members in _zones(level, endpoints, "" if panic else zone):
            if share * part > _NOTHING:
                below += share * part / whole
                tiers.append(Tier(members, below))
    if tiers:
        tiers[-1].below = 1.0
    return tiers


def _levels(
    endpoints: Sequence[Endpoint], able: Collection[Endpoint], standing: Collection[Endpoint]
) -> Iterator[tuple[float, list[Endpoint], bool]]:
    """Of each priority: its share, its endpoints, whether it is in panic."""
    levels = [
        [endpoint for endpoint in endpoints if endpoint.priority == priority]
        for priority in sorted({endpoint.priority for endpoint in endpoints})
    ]
    well = [[endpoint for endpoint in level if endpoint in able] for level in levels]
    health = [
        min(1.0, OVERPROVISIONED * len(some) / len(level)) for some, level in zip(well, levels, strict=True)
    ]
    if sum(health) >= 1 - _NOTHING:
        left = 1.0
        for some, worth in zip(well, health, strict=True):
            yield min(worth, left), some, False
            left = left - worth if left - worth > _NOTHING else 0.0
        return
    panic = [len(some) / len(level) < PANIC_BELOW for some, level in zip(well, levels, strict=True)]
    for some, level, worth, scared in zip(well, levels, health, panic, strict=True):
        if scared:
            some = [endpoint for endpoint in level if endpoint in standing] or level  # noqa: PLW2901
        yield float(len(level)) if all(panic) else worth, some, scared


def _zones(
    level: Sequence[Endpoint], endpoints: Sequence[Endpoint], zone: str
) -> Iterator[tuple[float, Sequence[Endpoint]]]:
    """The parts of a level: one's own zone, and the others for what that falls short of."""
    own = [endpoint for endpoint in level if endpoint.zone == zone] if zone else []
    if not own or len(own) == len(level):
        yield 1.0, level
        return
    priority = own[0].priority
    all_own = sum(endpoint.zone == zone and endpoint.priority == priority for endpoint in endpoints)
    part = min(1.0, OVERPROVISIONED * len(own) / all_own)
    yield part, own
    yield 1.0 - part, [endpoint for endpoint in level if endpoint.zone != zone]

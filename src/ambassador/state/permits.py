"""The permits of one key: how many requests may be in progress on one host, divided among its workers.

What `protocol.Permit` means, as pure arithmetic: the store's time comes as an argument. The rule that nothing may
break: what all holders were granted and have not given back is never more than `limit`, but for a limit that has become
lower, and for a store that has lost its memory; then nobody is granted anything before they have come down.

Where more is needed than there is, parts are max-min fair: nobody has more than `share` while somebody else lacks
(Bertsekas and Gallager, Data Networks, 6.5.2). A part is rounded up for who asks and down for who should give, so that
what cannot be divided goes round.
"""

from __future__ import annotations

from math import ceil, floor, inf, isfinite
from typing import TYPE_CHECKING, Final

from ambassador.state.gradient import Adaptive
from ambassador.state.protocol import MOST_SAMPLES, PERMIT_TTL_US, Permit, Permitted, Share

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST: Final = 1_000_000


def is_sound(permit: Permit) -> bool:
    """Whether its numbers can be worked with."""
    return (
        1 <= permit.most <= _MOST
        and 0 <= permit.least <= permit.most
        and min(permit.keep, permit.need, permit.want, permit.drops) >= 0
        and max(permit.keep, permit.need, permit.want) <= _MOST
        and len(permit.samples) <= MOST_SAMPLES
        and all(isfinite(sample) and sample >= 0 for sample in permit.samples)
    )


def fair_share(claims: Iterable[int], most: int) -> float:
    """The greatest part that each of several may have if together they may have `most` and nobody gets more than it
    claims. Infinity: all claims can be met.
    """
    left = sorted(claims)
    rest = float(most)
    if sum(left) <= rest:
        return inf
    for position, claim in enumerate(left):
        level = rest / (len(left) - position)
        if claim >= level:
            return level
        rest -= claim
    return inf


class _Holder:
    """One worker."""

    __slots__ = ("granted", "heard_us", "need", "turn")

    def __init__(self) -> None:
        self.granted = 0
        self.need = 0
        self.heard_us = 0
        self.turn = 0
        """When it began to lack permits, as a number that grows; 0: it lacks none. Who gets some is the last again."""

    @property
    def lacks(self) -> int:
        return max(0, self.need - self.granted)

    def owed(self, level: float) -> int:
        """What is still missing to its part."""
        return max(0, min(self.need, ceil(level)) - self.granted) if level < inf else self.lacks


class Permits:
    """All holders of one key."""

    __slots__ = ("_adaptive", "_holders", "_lacked", "_limit", "_published", "_turns", "expires_us")

    def __init__(self, first: Permit, now_us: int) -> None:
        self._adaptive = Adaptive(first.least, first.most, now_us) if first.least else None
        self._limit = first.most
        self._holders: dict[str, _Holder] = {}
        self._published: Share | None = None
        self._turns = 0
        self._lacked = 0
        self.expires_us: float = inf
        """When nobody holds anything any more."""

    def permit(self, permit: Permit, now_us: int) -> Permitted:
        """Do the operation, which `is_sound`."""
        self._forget_silent(now_us)
        holder = self._holders.get(permit.holder)
        if holder is None:
            holder = self._holders[permit.holder] = _Holder()
        gave = holder.granted > permit.keep
        holder.granted, holder.need, holder.heard_us = permit.keep, permit.need, now_us
        changed = self._set_limit(permit, now_us)
        level = self._level()
        self._grant(holder, permit, level, gave=gave)
        if not (holder.granted or holder.need):
            self._holders.pop(permit.holder, None)
        self.expires_us = now_us + 10 * PERMIT_TTL_US
        lacks = sum(each.lacks for each in self._holders.values())
        share = self._limit if level == inf else floor(level)
        free = self._limit - self._granted()
        wanting = holder.lacks > 0 and holder.granted < level and self._granted() > holder.granted
        if changed or (gave and free > 0 and lacks > holder.lacks):
            self._published = Share(share, self._limit, free, lacks)
        elif wanting or (lacks and not self._lacked):
            # Asks others to come down. It offers nothing, or what is kept for who died would be asked for without end.
            self._published = Share(share, self._limit, 0, lacks)
        self._lacked = lacks
        return Permitted(now_us, holder.granted, share, self._limit, max(1, len(self._holders)), lacks)

    def take_published(self) -> Share | None:
        """What the last operation gave every holder to know."""
        told, self._published = self._published, None
        return told

    def _set_limit(self, permit: Permit, now_us: int) -> bool:
        before = self._limit
        if not permit.least:
            self._adaptive, self._limit = None, permit.most
        else:
            if self._adaptive is None:
                self._adaptive = Adaptive(permit.least, permit.most, now_us)
            self._adaptive.bound(permit.least, permit.most)
            if permit.samples or permit.drops:
                needed = sum(each.need for each in self._holders.values())
                self._adaptive.take(permit.samples, permit.drops, needed, now_us)
            self._limit = self._adaptive.limit
        return self._limit != before

    def _level(self) -> float:
        return fair_share((max(each.need, each.granted) for each in self._holders.values()), self._limit)

    def _grant(self, holder: _Holder, permit: Permit, level: float, *, gave: bool) -> None:
        others = [each for each in self._holders.values() if each is not holder and each.lacks]
        free = self._limit - self._granted()
        goal = max(permit.need, permit.want)
        if others and level < inf:
            goal = 0 if gave else min(permit.need, ceil(level))  # what one gives up is not for itself
            # Who has waited for longer comes first, and is about to ask: it was told.
            before = [each.owed(level) for each in others if 0 < each.turn < (holder.turn or inf)]
            free -= sum(before)
        got = max(0, min(free, goal - holder.granted))
        holder.granted += got
        if not holder.lacks:
            holder.turn = 0
        elif got or gave or not holder.turn:
            self._turns += 1
            holder.turn = self._turns

    def _granted(self) -> int:
        return sum(each.granted for each in self._holders.values())

    def _forget_silent(self, now_us: int) -> None:
        oldest_us = now_us - PERMIT_TTL_US
        for name in [name for name, each in self._holders.items() if each.heard_us < oldest_us]:
            del self._holders[name]

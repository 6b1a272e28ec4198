"""An upstream: its endpoints, which of them are in use, and how one is picked for an attempt.

Who is in use is worked out when something changes (`Upstream.refresh`), by `tiers.py`; of those `balance.py` and
`ring.py` choose. Breakers and cool-downs are looked at only while one of them is not simply closed.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from ambassador.errors import NoEndpoint
from ambassador.proxy.upstream.balance import TwoChoices, less_loaded
from ambassador.proxy.upstream.tiers import Tier, spread, standing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ambassador.messages import Request
    from ambassador.proxy.credentials import Credential
    from ambassador.proxy.policies.cooldown import Cooldown
    from ambassador.proxy.upstream.balance import Choice
    from ambassador.proxy.upstream.endpoint import Endpoint
    from ambassador.state.scope import Clock

_SLOW_START_FROM: Final = 0.1
"""An endpoint that starts slowly begins with so much of its weight. Envoy: 10 %."""
_SLOW_START_STEP: Final = 0.05
"""It gains weight so many times during its slow start: in steps of this part of it."""


class Upstream:
    """A service: its endpoints and how one is picked.

    What most requests meet is worked out beforehand, by `refresh`: where nothing is unusual, a pick looks at no clock
    and at no endpoint but those that it compares.
    """

    __slots__ = (
        "__weakref__", "_choice", "_clock", "_due", "_followers", "_pair", "_random", "_serving", "_slow_start_s", "_standing",
        "_tiers", "_unwell", "_well", "_zone", "charge", "cooldown", "credential", "endpoints", "forwards", "key", "measured",
        "name", "only", "shut",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        random: Callable[[], float],
        clock: Clock | None = None,
        *,
        charge: Callable[[Request], Awaitable[None] | None] | None = None,
        credential: Credential | None = None,
        balance: Choice | None = None,
        key: Callable[[Request, str], int | None] | None = None,
        zone: str = "",
        slow_start_s: float = 0.0,
        forwards: bool = False,
    ) -> None:
        self.name = name
        self.forwards = forwards
        """Some of its endpoints are asked for whole URLs, by an egress proxy."""
        self.charge = charge
        """Charges an attempt to the upstream's own limits, directly before its first byte: as an ADMIT hook. None: it
        has none."""
        self.credential = credential
        """What it is shown with each attempt. None: nothing but what clients send."""
        self.key = key
        """What gives the hash of what should stay together, of a request and its client's address (`ring_hash`)."""
        self._followers: list[Callable[[Upstream], None]] = []
        self.endpoints: Sequence[Endpoint] = ()
        self._serving: Sequence[Endpoint] = ()
        """Those of `endpoints` that are not drained: their weight is not 0."""
        self.only: Endpoint | None = None
        """The one endpoint that there is: nothing to pick."""
        self.measured = False
        """Whether the outcome of every attempt is told to its endpoint (`Endpoint.settled`)."""
        self.shut = 0
        """Endpoints whose breaker is not simply closed, and those that are paused: while it is 0, none is looked at."""
        self.cooldown: Cooldown | None = None
        self._random = random
        self._clock = clock
        self._choice = balance or TwoChoices()
        self._zone = zone
        self._slow_start_s = slow_start_s
        self._tiers: list[Tier] = []
        self._well: list[Endpoint] = []
        """All that could be picked, of whatever priority or zone."""
        self._standing: Sequence[Endpoint] = ()
        """Those that breakers and cool-downs let be picked, as of `_tiers`."""
        self._unwell: set[Endpoint] = set()
        self._due = inf
        """When time alone changes `_tiers`."""
        self._pair: tuple[Endpoint, Endpoint] | None = None
        """The two that there are, alike, with p2c: as most upstreams that have more than one."""
        self._take(endpoints)

    def pick(self, tried: Sequence[Endpoint], key: int | None = None) -> Endpoint:
        """An endpoint for the next attempt, not one of `tried` if there is another, and not the last of them in any
        case but that there is no other. Raises `NoEndpoint`.

        `key`: the hash of what should stay together, where `Upstream.key` gives one.
        """
        found = self._pick_another(tried, key) if tried else self.pick_or_none(key)
        if found is None:
            raise NoEndpoint("the upstream has no endpoint")
        return found

    def has_another(self, tried: Sequence[Endpoint]) -> bool:
        """Whether `pick` finds an endpoint that is none of `tried`."""
        if self.only is not None:
            return False
        tiers = self._tiers_now()
        return any(each not in tried for each in self._well) or any(
            each not in tried for tier in tiers for each in tier.endpoints
        )

    def pick_or_none(self, key: int | None = None) -> Endpoint | None:
        """An endpoint for a first attempt, None when there is none."""
        pair = self._pair
        if pair is not None and not self.shut:
            return less_loaded(pair[0], pair[1], self._random)
        return self._pick(key)

    def refresh(self) -> None:
        """Work out again who is to be picked: health, ejection, outlier watch, addresses, zone, weight or priority of
        an endpoint changed.

        Not for breakers and pauses, which `shut` counts, nor for the end of an ejection.
        """
        self.measured = len(self.endpoints) > 1 or any(each.outlier is not None for each in self.endpoints)
        self._work_out(self._now(), self._standing)

    def follow(self, told: Callable[[Upstream], None]) -> None:
        """Have `told` called after each `set_endpoints`, before anything is picked: it knows endpoints by urls."""
        self._followers.append(told)

    def set_endpoints(self, endpoints: Sequence[Endpoint]) -> None:
        """These are the endpoints from now on; none are allowed.

        One whose URL is known stays the same object, with its connections, counts and latency, and takes weight, zone
        and priority of the new one. What is gone takes no new requests; those in flight on it end undisturbed.
        """
        known = {endpoint.url: endpoint for endpoint in self.endpoints}
        now = self._now() if known else -inf
        kept = []
        for endpoint in endpoints:
            old = known.pop(endpoint.url, None)
            if old is not None:
                old.weight, old.zone, old.priority = endpoint.weight, endpoint.zone, endpoint.priority
            else:
                endpoint.added_at = now
            kept.append(old or endpoint)
        self._take(kept)
        for tell in self._followers:
            tell(self)
        for gone in known.values():
            self.shut -= gone.paused_until > 0.0  # breakers see to it themselves
            gone.pool.retire()

    def why_not(self, endpoint: Endpoint) -> str:
        """Why one of its endpoints gets no requests, or gets them though it is not well, for people; else empty.

        Breakers are not asked whether they would welcome a request, since that may make them ask for a probe.
        """
        now = self._now()
        if now >= self._due:
            self._work_out(now, self._standing)
        used = any(endpoint in tier.endpoints for tier in self._tiers)
        if not endpoint.weight:
            return "drained: its weight is 0"
        if not endpoint.addresses:
            why = "the name has no address" if not endpoint.refusals else f"refused: {endpoint.refusals[0]}"
            if endpoint.withheld:
                why = "credentials are not sent over plaintext HTTP but to loopback addresses, of which it has none"
        elif not endpoint.healthy or endpoint.ejected_until > now:
            why = endpoint.why or "unhealthy"
        elif endpoint.paused_until > now:
            why = "it has asked for a pause"
        elif endpoint.gate is not None and endpoint.gate.is_open and (endpoint.panic or not used):
            why = "its breaker is open"
        elif used:
            return ""
        elif any(endpoint.priority > each.priority for tier in self._tiers for each in tier.endpoints):
            return f"priority {endpoint.priority} is not needed"
        else:
            return "its zone is not needed"
        return f"{why}; used all the same, since most are not well" if used else why

    def inherit(self, other: Upstream) -> None:
        """Go on with what is known of the endpoints of the same upstream in the table before."""
        known = {endpoint.url: endpoint for endpoint in other.endpoints}
        now = self._now()
        for endpoint in self.endpoints:
            old = known.get(endpoint.url)
            if old is None:
                endpoint.added_at = now
            else:
                endpoint.go_on_from(old)
        self.refresh()

    def _take(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = self._serving = tuple(endpoints)
        if not all(endpoint.weight for endpoint in endpoints):
            self._serving = tuple(endpoint for endpoint in endpoints if endpoint.weight)
        self.only = self._serving[0] if len(endpoints) == len(self._serving) == 1 else None
        self._choice.know(self._serving)
        self._standing = self._serving
        self._unwell.intersection_update(self.endpoints)
        self.refresh()

    def _pick(self, key: int | None) -> Endpoint | None:
        tiers = self._tiers_now()
        if not tiers:
            return None
        tier = tiers[0] if len(tiers) == 1 else self._draw(tiers, key)
        return self._choice.choose(tier, key, self._random)

    def _pick_another(self, tried: Sequence[Endpoint], key: int | None) -> Endpoint | None:
        tiers = self._tiers_now()
        if not tiers:
            return None
        drawn = self._draw(tiers, key)
        for avoided in (tried, tried[-1:]):
            for some in (
                drawn.endpoints,
                *(tier.endpoints for tier in tiers if tier is not drawn),
                self._well,
            ):
                left = [endpoint for endpoint in some if endpoint not in avoided]
                if left:
                    if some is self._well:  # of those that are not in use, of which there is one anyhow
                        first = min(endpoint.priority for endpoint in left)
                        left = [endpoint for endpoint in left if endpoint.priority == first]
                    return self._choice.choose(Tier(left), key, self._random)
        return self._choice.choose(drawn, key, self._random)

    def _draw(self, tiers: Sequence[Tier], key: int | None) -> Tier:
        """A tier by its share; for the same key the same one."""
        at = self._random() if key is None else (key & 0xFFFFFFFF) / 2**32
        for tier in tiers:
            if at < tier.below:
                return tier
        return tiers[-1]

    def _tiers_now(self) -> Sequence[Tier]:
        if self.shut:
            assert self._clock is not None
            now = self._clock.now
            able: Sequence[Endpoint] = standing(self._serving, now)
        elif self._due == inf and self._standing is self._serving:
            return self._tiers
        else:
            now, able = self._now(), self._serving
        if now >= self._due or (able is not self._standing and able != self._standing):
            self._work_out(now, able)
        return self._tiers

    def _work_out(self, now: float, able: Sequence[Endpoint]) -> None:
        self._standing = able
        self._due = inf
        self._well = well = []
        there = frozenset(able)
        for endpoint in self.endpoints:
            if endpoint.ejected_until > now:
                self._due = min(self._due, endpoint.ejected_until)
                self._unwell.add(endpoint)
            elif not endpoint.healthy or not endpoint.weight:
                self._unwell.add(endpoint)
            else:
                if endpoint in self._unwell:
                    self._unwell.discard(endpoint)
                    endpoint.added_at = now
                if endpoint.addresses and endpoint in there:
                    well.append(endpoint)
            endpoint.share = endpoint.weight * self._warmth(endpoint, now)
        self._tiers = spread(self._serving, well, able, self._zone)
        self._pair = None
        if len(self._tiers) == 1 and self._due == inf and isinstance(self._choice, TwoChoices):
            tier = self._tiers[0]
            if tier.even and len(tier.endpoints) == 2 and able is self._serving:
                self._pair = tier.endpoints[0], tier.endpoints[1]

    def _warmth(self, endpoint: Endpoint, now: float) -> float:
        """The part of its weight that an endpoint has while it starts slowly; notes when that changes."""
        length = self._slow_start_s
        age = now - endpoint.added_at
        if age >= length:
            return 1.0
        self._due = min(self._due, now + length * _SLOW_START_STEP)
        return max(_SLOW_START_FROM, age / length)

    def _now(self) -> float:
        return 0.0 if self._clock is None else self._clock.now

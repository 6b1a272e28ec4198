"""A ring for consistent hashing: a key keeps its endpoint while others come and go. Pure.

Sources: Karger et al., "Consistent Hashing and Random Trees"; Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing
with Bounded Loads" (HAProxy's `hash-balance-factor`): an endpoint that has more than 1.25 times its part of what is in
flight is passed by, so that one key that everybody wants does not bring its endpoint down.

Points depend on URLs alone, so all workers and replicas have the same ring.
"""

from __future__ import annotations

from bisect import bisect
from hashlib import blake2b
from math import ceil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ambassador.messages import Request
    from ambassador.proxy.upstream.endpoint import Endpoint
    from ambassador.proxy.upstream.tiers import Tier

BOUND: Final = 1.25
"""So many times its part an endpoint may have in flight. HAProxy: 125 to 200 % are reasonable."""
_POINTS: Final = 128
"""Points of the average endpoint: shares differ by about 9 %. ketama: 160."""
_MOST_POINTS: Final = 1 << 16


def hash_of(value: bytes) -> int:
    """The place of a key on the ring: 64 bits, the same in every process."""
    return int.from_bytes(blake2b(value, digest_size=8).digest(), "big")


class Ring:
    """Made for endpoints and their weights; made anew when these change."""

    __slots__ = ("_owners", "_places")

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        total = sum(endpoint.weight for endpoint in endpoints) or 1
        each = min(_POINTS * len(endpoints), _MOST_POINTS)
        points = sorted(
            (hash_of(b"%b#%d" % (endpoint.url.encode(), number)), place)
            for place, endpoint in enumerate(endpoints)
            for number in range(max(1, round(each * endpoint.weight / total)))
        )
        self._places = [point for point, _ in points]
        self._owners = [endpoints[place] for _, place in points]

    def owners(self, key: int) -> Iterator[Endpoint]:
        """All endpoints, each once, in the order in which they take over from one another for this key."""
        owners, start = self._owners, bisect(self._places, key)
        seen: set[Endpoint] = set()
        for at in range(start, start + len(owners)):
            owner = owners[at % len(owners)]
            if owner not in seen:
                seen.add(owner)
                yield owner

    def choose(self, key: int, tier: Tier) -> Endpoint | None:
        """The first of the tier for this key that is not overloaded; None if the ring knows none of them."""
        able, load = tier.endpoints, 0.0
        first: Endpoint | None = None
        for owner in self.owners(key):
            if owner in able:
                if not owner.inflight:
                    return owner  # one may always be in flight: nobody's load is looked at
                load = load or BOUND * (sum(endpoint.inflight for endpoint in able) + 1)
                if owner.inflight < ceil(load * owner.share / tier.whole):
                    return owner
                first = first or owner
        return first


def key_reader(source: str) -> Callable[[Request, str], int | None]:
    """What gives the key of a request and its client's address: `header:NAME`, `cookie:NAME` or `client_ip`.

    None where the request has none: it may go anywhere.
    """
    kind, _, name = source.partition(":")
    if kind == "header":
        return _HeaderKey(name.lower().encode())
    if kind == "cookie":
        return _CookieKey(name.encode())
    return _address_key


class _HeaderKey:
    __slots__ = ("_name",)

    def __init__(self, name: bytes) -> None:
        self._name = name

    def __call__(self, request: Request, _client_ip: str) -> int | None:
        for name, value in request.headers:
            if name.lower() == self._name:
                return hash_of(value)
        return None


class _CookieKey:
    __slots__ = ("_name",)

    def __init__(self, name: bytes) -> None:
        self._name = name

    def __call__(self, request: Request, _client_ip: str) -> int | None:
        for name, value in request.headers:
            if name.lower() == b"cookie":
                for pair in value.split(b";"):
                    called, _, content = pair.strip().partition(b"=")
                    if called == self._name:
                        return hash_of(content)
        return None


def _address_key(_request: Request, client_ip: str) -> int | None:
    return hash_of(client_ip.encode()) if client_ip else None

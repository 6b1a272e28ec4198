"""Choosing an endpoint: the power of two choices on requests in flight.

Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing". The two are always distinct: with
replacement a bad endpoint keeps 6 % of four.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ambassador.errors import NoEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ambassador.proxy.upstream.endpoint import Endpoint


def pick(endpoints: Sequence[Endpoint], tried: Collection[Endpoint], random: Callable[[], float]) -> Endpoint:
    """One of `endpoints`, not one of `tried` if there is another; `random` gives numbers in [0, 1).

    Of two that are drawn by weight, the one with fewer requests in flight per weight. Raises `NoEndpoint` when there
    is none at all.
    """
    if len(endpoints) == 1:
        return endpoints[0]
    if len(endpoints) == 2 and not tried:
        first, second = endpoints if random() < 0.5 else (endpoints[1], endpoints[0])
        return _less_loaded(first, second)
    if tried:
        endpoints = [endpoint for endpoint in endpoints if endpoint not in tried] or endpoints
    if len(endpoints) <= 1:
        if not endpoints:
            raise NoEndpoint("the upstream has no endpoint")
        return endpoints[0]
    first = _draw(endpoints, random())
    second = _draw([endpoint for endpoint in endpoints if endpoint is not first], random())
    return _less_loaded(first, second)


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


def _less_loaded(first: Endpoint, second: Endpoint) -> Endpoint:
    if (second.inflight + 1) * first.weight < (first.inflight + 1) * second.weight:
        return second
    return first


def _draw(endpoints: Sequence[Endpoint], at: float) -> Endpoint:
    mark = at * sum(endpoint.weight for endpoint in endpoints)
    for endpoint in endpoints:
        mark -= endpoint.weight
        if mark < 0:
            return endpoint
    return endpoints[-1]

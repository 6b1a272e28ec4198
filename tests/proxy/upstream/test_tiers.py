"""Health, priorities, zones and panic as shares of the requests."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.proxy.upstream.tiers import Tier, spread, standing

if TYPE_CHECKING:
    from ambassador.proxy.policies.breaker import Breaker


def level(count: int, *, priority: int = 0, zone: str = "", name: str = "e") -> list[Endpoint]:
    return [
        Endpoint(
            f"http://{name}{priority}{zone}{number}:80", host=name, port=80, priority=priority, zone=zone
        )
        for number in range(count)
    ]


def shares(tiers: list[Tier]) -> list[float]:
    """What each tier gets."""
    marks = [0.0, *(tier.below for tier in tiers)]
    return [round(after - before, 9) for before, after in pairwise(marks)]


def test_all_well_is_one_tier() -> None:
    pool = level(4)
    (tier,) = spread(pool, pool, pool)
    assert tier.endpoints == tuple(pool)
    assert (tier.below, tier.even, tier.whole) == (1.0, True, 4)


def test_nothing_is_no_tier() -> None:
    assert spread([], [], []) == []


@pytest.mark.parametrize(("able", "in_use"), [(4, 4), (3, 3), (2, 2), (1, 4), (0, 4)])
def test_panic_is_below_half(able: int, in_use: int) -> None:
    pool = level(4)
    (tier,) = spread(pool, pool[:able], pool)
    assert len(tier.endpoints) == in_use


def test_panic_leaves_out_what_asked_for_a_pause() -> None:
    pool = level(4)
    (tier,) = spread(pool, pool[:1], pool[:3])
    assert tier.endpoints == tuple(pool[:3])
    (tier,) = spread(pool, [], [])
    assert tier.endpoints == tuple(pool)


@pytest.mark.parametrize(
    ("able", "expected"),
    [(10, [1.0]), (8, [1.0]), (7, [0.98, 0.02]), (5, [0.7, 0.3]), (1, [0.14, 0.86]), (0, [1.0])],
)
def test_next_priority_takes_what_the_first_falls_short_of(able: int, expected: list[float]) -> None:
    """Envoy's table of "Priority levels": whole down to 72 %."""
    first, second = level(10), level(10, priority=1)
    tiers = spread([*first, *second], [*first[:able], *second], [*first, *second])
    assert shares(tiers) == expected
    assert tiers[-1].endpoints == tuple(first[:able] if able >= 8 else second)
    assert all(set(tier.endpoints) <= {*first[:able], *second} for tier in tiers if able)


def test_both_levels_short_share_by_what_they_have() -> None:
    """Envoy's example: 25 % and 25 % healthy of two levels; 20 % of 35 % each, and both are in panic."""
    first, second = level(4), level(4, priority=1)
    tiers = spread([*first, *second], [first[0], second[0]], [*first, *second])
    assert shares(tiers) == [0.5, 0.5]
    assert all(len(tier.endpoints) == 4 for tier in tiers)
    tiers = spread([*first, *second], [*first[:2], second[0]], [*first, *second])
    assert shares(tiers) == [1.0] if len(tiers) == 1 else [0.7, 0.3]


def test_only_the_level_below_half_is_in_panic() -> None:
    first, second = level(10), level(10, priority=1)
    tiers = spread([*first, *second], [*first[:5], *second[:1]], [*first, *second])
    assert [len(tier.endpoints) for tier in tiers] == [5, 10]
    assert shares(tiers) == [round(0.7 / 0.84, 9), round(0.14 / 0.84, 9)]


def test_nobody_well_shares_by_number() -> None:
    first, second = level(3), level(1, priority=1)
    assert shares(spread([*first, *second], [], [*first, *second])) == [0.75, 0.25]


@pytest.mark.parametrize(
    ("own", "expected"), [(10, [1.0]), (8, [1.0]), (5, [0.7, 0.3]), (1, [0.14, 0.86]), (0, [1.0])]
)
def test_own_zone_comes_first_and_spills_what_it_falls_short_of(own: int, expected: list[float]) -> None:
    here, there = level(10, zone="a"), level(20, zone="b")
    pool = [*there, *here]
    tiers = spread(pool, [*here[:own], *there], pool, "a")
    assert shares(tiers) == expected
    assert set(tiers[0].endpoints) == set(here[:own] or there)
    assert set(tiers[-1].endpoints) == set(here if own == 10 else here[:8] if own == 8 else there)


def test_zones_are_alike_for_one_who_has_none() -> None:
    pool = [*level(2, zone="a"), *level(2, zone="b")]
    for zone in ("", "c"):
        (tier,) = spread(pool, pool, pool, zone)
        assert tier.endpoints == tuple(pool)


def test_zones_do_not_matter_in_panic() -> None:
    pool = [*level(2, zone="a"), *level(2, zone="b")]
    (tier,) = spread(pool, pool[:1], pool, "a")
    assert tier.endpoints == tuple(pool)


ENDPOINTS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["", "a", "b"]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=12,
)


@given(drawn=ENDPOINTS, zone=st.sampled_from(["", "a", "c"]))
def test_shares_are_whole_and_go_to_those_that_are_well(
    drawn: list[tuple[int, str, bool, bool]], zone: str
) -> None:
    pool = [
        Endpoint(f"http://e{number}:80", host="e", port=80, priority=priority, zone=where)
        for number, (priority, where, _, _) in enumerate(drawn)
    ]
    standing = [endpoint for endpoint, (_, _, stands, _) in zip(pool, drawn, strict=True) if stands] or pool
    able = [
        endpoint for endpoint, (*_, well) in zip(pool, drawn, strict=True) if well and endpoint in standing
    ]
    tiers = spread(pool, able, standing, zone)
    assert tiers[-1].below == 1.0
    marks = [tier.below for tier in tiers]
    assert marks == sorted(set(marks))
    for tier in tiers:
        assert tier.endpoints
        assert len({endpoint.priority for endpoint in tier.endpoints}) == 1
        peers = [each for each in pool if each.priority == tier.endpoints[0].priority]
        if len(set(peers) & set(able)) >= len(peers) / 2:  # no panic
            assert set(tier.endpoints) <= set(able)
    if able and len(able) == len(pool):
        assert all(
            endpoint.priority == min(each.priority for each in pool) for endpoint in tiers[0].endpoints
        )


@given(
    weights=st.lists(st.integers(1, 1000), min_size=2, max_size=6),
    at=st.floats(0, 1, exclude_max=True),
    other=st.floats(0, 1, exclude_max=True),
)
def test_two_draws_are_two(weights: list[int], at: float, other: float) -> None:
    pool = [
        Endpoint(f"http://e{number}:80", host="e", port=80, weight=weight)
        for number, weight in enumerate(weights)
    ]
    tier = Tier(pool)
    first = tier.draw(at)
    second = tier.draw_other(first, other)
    assert first is not second
    assert {first, second} <= set(pool)


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 7)])
def test_draws_follow_weight(weights: tuple[int, ...]) -> None:
    pool = [
        Endpoint(f"http://e{number}:80", host="e", port=80, weight=weight)
        for number, weight in enumerate(weights)
    ]
    tier, random = Tier(pool), Random(3).random
    drawn = [tier.draw(random()) for _ in range(10_000)]
    others = [tier.draw_other(pool[0], random()) for _ in range(10_000)]
    for endpoint in pool:
        assert drawn.count(endpoint) / 10_000 == pytest.approx(endpoint.weight / sum(weights), abs=0.02)
    for endpoint in pool[1:]:
        assert others.count(endpoint) / 10_000 == pytest.approx(endpoint.weight / sum(weights[1:]), abs=0.02)


class Gate:
    """A breaker that is open or not."""

    def __init__(self, *, welcoming: bool) -> None:
        self.welcoming = welcoming

    def welcomes(self, now: float) -> bool:
        return self.welcoming


def guarded(*welcoming: bool) -> list[Endpoint]:
    pool = level(len(welcoming))
    for endpoint, welcome in zip(pool, welcoming, strict=True):
        endpoint.gate = cast("Breaker", Gate(welcoming=welcome))
    return pool


@pytest.mark.parametrize(
    ("welcoming", "standing_ones", "panic"),
    [
        ((True, True), [0, 1], False),
        ((True, False), [0], False),
        ((False, False), [0, 1], True),
        ((False,), [0], False),
        ((True, False, False), [0, 1, 2], True),
        ((True, True, False, False), [0, 1], False),
        ((True, False, False, False), [0, 1, 2, 3], True),
    ],
)
def test_open_endpoints_are_passed_over_unless_more_than_half_are(
    welcoming: tuple[bool, ...], standing_ones: list[int], panic: bool
) -> None:
    pool = guarded(*welcoming)
    assert standing(pool, 0.0) == [pool[at] for at in standing_ones]
    assert [endpoint.panic for endpoint in pool] == [panic] * len(pool)


def test_paused_endpoints_are_passed_over_unless_all_are() -> None:
    pool = level(3)
    pool[0].paused_until = pool[1].paused_until = 10.0
    assert standing(pool, 9.0) == [pool[2]]
    assert standing(pool, 10.0) == pool
    pool[2].paused_until = 10.0
    assert standing(pool, 9.0) == pool

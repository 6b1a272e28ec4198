"""The power of two choices."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.errors import NoEndpoint
from ambassador.proxy.plan import Upstream
from ambassador.proxy.policies.breaker import Breaker
from ambassador.proxy.upstream.balance import pick, standing
from ambassador.proxy.upstream.endpoint import Endpoint


def endpoints(*weights: int) -> list[Endpoint]:
    return [
        Endpoint(f"http://e{number}:80", host=f"e{number}", port=80, weight=weight)
        for number, weight in enumerate(weights)
    ]


def test_nothing_to_pick_from() -> None:
    with pytest.raises(NoEndpoint):
        pick([], (), lambda: 0.0)


def test_only_one_is_picked_even_if_it_was_tried() -> None:
    (one,) = endpoints(1)
    assert pick([one], (one,), lambda: 0.0) is one


@given(seed=st.integers(0, 2**32), loads=st.lists(st.integers(0, 100), min_size=2, max_size=8, unique=True))
def test_busiest_of_equals_is_never_picked(seed: int, loads: list[int]) -> None:
    """The two are distinct, so the one with the most in flight always meets a better one."""
    pool = endpoints(*[1] * len(loads))
    for endpoint, load in zip(pool, loads, strict=True):
        endpoint.inflight = load
    random = Random(seed).random
    assert all(pick(pool, (), random).inflight < max(loads) for _ in range(50))


@given(seed=st.integers(0, 2**32), size=st.integers(1, 6), data=st.data())
def test_tried_ones_are_passed_over_while_there_is_another(seed: int, size: int, data: st.DataObject) -> None:
    pool = endpoints(*[1] * size)
    tried = data.draw(st.lists(st.sampled_from(pool), unique=True))
    picked = pick(pool, tried, Random(seed).random)
    assert picked not in tried or len(tried) == size


@given(
    random=st.floats(0, 1, exclude_max=True), weights=st.lists(st.integers(1, 1000), min_size=1, max_size=6)
)
def test_every_draw_gives_one_of_them(random: float, weights: list[int]) -> None:
    pool = endpoints(*weights)
    assert pick(pool, (), lambda: random) in pool


@pytest.mark.parametrize("weights", [(1, 3), (1, 2, 3), (5, 1, 1, 1)])
def test_load_follows_weight(weights: tuple[int, ...]) -> None:
    """With requests that last, what is in flight ends up in proportion to the weights."""
    pool = endpoints(*weights)
    random = Random(7).random
    for _ in range(100 * sum(weights)):
        pick(pool, (), random).inflight += 1
    for endpoint in pool:
        assert endpoint.inflight == pytest.approx(100 * endpoint.weight, rel=0.1)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_equals_share_alike(size: int) -> None:
    pool = endpoints(*[1] * size)
    random = Random(7).random
    counts = Counter(pick(pool, (), random).url for _ in range(2000))
    for count in counts.values():
        assert count == pytest.approx(2000 / size, rel=0.15)
    assert len(counts) == size


class Gate:
    """A breaker that is open or not."""

    def __init__(self, *, welcoming: bool) -> None:
        self.welcoming = welcoming

    def welcomes(self, now: float) -> bool:
        return self.welcoming


def guarded(*welcoming: bool) -> list[Endpoint]:
    pool = endpoints(*[1] * len(welcoming))
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
    pool = endpoints(1, 1, 1)
    pool[0].paused_until = pool[1].paused_until = 10.0
    assert standing(pool, 9.0) == [pool[2]]
    assert standing(pool, 10.0) == pool
    pool[2].paused_until = 10.0
    assert standing(pool, 9.0) == pool


def test_upstream_looks_at_breakers_only_when_one_is_open() -> None:
    class Clock:
        now = 1.0

    pool = guarded(True, False)
    upstream = Upstream("u", pool, Random(7).random, Clock())
    assert {upstream.pick(()) for _ in range(50)} == set(pool)
    upstream.shut = 1
    assert {upstream.pick(()) for _ in range(50)} == {pool[0]}
    assert {upstream.pick_or_none() for _ in range(50)} == {pool[0]}
    assert {upstream.pick((pool[0],)) for _ in range(50)} == {pool[0]}  # tried, but the other is open

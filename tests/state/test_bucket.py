from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ambassador.state import holding
from ambassador.state.bucket import Bucket, first, is_sound
from ambassador.state.protocol import Lease

NOW_US = 1_800_000_000_000_000


def lease(rate: float = 10, depth: float = 20, want: int = 0, **more: float) -> Lease:
    return Lease("k", rate, depth, want, **more)  # type: ignore[arg-type]


@given(
    rate=st.floats(0.1, 1000),
    depth=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.integers(-50_000, 500_000), st.integers(0, 300)), max_size=40),
)
def test_bucket_never_grants_more_than_the_envelope(
    rate: float, depth: int, steps: list[tuple[int, int]]
) -> None:
    """In no window: depth, and the rate over the time that went forward."""
    bucket = first(lease(rate, depth), NOW_US, None)
    now_us, gone_s = NOW_US, 0.0
    lowest = 0.0
    granted = 0
    for step_us, want in steps:
        now_us += step_us
        gone_s += max(0, step_us) / 1e6
        lowest = min(lowest, granted - rate * gone_s)
        granted += bucket.lease(lease(rate, depth, want), now_us).granted
        assert granted - rate * gone_s - lowest <= depth + 1e-6


@given(rate=st.floats(0.01, 1000), depth=st.integers(1, 100), want=st.integers(0, 100), debt=st.floats(0, 50))
def test_bucket_that_expires_is_as_if_made_anew(rate: float, depth: int, want: int, debt: float) -> None:
    asked = lease(rate, depth, want, debt=debt)
    bucket = first(asked, NOW_US, None)
    bucket.lease(asked, NOW_US)
    assert bucket.expires_us > NOW_US
    later_us = math.ceil(bucket.expires_us)
    assert bucket.lease(lease(rate, depth), later_us).left == depth


def test_bucket_that_never_fills_never_expires() -> None:
    bucket = first(lease(rate=0, want=1), NOW_US, None)
    bucket.lease(lease(rate=0, want=1), NOW_US)
    assert bucket.expires_us == math.inf


def test_quota_expires_with_its_window() -> None:
    asked = lease(want=1, window_s=60)
    bucket = first(asked, NOW_US, None)
    leased = bucket.lease(asked, NOW_US)
    assert bucket.expires_us >= (leased.window + 1) * 60_000_000


def test_first_bucket_follows_the_birth_rule_or_begins_full() -> None:
    assert first(lease(), NOW_US, NOW_US - 500_000).tokens == 5
    assert first(lease(), NOW_US, NOW_US + 500_000).tokens == 0
    assert first(lease(), NOW_US, NOW_US - 60_000_000).tokens == 20
    assert first(lease(), NOW_US, None).tokens == 20
    assert first(lease(start=4), NOW_US, None).tokens == 4
    window = lease(window_s=60, start=4, want=30)
    assert first(window, NOW_US, NOW_US).lease(window, NOW_US).granted == 20


@given(
    rate=st.sampled_from([1 / 360, 1 / 60, 0.5, 1.0, 7.0, 100.0]),
    burst=st.integers(1, 60),
    steps=st.lists(
        st.tuples(st.floats(0.0, 3.0), st.integers(1, 70), st.floats(0.0, 1.0), st.integers(0, 8)),
        max_size=40,
    ),
    wipes=st.lists(st.integers(0, 39), max_size=3, unique=True),
)
def test_bucket_of_a_wiped_store_keeps_the_burst_whenever_tokens_are_spent(
    rate: float, burst: int, steps: list[tuple[float, int, float, int]], wipes: list[int]
) -> None:
    """Tokens are spent at any time of their life; over one loss nothing is added, over more what `birth` says."""
    terms = holding.terms(rate, burst)
    assume(burst >= holding.SMALL_BURST)
    asked = lease(rate, terms.depth, birth=terms.birth)
    now_s, born_us = 0.0, NOW_US - 10**12
    bucket = first(asked, NOW_US, born_us)
    spent: list[tuple[float, int]] = []
    for number, (step, want, part, need) in enumerate(steps):
        now_s += step * min(1.0 / rate, 20.0)
        now_us = NOW_US + math.floor(now_s * 1e6)
        if number in wipes:
            born_us = now_us
            bucket = first(asked, now_us, born_us)
        took = bucket.lease(msgspec.structs.replace(asked, want=want, first=need), now_us)
        assert took.granted == 0 or took.granted >= min(need, want)
        spent.append((now_s + part * terms.life_s, took.granted))
    spent.sort()
    losses = sum(number < len(steps) for number in wipes)
    assert worst(spent, rate) <= burst + max(0, losses - 1) * terms.birth + 1e-4 * rate + 1e-6


def worst(spent: list[tuple[float, int]], rate: float) -> float:
    """The most that was spent in any window beyond what came in."""
    most, least, count = 0.0, math.inf, 0
    for at, tokens in spent:
        least = min(least, count - rate * at)
        count += tokens
        most = max(most, count - rate * at - least)
    return most


def test_bucket_of_a_slow_limit_is_not_empty_after_a_loss() -> None:
    terms = holding.terms(10 / 3600, 10)
    bucket = first(lease(terms.rate, terms.depth, birth=terms.birth), NOW_US, NOW_US)
    assert bucket.lease(lease(terms.rate, terms.depth, want=5), NOW_US).granted == 1
    assert bucket.lease(lease(terms.rate, terms.depth, want=5), NOW_US + 5_000_000).granted == 1


def test_reserve_is_not_for_a_bucket_that_never_fills() -> None:
    bucket = Bucket(3, NOW_US)
    bucket.lease(lease(rate=0, want=5, first=5, lacks=5, demand=9), NOW_US)
    assert bucket.lease(lease(rate=0, want=5), NOW_US).granted == 3


def test_reserve_grows_with_who_lacks_more_and_ends_when_it_is_taken() -> None:
    bucket = Bucket(0, NOW_US)
    for lacks in (5, 9, 7):
        bucket.lease(lease(want=lacks, first=lacks, lacks=lacks, demand=99), NOW_US)
    assert bucket.reserved == 9
    assert bucket.lease(lease(want=8, first=8, demand=99), NOW_US + 850_000).granted == 0
    assert bucket.lease(lease(want=9, first=9, demand=99), NOW_US + 950_000).granted == 9
    assert bucket.lease(lease(want=1, lacks=5, demand=99), NOW_US + 1_050_000).granted == 1
    assert bucket.reserved_until_us <= NOW_US + 950_000  # the others' turn


def test_bucket_whose_depth_shrinks_holds_no_more() -> None:
    bucket = Bucket(20, NOW_US)
    assert bucket.lease(lease(depth=5, want=20), NOW_US).granted == 5


def test_sharers_are_the_greater_number_of_two_epochs() -> None:
    bucket = Bucket(20, 0)
    for _ in range(3):
        bucket.lease(lease(demand=1, tells_demand=True), 100_000)
    assert bucket.lease(lease(demand=1, tells_demand=True), 600_000).sharers == 3
    assert bucket.lease(lease(), 1_100_000).sharers == 1
    assert bucket.lease(lease(), 9_100_000).sharers == 1


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("field", ["rate", "depth", "debt", "credit", "demand", "birth"])
def test_amounts_that_cannot_be_are_unsound(field: str, wrong: float) -> None:
    assert not is_sound(msgspec.structs.replace(lease(), **{field: wrong}))


def test_counts_that_cannot_be_are_unsound() -> None:
    for field in ("want", "least", "window_s", "back", "first", "lacks"):
        assert not is_sound(msgspec.structs.replace(lease(), **{field: -1}))
    assert not is_sound(lease(start=math.nan))
    assert is_sound(lease(start=-3))
    assert not is_sound(lease(most=math.nan))

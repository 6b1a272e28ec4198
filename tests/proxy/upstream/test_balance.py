"""How one of several endpoints is chosen."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.proxy.upstream.balance import (
    CHOICES,
    Choice,
    LeastRequest,
    RingHash,
    RoundRobin,
    TwoChoices,
)
from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.proxy.upstream.ring import BOUND, hash_of
from ambassador.proxy.upstream.tiers import Tier

WEIGHTS = st.lists(st.integers(1, 1000), min_size=1, max_size=6)
ALL = pytest.mark.parametrize("choice", [made() for made in CHOICES.values()], ids=list(CHOICES))
WEIGHED = pytest.mark.parametrize("weights", [(1, 3), (1, 2, 3), (5, 1, 1, 1)])


def endpoints(*weights: int) -> list[Endpoint]:
    return [
        Endpoint(f"http://e{number}:80", host=f"e{number}", port=80, weight=weight)
        for number, weight in enumerate(weights)
    ]


def measured(*latencies_s: float) -> list[Endpoint]:
    """Endpoints that answered once, so fast, at the time 0."""
    pool = endpoints(*[1] * len(latencies_s))
    for endpoint, latency_s in zip(pool, latencies_s, strict=True):
        endpoint.settled(latency_s, 0.0, failed=False)
    return pool


def chosen(choice: Choice, pool: list[Endpoint], times: int, *, lasting: bool = False) -> Counter[str]:
    """How often each was chosen; `lasting`: requests that do not end."""
    choice.know(pool)
    random, tier = Random(7).random, Tier(pool)
    counts: Counter[str] = Counter()
    for number in range(times):
        endpoint = choice.choose(tier, hash_of(b"%d" % number), random)
        counts[endpoint.url] += 1
        endpoint.inflight += lasting
    return counts


@ALL
@given(random=st.floats(0, 1, exclude_max=True), weights=WEIGHTS, key=st.none() | st.integers(0, 2**64 - 1))
def test_every_choice_gives_one_of_them(
    choice: Choice, random: float, weights: list[int], key: int | None
) -> None:
    pool = endpoints(*weights)
    choice.know(pool)
    assert choice.choose(Tier(pool), key, lambda: random) in pool


@ALL
def test_equals_share_alike(choice: Choice) -> None:
    counts = chosen(choice, endpoints(1, 1, 1), 3000)
    assert len(counts) == 3
    for count in counts.values():
        assert count == pytest.approx(1000, rel=0.25 if isinstance(choice, RingHash) else 0.1)


@ALL
@WEIGHED
def test_load_follows_weight(choice: Choice, weights: tuple[int, ...]) -> None:
    """With requests that last, what is in flight ends up in proportion to the weights."""
    pool = endpoints(*weights)
    chosen(choice, pool, 100 * sum(weights), lasting=True)
    for endpoint in pool:
        assert endpoint.inflight == pytest.approx(
            100 * endpoint.weight, rel=0.26 if isinstance(choice, RingHash) else 0.1
        )


@ALL
@WEIGHED
def test_requests_follow_weight_where_nothing_is_in_flight(choice: Choice, weights: tuple[int, ...]) -> None:
    pool = endpoints(*weights)
    counts = chosen(choice, pool, 1000 * sum(weights))
    for endpoint in pool:
        assert counts[endpoint.url] == pytest.approx(
            1000 * endpoint.weight, rel=0.35 if isinstance(choice, RingHash) else 0.12
        )


# ----- p2c -----


@given(seed=st.integers(0, 2**32), loads=st.lists(st.integers(0, 100), min_size=2, max_size=8, unique=True))
def test_busiest_of_equals_is_never_picked(seed: int, loads: list[int]) -> None:
    """The two are distinct, so the one with the most in flight always meets a better one."""
    pool = endpoints(*[1] * len(loads))
    for endpoint, load in zip(pool, loads, strict=True):
        endpoint.inflight = load
    random = Random(seed).random
    assert all(TwoChoices().choose(Tier(pool), None, random).inflight < max(loads) for _ in range(50))


@given(
    seed=st.integers(0, 2**32),
    fast_s=st.floats(1e-4, 0.1),
    times=st.floats(2, 1000),
    weights=st.sampled_from([(1, 1, 1), (1, 2, 5)]),
)
def test_slow_endpoint_gets_nothing_that_others_can_take(
    seed: int, fast_s: float, times: float, weights: tuple[int, ...]
) -> None:
    pool = endpoints(*weights)
    for endpoint, latency_s in zip(pool, (fast_s, fast_s, fast_s * times), strict=True):
        endpoint.settled(latency_s, 0.0, failed=False)
    tier, random = Tier(pool), Random(seed).random
    assert all(TwoChoices().choose(tier, None, random) is not pool[2] for _ in range(50))


def test_slow_endpoint_takes_its_part_when_the_others_are_busier() -> None:
    """Ten times slower, so one for every ten of the other."""
    fast, slow = measured(0.01, 0.1)
    chosen(TwoChoices(), [fast, slow], 1100, lasting=True)
    assert slow.inflight == pytest.approx(100, abs=2)


def test_latencies_near_one_another_are_the_same() -> None:
    counts = chosen(TwoChoices(), measured(0.010, 0.014), 1000)
    assert min(counts.values()) > 450


def test_estimate_decays_until_the_shunned_one_is_tried_again() -> None:
    fast, slow = measured(0.01, 0.1)
    for second in range(1, 60):
        fast.settled(0.01, float(second), failed=False)
        if slow.url in chosen(TwoChoices(), [fast, slow], 20):
            break
    assert second == pytest.approx(19, abs=1)  # 10 s * ln(10 / 1.5)


def test_instant_failures_do_not_attract() -> None:
    pool = measured(0.005, 0.005, 0.005, 0.0002)
    for _ in range(8):
        pool[3].settled(0.0002, 0.1, failed=True)
    for endpoint in pool[:3]:
        endpoint.inflight = 100
    assert pool[3].url not in chosen(TwoChoices(), pool, 1000)


def test_unmeasured_one_is_compared_by_what_is_in_flight() -> None:
    (known,), (new,) = measured(5.0), endpoints(1)
    new.inflight = 1
    assert TwoChoices().choose(Tier([known, new]), None, lambda: 0.5) is known
    known.inflight = 2
    assert TwoChoices().choose(Tier([known, new]), None, lambda: 0.5) is new


# ----- round_robin -----


def test_round_robin_is_smooth() -> None:
    """The sequence of nginx's own example."""
    pool = endpoints(5, 1, 1)
    choice, tier = RoundRobin(), Tier(pool)
    choice.know(pool)
    picked = [choice.choose(tier, None, lambda: 0.0).url[8] for _ in range(14)]
    assert "".join(picked) == "0010200" * 2


@given(weights=st.lists(st.integers(1, 20), min_size=2, max_size=5), rounds=st.integers(1, 3))
def test_round_robin_is_exact_over_a_round(weights: list[int], rounds: int) -> None:
    pool = endpoints(*weights)
    counts = chosen(RoundRobin(), pool, sum(weights) * rounds)
    if len(set(weights)) > 1:
        assert [counts[endpoint.url] for endpoint in pool] == [weight * rounds for weight in weights]
    else:
        assert set(counts.values()) == {weights[0] * rounds}


def test_round_robin_of_equals_never_gives_the_same_twice() -> None:
    pool = endpoints(1, 1, 1)
    choice, tier = RoundRobin(), Tier(pool)
    picked = [choice.choose(tier, None, Random(1).random) for _ in range(30)]
    assert all(one is not other for one, other in pairwise(picked))


def test_round_robin_takes_turns_within_each_tier() -> None:
    """A level that spills over is left and met again all the time; a tier of one, as of a zone, as well."""
    many, few, one = endpoints(1, 1, 1, 1), endpoints(1, 1, 1), endpoints(1)
    choice, random = RoundRobin(), Random(3).random
    tiers = [Tier(many), Tier(few), Tier(one)]
    picked: Counter[Endpoint] = Counter()
    met = [0, 0, 0]
    for _ in range(600):
        number = int(random() * 3)
        met[number] += 1
        picked[choice.choose(tiers[number], None, random)] += 1
    for tier, times in zip(tiers, met, strict=True):
        counts = [picked[endpoint] for endpoint in tier.endpoints]
        assert sum(counts) == times
        assert max(counts) - min(counts) <= 1


def test_round_robin_is_not_put_out_of_step_by_retries() -> None:
    """Each time the second is picked it fails, and another is picked from the others."""
    pool = endpoints(1, 1, 1)
    choice, tier, random = RoundRobin(), Tier(pool), Random(3).random
    firsts: Counter[Endpoint] = Counter()
    seconds: Counter[Endpoint] = Counter()
    for _ in range(3000):
        found = choice.choose(tier, None, random)
        firsts[found] += 1
        if found is pool[1]:
            seconds[choice.choose(Tier([pool[0], pool[2]]), None, random)] += 1
    assert set(firsts.values()) == {1000}
    assert seconds[pool[0]] == pytest.approx(500, rel=0.1)


def test_round_robin_forgets_those_that_went() -> None:
    first, second, third = endpoints(1, 2, 3)
    choice = RoundRobin()
    for _ in range(5):
        choice.choose(Tier([first, second, third]), None, lambda: 0.0)
    choice.know([first, second])
    assert chosen(choice, [first, second], 300)[second.url] == pytest.approx(200, abs=3)


# ----- least_request -----


@given(seed=st.integers(0, 2**32), loads=st.lists(st.integers(0, 100), min_size=1, max_size=8))
def test_least_request_always_takes_the_least_loaded(seed: int, loads: list[int]) -> None:
    pool = endpoints(*[1] * len(loads))
    for endpoint, load in zip(pool, loads, strict=True):
        endpoint.inflight = load
    picked = LeastRequest().choose(Tier(pool), None, Random(seed).random)
    assert picked.inflight == min(loads)


# ----- ring_hash -----


def test_ring_hash_keeps_a_key_where_it_is() -> None:
    pool = endpoints(1, 1, 1, 1)
    choice, random = RingHash(), Random(1).random
    choice.know(pool)
    keys = [hash_of(b"%d" % number) for number in range(500)]
    before = {key: choice.choose(Tier(pool), key, random) for key in keys}
    assert before == {key: choice.choose(Tier(pool), key, random) for key in keys}
    # One is out: only its own keys move; it is gone for good: they stay where they moved to.
    out = {key: choice.choose(Tier(pool[1:]), key, random) for key in keys}
    assert all(out[key] is endpoint for key, endpoint in before.items() if endpoint is not pool[0])
    choice.know(pool[1:])
    assert out == {key: choice.choose(Tier(pool[1:]), key, random) for key in keys}


def test_ring_hash_spreads_one_key_that_everybody_wants() -> None:
    pool = endpoints(1, 1, 1, 1)
    choice, tier = RingHash(), Tier(pool)
    choice.know(pool)
    for _ in range(400):
        choice.choose(tier, 1, Random(1).random).inflight += 1
    assert max(endpoint.inflight for endpoint in pool) <= BOUND * 100 + 1


def test_ring_hash_without_a_key_goes_anywhere() -> None:
    pool = endpoints(1, 1)
    choice, random = RingHash(), Random(1).random
    choice.know(pool)
    counts = Counter(choice.choose(Tier(pool), None, random).url for _ in range(100))
    assert len(counts) == 2

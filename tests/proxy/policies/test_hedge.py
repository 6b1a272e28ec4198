"""When a hedge is made, and how many."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.proxy.policies.hedge import Config, Hedge, Latencies


@given(st.lists(st.floats(1e-4, 100.0), min_size=50, max_size=400), st.floats(0.5, 0.999))
def test_percentile_is_that_of_the_samples_to_a_bucket(samples: list[float], share: float) -> None:
    latencies = Latencies()
    for sample in samples:
        latencies.add(sample, 0.0)
    found = latencies.percentile(share)
    assert found is not None
    ordered = sorted(samples)
    exact = next(value for rank, value in enumerate(ordered, 1) if rank >= share * len(ordered))
    assert exact * 0.999 <= found <= exact * 1.06


def test_percentile_is_unknown_of_a_few() -> None:
    latencies = Latencies()
    for _ in range(49):
        latencies.add(0.01, 0.0)
    assert latencies.percentile(0.95) is None
    latencies.add(0.01, 0.0)
    assert latencies.percentile(0.95) == pytest.approx(0.01, rel=0.05)


def test_latencies_beyond_all_buckets_count_as_the_last() -> None:
    latencies = Latencies()
    for _ in range(50):
        latencies.add(1e6, 0.0)
    assert latencies.percentile(0.5) == pytest.approx(120, rel=0.1)


def test_old_latencies_are_forgotten() -> None:
    latencies = Latencies()
    for _ in range(100):
        latencies.add(1.0, 0.0)
    for _ in range(100):
        latencies.add(0.01, 11.0)
    assert latencies.percentile(0.9) == pytest.approx(1.0, rel=0.06)
    for _ in range(100):
        latencies.add(0.01, 22.0)
    assert latencies.percentile(0.9) == pytest.approx(0.01, rel=0.06)
    for _ in range(60):
        latencies.add(0.1, 60.0)
    assert latencies.percentile(0.5) == pytest.approx(0.1, rel=0.06)


def test_delay_is_learned() -> None:
    hedge = Hedge(Config(after=(0.9, 0.0), max=0.1))
    assert hedge.delay_s == inf
    for number in range(100):
        hedge.observe(0.5 if number % 20 == 0 else 0.01, number / 10)
    assert hedge.delay_s == pytest.approx(0.01, rel=0.06)


def test_delay_leaves_no_more_slow_requests_than_may_be_hedged() -> None:
    hedge = Hedge(Config(after=(0.95, 0.0), max=0.01))
    for number in range(1000):
        hedge.observe(0.5 if number % 50 == 0 else 0.01, number / 100)
    assert hedge.delay_s == pytest.approx(0.5, rel=0.06)


def test_delay_may_be_given() -> None:
    hedge = Hedge(Config(after=(0.0, 0.05)))
    assert hedge.delay_s == 0.05
    for number in range(100):
        hedge.observe(1.0, number / 10)
    assert hedge.delay_s == 0.05


@given(st.integers(0, 2**32), st.floats(0.0, 0.3))
def test_hedges_are_no_more_than_their_part_of_the_requests(seed: int, part: float) -> None:
    hedge, chance = Hedge(Config(after=(0.0, 0.05), max=part)), random.Random(seed)
    made = 0
    for number in range(1, 500):
        if chance.random() < 0.5:
            made += hedge.withdraw()
        hedge.observe(0.01, number / 10)
        assert made <= part * number + 1e-6


def test_hedges_are_not_saved_up_for_ever() -> None:
    hedge = Hedge(Config(after=(0.0, 0.05), max=0.5))
    for number in range(1000):
        hedge.observe(0.01, number / 10)
    made = 0
    while hedge.withdraw():
        made += 1
    assert made == 10


def test_no_part_is_no_hedge() -> None:
    hedge = Hedge(Config(max=0.0))
    for number in range(100):
        hedge.observe(0.01, number / 10)
    assert not hedge.withdraw()

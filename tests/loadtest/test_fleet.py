"""The simulation of a fleet: what it admits, how fairly, and what it prints."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadtest import fleet
from loadtest.__main__ import UsageError, choose_workers
from loadtest.fleet import Outcome, Scenario, Simulation, excess, jain


def simulated(**settings: Any) -> Outcome:
    usual = {"workers": 4, "rate": 400.0, "burst": 400, "demand": 1.0, "shortest_s": 3.0, "longest_s": 3.0}
    return Simulation(Scenario(name="s", about="a", **{**usual, **settings})).run()


def test_demand_under_the_limit_passes() -> None:
    outcome = simulated(demand=0.7)
    assert outcome.admitted >= outcome.requests - 2  # some wait at the end
    assert outcome.waited < 0.1
    assert outcome.operations < outcome.requests / outcome.seconds / 2


@pytest.mark.parametrize("burst", [400, 100, 40, 20, 5])
@pytest.mark.parametrize("demand", [1.2, 3.0])
@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_overload_admits_the_limit_and_no_more(burst: int, skew: float, demand: float) -> None:
    outcome = simulated(demand=demand, burst=burst, skew=skew)
    assert outcome.excess <= (1e-6 if burst >= 20 else 400 * 0.01)
    usable = 0.97 if burst >= 20 else 0.6  # what comes in 50 ms is 20
    assert outcome.admitted > usable * (outcome.possible - 0.2 * burst)
    assert fleet.never_over([outcome]) is (outcome.excess <= 1e-6)


@pytest.mark.parametrize(("cost", "usable"), [(2, 0.98), (4, 0.98), (8, 0.96), (16, 0.7)])
def test_costs_use_the_rate_in_full(cost: int, usable: float) -> None:
    """A cost of 16 is all that the bucket holds: it is full before the next request comes."""
    outcome = simulated(rate=10.0, burst=20, demand=3.0, costs=(cost,), shortest_s=200.0, longest_s=200.0)
    assert outcome.excess <= 1e-6
    assert outcome.admitted > usable * outcome.possible
    assert outcome.expired < 0.02


def test_large_costs_are_not_starved_by_small_ones() -> None:
    outcome = simulated(
        rate=10.0, burst=20, demand=3.0, costs=(1,) * 7 + (8,), shortest_s=200.0, longest_s=200.0
    )
    assert outcome.admitted > 0.97 * outcome.possible
    assert outcome.excess <= 1e-6
    assert outcome.greatest > 0.3


def test_overload_is_shared_fairly() -> None:
    assert simulated(demand=3.0, skew=1.0).fairness > 0.98


def test_cold_keys_cost_an_operation_a_request_and_no_more() -> None:
    outcome = simulated(rate=10, burst=10, demand=0.2, keys=100)
    assert outcome.operations * outcome.seconds <= outcome.requests
    assert outcome.expired == 0


def test_same_seed_gives_the_same_outcome() -> None:
    assert simulated(demand=2.0) == simulated(demand=2.0)


def test_excess_is_the_greatest_burst() -> None:
    assert excess([(time, 1) for time in (0.0, 0.0, 0.0, 1.0, 2.0)], 1.0) == 3
    assert excess([(time, 1) for time in (0.0, 1.0, 2.0, 2.0)], 1.0) == 2
    assert excess([(0.0, 5), (1.0, 2)], 1.0) == 6
    assert excess([], 1.0) == 0


def test_jain_tells_equal_from_unequal() -> None:
    assert jain([0.5, 0.5, 0.5]) == 1.0
    assert jain([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain([0.0, 0.0]) == 1.0


def test_table_and_document_tell_the_same() -> None:
    outcome = simulated(demand=3.0)
    head, _, row = fleet.table([outcome]).splitlines()
    assert head.count("|") == row.count("|") == 11
    document = json.loads(json.dumps(fleet.document([outcome])))
    assert document["outcomes"][0]["scenario"]["workers"] == 4
    assert document["outcomes"][0]["admitted"] == outcome.admitted


def test_numbers_of_workers_are_chosen() -> None:
    assert choose_workers("4,64") == [4, 64]
    for text in ("", "4,x", "0"):
        with pytest.raises(UsageError):
            choose_workers(text)


def test_busy_keys_keep_within_a_workers_operations() -> None:
    outcome = simulated(rate=1000.0, burst=1000, demand=1 / 12, keys=60)
    assert outcome.operations / 4 <= 500
    assert outcome.waited < 0.1
    assert outcome.admitted >= outcome.requests - 5


def test_far_store_makes_few_wait() -> None:
    outcome = simulated(
        rate=1000.0, burst=1000, demand=0.8, rtt_s=0.03, jitter=0.4, shortest_s=6.0, longest_s=6.0
    )
    assert outcome.waited < 0.05
    assert outcome.operations / 4 <= 100

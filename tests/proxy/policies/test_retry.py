"""Retry: what may be tried again, how long to wait, and the budget."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambassador.proxy.policies.retry import UNSET, Budget, Config, RetryBudget, RetryPolicy, SharedRetryBudget
from tests.proxy.stores import SharedStore

UNIT = st.floats(0, 1, exclude_max=True)


def test_conditions_are_spelt_out() -> None:
    config = Config(when=("connect", "429", "502-504"))
    assert config.kinds == {"connect"}
    assert config.statuses == {429, 502, 503, 504}


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
def test_idempotent_methods_are_tried_again(method: str) -> None:
    assert RetryPolicy(Config()).allows("reset", method, keyed=False)


@pytest.mark.parametrize("reason", ["reset", "503"])
def test_post_is_tried_again_only_with_a_key(reason: str) -> None:
    policy = RetryPolicy(Config())
    assert not policy.allows(reason, "POST", keyed=False)
    assert policy.allows(reason, "POST", keyed=True)


@pytest.mark.parametrize("reason", ["connect", "refused_stream"])
def test_what_upstream_has_not_seen_is_tried_again_for_every_method(reason: str) -> None:
    assert RetryPolicy(Config(methods=("GET",))).allows(reason, "POST", keyed=False)


def test_only_named_conditions_are_tried_again() -> None:
    policy = RetryPolicy(UNSET)
    assert policy.allows("connect", "GET", keyed=False)
    for reason in ("reset", "timeout", "503", "upstream_protocol_error"):
        assert not policy.allows(reason, "GET", keyed=False)


def test_methods_are_the_configs() -> None:
    assert RetryPolicy(Config(methods="all")).allows("503", "POST", keyed=False)
    listed = RetryPolicy(Config(methods=("POST",)))
    assert listed.allows("503", "POST", keyed=False)
    assert not listed.allows("503", "GET", keyed=False)


@given(retry=st.integers(1, 10), random=UNIT)
def test_wait_is_full_jitter_below_the_cap(retry: int, random: float) -> None:
    wait = RetryPolicy(Config(backoff=(0.025, 0.25))).delay_s(retry, random, None)
    assert wait is not None
    assert 0 <= wait <= min(0.25, (2**retry - 1) * 0.025)
    assert wait == random * min(0.25, (2**retry - 1) * 0.025)


@given(after=st.floats(0, 300), random=UNIT)
def test_retry_after_is_never_undercut(after: float, random: float) -> None:
    wait = RetryPolicy(Config(retry_after=300.0)).delay_s(1, random, after)
    assert wait is not None
    assert after <= wait <= max(after * 1.5, 0.025)


def test_retry_after_over_the_cap_forbids_the_retry() -> None:
    assert RetryPolicy(Config(retry_after=300.0)).delay_s(1, 0.5, 301.0) is None


def test_retry_after_may_be_ignored() -> None:
    assert RetryPolicy(Config(retry_after=None)).delay_s(1, 0.5, 301.0) == 0.0125


def spend(budget: RetryBudget, now: float) -> int:
    """How many retries it gives until it is spent."""
    count = 0
    while budget.withdraw(now):
        count += 1
    return count


@given(requests=st.integers(0, 200), start=st.floats(0, 1e6))
def test_budget_is_a_share_and_a_floor(requests: int, start: float) -> None:
    budget = RetryBudget(percent=0.2, min_per_second=1.0)
    for _ in range(requests):
        budget.deposit(start)
    assert spend(budget, start) == int(0.2 * requests + 10.0)


def test_budget_without_a_floor_begins_empty() -> None:
    budget = RetryBudget(percent=0.2, min_per_second=0.0)
    assert not budget.withdraw(100.0)


def test_retries_from_in_front_are_spent_of_the_budget() -> None:
    budget = RetryBudget(percent=0.2, min_per_second=1.0)
    for _ in range(50):
        budget.deposit(100.0)
    for _ in range(15):
        budget.spend(100.0)
    assert spend(budget, 100.0) == 5
    budget.spend(100.0)
    assert spend(budget, 100.0) == 0
    assert spend(budget, 110.1) == 10


def test_budget_remembers_ten_seconds() -> None:
    budget = RetryBudget(percent=0.5, min_per_second=0.0)
    for _ in range(10):
        budget.deposit(100.0)
    assert budget.withdraw(109.5)
    assert not budget.withdraw(110.5)


def test_spent_budget_comes_back_after_ten_seconds() -> None:
    budget = RetryBudget(percent=0.0, min_per_second=0.5)
    assert spend(budget, 100.0) == 5
    assert spend(budget, 109.9) == 0
    assert spend(budget, 110.1) == 5


@given(
    steps=st.lists(st.tuples(st.booleans(), st.floats(0, 15)), max_size=100),
    percent=st.floats(0, 1),
    floor=st.floats(0, 5),
)
def test_budget_never_exceeds_what_was_earned(
    steps: list[tuple[bool, float]], percent: float, floor: float
) -> None:
    budget = RetryBudget(percent=percent, min_per_second=floor)
    now = 0.0
    requests: list[float] = []
    retries: list[float] = []
    for is_request, passed in steps:
        now += passed
        if is_request:
            budget.deposit(now)
            requests.append(now)
        elif budget.withdraw(now):
            retries.append(now)
            # Buckets of a second: the window is between 9 and 11 s.
            earned = percent * sum(at > now - 11 for at in requests) + floor * 10
            assert sum(at > now - 9 for at in retries) <= earned + 1e-9


def test_policy_takes_the_configs_budget() -> None:
    policy = RetryPolicy(Config(budget=Budget(percent=0.0, min_per_second=0.1)))
    assert policy.budget.withdraw(0.0)
    assert not policy.budget.withdraw(0.0)


# ----- a budget over a fleet ------------------------------------------------------------------------------------------


def shared_budgets(
    count: int, *, percent: float = 0.2, floor: float = 1.0
) -> tuple[SharedStore, list[SharedRetryBudget]]:
    shared = SharedStore(count)
    budgets = [
        SharedRetryBudget(percent=percent, min_per_second=floor, store=scope, key="retry:r")
        for scope in shared.scopes
    ]
    return shared, budgets


def test_shared_budget_has_tokens_in_hand_before_the_first_retry() -> None:
    shared, (budget,) = shared_budgets(1)
    budget.deposit(shared.time.now)
    shared.deliver()
    assert budget.withdraw(shared.time.now)


def test_shared_budget_lets_one_worker_spend_what_others_have_earned() -> None:
    shared, (busy, failing) = shared_budgets(2, floor=0.0)
    spent = 0
    for _ in range(100):
        busy.deposit(shared.time.now)
        spent += failing.withdraw(shared.time.now)
        shared.advance(0.1)
        shared.deliver()
    assert 10 <= spent <= 20  # of the 20 that were earned the last two seconds' are kept


def test_retries_from_in_front_are_spent_of_what_a_shared_budget_has_earned() -> None:
    shared, (budget,) = shared_budgets(1, floor=0.0)
    for _ in range(10):
        budget.deposit(shared.time.now)
    budget.spend(shared.time.now)
    assert [budget.withdraw(shared.time.now) for _ in range(2)] == [True, False]


def test_shared_budget_without_a_store_is_the_workers_part_of_the_floor() -> None:
    shared, budgets = shared_budgets(4, floor=1.0)
    for scope in shared.scopes:
        scope.go_down()
    spent = sum(budget.withdraw(shared.time.now) for budget in budgets for _ in range(100))
    assert spent == 4 * int(10 * 1.0 / 4)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    percent=st.sampled_from([0.0, 0.1, 0.2, 0.5]),
    floor=st.sampled_from([0.0, 1.0, 10.0]),
    count=st.integers(1, 5),
)
def test_attempts_of_all_are_at_most_what_all_have_earned_and_the_floor_once(
    seed: int, percent: float, floor: float, count: int
) -> None:
    random = Random(seed)
    shared, budgets = shared_budgets(count, percent=percent, floor=floor)
    began = shared.time.now
    requests = retries = 0
    for _ in range(400):
        budget = random.choice(budgets)
        if random.random() < 0.5:
            budget.deposit(shared.time.now)
            requests += 1
        else:
            retries += budget.withdraw(shared.time.now)
        if random.random() < 0.1:
            random.choice(shared.scopes).lose()
        if random.random() < 0.5:
            random.choice(shared.scopes).deliver(1)
        shared.advance(random.choice([0.0, 0.01, 0.3]))
        earned = percent * requests + floor * (10 + shared.time.now - began)
        assert retries <= earned + 1e-6

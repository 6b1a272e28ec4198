"""What a worker holds of one bucket: when it asks, for how much, and how long it may spend what it got."""

from __future__ import annotations

from math import inf

import pytest

from ambassador.state.holding import Holding, Load, OwnShare, terms, window_terms
from ambassador.state.protocol import Lease, Leased

RATE, BURST = 1000.0, 1000


class Bench:
    """A holding whose leases the test answers."""

    def __init__(self, rate: float = RATE, burst: float = BURST) -> None:
        self.now = 100.0
        self.load = Load()
        self.holding = Holding("k", terms(rate, burst), self.now)

    def ask(self, waiting: float = 0.0, fresh: float | None = None, first: float = 1.0) -> Lease | None:
        fresh = waiting if fresh is None else fresh
        return self.holding.ask(self.now, self.load, waiting=waiting, fresh=fresh, first=first)

    def lease(self, waiting: float, granted: int, left: float = 500.0, rtt: float = 0.001) -> Lease:
        lease = self.ask(waiting)
        assert lease is not None
        self.now += rtt
        self.answer(lease, granted, left)
        return lease

    def answer(self, lease: Lease, granted: int, left: float = 500.0, *, window_left_ms: int = 0) -> None:
        leased = Leased(0, granted, left, 0, 1, window=7, window_left_ms=window_left_ms)
        self.holding.answered(leased, lease, self.now, 0.5, self.load)

    def demand(self, rate: float) -> None:
        """Have it asked for so much for a while."""
        for _ in range(100):
            self.now += 0.05
            self.holding.arrive(rate * 0.05)
            self.holding._fold(self.now)
        self.holding.unit = 1.0  # they were many

    def spends(self, cost: float = 1.0) -> bool:
        """The short decision, as policies make it."""
        holding = self.holding
        left = holding.balance - cost
        if left >= holding.reserve and self.now < holding.until:
            holding.balance = left
            return True
        return False


@pytest.mark.parametrize(
    ("rate", "burst", "depth", "life_s", "ahead"),
    [
        (100.0, 100, 80, 0.2, True),
        (10.0, 10, 8, 0.2, True),
        (1.0, 4, 4, 0.05, False),
        (1.0, 10, 8, 2.0, False),
        (1 / 360, 10, 8, 5.0, False),
        (100.0, 1, 1, 0.05, False),
        (1000.0, 50, 40, 0.01, True),
        (100000.0, 5, 4, 0.01, True),
    ],
)
def test_terms_follow_from_the_limit_alone(
    *, rate: float, burst: int, depth: int, life_s: float, ahead: bool
) -> None:
    found = terms(rate, burst)
    assert (found.depth, found.ahead) == (depth, ahead)
    assert found.life_s == pytest.approx(life_s)


def test_nothing_is_held_at_first() -> None:
    bench = Bench()
    assert not bench.spends()
    assert not bench.holding.take(1, bench.now)
    assert bench.ask() is None


def test_cold_key_asks_for_what_waits_and_no_more() -> None:
    bench = Bench()
    lease = bench.ask(3)
    assert lease is not None
    assert (lease.want, lease.least, lease.depth, lease.tells_demand) == (3, 3, 800, True)


def test_one_lease_is_out_at_a_time() -> None:
    bench = Bench()
    assert bench.ask(1) is not None
    assert bench.ask(1) is None


def test_tokens_are_spent_without_a_call() -> None:
    bench = Bench()
    bench.lease(2, granted=2)
    assert bench.spends()
    assert bench.spends()
    assert not bench.spends()
    assert bench.holding.spent == 2


def test_life_counts_from_the_sending() -> None:
    bench = Bench()
    sent = bench.now
    bench.lease(2, granted=2, rtt=0.15)
    bench.now = sent + 0.1999
    assert bench.spends()
    bench.now = sent + 0.2
    assert not bench.spends()
    assert not bench.holding.take(1, bench.now)
    assert (bench.holding.spent, bench.holding.expired) == (1, 1)


def test_answer_after_its_life_brings_nothing() -> None:
    bench = Bench()
    bench.lease(2, granted=2, rtt=0.25)
    assert bench.holding.tokens(bench.now) == 0
    assert bench.holding.expired == 2


def test_oldest_tokens_go_first_and_costs_reach_over_lots() -> None:
    bench = Bench()
    bench.lease(2, granted=2)
    bench.now += 0.1
    bench.lease(5, granted=3)
    assert bench.holding.tokens(bench.now) == 5
    assert bench.holding.take(4, bench.now)
    assert bench.holding.tokens(bench.now) == 1
    bench.now += 0.1  # it has the older one's life
    assert bench.holding.tokens(bench.now) == 0


def test_busy_key_leases_ahead_by_its_demand() -> None:
    bench = Bench()
    bench.demand(200)
    lease = bench.lease(1, granted=10)
    assert lease.demand == pytest.approx(200, rel=0.05)
    assert lease.want == pytest.approx(200 * 0.05, abs=1)
    assert lease.least == 1
    assert bench.spends()
    for _ in range(20):
        if not bench.spends():
            break
    held = bench.holding.balance
    assert held >= 1  # some are left for the time that the next takes
    assert bench.holding.take(1, bench.now)
    assert bench.ask() is not None


def test_slow_key_never_leases_ahead() -> None:
    bench = Bench(10, 10)
    bench.demand(15)
    bench.lease(1, granted=1)
    assert bench.spends()
    assert bench.ask() is None


def test_lease_before_tokens_expire() -> None:
    bench = Bench()
    bench.demand(200)
    bench.lease(1, granted=50)
    bench.now = bench.holding.sent_at + 0.1985
    assert not bench.spends()
    assert bench.holding.take(1, bench.now)
    assert bench.ask() is not None


def test_many_keys_are_leased_less_often() -> None:
    bench = Bench(100, 1000)
    assert bench.holding.span_s(1) == 0.05
    assert bench.holding.span_s(300) == pytest.approx(0.6)
    assert bench.holding.span_s(10_000) == pytest.approx(1.2)


def test_load_counts_keys_of_this_and_the_last_epoch() -> None:
    load = Load()
    for _ in range(3):
        load.count(1)
    load.count(2)
    assert load.keys == 3
    load.count(3)
    assert load.keys == 1
    load.count(7)
    assert load.keys == 1


def test_scarcity_is_not_asked_about_for_a_while() -> None:
    bench = Bench()
    bench.demand(900)
    bench.lease(10, granted=3, left=0.5)
    assert bench.ask(5) is None
    bench.now += 0.049
    assert bench.ask(5) is None
    bench.now += 0.002
    assert bench.ask(5) is not None


def test_short_lived_tokens_are_asked_for_again_before_the_bucket_is_full() -> None:
    bench = Bench(1000.0, 50)  # it holds what comes in 40 ms
    bench.demand(900)
    bench.lease(1, 0, left=0.0)
    bench.now += 0.0045
    assert bench.ask(1) is None
    bench.now += 0.0036  # 0.6 of a token's life, give or take a quarter
    assert bench.ask(1) is not None


@pytest.mark.parametrize(("left", "ahead"), [(20.0, True), (2.0, False)])
def test_last_tokens_of_a_slow_bucket_are_not_leased_ahead(left: float, *, ahead: bool) -> None:
    bench = Bench(rate=1.5, burst=750)  # whose tokens live 100 s
    bench.demand(20.0)
    bench.lease(1.0, 1, left)
    bench.holding.take(1, bench.now)
    assert (bench.ask() is not None) is ahead
    lease = bench.ask(1.0) if not ahead else None
    assert ahead or (lease is not None and lease.want == 1)


def test_lot_lasts_until_the_next_can_be_here() -> None:
    bench = Bench()
    bench.demand(1000.0)
    bench.holding.rtt_s = 0.08
    lease = bench.ask()
    assert lease is not None
    expected = 1000 * (0.02 + 1.4 * 0.08)
    assert lease.want == pytest.approx(expected + 2 * expected**0.5 + 1, abs=2)
    bench = Bench()
    bench.demand(1000.0)
    bench.holding.rtt_s = 0.3  # longer than tokens live
    lease = bench.ask(1)
    assert lease is not None
    assert lease.want == 1


def test_far_store_is_asked_again_before_it_answers() -> None:
    bench = Bench()
    bench.demand(1000.0)
    bench.holding.rtt_s = 0.1
    first = bench.ask()
    assert first is not None
    bench.now += 0.019
    assert bench.ask() is None
    bench.now += 0.002
    bench.holding.arrive(21)
    second = bench.ask(21, fresh=21)
    assert second is not None
    assert second.want == pytest.approx(21, abs=3)
    bench.now += 0.08
    bench.answer(first, first.want)
    assert bench.holding.asking
    assert bench.holding.sent_at == pytest.approx(bench.now - 0.08)
    assert bench.holding.take(first.want, bench.now)
    bench.holding.lost(second, bench.now)
    assert not bench.holding.asking


def test_far_store_is_told_a_debt_once_at_a_time() -> None:
    bench = Bench()
    bench.demand(1000.0)
    bench.holding.rtt_s = 0.1
    bench.holding.debt = 3.0
    first = bench.ask()
    bench.now += 0.021
    bench.holding.debt += 2.0
    bench.holding.arrive(21)
    second = bench.ask(21)
    assert first is not None
    assert second is not None
    assert (first.debt, second.debt) == (3.0, 2.0)
    bench.answer(first, 0, 700)
    assert bench.holding.debt == 2.0


def test_lease_that_was_overtaken_is_spent_first() -> None:
    bench = Bench()
    bench.demand(1000.0)
    bench.holding.rtt_s = 0.1
    first = bench.ask()
    bench.now += 0.05
    for _ in range(50):
        bench.holding.arrive(1)
    second = bench.ask(50)
    assert first is not None
    assert second is not None
    bench.answer(second, 5)
    bench.answer(first, 3)
    assert bench.holding.take(1, bench.now)
    assert bench.holding.tokens(bench.now) == 7
    bench.now += 0.16  # the first one's are gone
    assert bench.holding.tokens(bench.now) == 5
    bench.now += 0.05
    assert bench.holding.tokens(bench.now) == 0


def test_lots_ahead_are_larger_while_tokens_are_scarce() -> None:
    bench = Bench(1000.0, 100)
    bench.demand(275.0)  # 5 within a token's life
    bench.lease(1, 4)
    assert bench.holding.reserve > 0
    bench.now += 0.05
    bench.lease(1, 0, left=0.0)
    bench.now = bench.holding.held_until + 0.1
    bench.lease(1, 1)
    assert bench.holding.reserve == 0  # on demand
    bench.demand(275.0)
    bench.lease(1, 4)
    assert bench.holding.reserve > 0


def test_quiet_client_asks_again_as_soon_as_a_token_can_be_there() -> None:
    bench = Bench()
    bench.demand(10)
    bench.lease(1, 0, left=0.2)
    assert bench.holding.held_until - bench.now == pytest.approx(0.0008)
    assert not bench.holding.in_vain


def test_busy_keys_lease_what_lasts_while_the_bucket_is_ample() -> None:
    bench = Bench()
    for _ in range(60):
        bench.load.count(int(bench.now / 0.5))
    bench.demand(20)
    bench.lease(1, 1, left=790)
    for _ in range(60):
        bench.load.count(int(bench.now / 0.5))
    lease = bench.ask(1)
    assert lease is not None
    assert lease.want == pytest.approx(4 + 3 * 4**0.5, abs=1.5)
    bench.answer(lease, lease.want, 780)
    bench.holding.take(1, bench.now)
    assert bench.ask() is None
    bench.now = lease_until = bench.holding.sent_at + 0.15
    assert not bench.spends()  # in the last part of its life it is renewed
    assert bench.holding.take(1, bench.now)
    assert bench.ask() is not None
    assert lease_until < bench.holding.sent_at + 0.2


def test_busy_keys_lease_no_more_than_comes_in() -> None:
    bench = Bench(100.0, 100)
    bench.holding.sharers = 4
    bench.demand(24)
    bench.lease(1, 1, left=79)
    for _ in range(60):
        bench.load.count(int(bench.now / 0.5))
    bench.holding.sharers = 4
    lease = bench.ask(1)
    assert lease is not None
    assert lease.want <= 24 * 0.12 + 2


def test_tokens_that_expired_on_their_way_are_known() -> None:
    bench = Bench()
    bench.lease(2, granted=2, rtt=0.25)
    assert bench.holding.in_vain
    bench.lease(2, granted=2)
    assert not bench.holding.in_vain


def test_cost_is_asked_for_as_a_whole() -> None:
    bench = Bench(10, 20)
    bench.holding.arrive(12)
    lease = bench.ask(20, first=12)
    assert lease is not None
    assert (lease.want, lease.least, lease.first, lease.lacks) == (16, 16, 12, 12)
    bench.answer(lease, 0, 7.0)
    assert bench.holding.held_until == pytest.approx(bench.now + 0.5)  # when 12 can be there
    bench.now += 0.6
    lease = bench.ask(12, first=12)
    assert lease is not None
    assert lease.lacks == 12  # it still waits
    bench.answer(lease, 12, 1.0)
    assert bench.holding.take(12, bench.now)


def test_only_the_first_that_waits_and_who_was_refused_lack_something() -> None:
    bench = Bench(10, 20)
    bench.holding.arrive(1)
    bench.holding.arrive(12)
    lease = bench.ask(13, first=1)
    assert lease is not None
    assert lease.lacks == 1
    bench.answer(lease, 0, 0.5)
    bench.now += 0.6
    bench.holding.starve(9)
    lease = bench.ask(13, first=1)
    assert lease is not None
    assert lease.lacks == 9
    bench.answer(lease, 0, 0.5)
    bench.now += 0.6
    lease = bench.ask(13, first=1)
    assert lease is not None
    assert lease.lacks == 1  # it was told


def test_what_is_in_hand_is_not_asked_for_again() -> None:
    bench = Bench(10, 20)
    bench.lease(4, 4)
    lease = bench.ask(10, first=10)
    assert lease is not None
    assert (lease.want, lease.first) == (6, 6)


def test_lots_ahead_are_of_whole_costs() -> None:
    bench = Bench()
    for _ in range(60):
        bench.now += 0.05
        for _ in range(3):
            bench.holding.arrive(7)
        bench.holding._fold(bench.now)
    lease = bench.ask(7, first=7)
    assert lease is not None
    assert (lease.want % 7, lease.first) == (0, 7)
    assert lease.want >= 400 * 0.05
    for _ in range(40):
        bench.holding.arrive(1)
    assert bench.holding.unit < 1.1


def test_what_is_held_back_for_others_is_not_asked_about_at_once() -> None:
    bench = Bench(10, 20)
    bench.lease(1, 0, left=6.0)
    assert bench.holding.is_quiet
    assert bench.holding.held_until >= bench.now + 0.03


def test_slow_limits_lease_on_demand_only() -> None:
    bench = Bench(1.0, 1000)
    bench.demand(50.0)
    lease = bench.lease(1, 1)
    assert lease.want == 1
    assert bench.ask() is None
    assert lease.birth == pytest.approx(195)


def test_scarcity_of_slow_rates_lasts_until_a_token_is_there() -> None:
    bench = Bench(2, 10)
    bench.lease(10, granted=3, left=0.5)
    assert bench.holding.held_until - bench.now == pytest.approx(0.25)
    bench = Bench(0.01, 10)
    bench.lease(10, granted=3, left=0.5)
    assert bench.holding.held_until - bench.now == 1.0


def test_part_of_a_full_bucket_is_no_scarcity() -> None:
    bench = Bench()
    bench.demand(200)
    bench.lease(1, granted=4, left=700)
    assert bench.holding.held_until < bench.now


def test_debts_are_told_until_acknowledged() -> None:
    bench = Bench()
    bench.holding.debt = 2.0
    first = bench.ask(1)
    assert first is not None
    assert first.debt == 2.0
    bench.holding.lost(first, bench.now)
    second = bench.ask(1)
    assert second is not None
    assert second.debt == 2.0
    bench.answer(second, 1)
    assert bench.holding.debt == 0.0


def test_debts_are_told_also_while_tokens_are_scarce() -> None:
    bench = Bench()
    bench.lease(10, granted=3, left=0.5)
    bench.holding.debt = 1.0
    lease = bench.ask(5)
    assert lease is not None
    assert (lease.want, lease.least, lease.debt) == (0, 0, 1.0)


def test_late_tokens_pay_for_what_was_admitted_meanwhile() -> None:
    bench = Bench()
    lease = bench.ask(3)
    assert lease is not None
    bench.holding.debt = 2.0
    bench.answer(lease, 3)
    assert (bench.holding.debt, bench.holding.tokens(bench.now)) == (0.0, 1.0)


def test_who_waits_keeps_others_from_the_tokens() -> None:
    bench = Bench()
    bench.lease(2, granted=2)
    bench.holding.block(blocked=True, now=bench.now)
    assert not bench.spends()
    bench.holding.block(blocked=False, now=bench.now)
    assert bench.spends()


def test_demand_counts_what_is_refused() -> None:
    bench = Bench()
    bench.demand(50)
    assert bench.holding.demand == pytest.approx(50, rel=0.01)
    bench.now += 5
    bench.holding._fold(bench.now)
    assert bench.holding.demand < 0.01


def test_retry_after_is_when_tokens_can_be_there() -> None:
    bench = Bench(2, 10)
    assert bench.holding.retry_after_s(1, bench.now) == 0.0
    bench.lease(10, granted=3, left=0.0)
    assert bench.holding.retry_after_s(1, bench.now) == pytest.approx(0.5)
    assert bench.holding.retry_after_s(4, bench.now) == pytest.approx(2.0)
    bench.now += 0.4
    assert bench.holding.retry_after_s(1, bench.now) == pytest.approx(0.1)


def test_lack_shrinks_as_the_bucket_refills() -> None:
    bench = Bench(2, 10)
    assert bench.holding.lack(bench.now) == 0
    bench.lease(3, granted=3, left=1.0)
    assert bench.holding.lack(bench.now) == 7
    bench.now += 2
    assert bench.holding.lack(bench.now) == pytest.approx(3)


def test_window_tokens_live_until_its_end() -> None:
    bench = Bench()
    bench.holding = Holding("k", window_terms(100, 60), bench.now)
    lease = bench.ask(4)
    assert lease is not None
    assert (lease.window_s, lease.depth, bench.holding.terms.life_s) == (60, 100, inf)
    bench.answer(lease, 4, left=96, window_left_ms=10_000)
    bench.now += 9.94
    assert bench.spends()
    bench.now += 0.02
    assert not bench.spends()


def test_window_tokens_are_given_back_once() -> None:
    bench = Bench()
    bench.holding = Holding("k", window_terms(100, 60), bench.now)
    lease = bench.ask(4)
    assert lease is not None
    bench.answer(lease, 4, left=96, window_left_ms=10_000)
    assert bench.spends()
    back = bench.holding.give_back(bench.now)
    assert back is not None
    assert (back.back, back.back_window, back.want) == (3, 7, 0)
    assert bench.holding.give_back(bench.now) is None


def test_tokens_of_a_rate_are_not_given_back() -> None:
    bench = Bench()
    bench.lease(4, granted=4)
    assert bench.holding.give_back(bench.now) is None
    assert bench.holding.tokens(bench.now) == 0


def test_own_share_begins_empty_and_holds_its_burst() -> None:
    share = OwnShare(10, 3, 100.0)
    assert not share.take(1, 100.0)
    assert share.take(1, 100.125)
    assert share.tokens(110.0) == 3
    assert share.lack(110.0) == 0
    assert OwnShare(10, 0.1, 100.0).burst == 1

"""Which tokens a worker spends when the store is there, late, away or unwilling."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from ambassador.state import bucket
from ambassador.state.account import Account, Source
from ambassador.state.holding import Load, terms, window_terms
from ambassador.state.protocol import Answer, Lease, Operation, Refused
from tests.state.backends import Backend, MemoryBackend
from tests.state.fakes import DirectScope

WAIT_S = 0.02


class Clock:
    now = 100.0


class Bench:
    """An account between two stores, each of which answers when the test says so."""

    def __init__(self, limit: Any = None, **options: Any) -> None:
        self.clock = Clock()
        self.refuses = False
        self.born_us = 1
        self.buckets: list[dict[str, bucket.Bucket]] = [{}, {}]
        self.fleet = DirectScope(
            lambda operation, now: self.perform(0, operation, now), replicas=2, workers=4
        )
        self.replica = DirectScope(lambda operation, now: self.perform(1, operation, now), self.fleet.clock)
        settings = {"replica": self.replica, "max_wait_s": WAIT_S, **options}
        self.source = Source(
            limit or terms(100, 100),
            fleet=self.fleet,
            clock=self.clock,
            load=Load(),
            random=lambda: 0.5,
            **settings,
        )
        self.account = Account("k", self.source, self.clock.now)
        self.told: list[Account] = []
        self.listener = Listener(self.told)
        self.source.tell(self.listener.hear)

    def perform(self, store: int, operation: Operation, now_us: int) -> Answer:
        assert isinstance(operation, Lease)
        if self.refuses and store == 0:
            return Refused("out of memory")
        found = self.buckets[store].setdefault(operation.key, bucket.first(operation, now_us, None))
        return found.lease(operation, now_us, self.born_us)

    def pump(self, waiting: float = 1.0) -> None:
        self.account.pump(self.clock.now, waiting=waiting, fresh=waiting)

    def go_on(self, seconds: float) -> None:
        self.clock.now += seconds
        self.fleet.clock.advance(seconds)

    def ready(self, cost: float = 1.0, *, late: bool = False) -> bool:
        return self.account.ready(cost, self.clock.now, late=late)

    def spend(self, cost: float = 1.0) -> None:
        assert self.ready(cost)
        self.account.spend(cost, self.clock.now)

    def spend_late(self, cost: float = 1.0) -> None:
        assert self.ready(cost, late=True)
        self.account.spend(cost, self.clock.now)


class Listener:
    def __init__(self, told: list[Account]) -> None:
        self.told = told

    def hear(self, account: Account) -> None:
        self.told.append(account)


def test_tokens_come_from_the_fleet() -> None:
    bench = Bench()
    assert not bench.ready()
    bench.pump(2)
    bench.fleet.deliver()
    bench.spend(2)
    assert not bench.ready()
    assert bench.told == [bench.account]
    assert bench.replica.asked == []


def test_share_is_asked_when_the_store_is_late() -> None:
    bench = Bench()
    bench.pump()
    bench.go_on(WAIT_S / 2)
    bench.pump()
    bench.replica.deliver()
    assert not bench.ready()
    assert bench.ready(late=True)
    bench.go_on(WAIT_S / 2)
    bench.spend()
    assert bench.account.debt == 1
    (asked,) = bench.replica.asked
    assert isinstance(asked, Lease)
    assert (asked.rate, asked.depth) == (50, 40)
    assert asked.start == pytest.approx(50 * (0.05 + WAIT_S / 2))


def test_late_answer_pays_for_what_the_share_admitted() -> None:
    bench = Bench()
    bench.pump()
    bench.go_on(WAIT_S)
    bench.pump()
    bench.replica.deliver()
    bench.spend()
    bench.fleet.deliver()
    assert (bench.account.debt, bench.account.tokens(bench.clock.now)) == (0, 0)
    assert len(bench.fleet.asked) == 1


def test_share_begins_with_its_part_of_what_was_left() -> None:
    bench = Bench()
    bench.pump(20)
    bench.fleet.deliver()
    bench.spend(20)
    bench.fleet.go_down()
    bench.go_on(0.1)
    bench.pump()
    (asked,) = bench.replica.asked
    assert isinstance(asked, Lease)
    assert asked.start == pytest.approx(60 / 2 + 50 * 0.1)


def test_unheard_of_key_is_not_refused_just_after_the_loss() -> None:
    bench = Bench(terms(10, 10))
    bench.fleet.go_down()
    assert bench.source.down_since(bench.clock.now) == 100.0
    bench.go_on(0.01)
    bench.pump()
    (asked,) = bench.replica.asked
    assert isinstance(asked, Lease)
    assert asked.start == 1.0
    bench.replica.deliver()
    bench.spend()
    assert not bench.ready()


def test_quiet_client_is_not_refused_while_no_store_answers() -> None:
    bench = Bench()
    bench.pump()
    bench.go_on(WAIT_S)
    bench.pump()
    assert bench.ready(late=True)
    bench.account.spend(1.0, bench.clock.now)
    assert bench.account.debt == 1
    assert not bench.ready(late=True)


def test_share_that_was_not_asked_leaves_the_decision_to_the_worker() -> None:
    bench = Bench()
    bench.pump()
    assert not bench.ready()
    assert bench.ready(late=True)
    bench.spend_late()
    assert bench.account.debt == 1


def test_share_that_has_nothing_is_not_passed_over() -> None:
    bench = Bench()
    bench.pump()
    bench.go_on(WAIT_S)
    bench.buckets[1]["k"] = bucket.Bucket(-20.0, bench.fleet.clock.now_us)
    bench.pump()
    bench.replica.deliver()
    assert not bench.ready(late=True)


def test_share_is_asked_at_once_where_the_store_is_slow() -> None:
    bench = Bench()
    bench.account.rtt_s = WAIT_S
    bench.pump()
    assert len(bench.fleet.asked) == len(bench.replica.asked) == 1
    assert not bench.ready()  # the fleet decides as long as it may


def test_pressing_client_gets_nothing_while_no_store_answers() -> None:
    bench = Bench()
    bench.pump(80)
    bench.fleet.deliver()
    bench.spend(80)
    bench.pump()
    bench.go_on(WAIT_S)
    bench.pump()
    assert not bench.ready(late=True)


def test_worker_with_most_of_the_traffic_gets_its_part_of_a_full_bucket_while_no_store_answers() -> None:
    bench = Bench(terms(500, 100))
    for _ in range(100):
        bench.pump()
        bench.fleet.deliver()
        bench.spend()
        bench.account.sharers = 4
        bench.go_on(0.01)
    bench.pump()
    bench.go_on(WAIT_S)
    bench.pump()
    assert not bench.account.is_quiet
    assert bench.ready(late=True)
    bench.account.spend(1.0, bench.clock.now)
    assert bench.account.debt == 1


def test_unheard_of_key_begins_with_what_came_since_the_loss() -> None:
    bench = Bench()
    bench.fleet.go_down()
    assert bench.source.down_since(bench.clock.now) == 100.0
    bench.go_on(0.3)
    bench.pump()
    (asked,) = bench.replica.asked
    assert isinstance(asked, Lease)
    assert asked.start == pytest.approx(50 * 0.3)


def test_fallbacks_hold_no_more_than_their_part_of_what_is_known() -> None:
    bench = Bench()
    bench.pump()
    bench.fleet.deliver()  # at once, as the store usually does
    bench.spend()
    bench.pump()
    bench.go_on(WAIT_S)
    bench.pump()
    assert bench.ready(late=True)
    bench.spend_late()
    bench.replica.deliver()
    bench.fleet.deliver()
    bench.go_on(10.0)
    bench.pump(80)
    bench.fleet.deliver()
    bench.account.take(bench.account.tokens(bench.clock.now), bench.clock.now)
    bench.fleet.go_down()
    bench.go_on(0.1)
    bench.pump()
    asked = bench.replica.asked[-1]
    assert isinstance(asked, Lease)
    assert asked.most == asked.start
    assert asked.most is not None
    assert asked.most <= 50 * 0.1 + 1
    assert not bench.ready(3.5, late=True)  # 100/s over four workers, for 0.1 s


def in_an_outage(bench: Bench, spent: int) -> None:
    """Spend so much of the share while the store is away."""
    bench.pump()
    bench.fleet.deliver()
    bench.spend()
    bench.fleet.go_down()
    for _ in range(spent):
        bench.pump()
        bench.replica.deliver()
        bench.spend()


def test_outage_becomes_a_debt_when_the_store_is_back() -> None:
    bench = Bench()
    in_an_outage(bench, 10)
    assert (bench.account.owed, bench.account.debt) == (10, 0)
    bench.fleet.come_up()
    (asked,) = bench.fleet.asked[1:]
    assert isinstance(asked, Lease)
    assert asked.debt == 10
    bench.fleet.deliver()
    assert (bench.account.debt, bench.account.owed) == (0, 0)


def test_nothing_but_debts_is_told_until_all_are_back() -> None:
    bench = Bench()
    in_an_outage(bench, 3)
    bench.fleet.come_up()
    bench.fleet.deliver()
    bench.pump(5)
    assert bench.account.is_degraded(bench.clock.now)
    assert [lease.want for lease in bench.fleet.asked[1:] if isinstance(lease, Lease)] == [0]
    bench.go_on(0.6)
    bench.pump(5)
    bench.fleet.deliver()
    bench.spend(5)
    assert bench.account.debt == 0


def test_new_key_is_decided_by_the_share_just_after_the_store_is_back() -> None:
    bench = Bench(terms(10, 10))
    bench.fleet.go_down()
    bench.go_on(5.0)
    bench.fleet.come_up()  # it may have lost everything, and have empty buckets
    bench.account = Account("new", bench.source, bench.clock.now)
    bench.pump()
    assert bench.fleet.asked == []
    bench.replica.deliver()
    bench.spend()
    bench.go_on(0.6)
    bench.account = Account("newer", bench.source, bench.clock.now)
    bench.pump()
    assert len(bench.fleet.asked) == 1


def test_store_that_was_not_lost_is_not_settled() -> None:
    """It is there for the first time, and then its events are heard."""
    bench = Bench(terms(5 / 3600, 5))
    source = Source(
        bench.source.terms, fleet=bench.fleet, replica=None, clock=bench.clock, load=Load(), random=lambda: 0.5,
        max_wait_s=WAIT_S,
    )  # fmt: skip
    bench.fleet.come_up()  # it was taken for up all the time
    bench.account = Account("new", source, bench.clock.now)
    bench.pump()
    assert len(bench.fleet.asked) == 1
    bench.fleet.come_up()
    bench.account = Account("newer", source, bench.clock.now)
    bench.pump()
    assert len(bench.fleet.asked) == 2
    bench.fleet.go_down()
    bench.fleet.come_up()
    bench.account = Account("newest", source, bench.clock.now)
    bench.pump()
    assert len(bench.fleet.asked) == 2


def test_tokens_that_expired_on_their_way_leave_the_decision_to_the_fallback() -> None:
    bench = Bench(terms(1000, 50))
    bench.pump()
    bench.go_on(0.1)  # a worker that stood still; tokens live 10 ms
    bench.fleet.deliver()
    assert not bench.ready()
    bench.spend_late()
    assert bench.account.debt == 1
    bench.pump()
    bench.fleet.deliver()
    assert not bench.ready(50, late=True)


def test_debt_is_no_more_than_the_share_lacks() -> None:
    bench = Bench()
    in_an_outage(bench, 30)
    bench.go_on(10.0)
    bench.fleet.come_up()
    bench.fleet.deliver()
    assert len(bench.fleet.asked) == 1
    assert (bench.account.debt, bench.account.owed) == (0, 0)


@pytest.mark.parametrize(("age_s", "debt"), [(0.0, 0.0), (0.3, 0.0), (0.5, 9.0), (10.0, 20.0)])
def test_debt_is_no_more_than_a_bucket_that_began_anew_could_hold(age_s: float, debt: float) -> None:
    """The share has 18.5 of its 40 tokens left. The fleet's bucket gains 100/s, half of it for each of two replicas."""
    bench = Bench()
    in_an_outage(bench, 20)
    assert bench.buckets[1]["k"].tokens == pytest.approx(18.5)
    bench.fleet.born_at = bench.clock.now - age_s
    bench.fleet.come_up()
    told = sum(lease.debt for lease in bench.fleet.asked if isinstance(lease, Lease))
    assert told == pytest.approx(debt)


def test_late_store_that_is_lost_is_owed_what_the_share_has_paid_for() -> None:
    bench = Bench()
    bench.pump()
    bench.fleet.deliver()
    bench.spend()
    bench.pump(50)
    bench.go_on(WAIT_S)
    bench.pump(50)
    bench.replica.deliver()
    for _ in range(5):
        bench.spend_late()
    assert (bench.account.debt, bench.account.owed) == (5, 0)
    bench.fleet.go_down()
    bench.fleet.deliver()
    assert (bench.account.debt, bench.account.owed) == (0, 5)
    bench.go_on(10.0)
    bench.fleet.come_up()
    bench.fleet.deliver()
    assert (bench.account.debt, bench.account.owed) == (0, 0)


def far_bench() -> Bench:
    """A store of 90 ms, and a worker that is asked for 150 requests a second; its tokens live 200 ms."""
    bench = Bench(terms(1000, 1000))
    for _ in range(60):
        bench.pump(1)
        bench.go_on(0.09)
        bench.fleet.deliver()
        bench.replica.deliver()
        for _ in range(14):
            if not bench.account.take(1.0, bench.clock.now):
                bench.account.arrive(1.0)
    return bench


def dried_up(bench: Bench) -> int:
    """Nothing is in hand, and the next tokens are on their way for a while; how often the share was asked before."""
    bench.account.take(bench.account.tokens(bench.clock.now), bench.clock.now)
    bench.account.pump(bench.clock.now, waiting=1, fresh=1)
    assert bench.account.asking
    bench.go_on(0.03)
    return len(bench.replica.asked)


def test_share_bridges_the_time_until_a_far_store_answers() -> None:
    bench = far_bench()
    asked = dried_up(bench)
    bench.account.pump(bench.clock.now)
    (lease,) = bench.replica.asked[asked:]
    assert isinstance(lease, Lease)
    assert 5 <= lease.want <= 10
    assert lease.least == 0
    bench.replica.deliver()
    for _ in range(5):
        bench.spend()
    assert bench.account.debt == 5


def test_share_bridges_nothing_where_tokens_are_scarce() -> None:
    bench = far_bench()
    asked = dried_up(bench)
    bench.account.held_until = bench.clock.now
    bench.account.pump(bench.clock.now)
    assert bench.replica.asked[asked:] == []


def test_share_goes_by_what_was_left_before_the_loss_while_others_pay() -> None:
    bench = Bench()
    in_an_outage(bench, 3)
    bench.go_on(1.0)
    bench.fleet.come_up()
    bench.buckets[0]["k"].tokens = -80.0
    bench.fleet.deliver()
    bench.pump(5)
    asked = bench.replica.asked[-1]
    assert isinstance(asked, Lease)
    assert asked.most is not None
    assert asked.most > 40


@pytest.mark.parametrize("away_s", [1.0, 5.0])
def test_store_that_comes_back_empty_gives_the_rate_at_once(backend: Backend, away_s: float) -> None:
    """A worker alone that presses all the time; the share of the fleet's limit is all of it."""
    if not backend.steps_freely:
        pytest.skip("takes seconds")
    shares = MemoryBackend()
    clock = Clock()
    scopes = [
        DirectScope(lambda operation, _, store=store: store.perform([operation])[0])  # type: ignore[misc]
        for store in (backend, shares)
    ]
    fleet, replica = scopes
    source = Source(
        terms(100, 100), fleet=fleet, replica=replica, clock=clock, load=Load(), random=lambda: 0.5, max_wait_s=WAIT_S,
    )  # fmt: skip
    account = Account("k", source, clock.now)

    def press(seconds: float) -> int:
        """Ask for 200/s, and count what is admitted."""
        admitted = 0
        for _ in range(round(seconds * 200)):
            clock.now += 0.005
            backend.advance(0.005)
            shares.advance(0.005)
            if not account.ready(1.0, clock.now, late=True):
                account.arrive(1.0)
                account.pump(clock.now, waiting=1.0, fresh=1.0, late=True)
                fleet.deliver()
                replica.deliver()
            if account.ready(1.0, clock.now, late=True):
                account.spend(1.0, clock.now)
                admitted += 1
            account.pump(clock.now)
        return admitted

    press(2.0)
    fleet.go_down()
    spent = press(away_s)
    assert spent == pytest.approx(100 * away_s, rel=0.1, abs=10)
    backend.wipe()
    fleet.born_at = clock.now
    fleet.come_up()
    admitted = [press(0.5) for _ in range(4)]
    assert min(admitted) >= 35
    assert 180 <= sum(admitted) <= 200 + 5


@pytest.mark.parametrize(("on_loss", "admits"), [("open", True), ("closed", False)])
def test_on_loss_decides_at_once(*, on_loss: str, admits: bool) -> None:
    bench = Bench(on_loss=on_loss)
    bench.fleet.go_down()
    bench.pump()
    assert bench.ready() is admits
    assert bench.replica.asked == []
    if admits:
        bench.spend()
        assert (bench.account.owed, bench.account.debt) == (0, 0)
    else:
        assert bench.account.none_before(bench.clock.now) > bench.clock.now + 0.9


def test_own_share_is_the_last_resort() -> None:
    bench = Bench(replica=None)
    bench.fleet.go_down()
    bench.spend()
    assert not bench.ready()
    bench.go_on(0.1)
    assert bench.ready(2)  # 100/s over four workers
    bench.spend(2)
    assert bench.account.owed == 3
    assert not bench.ready()


def test_store_that_refuses_is_left_alone_for_a_while() -> None:
    bench = Bench()
    bench.refuses = True
    bench.pump()
    bench.fleet.deliver()
    assert bench.account.is_degraded(bench.clock.now)
    bench.pump()
    bench.replica.deliver()
    bench.spend()
    assert len(bench.fleet.asked) == 1
    bench.go_on(1.0)
    bench.pump()
    assert len(bench.fleet.asked) == 2


def test_credit_is_not_given_twice() -> None:
    bench = Bench(credit=2.0)
    bench.spend(2)
    assert not bench.ready()
    bench.account.pump(bench.clock.now)
    bench.fleet.deliver()
    assert bench.ready(2)


def test_credit_is_not_given_while_the_bucket_is_overdrawn() -> None:
    bench = Bench(credit=1.0)
    bench.spend()
    bench.account.pump(bench.clock.now)
    bench.buckets[0]["k"] = bucket.Bucket(-5.0, bench.fleet.clock.now_us)
    bench.fleet.deliver()
    assert not bench.ready()
    bench.go_on(0.1)
    assert bench.ready()


def wiped(bench: Bench) -> None:
    """The store loses its data, and goes on."""
    bench.buckets[0]["k"] = bucket.Bucket(0.0, bench.fleet.clock.now_us)
    bench.born_us = bench.fleet.clock.now_us


def asked_after_a_wipe(bench: Bench) -> None:
    bench.pump()
    bench.fleet.deliver()


def test_wiped_bucket_is_forgiven_this_workers_part_of_what_it_was_known_to_hold() -> None:
    bench = Bench(terms(1, 20))
    bench.pump()
    bench.fleet.deliver()
    bench.spend()
    wiped(bench)
    asked_after_a_wipe(bench)
    spent = 0
    while bench.ready():
        bench.spend()
        spent += 1
    assert spent == 15 // 4
    assert bench.account.debt == spent


def test_wiped_bucket_that_has_enough_is_asked_as_ever() -> None:
    bench = Bench(terms(1, 20))
    bench.pump()
    bench.fleet.deliver()
    bench.spend()
    wiped(bench)
    bench.go_on(6.0)
    asked_after_a_wipe(bench)
    bench.spend()
    assert not bench.ready()
    assert bench.account.debt == 0


def test_pressed_bucket_that_is_wiped_is_forgiven_nothing() -> None:
    bench = Bench(terms(1, 20))
    bench.pump(15)
    bench.fleet.deliver()
    bench.spend(15)
    wiped(bench)
    asked_after_a_wipe(bench)
    assert not bench.ready()


def test_store_that_is_back_has_no_more_than_was_left_and_came_since() -> None:
    bench = Bench()
    bench.pump(20)
    bench.fleet.deliver()
    bench.spend(20)
    bench.buckets[0]["k"].tokens = 80.0  # another master, which has heard of nothing
    bench.fleet.go_down()
    bench.fleet.come_up()
    bench.go_on(0.1)
    bench.pump()
    asked = bench.fleet.asked[-1]
    assert isinstance(asked, Lease)
    assert asked.most == pytest.approx(60 + 100 * (0.1 + bench.account.rtt_s))
    bench.fleet.deliver()
    assert bench.buckets[0]["k"].tokens < 71
    bench.spend(bench.account.tokens(bench.clock.now))
    bench.go_on(1.0)
    bench.pump()
    later = bench.fleet.asked[-1]
    assert isinstance(later, Lease)
    assert later is not asked
    assert later.most is None


def test_lower_terms_hold_for_what_is_leased_from_then_on() -> None:
    bench = Bench()
    bench.pump(20)
    bench.fleet.deliver()
    lower = terms(50, 40)
    bench.source.obey(lower)
    bench.account.obey(lower)
    assert bench.account.left == lower.depth
    bench.spend(20)
    bench.pump()
    (_, asked) = bench.fleet.asked
    assert isinstance(asked, Lease)
    assert (asked.rate, asked.depth) == (50, lower.depth)
    bench.go_on(WAIT_S)
    bench.pump()
    (share,) = bench.replica.asked
    assert isinstance(share, Lease)
    assert (share.rate, share.depth) == (25, 16)


def test_what_was_used_of_a_quota_counts_by_other_terms_too() -> None:
    bench = Bench(window_terms(1000, 86400))
    bench.pump(30)
    bench.fleet.deliver()
    for quota in (100, 1000):
        bench.source.obey(window_terms(quota, 86400))
        bench.account.obey(window_terms(quota, 86400))
        bench.account.look_again(bench.clock.now)
        bench.fleet.deliver()
        assert bench.account.debt == 0
        assert bench.account.left == quota - 30


def test_lost_quota_is_told_again_by_those_who_used_it() -> None:
    bench = Bench(window_terms(1000, 86400))
    bench.pump(30)
    bench.fleet.deliver()
    for _ in range(30):
        bench.spend()
    bench.buckets[0].clear()
    bench.pump(1)
    bench.fleet.deliver()
    assert bench.account.used >= 31
    assert bench.buckets[0]["k"].tokens == -bench.account.used


def test_quota_that_others_gave_back_is_not_taken_for_lost() -> None:
    bench = Bench(window_terms(1000, 86400))
    bench.pump(30)
    bench.fleet.deliver()
    bench.buckets[0]["k"].tokens -= 500
    bench.pump(35)
    bench.fleet.deliver()
    bench.buckets[0]["k"].tokens += 500
    bench.pump(40)
    bench.fleet.deliver()
    assert bench.account.debt == 0
    assert bench.buckets[0]["k"].tokens == -40


def test_lost_quota_is_told_again_though_others_told_theirs_before() -> None:
    bench = Bench(window_terms(1000, 86400))
    bench.pump(30)
    bench.fleet.deliver()
    bench.spend(30)
    bench.buckets[0]["k"].tokens = -200.0
    bench.born_us = 2
    bench.pump(10)
    bench.fleet.deliver()
    assert bench.buckets[0]["k"].tokens == -200 - bench.account.used
    used = bench.account.used
    bench.pump(10)
    bench.fleet.deliver()
    assert bench.buckets[0]["k"].tokens == -200 - bench.account.used
    assert bench.account.used <= used + 10


def test_lost_quota_is_told_again_by_a_worker_that_nobody_asks() -> None:
    bench = Bench(window_terms(1000, 86400))
    bench.pump(30)
    bench.fleet.deliver()
    bench.spend(30)
    bench.buckets[0].clear()
    bench.born_us = 2
    bench.fleet.come_up()
    bench.fleet.deliver()
    assert bench.account.debt == 0
    assert bench.account.used >= 30
    assert bench.buckets[0]["k"].tokens == -bench.account.used


def test_spent_quota_that_the_store_forgot_admits_nobody_who_only_heard_of_it() -> None:
    bench = Bench(window_terms(40, 86400))
    bench.pump()
    bench.buckets[0]["k"] = bucket.Bucket(-40.0, 0, bench.fleet.clock.now_us // 86_400_000_000)
    bench.fleet.deliver()
    assert not bench.ready()
    assert bench.account.used == 0
    bench.buckets[0].clear()
    bench.born_us = 2
    bench.go_on(1.1)
    bench.pump()
    lease = bench.fleet.pending[0]
    assert isinstance(lease, Lease)
    assert not lease.knows  # of anything that is left
    bench.fleet.deliver()
    assert not bench.ready()
    assert bench.account.debt == 0


def test_who_knows_that_a_quota_is_not_spent_says_so() -> None:
    bench = Bench(window_terms(40, 86400))
    bench.pump()
    bench.fleet.deliver()
    bench.pump(9)
    first, second = bench.fleet.asked
    assert isinstance(first, Lease)
    assert isinstance(second, Lease)
    assert (first.knows, second.knows) == (False, True)


def test_expired_tokens_are_told() -> None:
    told: list[float] = []
    bench = Bench(expired=told.append)
    bench.pump(3)
    bench.fleet.deliver()
    bench.go_on(1.0)
    bench.pump(1)
    bench.fleet.deliver()
    assert told == [3.0]


def test_scope_does_not_keep_an_old_generation() -> None:
    bench = Bench()
    source = weakref.ref(bench.source)
    del bench.account, bench.source, bench.listener
    gc.collect()
    assert source() is None
    bench.fleet.come_up()


@pytest.mark.parametrize("away", [False, True], ids=["late", "away"])
def test_window_that_was_heard_to_be_used_up_has_no_fallback_before_its_end(away: bool) -> None:
    """Nothing can come: whatever the store will say, it is no."""
    bench = Bench(window_terms(10, 60))
    bench.fleet.clock.now_us -= bench.fleet.clock.now_us % 60_000_000
    others = Lease("k", 0.0, 10.0, 10, window_s=60)
    bench.fleet.ask(others)
    bench.pump()
    bench.fleet.deliver()
    assert (bench.account.left, bench.ready()) == (0.0, False)
    bench.go_on(1.1)
    bench.pump()
    if away:
        bench.fleet.go_down()
    bench.go_on(WAIT_S)
    bench.pump()
    bench.replica.deliver()
    assert not bench.ready(late=True)
    assert bench.account.none_before(bench.clock.now) == bench.account.window_ends > bench.clock.now + 1.0
    bench.go_on(60.0)
    assert bench.ready(late=True)


def test_share_of_a_window_whose_store_is_late_is_rounded_down() -> None:
    """Two replicas that know of one token would else spend two."""
    bench = Bench(window_terms(10, 60))
    bench.fleet.ask(Lease("k", 0.0, 10.0, 9, window_s=60))
    bench.account.pump(bench.clock.now)
    bench.account.look_again(bench.clock.now)
    bench.fleet.deliver()
    assert bench.account.left == 1.0
    bench.pump(2)
    bench.go_on(WAIT_S)
    bench.pump(2)
    bench.replica.deliver()
    assert not bench.ready(late=True)

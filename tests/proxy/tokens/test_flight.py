"""One token as workers have it: a few of them around a store, a token service and an upstream, in any order."""

from __future__ import annotations

from collections import deque
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ambassador.proxy.tokens.answer import FAILED, Failure, Granted
from ambassador.proxy.tokens.flight import (
    LOCK_S,
    MOST_RENEWAL_PAUSE_S,
    POLL_S,
    TRUST,
    Ask,
    Down,
    Fetch,
    Flight,
    Phase,
    Record,
    Refusal,
    Seen,
)
from ambassador.proxy.tokens.life import Held

BUSY = Failure(FAILED, "answered 500")


class Store:
    """The rules of `protocol.Token`, in seconds."""

    def __init__(self) -> None:
        self.up = True
        self.version = 0
        self.value: Record | Refusal | None = None
        self.ends = 0.0
        self.holder = ""
        self.locked_until = 0.0

    def do(self, who: str, ask: Ask, now: float) -> Seen | None:
        if not self.up:
            return None
        if self.ends <= now:
            self.version, self.value, self.ends = 0, None, 0.0
        if self.locked_until <= now:
            self.holder = ""
        done = False
        if ask.action == "read":
            done = self.version > 0
        elif ask.action == "lock" and self.holder in ("", who):
            self.holder, self.locked_until, done = who, now + LOCK_S, True
        elif ask.action == "unlock" and self.holder == who:
            self.holder, done = "", True
        elif ask.action == "store" and self.holder == who and self.version == ask.version:
            self.version, self.value, self.ends = ask.version + 1, ask.value, now + ask.ttl_s
            self.holder, done = "", True
        return Seen(self.version, self.value, self.ends - now, done)


class Worker:
    """A flight and what it waits for."""

    def __init__(self, name: str, stores: list[Store]) -> None:
        self.name = name
        self.stores = stores
        self.flight = Flight(len(stores), proactive=True)
        self.asked: deque[Ask] = deque()
        self.fetching = False
        self.fetches = 0

    def collect(self) -> None:
        todo, self.flight.todo = self.flight.todo, []
        for each in todo:
            if isinstance(each, Fetch):
                assert not self.fetching
                self.fetching = True
                self.fetches += 1
            else:
                self.asked.append(each)

    def step(self, now: float) -> Ask | None:
        """The next answer of a store."""
        ask = self.asked.popleft()
        seen = self.stores[ask.place].do(self.name, ask, now)
        self.flight.told(ask.turn, seen, now, 0.5)
        self.collect()
        return ask if seen is not None and seen.done else None

    def settle(self, now: float) -> None:
        """Until nothing is asked of stores any more."""
        while self.asked:
            self.step(now)

    def want(self, now: float) -> Held | Down | None:
        found = self.flight.want(now)
        self.collect()
        return found

    def ask(self, now: float) -> None:
        """Want a token, and have the stores answer."""
        self.want(now)
        self.settle(now)

    def obtain(self, text: str, life_s: float, now: float) -> None:
        """Ask, and have the token service grant one at once."""
        self.ask(now)
        self.grant(text, life_s, now)
        self.settle(now)

    def refused(self, began: float, now: float) -> bool:
        again = self.flight.refused(began, now)
        self.collect()
        return again

    def grant(self, text: str, life_s: float, now: float) -> None:
        assert self.fetching
        self.fetching = False
        self.flight.fetched(Granted(text, life_s), now, 0.5)
        self.collect()

    def fail(self, now: float, failure: Failure = BUSY) -> None:
        assert self.fetching
        self.fetching = False
        self.flight.fetched(failure, now, 0.5)
        self.collect()

    def ring(self, now: float) -> None:
        self.flight.rang(now)
        self.collect()


def alone(*, places: int = 1) -> tuple[Worker, list[Store]]:
    stores = [Store() for _ in range(places)]
    return Worker("a", stores), stores


def two() -> tuple[Worker, Worker, Store]:
    store = Store()
    return Worker("a", [store]), Worker("b", [store]), store


def text(found: Held | Down | None) -> str:
    assert isinstance(found, Held)
    return found.text


# ----- a token ------------------------------------------------------------------------------------------------------


def test_token_is_fetched_once_for_whoever_wants_it() -> None:
    worker, _ = alone()
    assert worker.want(0.0) is None
    assert worker.want(0.0) is None
    worker.settle(0.0)
    assert worker.want(0.0) is None
    news = worker.flight.news
    worker.grant("t", 100.0, 1.0)
    assert worker.flight.news > news
    assert text(worker.want(1.0)) == "t"
    worker.settle(1.0)
    assert worker.fetches == 1


def test_token_is_used_before_it_is_stored() -> None:
    worker, _ = alone()
    worker.ask(0.0)
    worker.grant("t", 100.0, 1.0)
    assert worker.flight.phase is Phase.STORING
    assert text(worker.want(1.0)) == "t"


def test_token_is_refreshed_when_due_and_used_meanwhile() -> None:
    worker, _ = alone()
    worker.obtain("old", 1000.0, 0.0)
    assert text(worker.want(799.0)) == "old"
    assert worker.flight.phase is Phase.REST
    assert text(worker.want(801.0)) == "old"
    worker.settle(801.0)
    assert text(worker.want(802.0)) == "old"
    worker.grant("new", 1000.0, 803.0)
    assert text(worker.want(803.0)) == "new"
    assert worker.fetches == 2


def test_token_that_is_used_is_refreshed_by_the_clock_alone_and_one_that_is_not_is_left() -> None:
    worker, _ = alone()
    worker.obtain("t", 1000.0, 0.0)
    assert worker.flight.ring_at == inf
    worker.want(1.0)
    assert worker.flight.ring_at == 800.0
    worker.ring(800.0)
    worker.settle(800.0)
    worker.grant("u", 1000.0, 800.0)
    worker.settle(800.0)
    assert worker.flight.ring_at == inf


def test_token_is_never_given_out_in_the_margin_before_its_end() -> None:
    worker, stores = alone()
    worker.obtain("t", 100.0, 0.0)
    stores[0].up = False
    assert text(worker.want(89.9)) == "t"
    assert worker.want(90.0) is None


def test_life_counts_from_when_the_token_was_asked_for() -> None:
    worker, _ = alone()
    worker.ask(0.0)
    worker.grant("t", 100.0, 8.0)
    assert worker.flight.token is not None
    assert worker.flight.token.expires_at == 100.0


# ----- shared -------------------------------------------------------------------------------------------------------


def test_second_worker_waits_for_the_first_and_takes_its_token() -> None:
    first, second, _ = two()
    first.ask(0.0)
    second.ask(0.0)
    assert second.flight.phase is Phase.WAITING
    first.grant("t", 100.0, 0.05)
    first.settle(0.05)
    assert second.flight.ring_at == POLL_S
    second.ring(POLL_S)
    second.settle(POLL_S)
    assert text(second.want(POLL_S)) == "t"
    assert second.fetches == 0


def test_second_worker_looks_as_soon_as_it_hears_of_the_token() -> None:
    first, second, store = two()
    first.ask(0.0)
    second.ask(0.0)
    first.grant("t", 100.0, 0.01)
    first.settle(0.01)
    second.flight.heard(store.version, 0.01)
    second.collect()
    second.settle(0.01)
    assert text(second.want(0.01)) == "t"
    assert store.holder == "", "the lock that came with the look is given back"


def test_worker_that_hears_of_a_newer_token_takes_it() -> None:
    first, second, store = two()
    for worker in (first, second):
        worker.ask(0.0)
        if worker.fetching:
            worker.grant("old", 1000.0, 0.0)
            worker.settle(0.0)
    second.ring(POLL_S)
    second.settle(POLL_S)
    first.obtain("new", 1000.0, 801.0)
    second.flight.heard(store.version, 801.0)
    second.collect()
    second.settle(801.0)
    assert text(second.want(801.0)) == "new"
    assert second.fetches == 0


def test_lock_is_renewed_while_the_token_service_is_slow() -> None:
    first, second, _ = two()
    first.ask(0.0)
    now = 0.0
    for _ in range(9):
        now = first.flight.ring_at
        first.ring(now)
        first.settle(now)
    second.ask(now)
    assert now > 2 * LOCK_S
    assert not second.fetching


def test_lock_of_a_worker_that_died_is_free_before_those_who_wait_give_up() -> None:
    first, second, _ = two()
    first.ask(0.0)
    second.ask(0.0)
    while not second.fetching:
        now = second.flight.ring_at
        assert now < 5.0
        second.ring(now)
        second.settle(now)


def test_second_store_is_asked_when_the_first_is_away_and_nobody_when_both_are() -> None:
    worker, stores = alone(places=2)
    stores[0].up = False
    worker.obtain("t", 100.0, 0.0)
    assert (stores[0].value, stores[1].value) == (None, Record("t", 100.0))
    lonely, stores = alone(places=2)
    stores[0].up = stores[1].up = False
    lonely.ask(0.0)
    lonely.grant("t", 100.0, 0.0)
    assert lonely.flight.phase is Phase.REST
    assert text(lonely.want(0.0)) == "t"


def test_store_that_is_lost_between_lock_and_token_costs_nothing() -> None:
    worker, stores = alone()
    worker.ask(0.0)
    stores[0].up = False
    worker.ring(1.0)
    worker.settle(1.0)
    worker.grant("t", 100.0, 1.5)
    worker.settle(1.5)
    assert worker.flight.phase is Phase.REST
    assert text(worker.want(1.5)) == "t"


def test_token_of_another_is_taken_where_the_lock_was_lost_meanwhile() -> None:
    first, second, store = two()
    first.ask(0.0)
    second.ask(LOCK_S + 1)
    second.grant("second", 100.0, LOCK_S + 2)
    second.settle(LOCK_S + 2)
    first.grant("first", 100.0, LOCK_S + 3)
    first.settle(LOCK_S + 3)
    assert store.value == Record("second", 100.0)
    assert text(first.want(LOCK_S + 3)) == "second"


# ----- refused by the upstream --------------------------------------------------------------------------------------


def test_refused_token_is_replaced_once_for_all_who_saw_it() -> None:
    first, second, _ = two()
    for worker in (first, second):
        worker.ask(0.0)
        if worker.fetching:
            worker.grant("old", 1000.0, 0.0)
            worker.settle(0.0)
    second.ring(POLL_S)
    second.settle(POLL_S)
    for worker in (first, second):
        assert worker.refused(50.0, 50.1)
        assert worker.refused(50.0, 50.1)
        assert worker.want(50.1) is None
        worker.settle(50.1)
    assert (first.fetching, second.fetching) == (True, False)
    first.grant("new", 1000.0, 50.2)
    first.settle(50.2)
    second.ring(second.flight.ring_at)
    second.settle(50.3)
    assert (text(first.want(50.3)), text(second.want(50.3))) == ("new", "new")
    assert first.refused(50.0, 50.3), "an attempt that began with the old token is worth another"
    assert text(first.want(50.3)) == "new"
    assert first.fetches + second.fetches == 2


def test_token_that_is_refused_as_soon_as_it_came_is_replaced() -> None:
    first, second, _ = two()
    first.obtain("revoked", 1000.0, 0.0)
    assert second.want(5.0) is None
    second.settle(5.0)
    assert text(second.want(5.0)) == "revoked"
    assert second.refused(5.0, 5.1), "who waited for it began when it came"
    second.settle(5.1)
    assert second.fetching


def test_upstream_that_refuses_every_token_does_not_have_one_made_for_each_request() -> None:
    worker, _ = alone()
    now, made = 0.0, 0
    while now < 120.0:
        if worker.want(now) is None:
            worker.settle(now)
            made += 1
            worker.grant(f"t{made}", 1000.0, now)
            worker.settle(now)
        now += 0.5
        worker.refused(now, now + 0.1)
    assert made <= 9
    assert worker.flight.token is not None


def test_upstream_that_accepted_the_next_token_may_refuse_it_at_once() -> None:
    worker, _ = alone()
    now = 10.0
    for number in range(5):
        if worker.want(now) is None:
            worker.settle(now)
            worker.grant(f"t{number}", 1000.0, now)
            worker.settle(now)
        now += 0.1
        assert worker.refused(now, now)
        assert worker.want(now) is None
        worker.settle(now)
        worker.grant(f"u{number}", 1000.0, now)
        worker.settle(now)
        worker.flight.accepted()


def test_upstream_that_was_calm_for_long_may_refuse_at_once_again() -> None:
    worker, _ = alone()
    for number, now in enumerate((10.0, 10.0 + 3 * MOST_RENEWAL_PAUSE_S)):
        worker.ask(now)
        if worker.fetching:
            worker.grant(f"t{number}", 1000.0, now)
            worker.settle(now)
        assert worker.refused(now + 1, now + 1)
        assert worker.flight.token is None
        worker.settle(now + 1)
        worker.grant(f"u{number}", 1000.0, now + 1)
        worker.settle(now + 1)


def test_refused_token_that_the_service_gives_again_is_used() -> None:
    worker, _ = alone()
    worker.obtain("same", 1000.0, 0.0)
    assert worker.refused(5.0, 5.0)
    worker.settle(5.0)
    worker.grant("same", 1000.0, 5.0)
    assert text(worker.want(5.0)) == "same"
    assert not worker.refused(5.5, 5.5)


# ----- failures -----------------------------------------------------------------------------------------------------


def test_failure_is_told_at_once_until_the_pause_is_over() -> None:
    worker, _ = alone()
    worker.ask(0.0)
    worker.fail(1.0)
    worker.settle(1.0)
    down = worker.want(1.5)
    assert isinstance(down, Down)
    assert (down.failure, down.until) == (BUSY, 1.875)
    assert worker.want(1.9) is None
    worker.settle(1.9)
    assert worker.fetches == 2


def test_failure_is_shared_where_there_is_no_token() -> None:
    first, second, _ = two()
    first.ask(0.0)
    second.ask(0.0)
    first.fail(0.05)
    first.settle(0.05)
    second.ring(POLL_S)
    second.settle(POLL_S)
    assert isinstance(second.want(POLL_S), Down)
    assert second.fetches == 0


def test_failure_of_one_replica_is_not_told_to_the_others() -> None:
    fleet = Store()
    first, second = Worker("a", [fleet, Store()]), Worker("b", [fleet, Store()])
    first.ask(0.0)
    second.ask(0.0)
    first.fail(0.05)
    first.settle(0.05)
    assert fleet.value is None
    second.ring(POLL_S)
    second.settle(POLL_S)
    second.grant("t", 100.0, POLL_S)
    assert text(second.want(POLL_S)) == "t"


def test_token_that_is_good_is_used_to_its_end_while_the_service_fails() -> None:
    worker, stores = alone()
    worker.obtain("t", 1000.0, 0.0)
    now = 800.0
    while now < 989.0:
        assert text(worker.want(now)) == "t"
        worker.settle(now)
        if worker.fetching:
            worker.fail(now)
            worker.settle(now)
        assert stores[0].value == Record("t", 1000.0)
        now += 0.5
    assert worker.fetches <= 14
    assert isinstance(worker.want(990.0), Down)


def test_after_three_failures_only_one_request_tries_again() -> None:
    worker, _ = alone()
    now = 0.0
    for _ in range(TRUST):
        assert worker.want(now) is None
        worker.settle(now)
        worker.fail(now)
        worker.settle(now)
        assert worker.flight.down is not None
        now = worker.flight.down.until
    assert worker.want(now) is None
    assert isinstance(worker.want(now), Down)
    worker.settle(now)
    worker.grant("t", 100.0, now)
    assert text(worker.want(now)) == "t"
    assert worker.flight.failures == 0


def test_refused_token_is_not_sent_when_no_other_can_be_had() -> None:
    worker, _ = alone()
    worker.obtain("t", 1000.0, 0.0)
    assert worker.refused(5.0, 5.0)
    worker.settle(5.0)
    worker.fail(5.0)
    worker.settle(5.0)
    assert isinstance(worker.want(5.0), Down)
    assert not worker.refused(4.0, 5.1)


# ----- in any order -------------------------------------------------------------------------------------------------


class Workers(RuleBasedStateMachine):
    """Three workers, a store of their own that can be away, and one that is always there behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.stores = [Store(), Store()]
        self.workers = [Worker(name, self.stores) for name in "abc"]
        self.made = 0
        self.lives: dict[str, float] = {}
        self.revoked: set[str] = set()
        self.was_away = False

    indices = st.integers(0, 2)

    @rule(which=indices)
    def want(self, which: int) -> None:
        found = self.workers[which].want(self.now)
        if isinstance(found, Held):
            assert self.now < self.lives[found.text], "an expired token was given out"
        elif isinstance(found, Down):
            assert found.failures >= TRUST or self.now < found.until

    @rule(which=indices)
    def answer(self, which: int) -> None:
        worker = self.workers[which]
        if worker.asked:
            stored = worker.step(self.now)
            if stored is not None and stored.action == "store":
                for other in self.workers:
                    other.flight.heard(stored.version + 1, self.now)
                    other.collect()

    @rule(which=indices, life_s=st.sampled_from([1.0, 30.0, 300.0]), again=st.booleans())
    def grant(self, which: int, life_s: float, again: bool) -> None:
        worker = self.workers[which]
        if worker.fetching:
            if not again:
                self.made += 1
            name = f"t{self.made}"
            self.lives[name] = max(self.lives.get(name, 0.0), self.now + life_s)
            worker.grant(name, life_s, self.now)

    @rule(which=indices)
    def fail(self, which: int) -> None:
        if self.workers[which].fetching:
            self.workers[which].fail(self.now)

    @rule(which=indices, ago=st.floats(0, 5))
    def refuse(self, which: int, ago: float) -> None:
        worker = self.workers[which]
        before = worker.flight.token
        worker.refused(self.now - ago, self.now)
        if before is not None and worker.flight.token is None:
            self.revoked.add(before.text)

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 5.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for worker in self.workers:
            worker.ring(self.now)

    @rule()
    def lose_or_find_the_store(self) -> None:
        self.stores[0].up = not self.stores[0].up
        self.was_away = True

    @rule(which=indices)
    def die(self, which: int) -> None:
        """The worker is replaced; what it asked is not done."""
        self.workers[which] = Worker(f"{self.workers[which].name}'", self.stores)

    @invariant()
    def phases_have_what_they_wait_for(self) -> None:
        for worker in self.workers:
            phase = worker.flight.phase
            assert worker.fetching == (phase is Phase.FETCHING)
            if phase in (Phase.READING, Phase.LOCKING, Phase.STORING):
                assert any(ask.turn for ask in worker.asked), "nothing would end this phase"
            elif phase is Phase.WAITING:
                assert self.now - POLL_S <= worker.flight.ring_at <= self.now + POLL_S

    @precondition(lambda self: self.stores[0].up)
    @rule()
    def come_to_rest(self) -> None:
        """With stores and token service well, everybody soon has a token."""
        for _ in range(400):
            self.now += 0.25
            for worker in self.workers:
                worker.ring(self.now)
                worker.settle(self.now)
                if worker.fetching:
                    self.made += 1
                    self.lives[f"t{self.made}"] = self.now + 300.0
                    worker.grant(f"t{self.made}", 300.0, self.now)
                    worker.settle(self.now)
                worker.want(self.now)
                worker.settle(self.now)
            if all(isinstance(worker.want(self.now), Held) for worker in self.workers):
                return
        raise AssertionError("somebody never got a token")


class Fleet(RuleBasedStateMachine):
    """Workers whose store is always there, and who answer within their lock's time: one asks the token service."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.store = Store()
        self.workers = [Worker(name, [self.store]) for name in "abcd"]
        self.made = 0

    @rule(which=st.integers(0, 3))
    def want(self, which: int) -> None:
        self.workers[which].want(self.now)

    @rule(which=st.integers(0, 3))
    def answer(self, which: int) -> None:
        if self.workers[which].asked:
            self.workers[which].step(self.now)

    @rule(which=st.integers(0, 3), life_s=st.sampled_from([60.0, 300.0]))
    def grant(self, which: int, life_s: float) -> None:
        if self.workers[which].fetching:
            self.made += 1
            self.workers[which].grant(f"t{self.made}", life_s, self.now)

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0]))
    def wait(self, seconds: float) -> None:
        for worker in self.workers:
            worker.settle(self.now)  # answers of stores take less than the clock's steps here
        self.now += seconds
        for worker in self.workers:
            worker.ring(self.now)

    @invariant()
    def one_of_them_asks(self) -> None:
        assert sum(worker.fetching for worker in self.workers) <= 1


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=100, stateful_step_count=60)
TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=100, stateful_step_count=60)

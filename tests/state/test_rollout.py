"""Workers of replicas with different configs agree on the lower terms, by what a store tells each of them."""

from __future__ import annotations

import pytest

from ambassador.state import accord
from ambassador.state.holding import Terms, terms, window_terms
from ambassador.state.protocol import BEAT_TTL_US, Answer, Beat, Beaten, Event, Get, Operation, Put, encode
from ambassador.state.rollout import RENEW_BEATS, TTL_MS, Rollout
from tests.state.harness import Limited, OneStore

LOW, HIGH = terms(50, 60), terms(100, 100)


class Fleet(OneStore):
    """Workers that beat when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[Worker] = []

    def perform(self, operation: Operation, now_us: int) -> Answer:
        for worker in self.workers:
            worker.scope.replicas = len({each.replica for each in self.workers})
        return super().perform(operation, now_us)

    def worker(self, replica: str, *configured: Terms | Limited) -> Worker:
        worker = Worker(self, replica)
        self.workers.append(worker)
        worker.serve(*configured)
        return worker

    def beat(self) -> None:
        """Everybody that lives beats once, and a second goes by."""
        for worker in self.workers:
            worker.beat()
        self.deliver()
        self.clock.advance(1.0)

    def end(self, worker: Worker) -> None:
        self.workers.remove(worker)
        self.scopes.remove(worker.scope)


class Worker:
    def __init__(self, fleet: Fleet, replica: str) -> None:
        self.replica = replica
        self.scope = fleet.open_scope()
        self.said: list[str] = []
        self.rollout = Rollout(self.scope, self.said.append)
        self.limits: list[Limited] = []

    def serve(self, *configured: Terms | Limited) -> None:
        """Another config."""
        self.limits = [each if isinstance(each, Limited) else Limited(each) for each in configured]
        self.rollout.govern(self.limits)

    def beat(self) -> None:
        self.scope.ask(Beat(self.replica, 0, terms=self.rollout.name), self.rollout.beaten)

    @property
    def holds(self) -> Terms:
        return self.limits[0].terms


def asked(worker: Worker, kind: type[Operation]) -> list[Operation]:
    return [each for each in worker.scope.asked if isinstance(each, kind)]


def test_lower_terms_hold_in_both_replicas_until_they_agree() -> None:
    fleet = Fleet()
    old = fleet.worker("a", HIGH)
    other = fleet.worker("b", HIGH)
    fleet.beat()
    other.serve(LOW)
    fleet.deliver()
    assert (old.holds, other.holds) == (LOW, LOW)
    for _ in range(5):
        fleet.beat()
        assert (old.holds, other.holds) == (LOW, LOW)
    old.serve(LOW)
    fleet.beat()
    assert (old.holds, other.holds) == (LOW, LOW)


def test_higher_terms_hold_when_the_last_replica_has_them() -> None:
    fleet = Fleet()
    first, last = fleet.worker("a", LOW), fleet.worker("b", LOW)
    fleet.beat()
    first.serve(HIGH)
    for _ in range(5):
        assert (first.holds, last.holds) == (LOW, LOW)
        fleet.beat()
    last.serve(HIGH)
    for _ in range(3):
        fleet.beat()
    assert (first.holds, last.holds) == (HIGH, HIGH)
    assert first.limits[0].obeyed == [LOW, HIGH]


def test_rate_and_burst_are_each_the_lower_one() -> None:
    fleet = Fleet()
    one, other = fleet.worker("a", terms(50, 200)), fleet.worker("b", terms(100, 80))
    fleet.beat()
    fleet.beat()
    assert one.holds == other.holds == terms(50, 80)


def test_quota_is_the_lower_one() -> None:
    fleet = Fleet()
    one, other = fleet.worker("a", window_terms(500, 60)), fleet.worker("b", window_terms(900, 60))
    fleet.beat()
    fleet.beat()
    assert one.holds == other.holds == window_terms(500, 60)


def test_replica_that_leaves_takes_its_terms_along() -> None:
    fleet = Fleet()
    gone, stays = fleet.worker("a", LOW), fleet.worker("b", HIGH)
    fleet.beat()
    fleet.beat()
    assert stays.holds == LOW
    fleet.end(gone)
    fleet.clock.advance(BEAT_TTL_US / 1e6)
    fleet.beat()
    assert stays.holds == HIGH


def test_worker_of_a_replica_alone_takes_a_change_at_once() -> None:
    fleet = Fleet()
    worker = fleet.worker("a", LOW)
    fleet.beat()
    worker.serve(HIGH)
    assert worker.holds == HIGH
    fleet.beat()
    assert worker.limits[0].obeyed == []


def test_replicas_that_agree_read_nothing_and_put_once() -> None:
    fleet = Fleet()
    workers = [fleet.worker(name, HIGH) for name in "abcd"]
    for _ in range(10):
        fleet.beat()
    for worker in workers:
        assert asked(worker, Get) == []
        assert len(asked(worker, Put)) == 1


def test_beginner_knows_what_holds_with_the_first_answers() -> None:
    fleet = Fleet()
    fleet.worker("a", LOW)
    fleet.beat()
    fleet.clock.advance(0.5)
    beginner = fleet.worker("b", HIGH)
    settled: list[Terms] = []
    beginner.rollout.when_settled = lambda: settled.append(beginner.holds)
    assert not beginner.rollout.settled
    beginner.beat()
    fleet.deliver()
    assert settled == [LOW]
    assert beginner.rollout.settled


def test_what_the_store_does_not_have_yet_is_asked_for_with_the_next_beat() -> None:
    fleet = Fleet()
    told = accord.parts_of({("r/limit", 0): (50.0, 60.0)})
    fleet.perform(Beat("a", 0, terms=accord.name_of(told)), fleet.clock.now_us)
    worker = fleet.worker("b", HIGH)
    worker.beat()
    fleet.deliver()
    assert (worker.holds, worker.rollout.settled) == (HIGH, False)
    fleet.perform(Put(accord.key_of(accord.name_of(told), 0), told[0]), fleet.clock.now_us)
    worker.beat()
    fleet.deliver()
    assert (worker.holds, worker.rollout.settled) == (LOW, True)


def test_what_is_asked_for_already_is_not_asked_for_twice() -> None:
    fleet = Fleet()
    fleet.worker("a", LOW)
    fleet.beat()
    worker = fleet.worker("b", HIGH)
    name = fleet.workers[0].rollout.name
    worker.rollout.beaten(Beaten(1, 1, 2, 2, [name]))
    worker.rollout.beaten(Beaten(1, 1, 2, 2, [name]))
    assert len(asked(worker, Get)) == 1


def test_store_that_was_wiped_is_told_again() -> None:
    fleet = Fleet()
    one, other = fleet.worker("a", LOW), fleet.worker("b", HIGH)
    fleet.beat()
    fleet.wipe()
    for worker in (one, other):
        worker.scope.come_up()
    fleet.beat()
    third = fleet.worker("c", HIGH)
    third.beat()
    fleet.deliver()
    assert third.holds == LOW


def test_lower_terms_hold_while_the_store_is_away() -> None:
    fleet = Fleet()
    one, other = fleet.worker("a", LOW), fleet.worker("b", HIGH)
    fleet.beat()
    fleet.beat()
    other.scope.go_down()
    for _ in range(5):
        fleet.beat()
    assert other.holds == LOW
    other.serve(terms(70, 70))
    fleet.beat()
    assert other.holds == terms(50, 60)
    other.scope.come_up()
    fleet.beat()
    assert (one.holds, other.holds) == (LOW, terms(50, 60))


def test_config_that_changes_while_the_store_is_away_is_told_when_it_is_back() -> None:
    fleet = Fleet()
    one, other = fleet.worker("a", HIGH), fleet.worker("b", HIGH)
    fleet.beat()
    one.scope.go_down()
    one.serve(LOW)
    fleet.beat()
    assert other.holds == HIGH
    one.scope.come_up()
    fleet.beat()
    assert other.holds == LOW


def test_terms_do_not_end_while_somebody_has_them() -> None:
    fleet = Fleet()
    worker = fleet.worker("a", LOW)
    for _ in range(RENEW_BEATS + 1):
        fleet.beat()
    first, second = asked(worker, Put)
    assert isinstance(first, Put)
    assert isinstance(second, Put)
    assert (first.ttl_ms, second.ttl_ms) == (TTL_MS, TTL_MS)
    assert 2 * RENEW_BEATS * 1000 < TTL_MS


def test_terms_that_an_earlier_config_left_behind_are_renewed() -> None:
    fleet = Fleet()
    fleet.worker("a", LOW)
    fleet.beat()
    fleet.end(fleet.workers[0])
    fleet.clock.advance(TTL_MS / 1000 - 60)
    worker = fleet.worker("a", LOW)
    fleet.deliver()
    assert len(asked(worker, Put)) == 2
    fleet.clock.advance(120)
    found = fleet.perform(Get(accord.key_of(worker.rollout.name, 0)), fleet.clock.now_us)
    assert found.version  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (window_terms(500, 86400), window_terms(1000, 86400), "r/limit to 500/d by the calendar"),
        (window_terms(2_000_000, 60), window_terms(3_000_000, 60), "r/limit to 2000000/m by the calendar"),
        (terms(10 / 3600, 10), terms(20 / 3600, 10), "r/limit to 10/h with a burst of 10"),
        (terms(0.5, 5), terms(1, 5), "r/limit to 30/m with a burst of 5"),
        (terms(0.1 / 86400, 1), terms(1, 1), "r/limit to 0.1/d with a burst of 1"),
    ],
)
def test_change_is_told_as_it_would_be_written(low: Terms, high: Terms, words: str) -> None:
    fleet = Fleet()
    one = fleet.worker("a", Limited(high, "r/limit"))
    fleet.worker("b", Limited(low, "r/limit"))
    for _ in range(3):
        fleet.beat()
    assert one.said[0].endswith(f": {words}")


def test_change_is_told_in_words_with_the_first_of_many_limits() -> None:
    fleet = Fleet()
    one = fleet.worker("a", *(Limited(HIGH, f"r{number}/limit") for number in range(9)))
    fleet.worker("b", *(Limited(LOW, f"r{number}/limit") for number in range(9)))
    fleet.beat()
    fleet.beat()
    fleet.beat()
    (text,) = one.said
    assert "r0/limit to 50/s with a burst of 60" in text
    assert "and 6 more" in text
    fleet.end(fleet.workers[1])
    fleet.clock.advance(4)
    fleet.beat()
    assert len(one.said) == 2


@pytest.mark.parametrize("name", ["cooldown:u:credential", "terms:nothing:0", "fleet"])
def test_values_of_others_are_left_alone(name: str) -> None:
    fleet = Fleet()
    worker = fleet.worker("a", HIGH)
    fleet.deliver()
    worker.scope.publish(Event("value", name, b"\xc1"))
    worker.scope.deliver()
    assert worker.holds == HIGH


def test_worker_without_limits_tells_nothing() -> None:
    fleet = Fleet()
    worker = fleet.worker("a")
    fleet.beat()
    assert worker.rollout.name == ""
    assert asked(worker, Put) == []
    assert encode(Beat("a", 0, terms=worker.rollout.name)) == encode(Beat("a", 0))

"""All breakers of a worker: reload, log, force, status."""

from __future__ import annotations

import logging

import pytest

from ambassador.proxy.policies.breaker import Breaker, Config, Ticket, enter
from ambassador.state.passes import Refused
from ambassador.state.protocol import Event, State
from ambassador.state.scope import MISSED
from tests.proxy.policies.test_breaker import Worker, attempt, trip
from tests.proxy.stores import SharedStore


def workers(count: int) -> list[Worker]:
    shared = SharedStore(count)
    return [Worker(shared, number) for number in range(count)]


def state(breaker: Breaker) -> State:
    return breaker.gate.row.state if breaker.gate.row is not None else State.CLOSED


def test_trip_seen_by_two_opens_all() -> None:
    first, second, third = workers(3)
    breakers = [worker.breaker() for worker in (first, second, third)]
    for _ in range(5):
        for worker, breaker in zip((first, second), breakers, strict=False):
            attempt(worker, breaker, outcome="connect")
    assert [state(breaker) for breaker in breakers] == [State.OPEN] * 3


@pytest.mark.parametrize("count", [1, 2])
def test_last_of_few_failures_one_after_the_other_opens_a_breaker_within_50_ms(count: int) -> None:
    """By time alone: nothing comes after it that could tell."""
    all_workers = workers(count)
    config = Config(min_requests=6, consecutive=0, scope="route")
    breakers = [worker.breaker(config=config) for worker in all_workers]
    shared = all_workers[0].shared
    for number in range(6):
        assert attempt(all_workers[number % count], breakers[number % count], outcome="500")
    for _ in range(5):
        shared.advance(0.01)
        shared.deliver()
    assert [state(breaker) for breaker in breakers] == [State.OPEN] * count


def test_worker_that_has_all_the_requests_opens_its_own_within_50_ms() -> None:
    first, second = workers(2)
    config = Config(min_requests=6, consecutive=0, scope="route")
    mine, others = (worker.breaker(config=config) for worker in (first, second))
    for _ in range(6):
        assert attempt(first, mine, outcome="500")
    for _ in range(5):
        first.shared.advance(0.01)
        first.shared.deliver()
    assert not attempt(first, mine)
    assert attempt(second, others)


def test_reload_keeps_a_breaker_whose_settings_are_the_same() -> None:
    (worker,) = workers(1)
    breaker = worker.breaker()
    trip(worker, breaker, "connect")
    again = worker.breakers.get("up", Config(), worker.shared.scopes_of(0))
    assert again is breaker


def test_reload_with_other_settings_keeps_the_state() -> None:
    (worker,) = workers(1)
    old = worker.breaker()
    trip(worker, old, "connect")
    new = worker.breakers.get("up", Config(min_requests=99), worker.shared.scopes_of(0))
    assert new is not old
    assert not new.is_open  # only prepared
    worker.breakers.install([new])
    worker.shared.deliver()
    assert new.is_open
    assert isinstance(new.gate.enter(worker.now, 0.5, 1.0), Refused)


@pytest.mark.parametrize("gone", [False, True])
def test_probes_under_way_count_through_reloads(*, gone: bool) -> None:
    """Also where the breaker was gone in between: the one that comes then knows nothing of the others' leases."""
    (worker,) = workers(1)
    breaker = worker.breaker()
    trip(worker, breaker, "connect")
    worker.shared.advance(5.6)
    hanging = 0
    for number in range(5):
        for _ in range(6):
            entry = enter((breaker,), worker.now, 8.0)
            hanging += isinstance(entry, Ticket)
            worker.shared.deliver()
            worker.shared.advance(0.06)
        if gone:
            worker.breakers.remove("up")
        breaker = worker.breakers.get("up", Config(min_requests=30 + number), worker.shared.scopes_of(0))
        worker.breakers.install([breaker])
        worker.shared.deliver()
    assert hanging == breaker.gate.rules.probes == 3
    assert state(breaker) is State.HALF_OPEN


def test_breaker_can_come_and_go_while_a_table_is_served() -> None:
    class Counted:
        shut = 0

    first, second = workers(2)
    counted = Counted()
    upstreams_own = first.breaker()
    trip(second, second.breaker("u/a"), "connect")
    late = first.breakers.get("u/a", Config(), first.shared.scopes_of(0))
    late.guard(counted)
    first.breakers.add(late)
    first.breakers.force("u/a", "open", for_ms=0, by="ann", reason="x", done=lambda *_: None)
    first.shared.deliver()
    assert counted.shut == 1
    assert late.is_open
    first.breakers.remove("u/a")
    first.breakers.remove("u/none")
    assert counted.shut == 0
    assert list(first.breakers.breakers.values()) == [upstreams_own]
    attempt(first, late)  # one that was under way
    assert counted.shut == 0


def test_new_worker_knows_a_circuit_that_is_open() -> None:
    first, second = workers(2)
    breaker = first.breaker()
    first.breakers.force("up", "open", for_ms=0, by="ann", reason="x", done=lambda *_: None)
    first.shared.deliver()
    late = second.breaker()
    assert breaker.is_open
    assert late.is_open


def test_transitions_are_logged_with_their_numbers_by_one_worker_of_each_replica(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "ambassador.proxy.breakers")
    shared = SharedStore(4)
    all_workers = [Worker(shared, number, replica=f"r{number // 2}", slot=number % 2) for number in range(4)]
    breakers = [worker.breaker() for worker in all_workers]
    for _ in range(5):
        for worker, breaker in zip(all_workers, breakers, strict=True):
            attempt(worker, breaker, outcome="connect")
    trips = [record for record in caplog.records if "closed to open" in record.message]
    assert sorted(record.levelname for record in trips) == ["DEBUG", "DEBUG", "INFO", "INFO"]
    (text,) = {record.message for record in trips}
    assert "seen by " in text


def test_force_is_obeyed_by_all_and_told_when_the_store_has_it() -> None:
    first, second = workers(2)
    breakers = [first.breaker(), second.breaker()]
    told: list[bool] = []
    first.breakers.force(
        "up", "open", for_ms=60_000, by="ann", reason="maintenance", done=lambda done, _: told.append(done)
    )
    assert told == []
    first.shared.deliver()
    assert told == [True]
    assert all(breaker.is_open for breaker in breakers)
    (status,) = second.breakers.status()
    assert (status.state, status.scope) == ("open", "upstream")
    assert status.forced is not None
    assert (status.forced["state"], status.forced["by"], status.forced["reason"]) == (
        "open",
        "ann",
        "maintenance",
    )
    assert status.forced["until"] == pytest.approx(first.shared.clock.now_us / 1e6 + 60)


def test_force_without_a_store_is_told_to_have_failed() -> None:
    (worker,) = workers(1)
    worker.breaker()
    worker.shared.scopes[0].go_down()
    told: list[bool] = []
    worker.breakers.force("up", "open", for_ms=0, by="", reason="x", done=lambda done, _: told.append(done))
    worker.shared.deliver()
    assert told == [False]


def test_force_here_acts_on_this_worker_and_reaches_the_store_when_it_is_back() -> None:
    first, second = workers(2)
    breakers = [first.breaker(), second.breaker()]
    first.shared.advance(1.0)
    for scope in first.shared.scopes:
        scope.go_down()
    now_us = first.shared.clock.now_us
    first.breakers.force_here("up", "open", now_us=now_us, for_ms=0, by="ann", reason="x")
    assert [breaker.is_open for breaker in breakers] == [True, False]
    first.shared.advance(1.0)
    for scope in first.shared.scopes:
        scope.come_up()
    first.shared.deliver()
    assert [breaker.is_open for breaker in breakers] == [True, True]


def test_order_that_is_over_when_the_store_is_back_is_no_order_to_the_others() -> None:
    first, second = workers(2)
    mine, others = first.breaker(), second.breaker()
    for scope in first.shared.scopes:
        scope.go_down()
    first.breakers.force_here("up", "open", now_us=first.shared.clock.now_us, for_ms=2000, by="", reason="x")
    first.shared.advance(1.0)
    assert [attempt(worker, each) for worker, each in ((first, mine), (second, others))] == [False, True]
    first.shared.advance(1.5)
    for scope in first.shared.scopes:
        scope.come_up()
    first.shared.deliver()
    assert [state(each) for each in (mine, others)] == [State.CLOSED] * 2
    assert attempt(second, others)
    assert attempt(first, mine)


def test_control_given_back_without_a_store_leaves_what_nobody_holds() -> None:
    (worker,) = workers(1)
    breaker = worker.breaker()
    trip(worker, breaker, "connect")
    worker.shared.scopes[0].go_down()
    before = breaker.gate.row
    worker.breakers.force_here("up", "auto", now_us=worker.shared.clock.now_us, for_ms=0, by="", reason="y")
    assert breaker.gate.row == before


def test_auto_without_a_store_outlives_its_return() -> None:
    (worker,) = workers(1)
    breaker = worker.breaker()
    worker.breakers.force("up", "open", for_ms=0, by="", reason="x", done=lambda *_: None)
    worker.shared.deliver()
    worker.shared.advance(1.0)
    worker.shared.scopes[0].go_down()
    worker.breakers.force_here("up", "auto", now_us=worker.shared.clock.now_us, for_ms=0, by="", reason="y")
    worker.shared.advance(1.0)
    worker.shared.scopes[0].come_up()
    worker.shared.deliver()
    assert state(breaker) is State.HALF_OPEN
    (status,) = worker.breakers.status()
    assert status.forced is None


def test_force_of_an_unknown_breaker_is_a_key_error() -> None:
    (worker,) = workers(1)
    with pytest.raises(KeyError):
        worker.breakers.force("nope", "open", for_ms=0, by="", reason="x", done=lambda *_: None)


def test_status_tells_who_has_opened_only_its_own() -> None:
    first, second = workers(2)
    breaker = first.breaker()
    second.breaker()
    trip(first, breaker, "connect")
    (status,) = first.breakers.status()
    assert status.state == "closed"
    assert status.local is not None
    assert (status.local["replica"], status.local["slot"]) == ("r", 0)
    assert "5 failures in a row" in str(status.local["why"])
    assert second.breakers.status()[0].local is None


def test_store_that_is_back_is_read() -> None:
    first, second = workers(2)
    breakers = [first.breaker(), second.breaker()]
    second.shared.scopes[1].go_down()
    first.breakers.force("up", "open", for_ms=0, by="", reason="x", done=lambda *_: None)
    first.shared.deliver()
    assert [breaker.is_open for breaker in breakers] == [True, False]
    second.shared.scopes[1].come_up()
    second.shared.deliver()
    assert breakers[1].is_open


def test_breaker_looks_by_itself_where_events_are_not_heard() -> None:
    """As long as they are not, the scope says so again and again."""
    first, second = workers(2)
    first.breaker()
    deaf = second.breaker()
    first.breakers.force("up", "open", for_ms=0, by="ann", reason="x", done=lambda *_: None)
    first.shared.scopes[0].deliver()
    assert state(deaf) is State.CLOSED
    second.shared.scopes[1].publish(Event(MISSED, "", b""))
    second.shared.scopes[1].deliver()
    second.shared.scopes[1].deliver()
    assert deaf.gate.row is not None
    assert deaf.gate.row.forced == "open"


def test_status_tells_the_stores_time() -> None:
    (worker,) = workers(1)
    worker.breaker()
    worker.shared.advance(5.0)
    (status,) = worker.breakers.status()
    assert status.now == pytest.approx(worker.shared.clock.now_us / 1e6, abs=0.01)

"""What a breaker's settings mean, and what an exchange calls."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any, cast

import pytest

from ambassador.proxy.breakers import Breakers
from ambassador.proxy.lane import Lane, ended_by
from ambassador.proxy.policies.breaker import (
    Breaker,
    Config,
    Refusal,
    Slow,
    Ticket,
    answered,
    closed,
    endpoint_name,
    enter,
    guards_of,
    route_name,
    settle,
)
from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.state.passes import ProbePass
from ambassador.state.protocol import Force, State
from tests.proxy.stores import SharedStore


class Worker:
    """One worker's breakers around a shared store."""

    def __init__(
        self, shared: SharedStore, number: int = 0, *, replica: str = "r", slot: int | None = None
    ) -> None:
        slot = number if slot is None else slot
        self.shared = shared
        self.number = number
        self.breakers = Breakers(
            cast("Lane", shared.time), replica=replica, slot=slot, key=f"r.{number}", random=lambda: 0.5
        )
        self.made: list[Breaker] = []

    def breaker(self, name: str = "up", config: Config | None = None) -> Breaker:
        breaker = self.breakers.get(name, config or Config(), self.shared.scopes_of(self.number))
        self.made.append(breaker)
        self.breakers.install(self.made)
        self.shared.deliver()
        return breaker

    @property
    def now(self) -> float:
        return self.shared.time.now


@pytest.fixture
def worker() -> Worker:
    return Worker(SharedStore(1))


def attempt(worker: Worker, *guards: Breaker, outcome: str = "200", seconds: float = 0.01) -> bool:
    entry = enter(guards, worker.now, 1.0)
    if isinstance(entry, Ticket):
        settle(entry, outcome, seconds, worker.now)
    worker.shared.deliver()
    return isinstance(entry, Ticket)


def trip(worker: Worker, breaker: Breaker, outcome: str = "500") -> int:
    """Attempts until it opens, over a second; 100: it did not."""
    for number in range(100):
        if not attempt(worker, breaker, outcome=outcome):
            return number
        worker.shared.advance(0.05)
        worker.shared.deliver()
    return 100


# ----- settings -------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_reference() -> None:
    config = Config()
    assert config.kinds == {"timeout", "connect", "reset"}
    assert config.statuses == set(range(500, 600))
    rules = config.rules
    assert (rules.errors, rules.min_requests, rules.window_ms, rules.quorum) == (0.5, 20, 10_000, 0.3)
    assert (rules.open_ms, rules.max_open_ms, rules.probes) == (5000, 60_000, 3)
    assert rules.slow > 1


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (Config(errors=None, consecutive=0), None),
        (Config(failures=()), "failures"),
    ],
)
def test_impossible_combinations_are_found(config: Config, field: str | None) -> None:
    assert [name for name, _ in config.conflicts()] == [field]


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("errors", 0.0, 0.01),
        ("errors", 0.0, None),
        ("window", 0.5, 1.0),
        ("window", 3601.0, 3600.0),
        ("open_for", (0.01, 1.0), (0.1, 0.1)),
    ],
)
def test_impossible_values_are_found(field: str, bad: object, good: object) -> None:
    assert Config.refusal(field, bad)
    assert Config.refusal(field, good) is None


def test_slow_share_of_nothing_is_impossible() -> None:
    assert Slow.refusal("percent", 0.0)
    assert Slow.refusal("percent", 0.5) is None


def test_names_tell_what_is_guarded() -> None:
    assert endpoint_name("billing", "http://10.0.0.1:80") == "billing/10.0.0.1:80"
    assert endpoint_name("billing", "unix:/run/b.sock") == "billing/unix:/run/b.sock"
    assert route_name("billing") == "route:billing"


# ----- what counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outcome", ["500", "503", "599", "timeout", "connect", "reset", "protocol", "refused_stream"]
)
def test_failures_open_it(worker: Worker, outcome: str) -> None:
    assert trip(worker, worker.breaker(config=Config(min_requests=5, consecutive=0)), outcome) < 100


@pytest.mark.parametrize("outcome", ["200", "404", "429", "499", "cancelled", "other", "no_endpoint"])
def test_what_is_no_failure_does_not(worker: Worker, outcome: str) -> None:
    assert trip(worker, worker.breaker(config=Config(min_requests=5)), outcome) == 100


def test_kind_that_is_not_listed_is_no_failure(worker: Worker) -> None:
    assert trip(worker, worker.breaker(config=Config(min_requests=5, failures=("429",))), "timeout") == 100


def test_failures_in_a_row_open_it_before_min_requests(worker: Worker) -> None:
    assert trip(worker, worker.breaker(), "connect") == 5


def test_slow_answers_open_it(worker: Worker) -> None:
    breaker = worker.breaker(config=Config(min_requests=5, slow=Slow(over=1.0)))
    for _ in range(20):
        attempt(worker, breaker, seconds=1.5)
        worker.shared.advance(0.05)
    assert breaker.is_open


def test_plain_answers_are_counted_by_the_short_way(worker: Worker) -> None:
    breaker = worker.breaker(config=Config(min_requests=5, consecutive=0))
    for status in [200] * 40 + [500] * 60:
        ticket = closed((breaker,))
        if ticket is None:
            break
        answered(ticket, status, 0.01, worker.now)
        worker.shared.advance(0.05)
        worker.shared.deliver()
    assert breaker.is_open
    row = breaker.gate.row
    assert row is not None
    assert row.state is State.OPEN


# ----- several, and waiting -------------------------------------------------------------------------------------------


def test_refusal_says_which_and_for_how_long(worker: Worker) -> None:
    breaker = worker.breaker()
    trip(worker, breaker, "connect")
    entry = enter((breaker,), worker.now, 1.0)
    assert isinstance(entry, Refusal)
    error = entry.error()
    assert (error.code, error.status) == ("breaker_open", 503)
    assert error.retry_after_s is not None
    assert 4 < error.retry_after_s <= 5
    assert "up" in error.detail


def test_refusal_by_one_gives_the_others_back(worker: Worker) -> None:
    outer, inner = worker.breaker("route:r"), worker.breaker("up")
    trip(worker, outer, "connect")
    worker.shared.store.perform(Force("up", "open", inner.config.rules), worker.shared.clock.now_us)
    for event in worker.shared.store.collect():
        worker.shared.scopes[0].publish(event)
    worker.shared.deliver()
    for _ in range(12):
        worker.shared.advance(1.0)
        assert isinstance(enter((outer, inner), worker.now, 1.0), Refusal)
        worker.shared.deliver()
    outer_row = outer.gate.row
    assert outer_row is not None
    assert outer_row.state is State.HALF_OPEN  # probes came back as lost, never as failed
    assert outer_row.trips == 1


class Waiter:
    """A request that waits: `rest` goes on when the test says so."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.until = 0.0
        self.woken = False
        self.error = error

    async def rest(self, until: float) -> None:
        self.until = until
        if self.error is not None:
            raise self.error
        await _Once()

    def wake(self) -> None:
        self.woken = True


class _Once:
    def __await__(self) -> Any:
        yield


def half_open(worker: Worker) -> Breaker:
    breaker = worker.breaker()
    trip(worker, breaker, "connect")
    worker.shared.advance(5.6)
    return breaker


def start(entry: object) -> Coroutine[Any, Any, Ticket | Refusal]:
    assert isinstance(entry, Awaitable)
    coroutine = cast("Coroutine[Any, Any, Ticket | Refusal]", entry)
    coroutine.send(None)
    return coroutine


def end(coroutine: Coroutine[Any, Any, Ticket | Refusal]) -> Ticket | Refusal:
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    result: Ticket | Refusal = stop.value.value
    return result


def test_request_waits_for_a_lease(worker: Worker) -> None:
    breaker = half_open(worker)
    waiter = Waiter()
    coroutine = start(enter((breaker,), worker.now, 1.0, waiter))
    assert waiter.until == pytest.approx(worker.now + ended_by(0.02), abs=1e-6)
    assert isinstance(enter((breaker,), worker.now, 1.0, Waiter()), Refusal)
    worker.shared.deliver()
    assert waiter.woken
    ticket = end(coroutine)
    assert isinstance(ticket, Ticket)
    assert isinstance(ticket.entries[0][1], ProbePass)
    assert ticket.until == pytest.approx(worker.now + 1.0)
    settle(ticket, "200", 0.1, worker.now)


def test_request_that_has_waited_elsewhere_waits_for_what_is_left(worker: Worker) -> None:
    breaker = half_open(worker)
    waiter = Waiter()
    coroutine = start(enter((breaker,), worker.now, 1.0, waiter, held_s=0.015))
    assert waiter.until == pytest.approx(worker.now + ended_by(0.005), abs=1e-6)
    assert isinstance(end(coroutine), Refusal)
    worker.shared.deliver()
    assert isinstance(enter((breaker,), worker.now, 1.0), Ticket)


def test_request_that_has_waited_as_long_as_it_may_does_not_wait_for_a_lease(worker: Worker) -> None:
    breaker = half_open(worker)
    entry = enter((breaker,), worker.now, 1.0, Waiter(KeyboardInterrupt()), held_s=0.02)
    assert isinstance(entry, Awaitable)
    assert isinstance(end(cast("Coroutine[Any, Any, Any]", entry)), Refusal)
    assert breaker.waiter is None


def test_lease_that_does_not_come_in_time_is_there_for_the_next_request(worker: Worker) -> None:
    breaker = half_open(worker)
    coroutine = start(enter((breaker,), worker.now, 1.0, Waiter()))
    assert isinstance(end(coroutine), Refusal)
    worker.shared.deliver()
    assert isinstance(enter((breaker,), worker.now, 1.0, Waiter()), Ticket)


def test_request_that_cannot_wait_is_refused(worker: Worker) -> None:
    breaker = half_open(worker)
    assert isinstance(enter((breaker,), worker.now, 1.0), Refusal)


def test_cancelled_wait_gives_everything_back(worker: Worker) -> None:
    outer, inner = worker.breaker("route:r"), half_open(worker)
    trip(worker, outer, "connect")
    worker.shared.advance(5.6)
    enter((outer,), worker.now, 1.0)
    worker.shared.deliver()
    entry = enter((outer, inner), worker.now, 1.0, Waiter(KeyboardInterrupt()))
    assert isinstance(entry, Awaitable)
    with pytest.raises(KeyboardInterrupt):
        cast("Coroutine[Any, Any, Any]", entry).send(None)
    worker.shared.deliver()
    row = outer.gate.row
    assert row is not None
    assert (row.state, row.trips) == (State.HALF_OPEN, 1)
    assert inner.waiter is None


def test_probe_is_cut_after_ten_seconds_at_most(worker: Worker) -> None:
    breaker = half_open(worker)
    enter((breaker,), worker.now, float("inf"))
    worker.shared.deliver()
    ticket = enter((breaker,), worker.now, float("inf"))
    assert isinstance(ticket, Ticket)
    assert ticket.until == pytest.approx(worker.now + 10)


# ----- endpoints ------------------------------------------------------------------------------------------------------


def an_endpoint(worker: Worker, number: int) -> Endpoint:
    endpoint = Endpoint(f"http://e{number}:80", host=f"e{number}", port=80)
    endpoint.gate = worker.breaker(f"up/e{number}:80", Config(scope="endpoint"))
    return endpoint


def test_breaker_of_an_endpoint_is_the_innermost(worker: Worker) -> None:
    outer = worker.breaker()
    endpoint = an_endpoint(worker, 0)
    assert guards_of((outer,), endpoint) == (outer, endpoint.gate)


def test_breaker_of_an_endpoint_is_passed_by_in_a_panic_unless_it_can_probe(worker: Worker) -> None:
    endpoint = an_endpoint(worker, 0)
    gate = endpoint.gate
    assert gate is not None
    endpoint.panic = True
    assert guards_of((), endpoint) == (gate,)
    trip(worker, gate, "connect")
    assert guards_of((), endpoint) == ()
    worker.shared.advance(5.6)
    assert not gate.welcomes(worker.now)  # it asks
    worker.shared.deliver()
    assert gate.welcomes(worker.now)
    assert guards_of((), endpoint) == (gate,)

"""Pauses that an upstream asks for."""

from __future__ import annotations

from typing import Literal

import pytest

from ambassador.messages import Fields
from ambassador.proxy.lane import Lane
from ambassador.proxy.policies.cooldown import Config, Cooldown, Cooldowns
from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.proxy.upstream.pool import Pool
from ambassador.proxy.upstream.upstream import Upstream
from ambassador.state.memory import MemoryStore
from ambassador.state.protocol import Event
from ambassador.state.scope import MISSED, Scopes
from tests.proxy.stores import SharedStore

NOBODY: Fields = [(b"accept", b"*/*")]
ANN: Fields = [(b"Authorization", b"Bearer ann")]
BOB: Fields = [(b"authorization", b"Bearer bob")]


class Worker:
    def __init__(
        self, shared: SharedStore, number: int, config: Config, replica: SharedStore | None = None
    ) -> None:
        self.shared = shared
        self.replica = replica or shared
        self.endpoints = [Endpoint(f"http://e{each}:80", host=f"e{each}", port=80) for each in range(2)]
        self.upstream = Upstream("up", self.endpoints, lambda: 0.5, shared.time)
        self.cooldowns = Cooldowns(shared.time, lambda: shared.clock.now_us / 1e6)
        self.store = shared.scopes[number]
        self.scopes = Scopes(self.store, self.replica.scopes[number])
        self.cooldown = self.make(config)

    def make(self, config: Config) -> Cooldown:
        self.upstream.cooldown = cooldown = self.cooldowns.get(config, self.upstream, self.scopes)
        self.cooldowns.install([cooldown])
        self.shared.deliver()
        return cooldown

    def heard(
        self, after: bytes | None, status: int = 429, fields: Fields = NOBODY, endpoint: int = 0
    ) -> None:
        self.cooldown.heard(fields, self.endpoints[endpoint], status, after)
        self.shared.deliver()
        self.replica.deliver()

    def left(self, fields: Fields = NOBODY, endpoint: int = 0) -> float:
        left = self.cooldown.left(fields, self.endpoints[endpoint])
        self.shared.deliver()
        self.replica.deliver()
        return left


def two(
    scope: Literal["credential", "endpoint", "upstream"] = "upstream", most: float = 300.0
) -> list[Worker]:
    shared = SharedStore(2)
    return [Worker(shared, number, Config(scope=scope, max=most)) for number in range(2)]


def test_pause_is_found_by_who_hears_no_events() -> None:
    first, second = two()
    first.cooldown.heard(NOBODY, first.endpoints[0], 429, b"30")
    first.store.deliver()
    assert second.cooldown.left(NOBODY, second.endpoints[0]) == 0.0
    second.store.publish(Event(MISSED, "", b""))
    second.shared.deliver()
    assert second.left() == pytest.approx(30.0)


@pytest.mark.parametrize("status", [429, 503])
def test_pause_holds_for_every_worker_until_its_end(status: int) -> None:
    first, second = two()
    first.heard(b"30", status)
    assert [worker.left() for worker in (first, second)] == pytest.approx([30.0, 30.0])
    first.shared.advance(29.9)
    assert second.left() == pytest.approx(0.1)
    first.shared.advance(0.2)
    assert [worker.left() for worker in (first, second)] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("status", "after"), [(429, None), (200, b"30"), (500, b"30"), (429, b"0"), (429, b"soon")]
)
def test_what_asks_for_no_pause_makes_none(status: int, after: bytes | None) -> None:
    first, _ = two()
    first.heard(after, status)
    assert first.left() == 0.0


def test_longest_pause_holds() -> None:
    first, second = two()
    first.heard(b"60")
    second.heard(b"10")
    assert [worker.left() for worker in (first, second)] == pytest.approx([60.0, 60.0])


def test_pause_is_never_longer_than_max() -> None:
    first, second = two(most=20.0)
    first.heard(b"3600")
    assert [worker.left() for worker in (first, second)] == pytest.approx([20.0, 20.0])


def test_credentials_are_paused_each_by_itself() -> None:
    first, second = two("credential")
    first.heard(b"30", fields=ANN)
    for worker in (first, second):
        worker.left(ANN)  # a credential seen for the first time is read behind the request
        assert worker.left(ANN) == pytest.approx(30.0)
        assert worker.left(BOB) == worker.left(NOBODY) == 0.0


def test_pauses_are_the_replicas_while_the_fleets_store_is_away() -> None:
    shared, replica = SharedStore(2), SharedStore(2)
    first, second = (Worker(shared, number, Config(scope="credential"), replica) for number in range(2))
    for scope in shared.scopes:
        scope.go_down()
    first.heard(b"30", fields=ANN)
    second.left(ANN)
    assert second.left(ANN) == pytest.approx(30.0)
    first.heard(b"20")
    assert second.left() == pytest.approx(20.0)  # by the event: nobody's is known before any request


def test_credentials_are_not_put_into_the_store() -> None:
    first, _ = two("credential")
    first.heard(b"30", fields=ANN)
    assert not any("ann" in repr(operation) for operation in first.store.asked)


def test_endpoints_are_paused_each_by_itself_and_not_picked() -> None:
    first, second = two("endpoint")
    first.heard(b"30", endpoint=1)
    for worker in (first, second):
        assert worker.left(endpoint=0) == 0.0
        assert worker.left(endpoint=1) == pytest.approx(30.0)
        assert {worker.upstream.pick(()).url for _ in range(20)} == {"http://e0:80"}
    first.shared.advance(31)
    assert {endpoint.paused_until <= first.shared.time.now for endpoint in second.endpoints} == {True}


def test_worker_that_starts_later_learns_of_a_pause() -> None:
    first, _ = two()
    first.heard(b"30")
    late = Worker(first.shared, 1, Config(scope="upstream"))
    assert late.left() == pytest.approx(30.0)


def test_pause_outlives_a_reload_and_a_wiped_store() -> None:
    first, _ = two()
    first.heard(b"30")
    first.shared.store = MemoryStore(first.shared.clock.now_us)
    for scope in first.shared.scopes:
        scope.come_up()
    first.cooldown = first.make(Config(scope="upstream", max=100.0))
    assert first.left() == pytest.approx(30.0)
    late = Worker(first.shared, 1, Config(scope="upstream"))
    assert late.left() == pytest.approx(30.0)


def test_pause_without_a_store_holds_for_this_worker() -> None:
    first, second = two()
    first.store.go_down()
    first.heard(b"30")
    assert first.left() == pytest.approx(30.0)
    assert second.left() == 0.0
    first.store.come_up()
    first.shared.deliver()
    assert second.left() == pytest.approx(30.0)


def test_refusal_is_breaker_open_with_retry_after() -> None:
    first, _ = two()
    error = first.cooldown.error(12.5)
    assert (error.code, error.status, error.retry_after_s) == ("breaker_open", 503, 12.5)


def test_credentials_are_remembered_within_bounds() -> None:
    first, _ = two("credential")
    for number in range(5000):
        first.left([(b"x-api-key", b"%d" % number)])
    assert len(first.cooldown._until) <= 4096


def test_endpoint_that_is_found_again_or_elsewhere_is_still_paused() -> None:
    first, second = two("endpoint")
    for worker in (first, second):
        worker.upstream.follow(worker.cooldown.follow)
        for endpoint in worker.endpoints:
            endpoint.pool = Pool(Lane(), list, max_open=1, max_pending=1, idle_timeout_s=1.0)
    # The second worker hears of the pause while it does not have the endpoint.
    second.upstream.set_endpoints(second.endpoints[1:])
    first.heard(b"30")
    assert (first.upstream.shut, second.upstream.shut) == (1, 0)
    again = Endpoint("http://e0:80", host="e0", port=80)
    second.upstream.set_endpoints([again, second.endpoints[1]])
    assert again.paused_until - second.shared.time.now == pytest.approx(30.0)
    assert second.upstream.shut == 1
    # One that goes is counted no more.
    first.upstream.set_endpoints(first.endpoints[1:])
    assert first.upstream.shut == 0


def test_endpoint_that_is_found_asks_the_store_for_its_pause() -> None:
    first, second = two("endpoint")
    third = Endpoint("http://e2:80", host="e2", port=80)
    first.upstream.set_endpoints([*first.endpoints, third])
    first.cooldown.heard(NOBODY, third, 429, b"30")
    first.shared.deliver()
    fresh = Worker(first.shared, 1, Config(scope="endpoint"))
    fresh.upstream.follow(fresh.cooldown.follow)
    found = Endpoint("http://e2:80", host="e2", port=80)
    fresh.upstream.set_endpoints([*fresh.endpoints, found])
    fresh.shared.deliver()
    assert found.paused_until - fresh.shared.time.now == pytest.approx(30.0)
    assert second.cooldown.left(NOBODY, found) == pytest.approx(30.0)

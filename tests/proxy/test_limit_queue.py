"""Who waits for tokens: in the order of arrival, no longer than it may help, and without a lock-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ambassador.messages import Request
from ambassador.proxy.limit_queue import Entry
from ambassador.proxy.policies import limit
from ambassador.proxy.policies.limit import Config
from tests.proxy.policies.limit_world import (
    Line,
    Rest,
    Store,
    Worker,
    World,
    a_request,
    counts,
    one_worker,
)


def test_wait_queues_in_the_order_of_arrival() -> None:
    world, _, worker = one_worker(Config(rate=(10, 1), burst=5, per="client_ip", wait=2.0))
    order: list[int] = []
    for number in range(12):
        before = len(worker.admitted)
        worker.request("a", [(b"n", b"%d" % number)])
        order.append(before)
    world.run(3.0)
    assert counts(worker) == (12, 0)
    times = [time for time, _ in worker.admitted]
    assert times == sorted(times)
    assert times[-1] - times[0] == pytest.approx(0.8, abs=0.2)


def test_first_come_is_first_served() -> None:
    world, _, worker = one_worker(Config(rate=(20, 1), burst=5, wait=3.0))
    served: list[int] = []
    for number in range(20):
        follow(worker, number, served)
        world.run(0.002)
    world.run(4.0)
    assert served == list(range(20))


def follow(worker: Worker, number: int, served: list[int]) -> None:
    """Have a request come that writes down when it was admitted."""
    rest = worker.request()
    if rest is None:
        served.append(number)
        return
    settled: Callable[[bool], None] = rest._settled

    def note(admitted: bool) -> None:
        settled(admitted)
        if admitted:
            served.append(number)

    rest._settled = note


def test_what_cannot_come_in_time_is_refused_at_once() -> None:
    world, _, worker = one_worker(Config(rate=(10, 1), burst=5, wait=0.5))
    for _ in range(30):
        worker.request()
    world.run(0.03)
    assert 0 < worker.policy.waiting <= 6
    assert len(worker.refused) >= 30 - 4 - 7


@pytest.mark.parametrize(("scarce", "late"), [(False, True), (True, False)])
def test_lease_that_follows_one_for_others_is_waited_for_only_where_tokens_are_scarce(
    *, scarce: bool, late: bool
) -> None:
    """A worker that stood still looks when the time of a request is over, and the lease of those before it is here."""
    world, _, worker = one_worker(Config(rate=(500, 1), burst=100))
    (made,) = worker.policy.limits
    key = made.account(a_request())
    entry = Entry(
        1,
        [(key, 1.0)],
        Rest(world, lambda _: None),
        now=world.now,
        lease_until=world.now + 0.02,
        tokens_until=world.now + 0.02,
        last=world.now + 0.02,
    )
    world.run(0.025)
    key.sent_at = world.now
    if scarce:
        key.held_until = world.now
    assert entry.is_late(key, world.now) == late


def test_waiters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "MOST_WAITING", 5)
    world, _, worker = one_worker(Config(rate=(1, 1), burst=5, wait=60.0))
    for _ in range(50):
        worker.request()
    world.run(0.05)
    assert worker.policy.waiting <= 5


def test_client_that_leaves_leaves_the_queue() -> None:
    world, _, worker = one_worker(Config(rate=(10, 1), burst=5, wait=2.0))
    rests = [worker.request() for _ in range(10)]
    world.run(0.01)
    assert worker.policy.waiting == 6
    for rest in rests[4:]:
        assert rest is not None
        rest.leave()
    world.run(0.01)
    assert worker.policy.waiting == 0
    world.run(1.0)
    worker.request()
    world.run(0.01)
    assert counts(worker) == (5, 0)
    (made,) = worker.policy.limits
    assert not made.account(a_request()).blocked


def test_waiting_for_two_limits_cannot_lock_up() -> None:
    world, _, worker = one_worker(
        Config(name="one", rate=(20, 1), burst=5, wait=5.0, per="client_ip"),
        Config(name="two", rate=(15, 1), burst=5, wait=5.0),
    )
    for number in range(40):
        worker.request("ab"[number % 2])
        world.run(0.003)
    world.run(8.0)
    assert sum(counts(worker)) == 40
    assert len(worker.admitted) >= 35
    assert worker.policy.waiting == 0


def test_waits_are_held_against_the_request() -> None:
    world = World()
    worker = Worker(world, [Config(rate=(10, 1))], fleet=Line(Store(world), delay=lambda: 0.004))
    held: list[Request] = []
    hook = worker._admit

    def note(request: Request) -> Any:
        held.append(request)
        return hook(request)

    worker._admit = note
    worker.request()
    world.run(0.1)
    assert held[0].held_s == pytest.approx(0.008)

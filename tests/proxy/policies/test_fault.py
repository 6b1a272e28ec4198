"""Injected faults: who is hit, in which order, and what ends a delay."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ambassador.errors import InjectedFault
from ambassador.messages import Request
from ambassador.proxy.policies.fault import Abort, Config, Delay, injector
from tests.proxy.harness import GET, OK, Origin, a_plane, config, finished, until


class Clock:
    now = 100.0


class Waiter:
    """Rests by moving the clock on, by `step` at a time."""

    def __init__(self, clock: Clock, step: float) -> None:
        self.clock = clock
        self.step = step

    async def rest(self, until: float) -> None:
        self.clock.now = min(until, self.clock.now + self.step)

    def wake(self) -> None:
        raise AssertionError


def a_request(waiter: Waiter | None = None) -> Request:
    request = Request("GET", b"/", [], 1)
    request.waiter = waiter
    return request


def run(waiting: Awaitable[None] | None) -> None:
    """Drive a coroutine that never really waits."""
    if waiting is not None:
        coroutine = waiting.__await__()
        with pytest.raises(StopIteration):
            next(coroutine)


def test_abort_hits_its_share_and_no_more() -> None:
    chances = iter([0.1, 0.25, 0.9])
    inject = injector(Config(abort=Abort(percent=0.25, status=418)), Clock(), lambda: next(chances))
    with pytest.raises(InjectedFault) as caught:
        inject(a_request())
    assert (caught.value.status, caught.value.code) == (418, "fault")
    assert inject(a_request()) is None
    assert inject(a_request()) is None


@given(st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_share_is_that_of_the_chance(percent: float, chance: float) -> None:
    inject = injector(Config(abort=Abort(percent=percent)), Clock(), lambda: chance)
    if chance < percent:
        with pytest.raises(InjectedFault):
            inject(a_request())
    else:
        assert inject(a_request()) is None


def test_delay_outlasts_wake_ups_without_a_reason() -> None:
    clock = Clock()
    inject = injector(Config(delay=Delay(for_=2.0)), clock, lambda: 0.0)
    run(inject(a_request(Waiter(clock, 0.3))))
    assert clock.now == 102.0


def test_delay_comes_before_the_abort() -> None:
    clock = Clock()
    inject = injector(Config(delay=Delay(for_=2.0), abort=Abort()), clock, lambda: 0.0)
    with pytest.raises(InjectedFault):
        run(inject(a_request(Waiter(clock, 5.0))))
    assert clock.now == 102.0


def test_who_cannot_wait_is_not_delayed() -> None:
    inject = injector(Config(delay=Delay(for_=2.0)), Clock(), lambda: 0.0)
    assert inject(a_request()) is None


def test_nothing_to_do_is_a_conflict() -> None:
    assert [key for key, _ in Config().conflicts()] == [None]
    assert not list(Config(abort=Abort()).conflicts())


# On the way of a request


async def test_aborted_request_is_a_problem_and_goes_nowhere(origin: Origin) -> None:
    async with a_plane(
        config(origin.url, fault="{abort: {status: 502}}", retry="{attempts: 2, when: [5xx]}")
    ) as plane:
        client = await plane.connect()
        await client.send(GET + GET)
        for _ in range(2):
            status, body = await client.answer()
            assert (status, b'"fault"' in body) == (502, True)
        assert plane.counts.attempts == []
        await finished(plane)
        client.close()


async def test_delayed_request_goes_up_later(mock_clock: trio.testing.MockClock, origin: Origin) -> None:
    async with a_plane(config(origin.url, fault="{delay: {for: 20s}}", timeout="30s")) as plane:
        client = await plane.connect()
        await client.send(GET)
        await until(lambda: plane.service.inflight)
        mock_clock.jump(19)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert plane.endpoint.pool.open == 0
        mock_clock.jump(1.1)
        talk = await origin.takes(OK)
        assert await client.answer() == (200, b"ok")
        await finished(plane)
        talk.close()
        client.close()


async def test_delay_ends_with_the_time_that_the_request_may_take(
    mock_clock: trio.testing.MockClock, origin: Origin
) -> None:
    async with a_plane(config(origin.url, fault="{delay: {for: 20s}}", timeout="1s")) as plane:
        client = await plane.connect()
        await client.send(GET)
        await until(lambda: plane.service.inflight)
        mock_clock.jump(1.1)
        status, body = await client.answer()
        assert (status, b'"deadline_exceeded"' in body) == (504, True)
        assert plane.counts.attempts == []
        await finished(plane)
        client.close()


async def test_client_that_leaves_ends_its_delay(mock_clock: trio.testing.MockClock, origin: Origin) -> None:
    async with a_plane(config(origin.url, fault="{delay: {for: 20s}}")) as plane:
        client = await plane.connect()
        await client.send(GET)
        await until(lambda: plane.service.inflight)
        client.reset()
        await finished(plane)

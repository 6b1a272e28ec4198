"""Two attempts at once: whose answer the client gets, and that nothing of the other is left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from tests.proxy.harness import GET, OK, Origin, Plane, Talk, a_plane, config, finished, until, unused_port

HEDGE = "{after: 50ms, max: 100%}"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"
SECOND = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond"


@asynccontextmanager
async def hedged(
    origin: Origin, mock_clock: trio.testing.MockClock, *, request: bytes = GET, more: int = 0, **route: str
) -> AsyncIterator[tuple[Plane, Talk, Talk, Talk]]:
    """A plane, a client, and the two ends at the origin of a request that has a second attempt under way.

    One request went before, which has earned that attempt, and `more` connections are idle.
    """
    async with a_plane(config(origin.url, **{"hedge": HEDGE, "retry": "off", **route})) as plane:
        client = await plane.connect()
        await client.send(GET)
        first = await origin.takes()
        await client.answer()
        await client.send(request)
        await first.head()
        await trio.testing.wait_all_tasks_blocked(0.005)
        mock_clock.jump(0.06)
        second = await origin.accept()
        try:
            yield plane, client, first, second
            with trio.CancelScope(shield=True):
                await finished(plane)
        finally:
            for end in (client, first, second):
                end.close()


async def test_second_attempt_wins(origin: Origin, mock_clock: trio.testing.MockClock) -> None:
    async with hedged(origin, mock_clock) as (plane, client, first, second):
        head = await second.head()
        assert b"x-ambassador-attempt: 2\r\n" in head
        await second.send(SECOND)
        assert await client.answer() == (200, b"second")
        assert await first.is_cut()
        await finished(plane)
        assert plane.counts.attempts == ["200", "cancelled", "200"]
        assert plane.counts.retries == ["hedge"]
        assert plane.endpoint.pool.idle_count == 1


async def test_first_attempt_may_still_win(origin: Origin, mock_clock: trio.testing.MockClock) -> None:
    async with hedged(origin, mock_clock) as (plane, client, first, second):
        await second.head()
        await first.send(OK)
        assert await client.answer() == (200, b"ok")
        assert await second.is_cut()
        await finished(plane)
        assert plane.counts.attempts == ["200", "cancelled", "200"]


async def test_failure_of_the_first_leaves_the_second(
    origin: Origin, mock_clock: trio.testing.MockClock
) -> None:
    async with hedged(origin, mock_clock) as (plane, client, first, second):
        await second.head()
        first.reset()
        await until(lambda: "reset" in plane.counts.attempts)
        await second.send(SECOND)
        assert await client.answer() == (200, b"second")
        assert plane.counts.attempts == ["200", "reset", "200"]


async def test_failure_of_the_second_leaves_the_first(
    origin: Origin, mock_clock: trio.testing.MockClock
) -> None:
    async with hedged(origin, mock_clock) as (plane, client, first, second):
        await second.head()
        second.reset()
        await until(lambda: "reset" in plane.counts.attempts)
        await first.send(OK)
        assert await client.answer() == (200, b"ok")


@pytest.mark.parametrize("from_first", [True, False])
async def test_bad_answer_waits_for_a_better_one(
    origin: Origin, mock_clock: trio.testing.MockClock, *, from_first: bool
) -> None:
    async with hedged(origin, mock_clock) as (plane, client, first, second):
        await second.head()
        bad, good = (first, second) if from_first else (second, first)
        await bad.send(BUSY)
        await until(lambda: "503" in plane.counts.attempts)
        await good.send(OK)
        assert await client.answer() == (200, b"ok")


async def test_failures_of_both_are_an_error(origin: Origin, mock_clock: trio.testing.MockClock) -> None:
    async with hedged(origin, mock_clock) as (plane, client, first, second):
        await second.head()
        first.reset()
        await until(lambda: "reset" in plane.counts.attempts)
        second.reset()
        status, body = await client.answer()
        assert (status, b'"upstream_reset"' in body) == (502, True)


async def test_second_attempt_beside_a_slow_one_takes_no_retry(
    origin: Origin, mock_clock: trio.testing.MockClock
) -> None:
    retry = "{attempts: 1, when: [503], backoff: 1ms..1ms}"
    async with hedged(origin, mock_clock, retry=retry) as (plane, client, first, second):
        await second.head()
        await second.send(BUSY)
        await until(lambda: len(plane.counts.attempts) == 2)
        await first.send(BUSY)
        await until(lambda: len(plane.counts.attempts) == 3)
        mock_clock.jump(1)
        assert b"x-ambassador-attempt: 3\r\n" in await first.head()
        await first.send(BUSY)
        assert await client.answer() == (503, b"busy")
        assert plane.counts.attempts == ["200", "503", "503", "503"]
        assert plane.counts.retries == ["hedge", "503"]


async def test_deadline_ends_both(origin: Origin, mock_clock: trio.testing.MockClock) -> None:
    async with hedged(origin, mock_clock, timeout="2s") as (_, client, first, second):
        await second.head()
        mock_clock.jump(2.1)
        assert (await client.answer())[0] == 504
        assert await first.is_cut()
        assert await second.is_cut()


async def test_second_attempt_has_a_try_time_of_its_own(
    origin: Origin, mock_clock: trio.testing.MockClock
) -> None:
    async with hedged(origin, mock_clock, timeout="{per_try: 1s, total: 5s}") as (
        plane,
        client,
        first,
        second,
    ):
        await second.head()
        mock_clock.jump(0.945)
        await until(lambda: "timeout" in plane.counts.attempts)
        assert await first.is_cut()
        await second.send(SECOND)
        assert await client.answer() == (200, b"second")


async def test_client_that_leaves_ends_both(origin: Origin, mock_clock: trio.testing.MockClock) -> None:
    async with hedged(origin, mock_clock) as (plane, client, first, second):
        await second.head()
        client.reset()
        assert await first.is_cut()
        assert await second.is_cut()
        await until(lambda: plane.service.connections == 0)


@pytest.mark.parametrize("answered", [True, False])
async def test_cancellation_leaves_nothing_behind(
    origin: Origin, mock_clock: trio.testing.MockClock, *, answered: bool
) -> None:
    async with hedged(origin, mock_clock) as (plane, _, _, second):
        if answered:
            await second.head()
        plane.stop_accepting()
        with trio.CancelScope(shield=True):
            plane.clients.cancel_scope.cancel()
            await until(lambda: plane.service.connections == 0)
            assert not any(plane.leftovers().values()), plane.leftovers()


async def test_cancellation_while_the_second_connects_leaves_nothing_behind(
    mock_clock: trio.testing.MockClock, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ambassador.proxy.upstream.pool.is_connected", lambda _: False)
    async with a_plane(config(origin.url, hedge=HEDGE, retry="off")) as plane:
        client = await plane.connect()
        await client.send(GET)
        first = await origin.takes()
        await client.answer()
        await client.send(GET)
        await first.head()
        await trio.testing.wait_all_tasks_blocked(0.005)
        mock_clock.jump(0.06)
        await until(lambda: "connect" in plane.counts.attempts)
        await first.send(OK)
        assert await client.answer() == (200, b"ok")
        await finished(plane)
        client.close()
        first.close()


async def test_body_is_sent_again(origin: Origin, mock_clock: trio.testing.MockClock) -> None:
    put = b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody"
    async with hedged(origin, mock_clock, request=put) as (_, client, first, second):
        assert await first.exactly(4) == b"body"
        await second.head()
        assert await second.exactly(4) == b"body"
        await second.send(SECOND)
        assert await client.answer() == (200, b"second")


async def test_key_makes_a_post_repeatable(origin: Origin, mock_clock: trio.testing.MockClock) -> None:
    post = b"POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n"
    async with hedged(origin, mock_clock, request=post) as (_, client, _, second):
        await second.head()
        await second.send(SECOND)
        assert await client.answer() == (200, b"second")


@pytest.mark.parametrize(
    "request_",
    [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx-ambassador-attempt: 2\r\n\r\n",
    ],
)
async def test_what_must_not_be_repeated_is_not(
    origin: Origin, mock_clock: trio.testing.MockClock, request_: bytes
) -> None:
    async with a_plane(config(origin.url, hedge=HEDGE, retry="off")) as plane:
        client = await plane.connect()
        await client.send(GET)
        first = await origin.takes()
        await client.answer()
        await client.send(request_)
        await first.head()
        await trio.testing.wait_all_tasks_blocked(0.005)
        mock_clock.jump(1.0)
        await trio.testing.wait_all_tasks_blocked(0.005)
        await first.send(OK)
        assert await client.answer() == (200, b"ok")
        assert plane.counts.retries == []
        client.close()
        first.close()


async def test_no_hedge_is_made_beyond_the_allowance(
    origin: Origin, mock_clock: trio.testing.MockClock
) -> None:
    async with a_plane(config(origin.url, hedge="{after: 50ms, max: 5%}", retry="off")) as plane:
        client = await plane.connect()
        await client.send(GET)
        first = await origin.accept()
        await first.head()
        await trio.testing.wait_all_tasks_blocked(0.005)
        mock_clock.jump(1.0)
        await trio.testing.wait_all_tasks_blocked(0.005)
        await first.send(OK)
        assert await client.answer() == (200, b"ok")
        assert plane.counts.retries == []
        client.close()
        first.close()


async def test_second_attempt_goes_elsewhere(mock_clock: trio.testing.MockClock) -> None:
    origins = [Origin(), Origin()]
    async with a_plane(config(*(origin.url for origin in origins), hedge=HEDGE, retry="off")) as plane:
        client = await plane.connect()
        plane.service.random = lambda: 0.0
        seen: list[int] = []

        def reply(number: int, _head: bytes) -> bytes | None:
            seen.append(number)
            return None if len(seen) == 2 else OK

        async with trio.open_nursery() as nursery:
            for number, each in enumerate(origins):
                nursery.start_soon(each.serves, partial(reply, number))
            await client.send(GET)
            assert await client.answer() == (200, b"ok")
            await client.send(GET)
            await until(lambda: len(seen) == 2)
            await trio.testing.wait_all_tasks_blocked(0.005)
            mock_clock.jump(0.06)
            assert await client.answer() == (200, b"ok")
            assert sorted(seen[1:]) == [0, 1]
            client.close()
            await finished(plane)
            nursery.cancel_scope.cancel()
    for origin in origins:
        origin.close()


async def test_second_attempt_that_is_refused_leaves_the_first(
    origin: Origin, mock_clock: trio.testing.MockClock
) -> None:
    async with hedged(origin, mock_clock) as (plane, client, first, second):
        plane.endpoint.addresses = ((plane.endpoint.addresses[0][0], ("127.0.0.1", unused_port())),)
        await second.head()
        await second.send(SECOND)
        assert await client.answer() == (200, b"second")
        assert await first.is_cut()

"""The pool: LIFO, its bounds, its queue, and what is open after each way out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from ambassador.errors import ConnectFailed, Overloaded
from ambassador.proxy.lane import Lane, Strand
from ambassador.proxy.tls_socket import ClientSide
from ambassador.proxy.upstream.connect import Address
from ambassador.proxy.upstream.h1 import Http1Connection
from ambassador.proxy.upstream.pool import Pool, QueueTimeout, SecurePool
from tests.proxy.harness import Origin, a_lane, until, unused_port
from tests.proxy.secure import Holder, SecureOrigin, SecureTalk, client_context


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    async with a_lane() as lane:
        yield lane


def a_pool(
    lane: Lane, port: int, *, max_open: int = 2, max_pending: int = 2, idle_timeout_s: float = 30.0
) -> Pool:
    addresses: list[Address] = [(2, ("127.0.0.1", port))]
    return Pool(
        lane, lambda: addresses, max_open=max_open, max_pending=max_pending, idle_timeout_s=idle_timeout_s
    )


class Left(Exception):
    """Nobody wants the connection any more."""


async def acquire(
    pool: Pool, timeout_s: float = 5.0, *, fresh: bool = False, stays: list[Strand] | None = None
) -> Http1Connection:
    """`stays` gets the strand that waits. When it is taken out and woken, the wait is given up."""
    lane = pool._lane
    strand = lane.strand()

    def check() -> None:
        if not stays:
            raise Left

    try:
        if stays is None:
            return await pool.acquire(strand, 5.0, lane.now + timeout_s, fresh=fresh)
        stays.append(strand)
        return await pool.acquire(strand, 5.0, lane.now + timeout_s, fresh=fresh, check=check)
    finally:
        await lane.finish(strand)


class Taker:
    """A task that asks for a connection: what it got, or how it failed."""

    def __init__(self, pool: Pool, nursery: trio.Nursery, timeout_s: float = 5.0) -> None:
        self.scope = trio.CancelScope()
        self.got: Http1Connection | None = None
        self.error: Exception | None = None
        self._pool = pool
        self._timeout_s = timeout_s
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        with self.scope:
            try:
                self.got = await acquire(self._pool, self._timeout_s)
            except (ConnectFailed, Overloaded, QueueTimeout) as error:
                self.error = error

    @property
    def done(self) -> bool:
        return self.got is not None or self.error is not None or self.scope.cancelled_caught


async def test_connection_used_last_is_taken_first(lane: Lane, origin: Origin) -> None:
    pool = a_pool(lane, origin.address[1])
    first, second = await acquire(pool), await acquire(pool)
    pool.put(first)
    pool.put(second)
    assert pool.take() is second
    assert pool.take() is first
    assert pool.take() is None
    assert pool.open == 2
    first.close()
    second.close()
    second.close()
    assert (pool.open, lane.link_count) == (0, 0)


async def test_refused_connection_is_not_counted(lane: Lane) -> None:
    pool = a_pool(lane, unused_port())
    with pytest.raises(ConnectFailed):
        await acquire(pool)
    assert pool.open == 0


async def test_queue_is_first_come_first_served(lane: Lane, origin: Origin) -> None:
    pool = a_pool(lane, origin.address[1], max_open=1)
    only = await acquire(pool)
    async with trio.open_nursery() as nursery:
        first = Taker(pool, nursery)
        await until(lambda: len(pool._waiting) == 1)
        second = Taker(pool, nursery)
        await until(lambda: len(pool._waiting) == 2)
        pool.put(only)
        await until(lambda: first.done)
        assert (first.got, second.done, pool.open) == (only, False, 1)
        only.close()
        await until(lambda: second.done)
        assert second.got is not None
        assert second.got is not only
        assert pool.open == 1
        second.got.close()
    assert (pool.open, lane.link_count) == (0, 0)


async def test_queue_is_bounded(lane: Lane, origin: Origin) -> None:
    pool = a_pool(lane, origin.address[1], max_open=1, max_pending=0)
    only = await acquire(pool)
    with pytest.raises(Overloaded):
        await acquire(pool)
    only.close()
    assert pool.open == 0


async def test_queue_has_a_deadline(mock_clock: trio.testing.MockClock, lane: Lane, origin: Origin) -> None:
    pool = a_pool(lane, origin.address[1], max_open=1)
    only = await acquire(pool)
    async with trio.open_nursery() as nursery:
        taker = Taker(pool, nursery, timeout_s=1.0)
        await until(lambda: pool._waiting)
        mock_clock.jump(1.1)
        await until(lambda: taker.done)
    assert isinstance(taker.error, QueueTimeout)
    assert (len(pool._waiting), pool.open) == (0, 1)
    only.close()
    assert pool.open == 0


async def test_cancellation_in_the_queue_leaves_it(lane: Lane, origin: Origin) -> None:
    pool = a_pool(lane, origin.address[1], max_open=1)
    only = await acquire(pool)
    async with trio.open_nursery() as nursery:
        taker = Taker(pool, nursery)
        await until(lambda: pool._waiting)
        taker.scope.cancel()
        await until(lambda: taker.done)
    assert (len(pool._waiting), pool.open) == (0, 1)
    only.close()
    assert pool.open == 0


async def test_who_leaves_the_queue_is_let_go_at_once(lane: Lane, origin: Origin) -> None:
    pool = a_pool(lane, origin.address[1], max_open=1)
    only = await acquire(pool)
    stays: list[Strand] = []
    gone: list[bool] = []

    async def run() -> None:
        with pytest.raises(Left):
            await acquire(pool, stays=stays)
        gone.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until(lambda: pool._waiting)
        lane.wake(stays[0])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not gone
        lane.wake(stays.pop())
        await until(lambda: bool(gone))
    assert (len(pool._waiting), pool.open) == (0, 1)
    only.close()
    assert (pool.open, lane.link_count) == (0, 0)


async def test_cancelled_turn_goes_back(lane: Lane, origin: Origin) -> None:
    """The connection was handed over, but the one who waited was cancelled in the same moment."""
    pool = a_pool(lane, origin.address[1], max_open=1)
    only = await acquire(pool)
    async with trio.open_nursery() as nursery:
        taker = Taker(pool, nursery)
        await until(lambda: pool._waiting)
        taker.scope.cancel()
        pool.put(only)
        await until(lambda: taker.done)
    assert taker.got is None
    assert (pool.open, pool.idle_count) == (1, 1)
    pool.retire()
    assert (pool.open, lane.link_count) == (0, 0)


async def test_cancelled_right_to_open_goes_back(lane: Lane, origin: Origin) -> None:
    pool = a_pool(lane, origin.address[1], max_open=1)
    only = await acquire(pool)
    async with trio.open_nursery() as nursery:
        first = Taker(pool, nursery)
        await until(lambda: len(pool._waiting) == 1)
        second = Taker(pool, nursery)
        await until(lambda: len(pool._waiting) == 2)
        first.scope.cancel()
        only.close()
        await until(lambda: second.done)
        assert first.got is None
        assert second.got is not None
        assert pool.open == 1
        second.got.close()
    assert (pool.open, lane.link_count) == (0, 0)


async def test_idle_connections_expire_by_the_clock(
    mock_clock: trio.testing.MockClock, lane: Lane, origin: Origin
) -> None:
    pool = a_pool(lane, origin.address[1], idle_timeout_s=10.0)
    first, second = await acquire(pool), await acquire(pool)
    pool.put(first)
    mock_clock.jump(5.0)
    lane.tick()
    pool.put(second)
    mock_clock.jump(5.1)
    await until(lambda: pool.open == 1)
    assert first.link.closed
    assert not second.link.closed
    mock_clock.jump(5.1)
    await until(lambda: pool.open == 0)
    assert (pool.idle_count, lane.link_count) == (0, 0)


async def test_idle_connection_that_ends_is_dropped(lane: Lane, origin: Origin) -> None:
    pool = a_pool(lane, origin.address[1])
    connection = await acquire(pool)
    talk = await origin.accept()
    pool.put(connection)
    talk.close()
    await until(lambda: pool.open == 0)
    assert (pool.idle_count, lane.link_count) == (0, 0)


async def test_idle_connection_that_speaks_is_dropped(lane: Lane, origin: Origin) -> None:
    pool = a_pool(lane, origin.address[1])
    connection = await acquire(pool)
    talk = await origin.accept()
    pool.put(connection)
    await talk.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    await until(lambda: pool.open == 0)
    assert pool.idle_count == 0
    talk.close()


async def test_retired_pool_keeps_nothing(lane: Lane, origin: Origin) -> None:
    pool = a_pool(lane, origin.address[1])
    idle, busy = await acquire(pool), await acquire(pool)
    pool.put(idle)
    pool.retire()
    assert (pool.open, pool.idle_count) == (1, 0)
    pool.put(busy)
    assert (pool.open, lane.link_count) == (0, 0)


async def test_who_waits_in_a_retired_pool_has_its_turn(lane: Lane, origin: Origin) -> None:
    """The connection that comes back is still good: the next takes it instead of opening another."""
    pool = a_pool(lane, origin.address[1], max_open=1)
    only = await acquire(pool)
    async with trio.open_nursery() as nursery:
        first = Taker(pool, nursery)
        await until(lambda: len(pool._waiting) == 1)
        second = Taker(pool, nursery)
        await until(lambda: len(pool._waiting) == 2)
        pool.retire()
        pool.put(only)
        await until(lambda: first.done)
        assert first.got is only
        pool.put(only)
        await until(lambda: second.done)
        assert second.got is only
        pool.put(only)
    assert (pool.open, lane.link_count) == (0, 0)


async def test_fresh_makes_room_for_itself(lane: Lane, origin: Origin) -> None:
    pool = a_pool(lane, origin.address[1], max_open=1)
    old = await acquire(pool)
    pool.put(old)
    new = await acquire(pool, fresh=True)
    assert new is not old
    assert old.link.closed
    assert pool.open == 1
    new.close()
    assert (pool.open, lane.link_count) == (0, 0)


async def test_bound_holds_whatever_happens(lane: Lane, origin: Origin) -> None:
    pool = a_pool(lane, origin.address[1], max_open=2, max_pending=20)
    async with trio.open_nursery() as nursery:
        waiting = [Taker(pool, nursery) for _ in range(10)]
        while waiting:
            await until(lambda: any(taker.done for taker in waiting))
            assert pool.open <= 2
            taker = next(taker for taker in waiting if taker.done)
            waiting.remove(taker)
            assert taker.got is not None
            if len(waiting) % 2:
                taker.got.close()
            else:
                pool.put(taker.got)
    pool.retire()
    assert (pool.open, lane.link_count) == (0, 0)


class Keeping(SecureOrigin):
    """Keeps the other sides of connections until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self._talks: list[SecureTalk] = []

    async def accept(self) -> SecureTalk:
        self._talks.append(await super().accept())
        return self._talks[-1]

    def close(self) -> None:
        super().close()
        for talk in self._talks:
            talk.close()

    async def connects(self, pool: Pool) -> Http1Connection:
        """A new connection of the pool, to here."""
        async with trio.open_nursery() as nursery:
            taker = Taker(pool, nursery)
            await self.accept()
        assert taker.got is not None
        return taker.got


def a_secure_pool(lane: Lane, port: int, holder: Holder, *, max_open: int) -> SecurePool:
    addresses: list[Address] = [(2, ("127.0.0.1", port))]
    return SecurePool(
        lane,
        lambda: addresses,
        max_open=max_open,
        max_pending=1,
        idle_timeout_s=30.0,
        tls=ClientSide(holder, "127.0.0.1"),
    )


async def test_connection_made_with_other_certificates_is_not_used_again(lane: Lane) -> None:
    holder = Holder(client_context())
    with contextlib.closing(Keeping()) as origin:
        pool = a_secure_pool(lane, origin.address[1], holder, max_open=3)
        idle, used = await origin.connects(pool), await origin.connects(pool)
        pool.put(idle)
        assert pool.take() is idle
        pool.put(idle)
        holder.context = client_context()
        assert pool.take() is None  # it was idle while they changed
        assert idle.link.closed
        pool.put(used)  # it was in use
        assert pool.take() is None
        assert used.link.closed
        assert (pool.open, pool.idle_count) == (0, 0)
        fresh = await origin.connects(pool)
        pool.put(fresh)
        assert pool.take() is fresh
        fresh.close()


async def test_request_that_waits_may_open_a_connection_when_one_comes_back_that_is_not_used_again(
    lane: Lane,
) -> None:
    holder = Holder(client_context())
    with contextlib.closing(Keeping()) as origin:
        pool = a_secure_pool(lane, origin.address[1], holder, max_open=1)
        old = await origin.connects(pool)
        async with trio.open_nursery() as nursery:
            taker = Taker(pool, nursery)
            await trio.testing.wait_all_tasks_blocked()
            holder.context = client_context()
            pool.put(old)
            await origin.accept()
        assert taker.got is not None
        assert taker.got is not old
        taker.got.close()
        assert pool.open == 0

"""The lane: what wakes a strand, when timers fire, how strands leave trio and come back, and that nothing is left."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import inf, nextafter
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ambassador.proxy.lane import (
    BROKEN,
    HANGUP,
    READ,
    READ_CLOSED,
    TICK_S,
    WRITE,
    Lane,
    Link,
    Strand,
    TimedOut,
    Timer,
    ended_by,
)

Body = Callable[[Strand], Awaitable[Any]]


class Strands:
    """A running lane and an inner nursery for strands, as a worker has them."""

    def __init__(self, lane: Lane, nursery: trio.Nursery) -> None:
        self.lane = lane
        self.nursery = nursery
        self.links: list[Link] = []
        self.others: list[socket.socket] = []

    def link(self) -> tuple[Link, socket.socket]:
        """One end of a socket pair as a link that is not ready to read, and the other end."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        link = self.lane.link(ours)
        link.ready = WRITE
        self.links.append(link)
        self.others.append(theirs)
        return link, theirs

    def start(self, body: Body, *links: Link) -> None:
        """Run `body` as a strand; the events of `links` are for it."""
        self.nursery.start_soon(self.run, body, *links)

    async def run(self, body: Body, *links: Link) -> None:
        strand = self.lane.strand()
        for link in links:
            link.strand = strand
        try:
            await body(strand)
        finally:
            await self.lane.finish(strand)

    def close(self) -> None:
        for link in self.links:
            link.close()
        for sock in self.others:
            sock.close()


@asynccontextmanager
async def running() -> AsyncIterator[Strands]:
    """A lane that outlives its strands."""
    async with trio.open_nursery() as outer:
        lane = Lane()
        await outer.start(lane.run)
        async with trio.open_nursery() as nursery:
            strands = Strands(lane, nursery)
            try:
                yield strands
                # A strand may close its links itself; the others go when all strands have ended.
            except BaseException:
                nursery.cancel_scope.cancel()
                raise
        strands.close()
        assert not lane._detached
        assert not any(lane._buckets.values())
        assert lane.link_count == 0
        outer.cancel_scope.cancel()


class Alarm(Timer):
    """Notes when it fired."""

    def __init__(self, lane: Lane, deadline: float) -> None:
        super().__init__()
        self.lane = lane
        self.deadline = deadline
        self.fired: list[float] = []

    def expire(self) -> None:
        self.fired.append(trio.current_time())


def reset(sock: socket.socket) -> None:
    """Close so that the other side is reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fill(sock: socket.socket) -> None:
    """Send until the kernel takes no more."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))


def drain(sock: socket.socket) -> None:
    """Read until nothing is left."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.recv(65536)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setblocking(False)
    return ours, theirs


# Waking


async def test_a_strand_wakes_when_its_link_can_be_read() -> None:
    got: list[bytes] = []

    async def body(strand: Strand) -> None:
        await strand.readable(link)
        got.append(link.sock.recv(100))

    async with running() as strands:
        link, other = strands.link()
        strands.start(body, link)
        await wait_all_tasks_blocked()
        assert got == []
        assert link.interest == READ | HANGUP
        other.send(b"hello")
    assert got == [b"hello"]
    assert link.interest == 0


async def test_a_strand_wakes_when_its_link_can_be_written_again() -> None:
    async def body(strand: Strand) -> None:
        await strand.writable(link)
        assert link.sock.send(b"x") == 1

    async with running() as strands:
        link, other = strands.link()
        assert isinstance(link.sock, socket.socket)
        fill(link.sock)
        link.ready = 0
        strands.start(body, link)
        await wait_all_tasks_blocked()
        assert link.interest == WRITE | BROKEN
        drain(other)


async def test_no_wait_when_the_flag_is_remembered() -> None:
    async def body(strand: Strand) -> None:
        await strand.readable(link)
        await strand.writable(link)
        assert not strand._detached

    async with running() as strands:
        link, _ = strands.link()
        link.ready = READ | WRITE
        strands.start(body, link)


async def test_events_nobody_waits_for_are_remembered() -> None:
    async with running() as strands:
        link, other = strands.link()
        other.send(b"early")
        await wait_all_tasks_blocked()
        assert link.ready & READ

        async def body(strand: Strand) -> None:
            await strand.readable(link)
            assert link.sock.recv(100) == b"early"

        strands.start(body, link)


async def test_one_wait_for_two_links() -> None:
    woken: list[int] = []

    async def body(strand: Strand) -> None:
        for _ in range(2):
            first.interest = second.interest = READ
            await strand.wait()
            first.interest = second.interest = 0
            woken.append((first.ready & READ) | (second.ready & READ) << 1)
            first.ready = second.ready = WRITE

    async with running() as strands:
        first, first_other = strands.link()
        second, second_other = strands.link()
        strands.start(body, first, second)
        await wait_all_tasks_blocked()
        second_other.send(b"x")
        await wait_all_tasks_blocked()
        first_other.send(b"x")
    assert woken == [READ << 1, READ]


async def test_a_strand_is_resumed_once_for_two_events_of_a_batch() -> None:
    resumed = 0

    async def body(strand: Strand) -> None:
        nonlocal resumed
        first.interest = second.interest = READ
        await strand.wait()
        resumed += 1
        first.interest = second.interest = 0
        with pytest.raises(TimedOut):
            await strand.wait(strand.lane.now + 0.01)

    async with running() as strands:
        first, first_other = strands.link()
        second, second_other = strands.link()
        strands.start(body, first, second)
        await wait_all_tasks_blocked()
        first_other.send(b"x")
        second_other.send(b"x")
    assert resumed == 1


async def test_spurious_wake_ups_do_not_end_a_wait_for_a_flag(autojump_clock: MockClock) -> None:
    got: list[bytes] = []
    strand_of: list[Strand] = []

    async def body(strand: Strand) -> None:
        strand_of.append(strand)
        await strand.readable(link)
        got.append(link.sock.recv(100))
        await strand.sleep_until(5.0)
        assert strand.lane.now >= 5.0

    async with running() as strands:
        link, other = strands.link()
        strands.start(body, link)
        for _ in range(3):
            await wait_all_tasks_blocked()
            strands.lane.wake(strand_of[0])
            strands.lane.wake(strand_of[0])
        await wait_all_tasks_blocked()
        assert got == []
        other.send(b"x")
        await wait_all_tasks_blocked()
        assert got == [b"x"]
        strands.lane.wake(strand_of[0])
        await wait_all_tasks_blocked()
        assert strand_of[0].parked
    strands.lane.wake(strand_of[0])  # it has ended: nothing happens


async def test_pause_gives_every_other_strand_a_turn() -> None:
    turns: list[str] = []

    def body(name: str) -> Body:
        async def take_turns(strand: Strand) -> None:
            await strand.pause()  # from here on all are driven by the lane
            await strand.call(gate.wait)
            await strand.pause()
            for _ in range(3):
                turns.append(name)
                await strand.pause()

        return take_turns

    gate = trio.Event()
    async with running() as strands:
        for name in "abc":
            strands.start(body(name))
        await wait_all_tasks_blocked()
        gate.set()
    assert [sorted(turns[i : i + 3]) for i in (0, 3, 6)] == [["a", "b", "c"]] * 3


async def test_a_callback_hears_of_a_link_without_a_strand() -> None:
    heard: list[int] = []
    async with running() as strands:
        link, other = strands.link()
        link.callback = lambda: heard.append(link.ready)
        other.send(b"x")
        await wait_all_tasks_blocked()
        assert heard
        assert heard[-1] & READ
        other.close()
        await wait_all_tasks_blocked()
        assert heard[-1] & READ_CLOSED


# Ends of connections


async def test_an_end_of_input_wakes_and_is_never_forgotten() -> None:
    async def body(strand: Strand) -> None:
        await strand.readable(link)
        assert link.sock.recv(100) == b""
        link.ready &= ~READ
        await strand.readable(link)
        assert link.ready & READ_CLOSED

    async with running() as strands:
        link, other = strands.link()
        strands.start(body, link)
        await wait_all_tasks_blocked()
        other.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("method", ["readable", "writable"])
async def test_a_reset_wakes_readers_and_writers(method: str) -> None:
    async def body(strand: Strand) -> None:
        await getattr(strand, method)(link)
        assert link.ready & BROKEN

    async with running() as strands:
        ours, other = tcp_pair()
        link = strands.lane.link(ours)
        strands.links.append(link)
        link.ready = 0
        fill(ours)
        strands.start(body, link)
        await wait_all_tasks_blocked()
        reset(other)


async def test_a_hang_up_that_nobody_handles_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    real = Lane._turn

    def counted(lane: Lane, timeout: float) -> bool:
        nonlocal turns
        turns += 1
        return real(lane, timeout)

    async with running() as strands:
        link, other = strands.link()
        other.close()
        await wait_all_tasks_blocked()
        assert link.ready & BROKEN
        monkeypatch.setattr(Lane, "_turn", counted)
        for _ in range(5):
            await wait_all_tasks_blocked()
        assert turns == 0


# Closing


async def test_close_unregisters_and_is_done_once() -> None:
    async with running() as strands:
        link, _ = strands.link()
        link.close()
        link.close()
        assert link.sock.fileno() == -1
        assert strands.lane.link_count == 0


async def test_release_leaves_the_socket_open() -> None:
    async with running() as strands:
        sock = socket.create_server(("127.0.0.1", 0))
        link = strands.lane.listen(sock, lambda: None)
        link.release()
        link.release()
        assert sock.fileno() >= 0
        sock.close()


async def test_a_descriptor_closed_in_a_batch_keeps_its_number_until_its_end() -> None:
    """Both links have an event in one batch. Who comes first closes the other, and opens another socket."""
    seen: list[int] = []

    def close_the_other(link: Link, other: Link) -> None:
        if not other.closed:
            number = other.fd
            other.close()
            assert other.sock.fileno() == number
            fresh, fresh_other = strands.link()
            fresh.callback = lambda: seen.append(fresh.ready)
            assert number not in (fresh.fd, fresh_other.fileno())

    async with running() as strands:
        one, one_other = strands.link()
        two, two_other = strands.link()
        await wait_all_tasks_blocked()
        one.callback = lambda: close_the_other(one, two)
        two.callback = lambda: close_the_other(two, one)
        one_other.close()
        two_other.close()
        await wait_all_tasks_blocked()
        assert one.closed != two.closed
        assert (one if one.closed else two).sock.fileno() == -1
        assert all(not flags & HANGUP for flags in seen)


async def test_what_a_timer_closes_is_not_mistaken_for_what_is_opened_after_it(mock_clock: MockClock) -> None:
    """The event of a link is in the batch whose timers close it, and another strand opens a socket."""

    class Sweep(Alarm):
        def expire(self) -> None:
            super().expire()
            old.close()
            opened.append(strands.link()[0])

    opened: list[Link] = []
    async with running() as strands:
        old, old_other = strands.link()
        await wait_all_tasks_blocked()
        sweep = Sweep(strands.lane, 1.0)
        strands.lane.arm(sweep)
        number = old.fd
        old_other.close()
        mock_clock.jump(2.0)
        while not sweep.fired:
            strands.lane._turn(0.0)
        assert opened[0].fd != number
        assert not opened[0].ready & HANGUP
        assert old.sock.fileno() == -1


async def test_a_link_that_cannot_be_registered_leaves_nothing() -> None:
    async with running() as strands:
        link, _ = strands.link()
        assert isinstance(link.sock, socket.socket)
        with pytest.raises(FileExistsError):
            strands.lane.link(link.sock)
        assert strands.lane._links == {link.fd: link}
        with pytest.raises(FileExistsError):
            strands.lane.listen(link.sock, lambda: None)
        assert strands.lane._links == {link.fd: link}


# Listening


async def test_a_listening_socket_can_be_silenced_and_heard_again() -> None:
    accepted: list[socket.socket] = []

    def accept() -> None:
        try:
            accepted.append(server.accept()[0])
        except BlockingIOError:
            pass

    async with running() as strands:
        server = socket.create_server(("127.0.0.1", 0))
        server.setblocking(False)
        link = strands.lane.listen(server, accept)
        clients = [socket.create_connection(server.getsockname()) for _ in range(2)]
        await wait_all_tasks_blocked()
        assert len(accepted) == 2
        strands.lane.mask(link, silent=True)
        clients.append(socket.create_connection(server.getsockname()))
        await wait_all_tasks_blocked()
        assert len(accepted) == 2
        strands.lane.mask(link, silent=False)
        await wait_all_tasks_blocked()
        assert len(accepted) == 3
        link.release()
        strands.lane.mask(link, silent=True)
        for sock in (*clients, *accepted, server):
            sock.close()


async def test_a_silent_listening_socket_that_hangs_up_does_not_spin() -> None:
    heard = 0

    def callback() -> None:
        nonlocal heard
        heard += 1

    async with running() as strands:
        server = socket.create_server(("127.0.0.1", 0))
        link = strands.lane.listen(server, callback)
        strands.lane.mask(link, silent=True)
        server.shutdown(socket.SHUT_RDWR)
        await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert heard <= 1
        link.release()
        server.close()


# Time


async def test_a_wait_times_out_within_its_bucket_and_never_early(mock_clock: MockClock) -> None:
    ended: list[float] = []

    async def body(strand: Strand) -> None:
        with pytest.raises(TimedOut):
            await strand.readable(link, 1.005)
        ended.append(strand.lane.now)

    async with running() as strands:
        link, _ = strands.link()
        strands.start(body, link)
        await wait_all_tasks_blocked()
        mock_clock.jump(1.004)
        await wait_all_tasks_blocked()
        assert ended == []
        mock_clock.jump(0.011)
        await wait_all_tasks_blocked()
        assert ended == [pytest.approx(1.015)]
        assert link.interest == 0


async def test_a_deadline_that_has_passed_times_out_at_once(mock_clock: MockClock) -> None:
    mock_clock.jump(10.0)

    async def body(strand: Strand) -> None:
        with pytest.raises(TimedOut):
            await strand.readable(link, 3.0)

    async with running() as strands:
        link, _ = strands.link()
        strands.start(body, link)


async def test_strands_sleep_to_their_own_times(autojump_clock: MockClock) -> None:
    ended: list[tuple[int, float]] = []

    def body(number: int) -> Body:
        async def sleep(strand: Strand) -> None:
            await strand.sleep_until(number / 10)
            ended.append((number, strand.lane.now))

        return sleep

    async with running() as strands:
        for number in (5, 3, 9, 1, 7):
            strands.start(body(number))
    assert [number for number, _ in ended] == [1, 3, 5, 7, 9]
    assert all(number / 10 <= now <= number / 10 + 0.011 for number, now in ended)


@pytest.mark.parametrize(
    "deadline", [0.29, nextafter(0.29, 1), nextafter(0.29, 0), 0.57, 1.13, 0.285, 1e6 + 0.29]
)
async def test_buckets_and_trio_agree_when_it_is_time(autojump_clock: MockClock, deadline: float) -> None:
    """0.29 * 100 is less than 29: compared otherwise than trio does, the timekeeper would spin for ever."""
    async with running() as strands:
        alarm = Alarm(strands.lane, deadline)
        strands.lane.arm(alarm)
        with trio.move_on_after(deadline + 1):
            await trio.sleep_forever()
        (fired,) = alarm.fired
        assert deadline <= fired <= deadline + 0.0101


async def test_an_earlier_timer_moves_the_alarm_forward(autojump_clock: MockClock) -> None:
    async with running() as strands:
        late, early = Alarm(strands.lane, 9.0), Alarm(strands.lane, 2.0)
        strands.lane.arm(late)
        await wait_all_tasks_blocked()
        strands.lane.arm(early)
        await trio.sleep(3.0)
        assert early.fired == [pytest.approx(2.0 + TICK_S)]
        assert late.fired == []
        await trio.sleep(7.0)
        assert late.fired == [pytest.approx(9.0 + TICK_S)]


async def test_a_deadline_moved_later_costs_no_second_bucket(mock_clock: MockClock) -> None:
    outcome: list[float] = []

    async def body(strand: Strand) -> None:
        await strand.readable(link, 1.0)
        link.sock.recv(100)
        link.ready = WRITE
        with pytest.raises(TimedOut):
            await strand.readable(link, 5.0)
        outcome.append(strand.lane.now)

    async with running() as strands:
        link, other = strands.link()
        strands.start(body, link)
        await wait_all_tasks_blocked()
        other.send(b"x")
        await wait_all_tasks_blocked()
        assert list(strands.lane._buckets) == [pytest.approx(1.0 + TICK_S)]
        mock_clock.jump(1.5)
        await wait_all_tasks_blocked()
        assert outcome == []
        assert list(strands.lane._buckets) == [pytest.approx(5.0 + TICK_S)]
        mock_clock.jump(4.0)
        await wait_all_tasks_blocked()
        assert outcome == [5.5]


async def test_a_deadline_moved_earlier_fires_earlier(mock_clock: MockClock) -> None:
    ended: list[float] = []

    async def body(strand: Strand) -> None:
        await strand.readable(link, 5.0)
        link.ready = WRITE
        with pytest.raises(TimedOut):
            await strand.readable(link, 1.0)
        ended.append(strand.lane.now)

    async with running() as strands:
        link, other = strands.link()
        strands.start(body, link)
        await wait_all_tasks_blocked(0.005)
        other.send(b"x")
        await wait_all_tasks_blocked(0.005)
        mock_clock.jump(1.5)
        await wait_all_tasks_blocked(0.005)
        assert ended == [1.5]


async def test_a_wait_without_deadline_forgets_the_one_before(mock_clock: MockClock) -> None:
    async def body(strand: Strand) -> None:
        await strand.readable(link, 1.0)
        link.ready = WRITE
        await strand.readable(link)

    async with running() as strands:
        link, other = strands.link()
        strands.start(body, link)
        await wait_all_tasks_blocked()
        other.send(b"x")
        await wait_all_tasks_blocked()
        mock_clock.jump(100.0)
        await wait_all_tasks_blocked()
        assert strands.lane._buckets == {}
        other.send(b"x")


async def test_a_disarmed_timer_does_not_fire_and_may_be_armed_again(autojump_clock: MockClock) -> None:
    async with running() as strands:
        alarm = Alarm(strands.lane, 1.0)
        strands.lane.arm(alarm)
        strands.lane.disarm(alarm)
        strands.lane.disarm(alarm)
        assert alarm.deadline == inf
        await trio.sleep(2.0)
        assert alarm.fired == []
        alarm.deadline = 3.0
        strands.lane.arm(alarm)
        alarm.deadline = inf
        strands.lane.arm(alarm)
        await trio.sleep(2.0)
        assert alarm.fired == []
        alarm.deadline = 5.0
        strands.lane.arm(alarm)
        await trio.sleep(2.0)
        assert len(alarm.fired) == 1
        assert strands.lane._buckets == {}
        assert strands.lane._dues == []


async def test_a_timer_may_disarm_others_of_its_bucket(autojump_clock: MockClock) -> None:
    class First(Alarm):
        def expire(self) -> None:
            super().expire()
            for each in alarms:
                self.lane.disarm(each)

    async with running() as strands:
        alarms = [First(strands.lane, 1.0) for _ in range(5)]
        for alarm in alarms:
            strands.lane.arm(alarm)
        await trio.sleep(2.0)
        assert sum(len(alarm.fired) for alarm in alarms) == 1


async def test_a_timer_that_arms_itself_fires_each_time(autojump_clock: MockClock) -> None:
    class Beat(Alarm):
        def expire(self) -> None:
            super().expire()
            self.deadline = self.lane.now + 1.0
            self.lane.arm(self)

    async with running() as strands:
        beat = Beat(strands.lane, 1.0)
        strands.lane.arm(beat)
        await trio.sleep(5.5)
        strands.lane.disarm(beat)
        assert len(beat.fired) == 5


async def test_a_timer_armed_for_the_past_has_its_turn_later(mock_clock: MockClock) -> None:
    class Past(Alarm):
        def expire(self) -> None:
            super().expire()
            self.deadline = 0.5
            self.lane.arm(self)

    async with running() as strands:
        past = Past(strands.lane, 1.0)
        strands.lane.arm(past)
        mock_clock.jump(2.0)
        strands.lane._turn(0.0)
        assert len(past.fired) == 1
        strands.lane._turn(0.0)
        assert len(past.fired) == 2
        strands.lane.disarm(past)


async def test_an_event_and_a_deadline_at_once_end_one_wait(mock_clock: MockClock) -> None:
    ends: list[str] = []

    async def body(strand: Strand) -> None:
        try:
            await strand.readable(link, 1.0)
            ends.append("read")
        except TimedOut:
            ends.append("timed out")
        await strand.sleep_until(9.0)  # past the second wake-up, which is spurious by now
        ends.append("later")

    async with running() as strands:
        link, other = strands.link()
        strands.start(body, link)
        await wait_all_tasks_blocked()
        other.send(b"x")
        mock_clock.jump(2.0)
        await wait_all_tasks_blocked()
        assert len(ends) == 1
        mock_clock.jump(9.0)
    assert ends[1:] == ["later"]


async def test_the_lane_lingers_no_longer_than_to_the_next_timer(mock_clock: MockClock) -> None:
    async with running() as strands:
        lane = strands.lane
        asked: list[float] = []

        class Epoll:
            def poll(self, timeout: float, size: int) -> list[tuple[int, int]]:
                asked.append(timeout)
                return []

        real, lane._epoll = lane._epoll, Epoll()  # type: ignore[assignment]
        alarm = Alarm(lane, 0.95 * TICK_S)
        lane.arm(alarm)
        mock_clock.jump(TICK_S - 0.0002)
        assert not lane._turn(0.001)
        mock_clock.jump(1.0)
        assert lane._turn(0.001)
        assert not lane._turn(0.001)
        lane._epoll = real
        assert asked == [pytest.approx(0.0002), 0.0, 0.001]
        assert alarm.fired == [pytest.approx(1.0 + TICK_S - 0.0002)]


async def test_lag_is_the_longest_batch(mock_clock: MockClock) -> None:
    async def body(strand: Strand) -> None:
        for busy_s in (0.2, 0.5, 0.1):
            await strand.pause()
            mock_clock.jump(busy_s)

    async with running() as strands:
        strands.start(body)
        await wait_all_tasks_blocked()
        assert strands.lane.lag_s == pytest.approx(0.5)
        strands.lane.lag_s = 0.0
        strands.lane.kick()
        await wait_all_tasks_blocked()
        assert strands.lane.lag_s == 0.0


# Between trio and the lane


async def test_a_strand_detaches_reattaches_and_detaches_again() -> None:
    where: list[bool] = []
    event = trio.Event()

    async def body(strand: Strand) -> None:
        where.append(strand._detached)
        for _ in range(3):
            await strand.readable(link)
            link.sock.recv(100)
            link.ready = WRITE
            where.append(strand._detached)
            assert await strand.call(work, 20, 1) == 21
            where.append(strand._detached)

    async def work(one: int, two: int) -> int:
        await event.wait()
        await trio.lowlevel.checkpoint()
        return one + two

    async with running() as strands:
        link, other = strands.link()
        strands.start(body, link)
        for _ in range(3):
            await wait_all_tasks_blocked()
            other.send(b"x")
            await wait_all_tasks_blocked()
            event.set()
    assert where == [False, True, False, True, False, True, False]


async def test_a_call_passes_on_what_was_raised_and_reads_the_clock(autojump_clock: MockClock) -> None:
    async def fail() -> None:
        await trio.sleep(5)
        raise LookupError

    async def body(strand: Strand) -> None:
        await strand.pause()
        with pytest.raises(LookupError):
            await strand.call(fail)
        assert strand.lane.now >= 5
        await strand.pause()

    async with running() as strands:
        strands.start(body)


async def test_no_timer_is_left_while_a_strand_is_with_trio(autojump_clock: MockClock) -> None:
    async def body(strand: Strand) -> None:
        await strand.readable(link, 1.0)
        await strand.call(trio.sleep, 5)
        assert strand._due == inf

    async with running() as strands:
        link, other = strands.link()
        strands.start(body, link)
        await wait_all_tasks_blocked()
        other.send(b"x")


async def test_an_error_raised_while_detached_surfaces_in_its_nursery() -> None:
    async def body(strand: Strand) -> None:
        await strand.readable(link)
        raise LookupError

    with pytest.RaisesGroup(pytest.RaisesGroup(LookupError)):
        async with running() as strands:
            link, other = strands.link()
            strands.start(body, link)
            await wait_all_tasks_blocked()
            other.send(b"x")
    strands.close()
    assert strands.lane.link_count == 0


async def test_an_error_of_one_strand_leaves_the_others_alone() -> None:
    async def failing(strand: Strand) -> None:
        await strand.pause()
        raise LookupError

    async def body(strand: Strand) -> None:
        await strand.readable(link)

    async def contained() -> None:
        with pytest.raises(LookupError):
            await strands.run(failing)

    async with running() as strands:
        link, other = strands.link()
        strands.start(body, link)
        strands.nursery.start_soon(contained)
        await wait_all_tasks_blocked()
        assert len(strands.lane._detached) == 1
        other.send(b"x")


async def checkpoint() -> None:
    await trio.lowlevel.checkpoint()


async def sleep() -> None:
    await trio.sleep(1)


@pytest.mark.parametrize("foreign", [checkpoint, sleep, trio.lowlevel.cancel_shielded_checkpoint])
async def test_awaiting_something_of_trio_while_detached_is_an_error(
    autojump_clock: MockClock, foreign: Callable[[], Awaitable[None]]
) -> None:
    went_on: list[bool] = []

    async def body(strand: Strand) -> None:
        await foreign()  # still a trio task
        await strand.pause()
        with pytest.raises(RuntimeError, match="is not the lane's"):
            await foreign()
        await strand.pause()  # nor is the strand lost by it
        await strand.readable(link)
        went_on.append(strand._detached)

    async with running() as strands:
        link, other = strands.link()
        strands.start(body, link)
        await wait_all_tasks_blocked()
        other.send(b"x")
    assert went_on == [True]


async def test_a_foreign_await_that_is_not_caught_surfaces_in_its_nursery() -> None:
    async def body(strand: Strand) -> None:
        await strand.pause()
        await checkpoint()

    with pytest.RaisesGroup(pytest.RaisesGroup(RuntimeError)):
        async with running() as strands:
            strands.start(body)


# Cancellation


async def test_a_detached_strand_is_cancelled() -> None:
    ended: list[str] = []

    async def body(strand: Strand) -> None:
        try:
            await strand.readable(link, strand.lane.now + 1000)
        except trio.Cancelled:
            assert not strand._detached
            ended.append("cancelled")
            raise

    async with running() as strands:
        link, _ = strands.link()
        strands.start(body, link)
        await wait_all_tasks_blocked()
        strands.nursery.cancel_scope.cancel()
    assert ended == ["cancelled"]
    assert link.interest == 0


async def test_a_strand_is_cancelled_at_its_first_wait() -> None:
    async def body(strand: Strand) -> None:
        strands.nursery.cancel_scope.cancel()
        await strand.wait()

    async with running() as strands:
        strands.start(body)


async def test_a_cancelled_strand_may_wait_no_more() -> None:
    cancelled = 0

    async def body(strand: Strand) -> None:
        nonlocal cancelled
        for _ in range(3):
            try:
                await strand.wait()
            except trio.Cancelled:
                cancelled += 1
        await strand.wait()

    async with running() as strands:
        strands.start(body)
        await wait_all_tasks_blocked()
        strands.nursery.cancel_scope.cancel()
    assert cancelled == 3


async def test_a_cancellation_is_told_rather_than_a_time_out(mock_clock: MockClock) -> None:
    ended: list[type[BaseException]] = []

    async def body(strand: Strand) -> None:
        try:
            await strand.wait(1.0)
        except (TimedOut, trio.Cancelled) as error:
            ended.append(type(error))
            raise

    async with running() as strands:
        strands.start(body)
        await wait_all_tasks_blocked()
        mock_clock.jump(2.0)
        strands.lane.tick()
        strands.lane._expire()
        strands.nursery.cancel_scope.cancel()
    assert ended == [trio.Cancelled]


async def test_a_strand_may_cancel_itself_while_detached() -> None:
    async def body(strand: Strand) -> None:
        await strand.pause()
        strands.nursery.cancel_scope.cancel()
        with pytest.raises(trio.Cancelled):
            await strand.wait()
        await strand.pause()

    async with running() as strands:
        strands.start(body)


async def test_a_cancellation_met_on_the_way_back_to_trio_is_raised_there() -> None:
    async def body(strand: Strand) -> None:
        await strand.pause()
        strands.nursery.cancel_scope.cancel()
        with pytest.raises(trio.Cancelled):
            await strand.call(trio.sleep_forever)
        assert strand._raise_cancel is None

    async with running() as strands:
        strands.start(body)


async def test_a_strand_that_ends_as_it_is_cancelled_ends_well() -> None:
    async def body(strand: Strand) -> None:
        await strand.pause()
        strands.nursery.cancel_scope.cancel()

    async with running() as strands:
        strands.start(body)


# The end of the lane


async def test_a_lane_cancelled_with_its_strands_hands_them_back() -> None:
    cancelled = 0

    async def body(strand: Strand) -> None:
        nonlocal cancelled
        try:
            await strand.readable(link, strand.lane.now + 1000)
        except trio.Cancelled:
            cancelled += 1
            with pytest.raises(trio.Cancelled):
                await strand.wait(strand.lane.now + 1)
            raise

    async with trio.open_nursery() as nursery:
        lane = Lane()
        await nursery.start(lane.run)
        strands = Strands(lane, nursery)
        link, _ = strands.link()
        for _ in range(3):
            strands.start(body)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert cancelled == 3
    assert lane.stopped
    strands.close()
    assert lane.link_count == 0
    assert not any(lane._buckets.values())


async def test_a_strand_that_outlives_its_lane_is_told() -> None:
    told = 0

    async def body(strand: Strand) -> None:
        nonlocal told
        for _ in range(2):
            with pytest.raises(RuntimeError, match="stopped"):
                await strand.wait(strand.lane.now + 1000)
            told += 1
        await strand.park(strand.lane.now + 1000)  # this says so in its second step, as ever
        with pytest.raises(RuntimeError, match="stopped"):
            await strand.interrupt()
        told += 1

    async with trio.open_nursery() as outer, trio.open_nursery() as inner:
        lane = Lane()
        await inner.start(lane.run)
        strands = Strands(lane, outer)
        strands.start(body)
        await wait_all_tasks_blocked()
        inner.cancel_scope.cancel()
    assert told == 3
    assert not any(lane._buckets.values())


@pytest.mark.parametrize("kind", ["callback", "timer in a batch", "timer"])
async def test_an_error_of_a_callback_ends_the_lane_and_every_strand(
    mock_clock: MockClock, kind: str
) -> None:
    class Failing(Alarm):
        def expire(self) -> None:
            fail()

    def fail() -> None:
        doomed.close()
        raise LookupError

    async def body(strand: Strand) -> None:
        try:
            await strand.wait(1000.0)
        finally:
            ended.append(strand)

    ended: list[Strand] = []
    with pytest.RaisesGroup(pytest.RaisesGroup(LookupError)):  # the lane's own nursery in ours
        async with trio.open_nursery() as outer:
            lane = Lane()
            await outer.start(lane.run)
            async with trio.open_nursery() as clients:
                strands = Strands(lane, clients)
                link, other = strands.link()
                doomed, _ = strands.link()
                for _ in range(3):
                    strands.start(body)
                await wait_all_tasks_blocked()
                if kind == "callback":
                    link.callback = fail
                else:
                    lane.arm(Failing(lane, 1.0))
                if kind != "timer":
                    other.send(b"x")
                mock_clock.jump(2.0)
                await trio.sleep_forever()
    assert len(ended) == 3
    assert doomed.sock.fileno() == -1
    strands.close()
    assert lane.link_count == 0


async def test_a_strand_that_ends_without_finish_is_an_error_and_hangs_nobody() -> None:
    async def careless() -> None:
        await lane.strand().pause()

    async def body(strand: Strand) -> None:
        await strand.wait()

    with pytest.RaisesGroup(pytest.RaisesGroup(RuntimeError), RuntimeError):
        async with trio.open_nursery() as outer:
            lane = Lane()
            await outer.start(lane.run)
            Strands(lane, outer).start(body)
            outer.start_soon(careless)


async def test_kick_wake_and_close_after_the_end_do_nothing() -> None:
    strand_of: list[Strand] = []

    async def body(strand: Strand) -> None:
        strand_of.append(strand)
        await strand.pause()

    async with running() as strands:
        strands.start(body)
        left = socket.socketpair()
    lane = strands.lane
    assert lane.stopped
    lane.kick()
    lane.wake(strand_of[0])
    alarm = Alarm(lane, 1.0)
    lane.arm(alarm)
    lane.disarm(alarm)
    with pytest.raises(ValueError, match="closed epoll"):
        lane.link(left[0])
    assert lane.link_count == 0
    for sock in left:
        sock.close()


# Fairness


class Ticking(trio.abc.Clock):
    """A clock that goes on by 0.1 ms each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        self.now += 0.0001
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return max(0.0, deadline - self.now)


def test_busy_strands_leave_trio_its_turns() -> None:
    trios_turns = pauses = 0

    async def ordinary() -> None:
        nonlocal trios_turns
        while pauses < 2000:
            trios_turns += 1
            await trio.lowlevel.checkpoint()

    async def body(strand: Strand) -> None:
        nonlocal pauses
        while pauses < 2000:
            pauses += 1
            await strand.pause()

    async def main() -> None:
        async with running() as strands:
            strands.start(body)
            strands.start(body)
            strands.nursery.start_soon(ordinary)

    trio.run(main, clock=Ticking())
    # A batch of two pauses reads the clock twice, and every 2 ms trio has a turn: once in some 10 batches.
    assert 2000 / 2 / 20 <= trios_turns <= 2000 / 2


async def test_a_task_that_a_callback_starts_runs_before_the_lane_lingers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timeouts: list[float] = []
    before: list[float] = []
    real = Lane._turn

    def noted(lane: Lane, timeout: float) -> bool:
        timeouts.append(timeout)
        return real(lane, timeout)

    async def task() -> None:
        before.extend(timeouts)

    monkeypatch.setattr(Lane, "_turn", noted)
    for _ in range(20):  # trio shuffles its tasks
        async with running() as strands:
            link, other = strands.link()
            await wait_all_tasks_blocked()
            link.callback = lambda: strands.nursery.start_soon(task)
            timeouts.clear()
            other.send(b"x")
            await wait_all_tasks_blocked()
            link.callback = None
    assert before
    assert not any(before)


async def test_a_busy_link_does_not_starve_another() -> None:
    async def busy(strand: Strand) -> None:
        while not done:
            other.send(b"x")
            await strand.readable(link)
            link.sock.recv(1)
            link.ready = WRITE

    async def quiet(strand: Strand) -> None:
        await strand.readable(second)
        done.append(True)

    done: list[bool] = []
    async with running() as strands:
        link, other = strands.link()
        second, second_other = strands.link()
        strands.start(busy, link)
        strands.start(quiet, second)
        await trio.lowlevel.checkpoint()
        second_other.send(b"x")


# Nothing is left


async def test_nothing_is_left_of_100_000_connections(mock_clock: MockClock) -> None:
    """Each has a descriptor, a link, a strand and waits with deadlines; every seventh is cancelled, or times out."""
    connections = 100_000
    at_once = (
        250  # copies of one descriptor, of which the kernel takes 500 at most in one epoll within another
    )
    ends = {"written": 0, "timed out": 0, "cancelled": 0}

    async def connection(lane: Lane, number: int) -> None:
        strand = lane.strand()
        link = lane.link(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(shared.fd)))
        link.strand = strand
        link.ready = 0
        end = "cancelled"
        try:
            await strand.writable(link, lane.now + 15.0)
            if number % 7 == 0:
                await strand.readable(link, lane.now + (75.0 if number % 2 else 0.05))
            end = "written"
        except TimedOut:
            end = "timed out"
        finally:
            await lane.finish(strand)
            link.close()
            ends[end] += 1

    async with running() as strands:
        lane = strands.lane
        shared, _ = strands.link()
        tasks = trio.lowlevel.current_statistics().tasks_living
        descriptors = len(os.listdir("/proc/self/fd"))
        for first in range(0, connections, at_once):
            async with trio.open_nursery() as nursery:
                for number in range(first, first + at_once):
                    nursery.start_soon(connection, lane, number)
                await wait_all_tasks_blocked()
                mock_clock.jump(0.1)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert ends == {"written": 85_714, "timed out": 7_143, "cancelled": 7_143}
        assert lane.link_count == 1
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert not lane._detached
        assert not lane._runnable
        assert not lane._closing
        assert not any(lane._buckets.values())
        assert len(lane._buckets) == len(lane._dues)
        mock_clock.jump(75.0)
        await wait_all_tasks_blocked()
        assert lane._buckets == {}
        assert lane._dues == []


def test_the_flags_are_epolls() -> None:
    assert {READ, WRITE, READ_CLOSED} == {select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP}
    assert HANGUP == BROKEN | READ_CLOSED


@pytest.mark.parametrize("promised_s", [0.001, TICK_S, 0.02, 5.0])
@pytest.mark.parametrize("phase", [0.0, 0.3, 0.9])
async def test_wait_is_over_when_it_was_promised(
    autojump_clock: MockClock, promised_s: float, phase: float
) -> None:
    """However far the present tick is gone, and also where an earlier deadline is still armed."""
    assert promised_s / 2 <= ended_by(promised_s) < promised_s
    ended: list[float] = []

    async def body(strand: Strand) -> None:
        await strand.sleep_until(100 * TICK_S + phase * TICK_S)
        began = strand.lane.now
        strand.deadline = began + promised_s / 3
        strand.lane.arm(strand)
        strand.exact = True
        await strand.sleep_until(began + ended_by(promised_s))
        ended.append(trio.current_time() - began)

    async with running() as strands:
        strands.start(body)
        await trio.sleep(10.0)
    (took,) = ended
    assert ended_by(promised_s) <= took <= promised_s


async def test_exact_timer_is_put_back_to_its_own_time(autojump_clock: MockClock) -> None:
    """Its deadline was moved: what was armed for the old one finds the new one, and no tick's end."""
    async with running() as strands:
        exact = Alarm(strands.lane, 1.0)
        exact.exact = True
        strands.lane.arm(exact)
        exact.deadline = 2.0013
        await trio.sleep(1.5)
        assert exact.fired == []
        await trio.sleep(1.0)
        assert exact.fired == [2.0013]

"""The lane: the reactor that drives every connection of a worker, inside one trio task.

Going through trio's scheduler for each wait costs more than all the rest of a small request (30-38 us a request with
trio sockets, 20 with the lane, forwarding only). So the lane owns an epoll instance of its own, waits for that one
descriptor in trio, and resumes the coroutines of connections directly with `send`.

Rules that hold here
- A *strand* is the coroutine of one connection. It is born as a trio task and *detaches* from trio at its first wait;
  from then on the lane drives it. It *reattaches* to await something of trio (`Strand.call`), when it is cancelled, and
  at its end, so that its errors surface in its nursery. While it is detached nothing of trio may be awaited or
  entered: a yield that is not the lane's is thrown back as an error.
- A *link* is a registered socket. It is registered once for its life, IN|OUT|RDHUP edge-triggered. `Link.ready`
  remembers the flags; only the code that met EAGAIN (or a short read or write, which proves the same for a stream)
  clears READ or WRITE. RDHUP, HUP and ERR are never cleared.
- Every wake-up may be spurious: the waiter looks at `ready`, tries the I/O, and expects EAGAIN.
- A strand has at most one pending wake-up (`parked` falls when it is resumed); a cancellation replaces its wait.
- Descriptors are closed at the end of a batch, so that a number cannot be reused within one.
- Deadlines are absolute seconds of trio's clock, kept in buckets of 4 ms: one store per wait in the usual case. Those
  of `exact` timers are not rounded up to a bucket's end.
- The lane must outlive its strands: it lives in an outer nursery and is stopped last. Should it end before them all
  the same (cancelled together with them, or by an error of a callback), it hands them back to trio: with their
  cancellation if there is one, else with an error. Nobody else would ever resume them.

This is the only module of the data plane that imports trio.
"""

from __future__ import annotations

import heapq
import os
import select
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from math import inf
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeAlias, TypeVar, TypeVarTuple

import trio

if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Nursery: TypeAlias = trio.Nursery
"""Where strands are born: passed on by modules that know nothing else of trio."""

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
READ_CLOSED: Final = select.EPOLLRDHUP
"""The peer sent FIN: what is left to read ends with an end of input."""
BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
"""Both directions are gone (RST, or FIN both ways)."""
HANGUP: Final = READ_CLOSED | BROKEN

NOT_READ: Final = ~READ
NOT_WRITE: Final = ~WRITE

_INTEREST: Final = READ | WRITE | READ_CLOSED | select.EPOLLET
_TICKS_PER_S: Final = 250  # a fifth of the shortest wait that is promised, `state.max_wait`
TICK_S: Final = 1 / _TICKS_PER_S
"""A deadline is noticed so much later at most, while the lane is not behind."""
_WAKING_S: Final = 0.002
"""An exact deadline is met so much later at most, while the lane is not behind: epoll counts in milliseconds, and who
wakes has others before it (0.1 to 0.9 ms with four workers on two cores)."""
_BATCH: Final = 64  # events a batch: at 15 us each, about 1 ms before anything else has its turn
_TRIO_EVERY_S: Final = 0.002  # under load trio's own tasks get their turn this often (cost: 0.5 %)
_LINGER_S: Final = 0.001  # after a batch, wait this long in our own epoll before the way through trio


def ended_by(seconds: float) -> float:
    """How long an exact timer may wait for what is to be over after `seconds`: whoever waits goes on by then."""
    return max(seconds - _WAKING_S, seconds / 2)


class TimedOut(Exception):
    """A strand's deadline passed while it waited."""


def _lane_has_stopped() -> NoReturn:
    raise RuntimeError("the lane has stopped: nothing would end this wait")


class _Parked(tuple[object]):
    """What a detached strand awaits: yields one sentinel to the lane, without a Python frame."""

    __slots__ = ()
    __await__ = tuple.__iter__


_PARKED: Final = object()
_ATTACHED: Final = object()
_PARK: Final = _Parked((_PARKED,))


class Timer:
    """Something that has a deadline: base of `Strand`, and of sweeps that want a call now and then."""

    __slots__ = ("_bucket", "_due", "deadline", "exact")

    def __init__(self) -> None:
        self.deadline = inf
        self.exact = False
        """Its deadline is a promise: noticed at that time, not at the end of its tick. Each then has its own bucket, so
        it is for waits that are rare."""
        self._due = inf
        self._bucket: set[Timer] | None = None

    def expire(self) -> None:
        """Called by the lane, never before `deadline`, in no particular order."""
        raise NotImplementedError


class Sock(Protocol):
    """What a link reads and writes with: a socket, or what speaks for one (`tls_socket`), with the same contract."""

    def fileno(self) -> int: ...  # noqa: D102 - as `socket.socket`, all of them

    def recv(self, size: int, flags: int = ..., /) -> bytes: ...  # noqa: D102

    def recv_into(self, buffer: bytearray, size: int, /) -> int: ...  # noqa: D102

    def send(self, data: bytes | memoryview, /) -> int: ...  # noqa: D102

    def sendmsg(self, pieces: Iterable[bytes | memoryview], /) -> int: ...  # noqa: D102

    def getsockopt(self, level: int, name: int, /) -> int: ...  # noqa: D102

    def setsockopt(self, level: int, name: int, value: int | bytes, /) -> None: ...  # noqa: D102

    def shutdown(self, how: int, /) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class Link:
    """A socket registered with the lane.

    `interest` is what `strand` waits for; `callback` is used instead when there is no strand (idle upstream
    connections, listeners). The owner of the link sets and clears all three.
    """

    __slots__ = ("callback", "closed", "fd", "interest", "lane", "ready", "sock", "strand")

    def __init__(self, lane: Lane, sock: socket.socket) -> None:
        self.lane = lane
        self.sock: Sock = sock
        self.fd = sock.fileno()
        self.ready = 0
        self.interest = 0
        self.strand: Strand | None = None
        self.callback: Callable[[], None] | None = None
        self.closed = False

    def close(self) -> None:
        """Unregister and close; a no-op the second time. The number is free at the end of the batch."""
        if not self.closed:
            self.closed = True
            self.lane._close(self)

    def release(self) -> None:
        """Unregister without closing: for listening sockets, which other processes hold open as well."""
        if not self.closed:
            self.closed = True
            self.lane._unregister(self)


class Strand(Timer):
    """The coroutine of one connection and the ways in which it may wait.

    Made by `Lane.strand`, used by the one task that made it.
    """

    __slots__ = ("_detached", "_raise_cancel", "_timed_out", "coro", "interrupted", "lane", "parked", "task")

    def __init__(self, lane: Lane) -> None:
        super().__init__()
        self.lane = lane
        self.task = trio.lowlevel.current_task()
        self.coro: Coroutine[Any, Any, Any] = self.task.coro
        self.parked = False
        self._detached = False
        self._timed_out = False
        self._raise_cancel: Callable[[], NoReturn] | None = None
        self.interrupted = False
        """The last wait ended by its deadline or by a cancellation: `interrupt` raises what it was."""

    async def wait(self, deadline: float = inf) -> None:
        """Sleep until a link with this strand has one of the flags of its `interest`, or until `deadline`.

        The caller has looked at `Link.ready` and set `Link.interest`; it clears the interest afterwards, and expects
        that nothing may have happened. Raises `TimedOut` at the deadline (`TICK_S` late at most unless `exact`, never
        early) and `trio.Cancelled` when the task is cancelled.
        """
        self.deadline = deadline
        if deadline < self._due:
            self.lane.arm(self)
        self.parked = True
        if self._detached:
            await _PARK  # type: ignore[misc]  # a tuple's iterator is all that `await` needs
        else:
            await self._detach()
        if self.interrupted:
            await self.interrupt()

    def park(self, deadline: float) -> Awaitable[None]:
        """`wait` in two steps for the one place where a coroutine more counts: 0.2 µs a request.

        Await what it returns at once; then, if `interrupted`, await `interrupt`.
        """
        self.deadline = deadline
        if deadline < self._due:
            self.lane.arm(self)
        self.parked = True
        return _PARK if self._detached else self._detach()  # type: ignore[return-value]

    async def readable(self, link: Link, deadline: float = inf) -> None:
        """Wait until `link` has something to read, an end of input included."""
        while not link.ready & (READ | HANGUP):
            link.interest = READ | HANGUP
            try:
                await self.wait(deadline)
            finally:
                link.interest = 0

    async def writable(self, link: Link, deadline: float = inf) -> None:
        """Wait until `link` takes bytes again, or is broken."""
        while not link.ready & (WRITE | BROKEN):
            link.interest = WRITE | BROKEN
            try:
                await self.wait(deadline)
            finally:
                link.interest = 0

    async def sleep_until(self, deadline: float) -> None:
        """Wait for nothing but the time."""
        while self.lane.now < deadline:
            try:
                await self.wait(deadline)
            except TimedOut:
                return

    async def pause(self) -> None:
        """Let every other strand have its turn."""
        self.lane.wake(self)
        await self.wait()

    async def call(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Run a coroutine function that awaits trio things, with this strand attached to trio."""
        await self._attach()
        try:
            return await fn(*args)
        finally:
            self.lane.tick()

    async def _detach(self) -> None:
        if self.lane.stopped:
            self.parked = False
            self.lane.disarm(self)
            self._raise_cancel = _lane_has_stopped
            self.interrupted = True
            return
        self._detached = True
        self.lane._detached.add(self)
        await trio.lowlevel.temporarily_detach_coroutine_object(self._abort)

    async def _attach(self) -> None:
        if self._detached:
            self._detached = False
            self._raise_cancel = None  # what is cancelled now, trio says again
            self.interrupted = self._timed_out
            self.lane._detached.discard(self)
            self.lane.disarm(self)
            await trio.lowlevel.reattach_detached_coroutine_object(self.task, _ATTACHED)

    def _abort(self, raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        self._raise_cancel = raise_cancel
        self.interrupted = True
        self.lane.wake(self)
        return trio.lowlevel.Abort.FAILED

    async def interrupt(self) -> NoReturn:
        """Raise what ended the last wait."""
        self.interrupted = False
        raise_cancel, self._raise_cancel = self._raise_cancel, None
        timed_out, self._timed_out = self._timed_out, False
        if raise_cancel is not None:
            await self._attach()
            if self.lane.stopped:  # what stopped the lane may have cancelled us since
                await trio.lowlevel.checkpoint_if_cancelled()
            raise_cancel()
        assert timed_out
        raise TimedOut

    def expire(self) -> None:
        """The deadline has passed: resume with `TimedOut`."""
        if self.parked:
            self._timed_out = self.interrupted = True
            self.lane.wake(self)


class Lane:
    """One reactor. `run` is its trio task; every method is called from that trio thread only.

    `now` is trio's time as of the last batch: read it instead of asking the clock. `lag_s` is the longest time that
    a batch took since `lag_s` was last reset by its reader.
    """

    __slots__ = (
        "_buckets", "_clock", "_closing", "_detached", "_dues", "_epoll", "_handed_over", "_in_batch", "_kick_fd",
        "_links", "_next_due", "_runnable", "_timekeeper", "lag_s", "now", "turns",
    )  # fmt: skip

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._kick_fd, select.EPOLLIN | select.EPOLLET)
        self._links: dict[int, Link] = {}
        self._closing: list[Sock] = []
        self._detached: set[Strand] = set()
        self._runnable: deque[Strand] = deque()
        self._buckets: dict[float, set[Timer]] = {}
        self._dues: list[float] = []
        self._next_due = inf
        self._timekeeper: trio.CancelScope | None = None
        self._in_batch = False
        self._handed_over = False
        self._clock: Callable[[], float] = trio.current_time
        self.now = 0.0
        self.lag_s = 0.0
        self.turns = 0
        """Batches so far: what is dear is done a few times in each."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drive strands until cancelled, once in the lane's life.

        Raises only what a callback of a link or timer raised, in an exception group: a defect that ends the worker.
        """
        self._clock = trio.lowlevel.current_clock().current_time
        self.tick()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_time)
                task_status.started()
                await self._drive()
        finally:
            self._stop()

    def _stop(self) -> None:
        self._in_batch = False
        self._close_all()
        for strand in list(self._detached):
            if strand.parked:
                strand.parked = False
                strand._raise_cancel = strand._raise_cancel or _lane_has_stopped
                strand.interrupted = True
                strand.coro.send(None)
            else:  # it ended without `finish`: the error that stopped the lane
                trio.lowlevel.reschedule(strand.task)
        self._runnable.clear()
        self._epoll.close()
        os.close(self._kick_fd)

    async def _drive(self) -> None:
        descriptor = self._epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            # Stay here while there is work: at one connection the way through trio costs more than the request.
            timeout = 0.0
            trio_due = self._clock() + _TRIO_EVERY_S
            while (worked := self._turn(timeout)) or timeout == 0.0:
                timeout = 0.0 if worked else _LINGER_S
                if self._handed_over or self.now >= trio_due:
                    if self._handed_over:
                        # trio shuffles: after one pass alone we might linger before the task that waits has run
                        self._handed_over = False
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    await trio.lowlevel.checkpoint_if_cancelled()
                    trio_due = self._clock() + _TRIO_EVERY_S

    def _turn(self, timeout: float) -> bool:
        """One batch: what is ready now, then what was queued. True if there was anything to do."""
        if self._runnable:
            timeout = 0.0
        elif timeout:
            timeout = min(timeout, max(0.0, self._next_due - self._clock()))
        events = self._epoll.poll(timeout, _BATCH)
        start = self.now = self._clock()
        self.turns += 1
        self._in_batch = True  # from here on: what a timer closes may be among the events
        if start >= self._next_due:
            self._expire()
        elif not events and not self._runnable:
            self._in_batch = False
            return False
        if events:
            self._resume(events)
        if self._runnable:
            self._run_queued()
        self._in_batch = False
        if self._closing:
            self._close_all()
        took = self._clock() - start
        if took > self.lag_s:
            self.lag_s = took
        return True

    def _resume(self, events: list[tuple[int, int]]) -> None:
        links = self._links
        batch: list[Link] = []
        # All flags before the first resumption: who takes an idle connection shall see that it has just been closed.
        for fd, flags in events:
            link = links.get(fd)
            if link is not None:
                link.ready |= flags
                batch.append(link)
            elif fd == self._kick_fd:
                os.eventfd_read(fd)
        for link in batch:
            strand = link.strand
            if strand is not None:
                if strand.parked and link.ready & link.interest:
                    strand.parked = False
                    yielded = strand.coro.send(None)
                    if yielded is not _PARKED:
                        self._left(strand, yielded)
            elif link.callback is not None:
                link.callback()
                self._handed_over = True  # it may have started a task: spare that the linger

    def _run_queued(self) -> None:
        for _ in range(len(self._runnable)):
            strand = self._runnable.popleft()
            if strand.parked:
                strand.parked = False
                yielded = strand.coro.send(None)
                if yielded is not _PARKED:
                    self._left(strand, yielded)

    def _left(self, strand: Strand, yielded: object) -> None:
        """The strand went back to trio, or broke the rule that it awaits nothing of trio while detached."""
        while yielded is not _ATTACHED:
            error = RuntimeError(
                f"{strand.task.name}: awaited something that is not the lane's while detached"
            )
            yielded = strand.coro.throw(error)
            if yielded is _PARKED:
                return
        self._handed_over = True

    def _close_all(self) -> None:
        closing, self._closing = self._closing, []
        for sock in closing:
            sock.close()

    # Links

    def link(self, sock: socket.socket) -> Link:
        """Register a non-blocking socket. Both directions count as ready until proved otherwise.

        The optimism makes the first read or write of a connection try at once, without a wait.
        """
        link = Link(self, sock)
        link.ready = READ | WRITE
        self._epoll.register(link.fd, _INTEREST)
        self._links[link.fd] = link
        return link

    def listen(self, sock: socket.socket, callback: Callable[[], None]) -> Link:
        """Register a listening socket, level-triggered: `callback` runs in each batch while it is readable."""
        link = Link(self, sock)
        link.callback = callback
        self._epoll.register(link.fd, READ)
        self._links[link.fd] = link
        return link

    def mask(self, link: Link, *, silent: bool) -> None:
        """Stop (or resume) hearing of a listening socket without giving it up.

        Hang-ups and errors cannot be masked: while silent they are told once.
        """
        if not link.closed:
            self._epoll.modify(link.fd, select.EPOLLET if silent else READ)

    def rearm(self, fd: int) -> None:
        """Have what is ready now told again, of a socket that `link` registered under this descriptor."""
        self._epoll.modify(fd, _INTEREST)

    def _unregister(self, link: Link) -> None:
        link.strand = link.callback = None
        link.interest = 0
        del self._links[link.fd]
        if not self._epoll.closed:
            self._epoll.unregister(link.fd)

    def _close(self, link: Link) -> None:
        self._unregister(link)
        if self._in_batch:
            self._closing.append(link.sock)
        else:
            link.sock.close()

    @property
    def stopped(self) -> bool:
        """`run` has ended: nothing that is waited for comes any more."""
        return self._epoll.closed

    @property
    def link_count(self) -> int:
        """How many sockets are registered."""
        return len(self._links)

    # Waking

    def strand(self) -> Strand:
        """The strand of the running trio task; it must end with `finish`."""
        self.tick()
        return Strand(self)

    async def finish(self, strand: Strand) -> None:
        """Bring the strand back to trio for its end. Call it in the `finally` of the task's body."""
        await strand._attach()

    def wake(self, strand: Strand) -> None:
        """Resume a parked strand in the next batch (or this one, if it is still under way)."""
        self._runnable.append(strand)
        self.kick()

    def kick(self) -> None:
        """Make the lane look at its queue, if it waits in trio."""
        if not self._in_batch and not self._epoll.closed:
            os.eventfd_write(self._kick_fd, 1)

    # Time

    def tick(self) -> None:
        """Read the clock again: after time that was spent outside the lane."""
        self.now = self._clock()

    def arm(self, timer: Timer) -> None:
        """Have `timer.expire` called once `timer.deadline` has passed."""
        if timer._bucket is not None:
            timer._bucket.discard(timer)
        if timer.deadline == inf:
            timer._due, timer._bucket = inf, None
            return
        due = timer.deadline
        if not timer.exact:
            due = (int(due * _TICKS_PER_S) + 1) / _TICKS_PER_S
        bucket = self._buckets.get(due)
        if bucket is None:
            bucket = self._buckets[due] = set()
            heapq.heappush(self._dues, due)
            if due < self._next_due:
                self._next_due = due
                if self._timekeeper is not None:
                    self._timekeeper.deadline = due
        bucket.add(timer)
        timer._bucket = bucket
        timer._due = due

    def disarm(self, timer: Timer) -> None:
        """Forget the timer's deadline."""
        if timer._bucket is not None:
            timer._bucket.discard(timer)
            timer._bucket = None
        timer._due = timer.deadline = inf

    def _expire(self) -> None:
        now, dues = self.now, self._dues
        due: list[set[Timer]] = []
        while dues and dues[0] <= now:
            due.append(self._buckets.pop(heapq.heappop(dues)))
        self._next_due = dues[0] if dues else inf
        for bucket in due:
            while bucket:  # popped one by one, for a timer may disarm another
                timer = bucket.pop()
                timer._bucket, timer._due = None, inf
                if timer.deadline <= now:
                    timer.expire()
                elif timer.deadline != inf:
                    self.arm(timer)

    async def _keep_time(self) -> None:
        """Fire timers while the lane itself sleeps in trio: the only place that waits for the clock."""
        while True:
            with trio.CancelScope(deadline=self._next_due) as scope:
                self._timekeeper = scope
                await trio.sleep_forever()
            self._timekeeper = None
            self.tick()
            self._expire()

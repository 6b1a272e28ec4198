"""How a worker obeys: orders in, reports out, whatever serves the clients.

What serves them is a `Plane`; `worker.py` builds the real one, and nothing here knows of HTTP. A plane is told which
sockets to accept from, one by one; which those are is decided here from `Serve` and from the config's listeners.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final, Protocol, TypeAlias

import msgspec
import trio

from ambassador.config.discover import Found
from ambassador.config.schema import Config
from ambassador.control.channel import Channel, Closed
from ambassador.control.child import ignore_signals
from ambassador.control.host import die_with_parent, stop_listening
from ambassador.control.listeners import keyed
from ambassador.control.orders import (
    Abort,
    Act,
    Addresses,
    Answer,
    Ask,
    Beat,
    Brief,
    Commit,
    Committed,
    Counted,
    Discovered,
    Drain,
    Drained,
    Failed,
    Health,
    KeySetTrouble,
    KeysRead,
    Leaving,
    Order,
    Prepare,
    Prepared,
    Ready,
    Refused,
    Reopen,
    Serve,
    SocketRef,
    Sockets,
    Start,
    Stopped,
)
from ambassador.control.turns import Turns

_BEAT_EVERY_S = 0.5
_COUNT_EVERY_S = 2.0
_TURN_S = 0.001  # as long as the lane's, so that a worker whose clients never rest compiles at half its speed
_POLL_S = 0.02
_EMPTY_WITHIN_S = 2.0  # a queue that grows as fast as it is emptied is left at some point
_LAST_SECOND_S = 1.0
_REPLACED_WITHIN_S = 30.0  # beyond it a worker told to leave goes without a successor
_LAST_WORDS_S = 1.0

_ORDERS: Final = msgspec.msgpack.Decoder(Order)
_CONFIG: Final = msgspec.msgpack.Decoder(Config)


class CannotServe(Exception):
    """A worker cannot use a setting; the text begins with its path and a colon. No defect: it needs no stack."""


class Plane(Protocol):
    """What serves clients. Every method is called from the worker's trio thread."""

    def prepare(self, config: Config, brief: Brief) -> Iterator[None]:
        """Make ready for another generation, in short steps. Whatever it raises is the reason why it cannot be."""

    def commit(self) -> None:
        """Serve what was prepared; requests under way keep what they began with."""

    def abort(self) -> None:
        """Forget what was prepared."""

    def add(self, listener: str, sock: socket.socket) -> None:
        """Accept from a socket of the listener with this key."""

    def remove(self, listener: str, sock: socket.socket) -> None:
        """Accept from it no more; it stays open."""

    def take_rest(self, listener: str, sock: socket.socket) -> None:
        """Accept what waits at a socket that was removed and that listens no more."""

    def set_addresses(self, host: str, addresses: tuple[str, ...]) -> None:
        """A name has other addresses now."""

    def set_unhealthy(self, unhealthy: Mapping[str, Mapping[str, str]]) -> None:
        """Of these upstreams other endpoints are unhealthy now (`orders.Health`)."""

    def take_found(self, found: Found) -> None:
        """A source has other endpoints now."""

    def drain(self, *, last: bool) -> None:
        """From now on answers say `Connection: close`. `last`: no other worker takes this one's place."""

    def close_idle(self) -> None:
        """Close connections that wait for a request."""

    def reopen(self) -> None:
        """Open log files again, by name."""

    def answer(self, what: str, give: Callable[[bytes], None]) -> None:
        """Answer a question of the admin API: `give` it, as JSON, at once or later."""

    def act(self, data: bytes, done: Callable[[bytes], None]) -> None:
        """Do what the admin API wants (`orders.Act`); `done` is called once, now or later, with the answer."""

    @property
    def open_breakers(self) -> Mapping[str, tuple[int, int]]:
        """Breakers that are not closed: epoch and state."""

    @property
    def ejections(self) -> Mapping[str, tuple[int, int]]:
        """Of each upstream that has had ejections: endpoints that are ejected, and ejections so far."""

    @property
    def key_set_troubles(self) -> Mapping[str, KeySetTrouble]:
        """As `orders.Beat` has them."""

    def keys_read(self) -> Iterable[KeysRead]:
        """The sets of public keys that have been read since it was asked last."""

    @property
    def generation(self) -> int:
        """The number of the generation that is served."""

    def counts(self, *, whole: bool) -> Iterator[bytes]:
        """What limits have counted since it is served, in steps: lines as of `limits.counted`. Unless `whole`, without
        those that it would take long to look through.
        """

    def beat(self) -> float:
        """Write down the gauges; returns the loop's longest turn since the last call, in milliseconds."""

    @property
    def connections(self) -> int:
        """Client connections that are open."""

    @property
    def inflight(self) -> int:
        """Requests that are not finished."""


OpenPlane: TypeAlias = Callable[[Start, Config, int, int, int], AbstractAsyncContextManager[Plane]]
"""(start, config, descriptors of the page, the log pipe and the store's socket) -> a plane that serves `start.brief`.
Leaving the context cuts what is under way and flushes logs. The descriptors belong to the plane."""


def obey(control_fd: int, supervisor: int, open_plane: OpenPlane) -> int:
    """Be a worker: from here to the end of the process. Returns its exit status.

    `control_fd` is this side of the channel, `supervisor` the process that started this one.
    """
    ignore_signals()
    channel: Channel[Order] = Channel(socket.socket(fileno=control_fd), _ORDERS)
    return trio.run(_work, channel, supervisor, open_plane)


async def _work(channel: Channel[Order], supervisor: int, open_plane: OpenPlane) -> int:
    with trio.open_signal_receiver(signal.SIGTERM) as terminations:
        die_with_parent(supervisor)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.run)
            status = await _serve(channel, open_plane, terminations)
            with trio.move_on_after(_LAST_WORDS_S), contextlib.suppress(OSError):
                await channel.flush()
            nursery.cancel_scope.cancel()
    channel.close()
    return status


async def _serve(channel: Channel[Order], open_plane: OpenPlane, terminations: AsyncIterator[int]) -> int:
    try:
        start = await channel.receive()
        assert isinstance(start, Start), "the first order is Start"
        page_fd, log_fd, store_fd = channel.take(3)
        config = _CONFIG.decode(start.brief.config)
        async with open_plane(start, config, page_fd, log_fd, store_fd) as plane:
            duties = Duties(channel, plane, config)
            duties.take_sockets(start.sockets)
            channel.post(Ready())
            await duties.run(terminations)
        channel.post(Drained())
    except Closed:
        return 0
    except Exception as error:  # noqa: BLE001
        # The worker's catch-all: its supervisor is told why it ends, and the log has the place.
        if not isinstance(_cause(error), CannotServe):
            traceback.print_exc(file=sys.stderr)
        channel.post(Failed(error=_describe(error)))
        return 1
    return 0


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _describe(error: BaseException) -> str:
    cause = _cause(error)
    return str(cause) if isinstance(cause, CannotServe) else f"{type(cause).__name__}: {cause}"


class Duties:
    """A worker's state between orders."""

    def __init__(self, channel: Channel[Order], plane: Plane, config: Config) -> None:
        self._channel = channel
        self._plane = plane
        self._config = config
        self._prepared: Config | None = None
        self._sockets: dict[SocketRef, socket.socket] = {}
        self._served: set[SocketRef] = set()
        self._slots: tuple[int, ...] | None = None
        self._drain: _Drain | None = None
        self._nursery: trio.Nursery | None = None
        self._turns = Turns(turn_s=_TURN_S)
        self._counted: Counted | None = None

    async def run(self, terminations: AsyncIterator[int]) -> None:
        """Obey until drained. The plane is left as it is then: idle, or out of time."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._beat)
                self._nursery.start_soon(self._count)
                self._nursery.start_soon(self._leave_on_signal, terminations)
                await self._hear()
        finally:
            self._close(self._sockets)

    async def _hear(self) -> None:
        try:
            while True:
                order = await self._channel.receive()
                if isinstance(order, Prepare):
                    await self._prepare(order.brief)
                else:
                    self._obey(order)
        except Closed:
            # The supervisor is gone, and its sockets with it: nobody serves our queues after us.
            self._begin_drain(0.0, self._config.drain.timeout, last=True)

    def _obey(self, order: Order) -> None:
        assert self._nursery is not None
        match order:
            case Sockets():
                self.take_sockets(order.sockets)
            case Commit():
                self._nursery.start_soon(self._commit, order.generation)
            case Abort():
                self._abort()
            case Serve():
                self._slots = order.slots
                self._serve_wanted()
            case Addresses():
                self._set_addresses(order.addresses)
            case Health():
                self._plane.set_unhealthy(order.unhealthy)
            case Discovered():
                self._plane.take_found(order.found)
            case Drain():
                self._begin_drain(order.delay_s, order.timeout_s, last=order.last)
            case Reopen():
                self._plane.reopen()
            case Ask():
                self._plane.answer(order.what, partial(self._post_answer, order.id))
            case Act():
                self._plane.act(order.data, partial(self._post_answer, order.id))

    def _set_addresses(self, addresses: Mapping[str, tuple[str, ...]]) -> None:
        for host, each in addresses.items():
            self._plane.set_addresses(host, each)

    def _post_answer(self, number: int, data: bytes) -> None:
        self._channel.post(Answer(id=number, data=data))

    async def _beat(self) -> None:
        while True:
            lag = self._plane.beat()
            beat = Beat(
                connections=self._plane.connections,
                inflight=self._plane.inflight,
                loop_lag_ms=lag,
                open_breakers=self._plane.open_breakers,
                ejections=self._plane.ejections,
                key_sets=self._plane.key_set_troubles,
            )
            self._channel.post(beat)
            for read in self._plane.keys_read():
                self._channel.post(read)
            await trio.sleep(_BEAT_EVERY_S)

    async def _count(self) -> None:
        """Tell what limits have counted: should this worker die, that is what is known of it."""
        while True:
            await trio.sleep(_COUNT_EVERY_S)
            generation = self._plane.generation
            lines = await self._turns.take(self._plane.counts(whole=False))
            if self._plane.generation == generation:
                self._post_counts(b"".join(lines))

    def _post_counts(self, lines: bytes) -> None:
        counted = Counted(generation=self._plane.generation, lines=lines)
        if counted != self._counted:
            self._counted = counted
            self._channel.post(counted)

    async def _leave_on_signal(self, terminations: AsyncIterator[int]) -> None:
        """Ask to be replaced rather than leave the slot without a worker."""
        await terminations.__anext__()
        self._channel.post(Leaving())
        await trio.sleep(_REPLACED_WITHIN_S)
        if self._drain is None:
            self._begin_drain(0.0, self._config.drain.timeout, last=False)

    # Sockets

    def take_sockets(self, refs: Iterable[SocketRef]) -> None:
        """Take the descriptors that came with a message; they are not served yet."""
        refs = tuple(refs)
        for ref, fd in zip(refs, self._channel.take(len(refs)), strict=True):
            known = self._sockets.get(ref)
            if known is not None and os.path.sameopenfile(known.fileno(), fd):
                os.close(fd)
                continue
            if known is not None:
                self._close([ref])
            sock = socket.socket(fileno=fd)
            sock.settimeout(0)
            self._sockets[ref] = sock

    def _serve_wanted(self) -> None:
        wanted = self._wanted()
        for ref in self._served - wanted:
            self._let_go(ref)
        for ref in wanted - self._served:
            self._plane.add(ref.listener, self._sockets[ref])
            self._served.add(ref)

    def _wanted(self) -> set[SocketRef]:
        if self._slots is None or (self._drain is not None and self._drain.stopped):
            return set()
        listeners = keyed(self._config.listeners)
        return {
            ref
            for ref in self._sockets
            if ref.listener in listeners and (ref.slot is None or ref.slot in self._slots)
        }

    def _let_go(self, ref: SocketRef) -> None:
        self._plane.remove(ref.listener, self._sockets[ref])
        self._served.discard(ref)

    async def _empty(self, refs: Iterable[SocketRef]) -> None:
        """Wait until the queues of these sockets are empty, while the plane accepts from them.

        One that another worker has ended already is that one's to empty.
        """
        poll = select.poll()
        for ref in refs:
            poll.register(self._sockets[ref], select.POLLIN | select.POLLRDHUP)
        with trio.move_on_after(_EMPTY_WITHIN_S):
            # Asked again and again: the kernel's queue rings no bell.
            while any(not events & select.POLLRDHUP for _, events in poll.poll(0)):  # noqa: ASYNC110
                await trio.sleep(_POLL_S)

    def _close(self, refs: Iterable[SocketRef]) -> None:
        for ref in list(refs):
            if ref in self._served:
                self._let_go(ref)
            self._sockets.pop(ref).close()

    def _stop(self, *, listening: bool) -> None:
        """Let go of every socket. Unless others go on `listening`, what comes to one that was served here is refused
        from now on: without that it would wait in a queue, since other processes have the socket open too.
        """
        for ref in set(self._served):
            self._let_go(ref)
            if not listening:
                stop_listening(self._sockets[ref])
                if ref.slot is None:
                    # What came up to now is still there, and nobody else need take it.
                    self._plane.take_rest(ref.listener, self._sockets[ref])
        self._close(self._sockets)

    # Generations

    async def _prepare(self, brief: Brief) -> None:
        try:
            config = _CONFIG.decode(brief.config)
            await self._turns.take(self._plane.prepare(config, brief))
        except Exception as error:  # noqa: BLE001
            # Whatever is wrong with this generation, the old one is served on, and the caller is told.
            self._channel.post(Refused(generation=brief.generation, error=_describe(error)))
            return
        self._prepared = config
        self._channel.post(Prepared(generation=brief.generation))

    async def _commit(self, generation: int) -> None:
        if self._prepared is None:
            return
        listeners = keyed(self._prepared.listeners)
        removed = [ref for ref in self._sockets if ref.listener not in listeners]
        await self._empty(ref for ref in removed if ref in self._served)
        self._close(removed)
        self._config, self._prepared = self._prepared, None
        self._plane.commit()
        self._serve_wanted()
        self._channel.post(Committed(generation=generation))

    def _abort(self) -> None:
        self._prepared = None
        self._plane.abort()
        listeners = keyed(self._config.listeners)
        self._close([ref for ref in self._sockets if ref.listener not in listeners])

    # The end

    def _begin_drain(self, delay_s: float, timeout_s: float, *, last: bool) -> None:
        assert self._nursery is not None
        stop_at = trio.current_time() + delay_s
        if self._drain is None:
            self._drain = _Drain(stop_at, stop_at + timeout_s, last=last)
            self._plane.drain(last=last)
            self._post_counts(b"".join(self._plane.counts(whole=True)))  # it is asked no more
            self._nursery.start_soon(self._finish, self._drain)
        else:
            self._drain.hasten(stop_at, stop_at + timeout_s)

    async def _finish(self, drain: _Drain) -> None:
        assert self._nursery is not None
        with drain.accepting:
            await trio.sleep_forever()
        if drain.last:
            await self._empty(self._served)
        drain.stopped = True
        self._stop(listening=not drain.last)
        self._channel.post(Stopped())
        with drain.finishing:
            while self._plane.connections:
                if trio.current_time() >= drain.finishing.deadline - _LAST_SECOND_S:
                    self._plane.close_idle()
                await trio.sleep(_POLL_S)
        self._post_counts(b"".join(self._plane.counts(whole=True)))
        self._nursery.cancel_scope.cancel()


class _Drain:
    """The times of a drain, which can only come nearer."""

    def __init__(self, stop_at: float, cut_at: float, *, last: bool) -> None:
        self.accepting = trio.CancelScope(deadline=stop_at)
        self.finishing = trio.CancelScope(deadline=cut_at)
        self.last = last
        self.stopped = False

    def hasten(self, stop_at: float, cut_at: float) -> None:
        self.accepting.deadline = min(self.accepting.deadline, stop_at)
        self.finishing.deadline = min(self.finishing.deadline, cut_at)

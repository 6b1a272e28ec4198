"""A worker's stores: opens the scopes that its policies share by, and drives them with its lane.

The replica's scope lives as long as the worker. The fleet's is the same one, or a Redis: there is one for each address
that a generation of the config names, from when the first is prepared until the last has retired.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import trio

from ambassador import __version__
from ambassador.config import schema
from ambassador.proxy.lane import Lane, Timer
from ambassador.state.lives import BEAT_EVERY_S, Info, Lives, encode_info
from ambassador.state.local_scope import LocalScope
from ambassador.state.protocol import Answer, Beat
from ambassador.state.remote_scope import RemoteScope
from ambassador.state.rollout import Governed, Rollout
from ambassador.state.scope import Scopes
from ambassador.state.store_thread import Store
from ambassador.state.switch import Switch

S = TypeVar("S", LocalScope, RemoteScope)

LEAVE_WITHIN_S = 0.3
"""What is still to be said to each store at a worker's end has this long."""

_Key: TypeAlias = tuple[str, str, str | None, str | None]

OpenRemote = Callable[[schema.State], Store]
"""Makes the client of the fleet's store, not connected yet. Raises ValueError or ImportError when that cannot be."""


class _Alarm(Timer):
    """Calls `pulse` at a time of the lane's clock."""

    __slots__ = ("_lane", "pulse")

    def __init__(self, lane: Lane, pulse: Callable[[], None]) -> None:
        super().__init__()
        self._lane = lane
        self.pulse = pulse

    def set(self, when: float) -> None:
        """In place of the time that was set before."""
        self.deadline = when
        self._lane.arm(self)

    def expire(self) -> None:
        self.pulse()


def _key(state: schema.State) -> _Key:
    """What makes a store another one; the rest of the section says how it is used."""
    return (state.url, state.prefix, state.password, state.sentinel_password)


def _nothing() -> None:
    """What an alarm does before its scope is there."""


class _Driven(Generic[S]):
    """A scope, and what drives it: its bell and its alarm."""

    def __init__(self, lane: Lane, make: Callable[[Callable[[float], None]], S]) -> None:
        self._lane = lane
        self._alarm = _Alarm(lane, _nothing)
        self.scope: S = make(self._alarm.set)
        self._alarm.pulse = self.scope.pulse
        self._link = lane.listen(self.scope.bell.sock, self.scope.ready)

    def end(self) -> None:
        """Ask no more; blocks, for LEAVE_WITHIN_S at most."""
        self.scope.close(LEAVE_WITHIN_S)
        self._lane.disarm(self._alarm)
        self.scope.bell.close()
        self._link.close()


class WorkerScopes:
    """All scopes of one worker. `store` is its socket to the supervisor's store and belongs to it from now on.

    `replica` names the supervisor among all, `slot` the worker in it; `started` is when the supervisor did,
    in unix seconds. To be made in a task of the lane's trio loop,
    and closed when no request is under way any more.
    """

    def __init__(
        self,
        lane: Lane,
        store: socket.socket,
        *,
        replica: str,
        slot: int,
        started: float,
        open_remote: OpenRemote,
    ) -> None:
        self._lane = lane
        self._time = trio.lowlevel.current_clock().current_time
        self._replica = replica
        self._slot = slot
        self._since = started
        self._log = logging.getLogger("ambassador")
        self._open_remote = open_remote
        self.generation = 0
        """Of the config that is served, for others to see."""
        self._local = _Driven(lane, lambda alarm: LocalScope(store, self._time, alarm))
        self._store = lane.link(store)
        self._store.callback = self._local.scope.ready
        self._switch = Switch(self._local.scope)
        self.scopes = Scopes(self._switch, self._local.scope)
        """What policies share by: the same two for the worker's life."""
        self._fleets: dict[_Key, _Driven[RemoteScope]] = {}
        self._retired: list[_Driven[RemoteScope]] = []
        self._rollout = Rollout(self._switch, self._say)
        self._lives = self._make_lives(None)
        self._beats = _Alarm(lane, self._beat)
        self._switch.on_up(self._ask_around)
        self._beat()

    def prepare(self, state: schema.State) -> None:
        """Begin to connect to the store of a generation of the config. Raises whatever `open_remote` does."""
        if state.url == "local" or _key(state) in self._fleets:
            return
        store = self._open_remote(state)
        fleet = self._fleets[_key(state)] = _Driven(
            self._lane,
            lambda alarm: RemoteScope(store, lambda: [self._greeting(arrives=True)], self._time, alarm),
        )
        if state.expected_replicas is not None:
            fleet.scope.census.assume(state.expected_replicas, state.expected_replicas)
        fleet.scope.start()

    def use(self, state: schema.State) -> None:
        """The generation that is served has this `state`, which was prepared; what no other one needs is ended."""
        fleet = self._fleets.get(_key(state))
        target = self._local.scope if fleet is None else fleet.scope
        if target is not self._switch.target:
            self._lives = self._make_lives(None if fleet is None else fleet.scope)
            self._rollout.begin_anew()
            self._switch.point(target)
        for key, other in list(self._fleets.items()):
            if other is not fleet:
                del self._fleets[key]
                self._switch.forget(other.scope)
                other.scope.close(0.0)  # goes on until what was asked is answered
                self._retired.append(other)

    def govern(self, limits: Sequence[Governed]) -> None:
        """These limits of all replicas are served from now on; others are told at once."""
        self._rollout.govern(limits)
        self._beat()

    async def wait_up(self, within_s: float) -> None:
        """Wait until the fleet's store is there and has told which terms of limits hold, or for that long: so that the
        first requests are counted with it, and by the lowest terms.
        """
        if self._switch.target is self._local.scope:
            return
        there = trio.Event()
        if self._rollout.name:
            self._rollout.when_settled = there.set
            waits = not self._rollout.settled
        else:
            self._switch.on_up(there.set)
            waits = not self.up
        if waits:
            with trio.move_on_after(within_s):
                await there.wait()

    @property
    def up(self) -> bool:
        """Whether the fleet's store answers."""
        return self._switch.up

    @property
    def operations(self) -> int:
        """Sent to stores so far."""
        return sum(each.scope.operations for each in self._all())

    def _all(self) -> list[_Driven[LocalScope] | _Driven[RemoteScope]]:
        return [*self._fleets.values(), *self._retired, self._local]

    def leave(self) -> None:
        """Tell the others that this worker has ended, rather than have them find out."""
        self._lives.leave()

    def close(self) -> None:
        """Have done what was asked, and end. Blocks, for LEAVE_WITHIN_S with each store at most."""
        self._lane.disarm(self._beats)
        for each in self._all():
            each.end()
        self._store.close()

    # Beats

    def _make_lives(self, fleet: RemoteScope | None) -> Lives:
        target = fleet or self._local.scope

        def heard(answer: Answer | None) -> None:
            if target is self._switch.target:
                self._rollout.beaten(answer)

        return Lives(self._greeting, self._local.scope, fleet, heard)

    def _beat(self) -> None:
        self._lives.beat()
        self._beats.set(self._time() + BEAT_EVERY_S)

    def _ask_around(self) -> None:
        """The fleet's store is there: which terms the others have is asked at once."""
        if self._switch.target is not self._local.scope:
            self._beat()

    def _greeting(self, *, arrives: bool = False) -> Beat:
        """The beat of now. `arrives`: whoever reads it sees by it that the fleet's store is reached.

        Also called from the thread of a store.
        """
        age_s = max(0.0, time.time() - self._since)
        info = Info(self._since, __version__, self.generation, arrives or self.up, age_s)
        return Beat(self._replica, self._slot, encode_info(info), terms=self._rollout.name)

    def _say(self, text: str) -> None:
        if self._slot == 0:  # one of each replica is to tell
            self._log.warning("%s", text)

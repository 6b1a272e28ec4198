"""All breakers of a worker: what connects their gates with the state store, the clock and the log.

A `Breaker` outlives the tables that use it: it is found again by its name, so a reload keeps its state, and one whose
settings have changed goes on from where the old one is. `get` is for compiling a table, `install` for the table that is
served from then on; what is only prepared disturbs nothing.

A gate is pure (`state/gate.py`). After every call of one that may have changed anything, `attend` carries on what the
gate wants: operations to ask, news to log, a time to be called at.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING

import msgspec

from ambassador.proxy.lane import Timer
from ambassador.proxy.policies.breaker import Breaker, Config
from ambassador.state.gate import Gate
from ambassador.state.protocol import Force, Probe, Refused, Row, State, Verb, decode_row
from ambassador.state.scope import MAX_WAIT_S, MISSED
from ambassador.state.store_time import StoreTime

if TYPE_CHECKING:
    from ambassador.proxy.lane import Lane
    from ambassador.state.protocol import Answer, Event, Operation
    from ambassador.state.scope import Scope, Scopes


class BreakerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One breaker as one worker knows it, for `/api/breakers`. Times are unix seconds of the store's clock."""

    name: str
    scope: str
    state: str
    forced: dict[str, str | float | None] | None
    since: float | None
    retry_at: float | None
    window: dict[str, int]
    epoch: int
    as_of: float
    """When the store said so; 0: never."""
    local: dict[str, str | int | float] | None
    """This worker has opened its own: `replica`, `slot`, `retry_in_s`, `why`."""
    now: float | None = None
    """What the store's clock says now, as far as this worker knows it; None: it was never heard."""


class Breakers(Timer):
    """One for a worker's life.

    `replica`, `slot` and `key` say who this is; `key` is unique among all processes that ever lived. `random` gives
    numbers in [0, 1).
    """

    __slots__ = (
        "_breakers", "_flushing", "_gates", "_key", "_lane", "_log", "_replica", "_slot", "_times",
        "max_wait_s", "random",
    )  # fmt: skip

    def __init__(
        self,
        lane: Lane,
        *,
        replica: str = "-",
        slot: int = 0,
        key: str = "-",
        random: Callable[[], float] = random.random,
        log: logging.Logger | None = None,
    ) -> None:
        super().__init__()
        self._lane = lane
        self._replica = replica
        self._slot = slot
        self._key = key
        self._gates = itertools.count()
        self.random = random
        self._log = log or logging.getLogger(__name__)
        self.max_wait_s = MAX_WAIT_S
        """How long a request may wait for a probe's lease."""
        self._breakers: dict[str, Breaker] = {}
        self._flushing: set[Breaker] = set()
        self._times: dict[Scope, StoreTime] = {}

    @property
    def now(self) -> float:
        """The lane's time."""
        return self._lane.now

    @property
    def breakers(self) -> Mapping[str, Breaker]:
        """Those of the table that is served, by name."""
        return self._breakers

    # ----- tables -----

    def get(self, name: str, config: Config, scopes: Scopes) -> Breaker:
        """The breaker of this name for a table that is being made: the one there is, if its settings are the same."""
        store = scopes.fleet if config.shared else scopes.replica
        present = self._breakers.get(name)
        if present is not None and present.config == config and present.store is store:
            return present
        gate = Gate(
            name,
            config.rules,
            consecutive=config.consecutive,
            peers=store,
            time=self._time_of(store),
            replica=self._replica,
            slot=self._slot,
            # Of a name there may be several, one after another: what one of them was granted is not another's.
            key=f"{self._key}.{next(self._gates)}",
        )
        return Breaker(name, config, gate, store, self)

    def _time_of(self, store: Scope) -> StoreTime:
        time = self._times.get(store)
        if time is None:
            time = self._times[store] = StoreTime()
            store.listen("circuit", partial(self._heard, store))
            store.on_up(partial(self._read_all, store))
            store.listen(MISSED, lambda _: self._read_all(store))
        return time

    def install(self, breakers: Iterable[Breaker], *, max_wait_s: float = MAX_WAIT_S) -> None:
        """These are the breakers of the table that is served from now on."""
        self.max_wait_s = max_wait_s
        before, self._breakers = self._breakers, {breaker.name: breaker for breaker in breakers}
        for name, breaker in self._breakers.items():
            self._begin(breaker, before.get(name))

    def add(self, breaker: Breaker) -> None:
        """One more for the table that is served: of an endpoint that was found meanwhile."""
        old, self._breakers[breaker.name] = self._breakers.get(breaker.name), breaker
        self._begin(breaker, old)

    def remove(self, name: str) -> None:
        """One fewer: its endpoint has gone. Attempts that are under way still tell it how they went."""
        gone = self._breakers.pop(name, None)
        if gone is not None:
            gone.unguard()

    def _begin(self, breaker: Breaker, old: Breaker | None) -> None:
        if old is breaker:
            return
        if old is not None and old.store is breaker.store:
            breaker.gate.inherit(old.gate, self.now)
        breaker.gate.read(self.now)
        self.attend(breaker)

    # ----- between a gate and its store -----

    def attend(self, breaker: Breaker) -> None:
        """See to what the gate wants, after a call that may have changed it."""
        gate = breaker.gate
        if gate.outbox:
            operations, gate.outbox = gate.outbox, []
            for operation in operations:
                breaker.store.ask(operation, partial(self._answered, breaker, operation, self._lane.now))
        if gate.news:
            self._tell(breaker)
        breaker.note_shut()
        if gate.flush_at < inf:
            self._flushing.add(breaker)
            if gate.flush_at < self.deadline or self._bucket is None:
                self.deadline = gate.flush_at
                self._lane.arm(self)

    def _answered(
        self, breaker: Breaker, operation: Operation, asked_at: float, answer: Answer | None
    ) -> None:
        breaker.gate.answered(operation, answer, asked_at, self._lane.now, self.random())
        self.attend(breaker)
        if breaker.waiter is not None and isinstance(operation, Probe) and operation.verb is Verb.ASK:
            breaker.waiter.wake()

    def _heard(self, scope: Scope, event: Event) -> None:
        breaker = self._breakers.get(event.name)
        if breaker is not None and breaker.store is scope:
            breaker.gate.heard(decode_row(event.body), self._lane.now)
            self.attend(breaker)

    def _read_all(self, scope: Scope) -> None:
        """The store is there (again): it may know more than this worker, or less."""
        for breaker in self._breakers.values():
            if breaker.store is scope:
                breaker.gate.read(self._lane.now)
                self.attend(breaker)

    def expire(self) -> None:
        """Tell the store what has gathered."""
        due, self._flushing = self._flushing, set()
        for breaker in due:
            breaker.gate.tick(self._lane.now)
            self.attend(breaker)

    def _tell(self, breaker: Breaker) -> None:
        news, breaker.gate.news = breaker.gate.news, []
        for each in news:
            # Every worker hears of the fleet's circuits: the first of each replica tells.
            if self._slot == 0 or not each.fleet:
                self._log.info("%s", each.text)
            else:
                self._log.debug("%s", each.text)

    # ----- what the admin API asks -----

    @property
    def open(self) -> dict[str, tuple[int, int]]:
        """Epoch and state of the circuits that are not closed, by name."""
        found = {}
        for name, breaker in self._breakers.items():
            row = breaker.gate.row
            if breaker.is_open and row is not None and row.state is not State.CLOSED:
                found[name] = row.epoch, int(row.state)
        return found

    def status(self) -> list[BreakerStatus]:
        """Every breaker as this worker knows it, by name."""
        return [self._status(breaker) for _, breaker in sorted(self._breakers.items())]

    def _status(self, breaker: Breaker) -> BreakerStatus:
        known = breaker.gate.status(self._lane.now)
        requests, failures, slow = known.window
        forced: dict[str, str | float | None] | None = None
        if known.forced:
            forced = {
                "state": known.forced,
                "until": known.forced_until_us / 1e6 or None,
                "by": known.forced_by,
                "reason": known.forced_reason,
            }
        local: dict[str, str | int | float] | None = None
        if known.own_left_s is not None:
            local = {
                "replica": self._replica,
                "slot": self._slot,
                "retry_in_s": round(known.own_left_s, 3),
                "why": known.own_why,
            }
        time = self._times.get(breaker.store)
        return BreakerStatus(
            name=known.name,
            scope=breaker.kind,
            state=known.state,
            forced=forced,
            since=known.since_us / 1e6 or None,
            retry_at=known.open_until_us / 1e6 or None,
            window={"requests": requests, "failures": failures, "slow": slow},
            epoch=known.epoch,
            as_of=known.now_us / 1e6,
            local=local,
            now=time.there(self._lane.now) / 1e6 if time is not None and time.known else None,
        )

    def force(
        self, name: str, to: str, *, for_ms: int, by: str, reason: str, done: Callable[[bool, str], None]
    ) -> None:
        """Hold a breaker `open` or `closed` for all, or let go of it (`auto`). KeyError if there is none of that name.

        `done` is told later whether the store has it, and if that refused it, why.
        """
        breaker = self._breakers[name]
        asked_at = self._lane.now
        force = Force(name, to, breaker.gate.rules, for_ms, by, reason)

        def answered(answer: Answer | None) -> None:
            self._answered(breaker, force, asked_at, answer)
            done(isinstance(answer, Row), answer.why if isinstance(answer, Refused) else "")

        breaker.store.ask(force, answered)

    def force_here(self, name: str, to: str, *, now_us: int, for_ms: int, by: str, reason: str) -> None:
        """The same for this worker alone, while the store is away. KeyError if there is none of that name.

        `now_us` is the epoch, in microseconds of unix time, the same for all workers that are told. Once the store
        answers, it learns of it.
        """
        gate = self._breakers[name].gate
        if to == "auto" and (gate.row is None or not gate.row.forced):
            return
        epoch = max(now_us, gate.stamp.epoch + 1)
        state = {"open": State.OPEN, "closed": State.CLOSED}.get(to, State.HALF_OPEN)
        until_us = now_us + for_ms * 1000 if for_ms else 0
        row = Row(
            now_us, state, epoch, now_us, until_us if to == "open" else 0, 0,
            "" if to == "auto" else to, 0 if to == "auto" else until_us, by, reason, 0, 0, 0, 0, 0,
        )  # fmt: skip
        gate.override(row, self._lane.now)
        self.attend(self._breakers[name])

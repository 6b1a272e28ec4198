"""One worker's view of one circuit: what it lets through, what it tells the store, what it decides while alone.

A circuit is decided by the store, once for all (`circuit.py`). A gate holds the last row that it heard of, gathers
outcomes for the next report, and has a breaker of its own for what only this worker sees. Pure: time, random numbers
and answers come as arguments; what is to be asked is put into `outbox`, what happened into `news`, and whoever owns
the gate carries both on (`proxy/breakers.py`).

Rules that hold here
- Every pass bears the *stamp* of the time it was given in. An outcome with an old stamp never touches the worker's own
  window or breaker, and is told to the store only if the circuit is still in the same epoch.
- Precedence: a force, the circuit's own state, this worker's own breaker, the ramp.
- The higher epoch wins. If an answer to a question that was asked *after* a row was known has a lower epoch, the store
  has lost that row: one that is not closed, or forced, is put back (`Restore`), any other gives way to the store's.
- One report is under way at most. A failure goes at once, or as soon as the one under way is answered; successes wait
  for FLUSH_S. So reports cost at most one operation per round trip, whatever the traffic, and nothing is queued.
- What is only too young to open, in the store or here, is looked at again when it is old enough (`_look_again`):
  whoever sends one request after the other must not send the next one to find out.
- A probe's lease is asked for by the first request that finds the circuit due, at most once in ASK_S; the others are
  refused meanwhile. A lease that nobody has used in KEEP_S goes back.
- Where slowness opens a circuit, a slow probe has failed: else it would close on what opened it, for ever.
- While the store is away the row stands until its time is over; then this worker probes by itself, one request at a
  time, spread over the workers: never beside one by a lease, nor that beside its own, although the store comes and
  goes. So of P probes and W workers at most P + W - 1 are at an upstream, and at most P unless the store is away.

Measured (CPython 3.11, timeit, best of 9): `count` 0.07 µs, a look at `is_open` 0.01 µs.
"""

from __future__ import annotations

from math import ceil, inf
from typing import Final, Protocol

import msgspec

from ambassador.state.known_circuit import STATE_WORDS, KnownCircuit, Status, Word
from ambassador.state.outcomes import Outcomes, crosses
from ambassador.state.own_breaker import OwnBreaker
from ambassador.state.passes import OWN_PROBE, WAITING, Entry, Pass, ProbePass, Refused, Result
from ambassador.state.probe_leases import ProbeLeases
from ambassador.state.protocol import (
    LATE_S,
    SETTLING_US,
    Answer,
    Operation,
    Probe,
    Probed,
    Report,
    Restore,
    Row,
    Rules,
    State,
    Verb,
)
from ambassador.state.store_time import StoreTime

FLUSH_S: Final = 0.2
"""Successes are told this often: the store's window is at most so much behind."""
PATIENCE_S: Final = FLUSH_S
"""A worker whose outcomes cross a threshold gives the others as long to see it before it opens its own breaker. Without
that the first of four opened alone in most trips, and in 7 to 12 of 100 the fleet did not open at all."""
SETTLING_S: Final = SETTLING_US / 1e6
"""The same where nobody else has told of any outcome: there is nobody to wait for, but for those who just begin."""
READ_S: Final = 1.0
"""A circuit that refuses is read again this often when requests come: an event may have been lost."""
URGENT_S: Final = 1.0
"""After a change, or a time without any outcome, every one is told at once: the new window must not be behind."""
SPREAD_S: Final = 0.05
"""While the store is away, local probes of W workers begin within W times this."""
RAMP: Final = ((1.0, 0.25), (2.0, 0.5))
"""After closing: until this age, this share is let through."""
RAMP_S: Final = RAMP[-1][0]
_PROBE_LONGEST_S: Final = 10.0
"""A probe is cut after this time, if the route does not cut it before (contract 7.6)."""
_LEAST_ALONE: Final = 5
"""Fewer requests than this say nothing, however small a worker's share is."""


class Peers(Protocol):
    """Who shares the store, as far as known; a `Scope` is one."""

    @property
    def up(self) -> bool:
        """The store answers."""

    @property
    def replicas(self) -> int:
        """Replicas alive, at least 1."""

    @property
    def workers(self) -> int:
        """Workers alive over all replicas, at least 1."""


class News(msgspec.Struct, frozen=True):
    """A change, in words. `fleet`: it is of the circuit, so every worker has it, and one of each replica is to tell."""

    text: str
    fleet: bool


class Gate:
    """One circuit. `consecutive`: hard failures in a row that open the worker's own breaker; 0: never.

    `key` makes the ids of its probes unique in the fleet: replica, slot and process. `replica` and `slot` say who
    reports.
    """

    __slots__ = (
        "_alone_since", "_fast", "_known", "_leases", "_look_at", "_next_read", "_own", "_peers", "_probe_slow", "_ramp_from", "_replica",
        "_reported_as", "_reporting", "_seen", "_slot", "_urgent", "_urgent_until", "_vote", "consecutive", "flush_at", "is_open",
        "name", "news", "outbox", "rules", "stamp",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        rules: Rules,
        *,
        consecutive: int,
        peers: Peers,
        time: StoreTime,
        replica: str,
        slot: int,
        key: str,
    ) -> None:
        self.name = name
        self.rules = rules
        self.consecutive = consecutive
        self._peers = peers
        self._known = KnownCircuit(time)
        self._leases = ProbeLeases(name, rules, key)
        self._replica = replica
        self._slot = slot
        self.is_open = False
        """Not simply closed: `enter` has something to say."""
        self.stamp = Pass(0)
        self.outbox: list[Operation] = []
        """What is to be asked; `answered` wants each with its answer."""
        self.news: list[News] = []
        self.flush_at = inf
        """When `tick` wants to be called (monotonic seconds)."""
        self._next_read = -inf
        self._seen = Outcomes(rules.window_ms)
        self._fast: Pass | None = None
        self._vote = False
        self._alone_since = inf
        self._look_at = inf
        self._urgent = False
        self._urgent_until = -inf
        self._reporting = False
        self._reported_as = self.stamp
        """When the report was made that is under way."""
        self._own = OwnBreaker(rules)
        self._ramp_from = -inf
        self._probe_slow = ""
        """What the last probe of this worker has to say, if it was too slow."""

    @property
    def row(self) -> Row | None:
        """The circuit as last heard."""
        return self._known.row

    # ----- what is let through -----

    def enter(self, now: float, random: float, timeout_s: float) -> Entry:
        """May one attempt be made? `random` in [0, 1); `timeout_s`: the longest that a probe may take.

        Look at `is_open` first: while that is false the answer is `gate.stamp`.
        """
        if not self.is_open:
            return self.stamp
        known = self._known
        forced = known.forced(now)
        if forced == "closed":
            return self.stamp
        if forced == "open":
            self._read(now)
            return Refused(known.forced_wait(now, self.rules.open_ms))
        state = known.state(now)
        own = self._own
        if state is State.CLOSED or own.alone:
            return self._enter_own(now, timeout_s) if own.is_open else self._enter_ramp(now, random)
        if state is State.OPEN and (left := known.open_left(now)) > 0:
            self._read(now)
            return Refused(left)
        if self._peers.up:
            return self._enter_probing(now, timeout_s)
        own.stand_in(now + random * SPREAD_S * self._peers.workers, "the state store is away")
        return self._enter_own(now, timeout_s)

    def welcomes(self, now: float) -> bool:
        """Whether an endpoint behind this gate is worth picking where others are to be had: it is closed, in its
        ramp, or there is a probe to be made with a lease in hand. Asks for a lease if one is due.
        """
        if not self.is_open:
            return True
        known = self._known
        forced = known.forced(now)
        if forced == "closed":
            return True
        if forced == "open":
            self._read(now)
            return False
        own = self._own
        state = known.state(now)
        if state is State.CLOSED or own.alone:
            return not own.is_open or not own.left(now)
        if state is State.OPEN and known.open_left(now) > 0:
            self._read(now)
            return False
        if not self._peers.up:
            return True
        self._drop_stale(now)
        if self._own.is_probing(now):
            return False
        if not self._leases.held:
            self._ask(now, _PROBE_LONGEST_S)
        return self._leases.held

    def is_due(self, now: float) -> bool:
        """Whether whoever is let through now makes a probe, if it is let through."""
        known, own = self._known, self._own
        if not self.is_open or known.forced(now):
            return False
        state = known.state(now)
        if state is State.CLOSED or own.alone:
            return own.is_open and not own.left(now)
        return state is not State.OPEN or known.open_left(now) <= 0

    @property
    def has_lease(self) -> bool:
        """A probe may be made at once."""
        return self._leases.held

    def _enter_ramp(self, now: float, random: float) -> Entry:
        age = now - self._ramp_from
        for until, share in RAMP:
            if age < until:
                return self.stamp if random < share else Refused(1.0)
        self._refresh(now)
        return self.stamp

    def _enter_own(self, now: float, timeout_s: float) -> Entry:
        left = self._own.left(now)
        if left:
            return Refused(left)
        if self._leases.is_probing(now):
            return Refused(1.0)
        self._own.begin_probe(now + timeout_s + LATE_S)
        return ProbePass(self.stamp, OWN_PROBE, now + timeout_s)

    def _enter_probing(self, now: float, timeout_s: float) -> Entry:
        self._drop_stale(now)
        if self._own.is_probing(now):
            return Refused(1.0)
        lease = self._leases.use()
        if lease is not None:
            name, until = lease
            return ProbePass(self.stamp, name, min(until, now + timeout_s))
        if self._ask(now, timeout_s):
            return WAITING
        return Refused(1.0)

    def _ask(self, now: float, timeout_s: float) -> bool:
        asked = self._leases.ask(now, timeout_s)
        if asked is not None:
            self.outbox.append(asked)
        return asked is not None

    def _drop_stale(self, now: float) -> None:
        self.outbox += self._leases.drop_stale(now)

    # ----- what came of it -----

    def count(self, stamp: Pass, now: float) -> bool:
        """Count a good outcome, if there is nothing more to it than that; else it is for `settle`."""
        seen = self._seen
        if stamp is not self._fast or now >= seen.rotate_at:
            return False
        seen.requests += 1
        return True

    def settle(
        self, given: Pass, result: Result, now: float, random: float, seconds: float | None = None
    ) -> None:
        """An attempt has ended (or got no further than this gate: NOTHING). Once for each pass. `seconds`: how long it
        took, for the log.
        """
        stamp = given
        if isinstance(given, ProbePass):
            self._settle_probe(given, result, now, random, seconds)
            if given.lease != OWN_PROBE:
                return
            stamp = given.stamp
        if result is Result.NOTHING:
            return
        slow, failed = result.slow, result.failed
        if stamp is self.stamp:
            if not self._seen.window(now)[0]:
                self._urgent_until = max(self._urgent_until, now + URGENT_S)
            self._seen.add(now, failed=failed, slow=slow, hard=result is Result.HARD)
            if failed or slow:
                self._look_at_own(now, random)
        elif stamp.epoch == self.stamp.epoch:
            self._seen.add_late(failed=failed, slow=slow)
        else:
            return
        self._note(now, urgent=failed or slow)

    def _note(self, now: float, *, urgent: bool) -> None:
        """There is something to tell the store."""
        if urgent or now < self._urgent_until:
            self._urgent = True
            self._report(now)
        self.flush_at = min(self.flush_at, now + FLUSH_S)
        self._fast = None if self._seen.in_row or now < self._urgent_until else self.stamp

    def _settle_probe(
        self, given: ProbePass, result: Result, now: float, random: float, seconds: float | None
    ) -> None:
        good = given.verdict(result, slow_is_good=self.rules.slow > 1)
        self._probe_slow = ""
        if good is False and result is Result.SLOW and seconds is not None:
            self._probe_slow = f"a probe was slow ({seconds:.2f} s)"
            if self._slot:
                # The circuit's own news come from the first worker, who does not know it.
                self._say(self._probe_slow)
        if given.lease != OWN_PROBE:
            self._leases.ended(given.lease)
            verb = Verb.LOST if good is None else Verb.OK if good else Verb.FAILED
            self.outbox.append(Probe(self.name, given.lease, verb, self.rules))
            return
        self._own.end_probe()
        if self._own.is_open and given.stamp is self.stamp:
            alone = self._own.alone
            self._own.probed(now, random, good=good)
            if not self._own.is_open:
                self._own_closed(now, alone=alone)

    # ----- the worker's own breaker -----

    def _look_at_own(self, now: float, random: float) -> None:
        """Open the worker's own breaker if its outcomes say so."""
        if (
            self._own.is_open
            or self._known.state(now) is not State.CLOSED
            or self._known.forced(now) == "closed"
        ):
            return
        seen = self._seen
        if self.consecutive and seen.in_row >= self.consecutive:
            self._vote = True
            self._trip_own(now, random, f"{seen.in_row} failures in a row")
        elif not self._peers.up and seen.crosses(now, self.rules, self._part(self._peers.workers)):
            self._trip_own(now, random, f"{seen.text(now)} while the state store is away")

    def _see_quorum(self, row: Row, now: float, random: float, *, told: bool) -> None:
        """The store knows what this worker saw, and did not trip: is its window too young, or is it this worker's
        trouble, or its replica's? `told`: it has learned something by that.
        """
        peers, rules = self._peers, self.rules
        if row.epoch != self.stamp.epoch or row.state is not State.CLOSED or peers.workers < 2 or row.forced:
            return
        live = peers.replicas if peers.replicas > 1 else peers.workers
        needed = max(ceil(rules.quorum * row.reporters), min(2, live))
        # Of a replica each worker sees its part; where workers count, each must have seen enough.
        least = rules.min_requests
        if peers.replicas > 1:
            least = self._part(peers.workers / peers.replicas)
        if row.failing >= needed:
            self._alone_since = inf
            # Once for what it was told: rules that others have may be what keeps it closed.
            if told and crosses(rules, row.requests, row.failures, row.slow, least=rules.min_requests):
                self._look_again(now + SETTLING_S)
            return
        # By what the store may know of: who opens for more stops sending what the store lacks to open for all.
        if self._own.is_open or not crosses(rules, *self._seen.told(now), least=least):
            self._alone_since = inf
            return
        # One of them is always the first to see it: the others' outcomes are on their way.
        self._alone_since = min(self._alone_since, now)
        # While nothing comes, those that have requests see nothing either: their time does not run out.
        others = row.reporters > 1
        patient_until = self._alone_since + (PATIENCE_S if others else SETTLING_S)
        if now >= patient_until and (told or not others):
            self._trip_own(now, random, f"{self._seen.text(now)}, and no others see it")
        elif not others:
            self._look_again(patient_until)

    def _look_again(self, at: float) -> None:
        self._look_at = min(self._look_at, at)
        self.flush_at = min(self.flush_at, at)

    def _part(self, of: float) -> int:
        """This worker's part of `min_requests`, if so many share it."""
        return min(self.rules.min_requests, max(_LEAST_ALONE, ceil(self.rules.min_requests / of)))

    def _trip_own(self, now: float, random: float, why: str) -> None:
        open_s = self._own.trip(now, random, why)
        self._new_stamp(self.stamp.epoch, now)
        self._say(f"this worker opens its own for {open_s:.1f} s: {why}")

    def _own_closed(self, now: float, *, alone: bool) -> None:
        if alone:
            self._known.close_here()
        self._ramp_from = now
        self._new_stamp(self.stamp.epoch, now)
        self._say(f"this worker closes its own, which was open because: {self._own.why}")

    def _say(self, text: str, *, fleet: bool = False) -> None:
        self.news.append(News(f"breaker {self.name}: {text}", fleet))

    # ----- changes -----

    def window(self, now: float) -> tuple[int, int, int]:
        """(requests, failures, slow) that this worker saw in the window, since the last change."""
        return self._seen.window(now)

    def _new_stamp(self, epoch: int, now: float) -> None:
        """A change: what was seen before says nothing about what comes."""
        same_epoch = epoch == self.stamp.epoch
        self._seen.restart(now, same_epoch=same_epoch)
        self._vote = self._vote and same_epoch
        self.stamp = Pass(epoch)
        self._fast = None
        self._alone_since = self._look_at = inf
        self._urgent_until = now + URGENT_S
        self._refresh(now)

    def _refresh(self, now: float) -> None:
        """Work out `is_open`."""
        row = self.row
        plain = self._known.is_plain and not self._own.is_open and now - self._ramp_from >= RAMP_S
        if row is not None and row.forced:
            # A force that ends leaves something to find out, unless it holds closed what is closed.
            plain = row.forced == "closed" and (plain or not row.forced_until_us)
        self.is_open = not plain

    # ----- telling and asking -----

    def _report(self, now: float) -> None:
        """Tell what is pending, unless a report is under way: then once that is answered."""
        if self._reporting:
            return
        requests, failures, slow = self._seen.take()
        vote, self._vote, self._urgent = self._vote, False, False
        self.flush_at = self._look_at
        self._fast = None
        if not self._peers.up or not (requests or vote):
            return
        self._reporting = True
        self._reported_as = self.stamp
        self._next_read = now + READ_S
        peers = self._peers
        self.outbox.append(
            Report(
                self.name, self._replica, self._slot, self.stamp.epoch, self.rules,
                requests, failures, slow, vote, peers.replicas, peers.workers,
            )
        )  # fmt: skip

    def read(self, now: float) -> None:
        """Ask for the row: at the start, when the store is back, and where it may be due to open."""
        self._next_read = now + READ_S
        peers = self._peers
        self.outbox.append(
            Report(self.name, self._replica, self._slot, self.stamp.epoch, self.rules,
                   live_replicas=peers.replicas, live_workers=peers.workers)
        )  # fmt: skip

    def _read(self, now: float) -> None:
        if now >= self._next_read and self._peers.up:
            self.read(now)

    def tick(self, now: float) -> None:
        """It is `flush_at`, or nearly."""
        if now < self.flush_at:
            return
        looks = now >= self._look_at
        if looks:
            self._look_at = inf
        was_reporting = self._reporting
        if was_reporting:
            self.flush_at = min(now + FLUSH_S, self._look_at)
        else:
            self._report(now)
        if looks and self._peers.up and was_reporting == self._reporting:
            self.read(now)
        self._drop_stale(now)
        if self._leases.held:
            self.flush_at = min(self.flush_at, now + FLUSH_S)

    def answered(
        self, operation: Operation, answer: Answer | None, asked_at: float, now: float, random: float
    ) -> None:
        """What came of an operation of the outbox; None: no answer came."""
        row = answer.row if isinstance(answer, Probed) else answer if isinstance(answer, Row) else None
        if row is not None:
            self._known.hear(row, asked_at, now)
        if isinstance(operation, Probe) and operation.verb is Verb.ASK:
            self._take_lease(operation, answer, asked_at, now)
        if row is not None:
            self._adopt(row, asked_at, now)
        if isinstance(operation, Report):
            told = bool(operation.requests or operation.vote)
            self._reporting = self._reporting and not told
            if row is None and told and self._reported_as is self.stamp:
                self._seen.lose(now, operation.failures, operation.slow)
            if row is not None:
                self._see_quorum(row, now, random, told=told)
            if told and self._urgent:
                self._report(now)
        if row is not None and self._own.alone:
            self._own.close()
            self._new_stamp(self.stamp.epoch, now)

    def _take_lease(self, asked: Probe, answer: Answer | None, asked_at: float, now: float) -> None:
        self._leases.answered()
        if answer is None:
            # It may have been given, and would count as a failure in the end.
            self.outbox.append(self._leases.give_back(asked.id))
        elif isinstance(answer, Probed) and answer.granted:
            # The adoption below, of the row that came with it, must not drop it.
            if answer.row.epoch != self.stamp.epoch:
                self._adopt(answer.row, asked_at, now)
            if answer.row.epoch == self.stamp.epoch:
                self._leases.keep(asked, asked_at, now)
                self.flush_at = min(self.flush_at, now + FLUSH_S)
            else:
                self.outbox.append(self._leases.give_back(asked.id))

    # ----- rows -----

    def heard(self, row: Row, now: float) -> None:
        """An event brought a row."""
        self._known.hear(row, None, now)
        if self.row is None or row.epoch > self.row.epoch:
            self._take(row, now)

    def _adopt(self, row: Row, asked_at: float, now: float) -> None:
        """An answer brought a row."""
        mine = self.row
        word = self._known.compare(row, asked_at, now)
        if word is Word.NEWER or word is Word.GIVEN_UP:
            self._take(row, now)
        elif word is Word.SAME:
            self._known.row = row
            if mine is not None and row.state is not mine.state:
                self._new_stamp(row.epoch, now)
            elif self.is_open:
                self._refresh(now)
        elif word is Word.LOST and mine is not None:
            self.outbox.append(Restore(self.name, mine))
            self._say("the state store has lost it; put back")

    def _take(self, row: Row, now: float) -> None:
        before, was = self.row, self._known.word()
        self._known.take(row, now)
        self.outbox += self._leases.clear()
        if row.state is not State.CLOSED or row.forced:
            self._own.close()
        self._ramp_from = self._known.closed_since
        if before is None and not row.epoch:
            self._refresh(now)
            return
        self._new_stamp(row.epoch, now)
        text = self._known.text(before, self._probe_slow)
        if row.forced or row.state is not State.CLOSED or was != text:
            # A new worker finds what has been so for a while.
            self._say(f"it is {text}" if before is None else f"{was} to {text}", fleet=True)

    def override(self, row: Row, now: float) -> None:
        """Obey a force that the store could not be told of. It is put back there once the store answers."""
        self._known.hear(row, None, now)
        self._take(row, now)
        self._known.override(row)

    def inherit(self, other: Gate, now: float) -> None:
        """Go on from where another gate of the same name is: the config has changed, the circuit has not."""
        self._known.inherit(other._known)
        self._own.inherit(other._own)
        self._leases.inherit(other._leases)
        self._ramp_from = other._ramp_from
        self._new_stamp(other.stamp.epoch, now)

    # ----- what is told -----

    def status(self, now: float) -> Status:
        """The circuit as this worker knows it."""
        row, own = self.row, self._own
        forced = self._known.forced(now)
        state = self._known.state(now)
        if forced:
            state = State.OPEN if forced == "open" else State.CLOSED
        return Status(
            name=self.name,
            epoch=self.stamp.epoch if row is None else row.epoch,
            state=STATE_WORDS[state],
            since_us=0 if row is None else row.since_us,
            open_until_us=row.open_until_us if row is not None and state is State.OPEN and not forced else 0,
            forced=forced,
            forced_until_us=row.forced_until_us if row is not None else 0,
            forced_by=row.forced_by if row is not None else "",
            forced_reason=row.forced_reason if row is not None else "",
            window=self._fleet_window(now),
            now_us=0 if row is None else row.now_us,
            own_left_s=own.left(now) if own.is_open else None,
            own_why=own.why if own.is_open else "",
        )

    def _fleet_window(self, now: float) -> tuple[int, int, int]:
        """The circuit's window as last heard; what this worker saw if that is too long ago.

        A change has emptied it: the row has what tripped it, for the log, and nothing counts before it is closed again.
        """
        if self._known.state(now) is not State.CLOSED or self._known.forced(now):
            return 0, 0, 0
        known = self._known.window(now, self.rules.window_ms) if self._peers.up else None
        return self.window(now) if known is None else known

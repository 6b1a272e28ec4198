"""Random steps of many workers, with answers that are lost, questions that come twice and a store that is wiped: what
the protocol promises holds, and a model that is slow and obviously right agrees.

Runs on every store whose clock may be moved freely.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from fractions import Fraction
from typing import NamedTuple, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ambassador.state.protocol import (
    BUCKETS,
    LATE_US,
    SETTLING_US,
    Answer,
    Beat,
    Beaten,
    Force,
    Lease,
    Leased,
    Operation,
    Probe,
    Probed,
    Report,
    Restore,
    Row,
    Rules,
    State,
    Token,
    Tokened,
    Verb,
    decode_row,
)
from tests.state.backends import OPENERS

A = TypeVar("A", bound=Answer)

RULES = Rules(
    errors=0.5, slow=2.0, min_requests=4, window_ms=2_000, quorum=0.5, open_ms=200, max_open_ms=800, probes=2
)
WINDOW_US = RULES.window_ms * 1000
BUCKET_US = WINDOW_US // BUCKETS
HALF_US = WINDOW_US // 2
PROBE_MS = 300

RATE, DEPTH = 8, 5
DEMANDS = {0: 1.0, 1: 3.0}


class Taken(NamedTuple):
    """Something that was done to the bucket."""

    at_us: int
    debt: int
    granted: int


class Bucket:
    """Everything that ever happened, gone through anew for each question."""

    def __init__(self) -> None:
        self.born_us = 0
        self.taken: list[Taken] = []

    def level(self, now_us: int) -> Fraction:
        since = [each for each in self.taken if each.at_us >= self.born_us]
        if not since:
            return min(Fraction(DEPTH), Fraction(RATE * (now_us - self.born_us), 1_000_000))
        level = min(Fraction(DEPTH), Fraction(RATE * (since[0].at_us - self.born_us), 1_000_000))
        before_us = since[0].at_us
        for at_us, debt, granted in [*since, Taken(now_us, 0, 0)]:
            level = min(Fraction(DEPTH), level + Fraction(RATE * (at_us - before_us), 1_000_000))
            level = max(level - debt, Fraction(-DEPTH)) - granted
            before_us = at_us
        return level

    def worst_burst(self) -> Fraction:
        """The most over all windows of what was granted beyond the rate."""
        worst = Fraction(0)
        for first in range(len(self.taken)):
            granted = 0
            for each in self.taken[first:]:
                granted += each.granted
                allowed = Fraction(RATE * (each.at_us - self.taken[first].at_us), 1_000_000)
                worst = max(worst, granted - allowed)
        return worst


class Window:
    """The reports that count, as they came."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, Report]] = []
        self.settled_from_us = 0

    def add(self, now_us: int, report: Report) -> None:
        if report.requests and not any(each.requests for each in self._valid(now_us)):
            self.settled_from_us = now_us
        self.reports.append((now_us, report))

    def _valid(self, now_us: int) -> list[Report]:
        return [each for at_us, each in self.reports if at_us // BUCKET_US > now_us // BUCKET_US - BUCKETS]

    def sums(self, now_us: int) -> tuple[int, int]:
        valid = self._valid(now_us)
        return sum(each.requests for each in valid), sum(each.failures for each in valid)

    def trips(self, now_us: int, live_workers: int) -> bool:
        recent = [each for at_us, each in self.reports if at_us // HALF_US >= now_us // HALF_US - 1]
        voters = {each.slot for at_us, each in self.reports if each.vote and at_us > now_us - WINDOW_US}
        reporters = {each.slot for each in recent if each.requests} | voters
        failing = set()
        for slot in reporters:
            requests = sum(each.requests for each in recent if each.slot == slot)
            failures = sum(each.failures for each in recent if each.slot == slot)
            if requests and failures / requests >= RULES.errors:
                failing.add(slot)
        quorum = max(math.ceil(RULES.quorum * len(reporters)), min(2, live_workers))
        if len(voters) >= quorum:
            return True
        requests, failures = self.sums(now_us)
        return (
            requests >= RULES.min_requests
            and now_us - self.settled_from_us >= SETTLING_US
            and failures / requests >= RULES.errors
            and len(failing) >= quorum
        )


class Machine(RuleBasedStateMachine):
    """Two workers of one replica, one bucket, one circuit, one credential."""

    opener = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.backend = self.stack.enter_context(OPENERS[self.opener]())
        self.bucket = Bucket()
        self.window = Window()
        self.row: Row | None = None
        """The last that was seen of the store's present data."""
        self.rows: list[Row] = []
        """All that were ever seen: what workers may remember."""
        self.heard = 0
        self.out: dict[str, int] = {}
        """Probes that were granted in this epoch and not settled, with their deadlines."""
        self.void: dict[str, int] = {}
        """The same of earlier epochs."""
        self.asked = 0
        self.holder: str | None = None
        self.held_until_us = 0

    @initialize()
    def begin(self) -> None:
        self.bucket.born_us = self.ask(Beat("a", 0), Beaten).born_us
        self.see(self.report_of(0, 0, 0))

    def teardown(self) -> None:
        self.stack.close()

    def ask(self, operation: Operation, kind: type[A]) -> A:
        (answer,) = self.backend.perform([operation])
        assert isinstance(answer, kind), answer
        return answer

    # The clock, and what becomes of the store

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.1, 0.21, 0.41, 1.0, 2.5]))
    def time_passes(self, seconds: float) -> None:
        self.backend.advance(seconds)

    @rule()
    def store_is_wiped(self) -> None:
        self.hear()
        self.backend.advance(0.001)
        self.backend.wipe()
        self.backend.advance(0.001)
        self.bucket.born_us = self.ask(Beat("a", 0), Beaten).born_us
        self.row, self.heard = None, 0
        self.window = Window()
        self.out.clear()
        self.void.clear()
        self.holder = None
        self.see(self.report_of(0, 0, 0))

    # Buckets

    @rule(
        slot=st.sampled_from([0, 1]),
        want=st.integers(0, 7),
        least=st.integers(0, 3),
        tells=st.booleans(),
        debt=st.integers(0, 2),
        twice=st.booleans(),
    )
    def lease(self, slot: int, want: int, least: int, debt: int, *, tells: bool, twice: bool) -> None:
        least = min(least, want)
        operation = Lease("k", RATE, DEPTH, want, least, DEMANDS[slot], tells, debt)
        for _ in range(1 + twice):
            leased = self.ask(operation, Leased)
            before = self.bucket.level(leased.now_us)
            before = max(before - debt, Fraction(-DEPTH))
            self.bucket.taken.append(Taken(leased.now_us, debt, leased.granted))
            most = max(0, min(want, math.floor(before + Fraction(1, 10**6))))
            assert min(least, most) <= leased.granted <= most
            assert leased.left == pytest.approx(float(before - leased.granted), abs=1e-6)

    @invariant()
    def no_window_sees_more_than_the_envelope(self) -> None:
        assert self.bucket.worst_burst() <= DEPTH + Fraction(1, 10**6)

    # Circuits

    def report_of(
        self, slot: int, requests: int, failures: int, *, vote: bool = False, epoch: int = 0
    ) -> Row:
        operation = Report("b", "a", slot, epoch, RULES, requests, failures, vote=vote, live_workers=2)
        return self.ask(operation, Row)

    def hear(self) -> None:
        """Events tell every change, in order; the last one is how it stands."""
        for event in self.backend.events():
            if event.kind == "circuit":
                row = decode_row(event.body)
                assert row.epoch > self.heard
                self.heard = row.epoch
                self.rows.append(row)

    def see(self, row: Row) -> None:
        """Check a row against the one before."""
        self.hear()
        before, self.row = self.row, row
        self.rows.append(row)
        if row.epoch:
            assert row.epoch == self.heard
        if before is None or row.epoch != before.epoch:
            assert before is None or row.epoch > before.epoch
            self.void |= self.out
            self.out.clear()
            self.window = Window()
        else:
            assert (row.state, row.since_us, row.open_until_us) == (
                before.state,
                before.since_us,
                before.open_until_us,
            )
            assert (row.forced, row.forced_until_us) == (before.forced, before.forced_until_us)
        assert not row.forced_until_us or row.forced_until_us > row.now_us
        if row.forced:
            assert row.state is (State.OPEN if row.forced == "open" else State.CLOSED)

    def expire_force(self) -> None:
        """Have the store see that a force is over, so that the next step is judged by itself. Of no epoch that ever
        was: a circuit that is due must not open by it.
        """
        self.see(self.report_of(0, 0, 0, epoch=-1))

    @rule(
        slot=st.sampled_from([0, 1]),
        good=st.integers(0, 3),
        bad=st.integers(0, 4),
        vote=st.booleans(),
        late=st.booleans(),
    )
    def report(self, slot: int, good: int, bad: int, *, vote: bool, late: bool) -> None:
        self.expire_force()
        assert self.row is not None
        before = self.row
        counts = before.state is State.CLOSED and not before.forced and not late
        epoch = before.epoch - 1 if late else before.epoch
        made = Report("b", "a", slot, epoch, RULES, good + bad, bad, vote=vote and bad > 0)
        row = self.report_of(slot, good + bad, bad, vote=made.vote, epoch=epoch)
        window = self.window
        if counts and (made.requests or made.vote):
            window.add(row.now_us, made)
        if before.state is State.CLOSED and not before.forced:
            assert (row.requests, row.failures) == window.sums(row.now_us)
        trips = counts and window.trips(row.now_us, 2)
        assert (row.epoch > before.epoch) == trips
        if trips:
            assert row.state is State.OPEN
            open_us = min(RULES.max_open_ms, RULES.open_ms * 2 ** (row.trips - 1)) * 1000
            assert abs(row.open_until_us - row.now_us - open_us) <= open_us / 10
        self.see(row)

    @rule(slot=st.sampled_from([0, 1]), seconds=st.sampled_from([0, 0.5, 2.1]))
    def worker_votes(self, slot: int, seconds: float) -> None:
        self.report(slot, 0, 1, vote=True, late=False)
        self.backend.advance(seconds)

    @rule(count=st.integers(1, 4), twice=st.booleans(), dead=st.sampled_from([False, False, True]))
    def probes_are_asked_for(self, count: int, *, twice: bool, dead: bool) -> None:
        self.expire_force()
        for _ in range(count):
            self.asked += 1
            for _ in range(1 + twice):
                self.ask_for_probe(str(self.asked))
        if dead:
            self.backend.advance(PROBE_MS / 1000)

    def ask_for_probe(self, name: str) -> None:
        before = self.row
        assert before is not None
        probed = self.ask(Probe("b", name, Verb.ASK, RULES, PROBE_MS), Probed)
        row = probed.row
        on_their_way = len(self.out) + sum(until_us + LATE_US > row.now_us for until_us in self.void.values())
        has_room = on_their_way < RULES.probes
        if any(deadline_us <= row.now_us for deadline_us in self.out.values()):
            assert not probed.granted
            assert (row.state, row.trips) == (State.OPEN, before.trips + 1)
        elif before.state is State.OPEN and not before.forced and row.now_us >= before.open_until_us:
            assert (row.state, probed.granted) == (State.HALF_OPEN, has_room)
        elif before.state is State.HALF_OPEN:
            assert probed.granted == (name in self.out or has_room)
        else:
            assert not probed.granted
        self.see(row)
        if probed.granted and name not in self.out:
            self.out[name] = row.now_us + PROBE_MS * 1000

    @rule()
    def circuit_is_half_opened(self) -> None:
        self.force("open", 0)
        self.force("auto", 0)

    @precondition(lambda self: self.asked > 0)
    @rule(
        data=st.data(), verb=st.sampled_from([Verb.OK, Verb.OK, Verb.FAILED, Verb.LOST]), twice=st.booleans()
    )
    def probe_is_settled(self, data: st.DataObject, verb: Verb, *, twice: bool) -> None:
        self.expire_force()
        names = sorted({*self.out, *self.void}) or [str(self.asked)]
        name = data.draw(st.sampled_from(names))
        for _ in range(1 + twice):
            was_out = name in self.out
            before = self.row
            assert before is not None
            self.out.pop(name, None)
            self.void.pop(name, None)
            probed = self.ask(Probe("b", name, verb, RULES), Probed)
            assert probed.granted == was_out
            if not was_out or verb is Verb.LOST:
                assert probed.row.epoch == before.epoch
            elif verb is Verb.FAILED:
                assert (probed.row.state, probed.row.trips) == (State.OPEN, before.trips + 1)
            self.see(probed.row)

    @invariant()
    def no_more_probes_are_out_than_the_rules_say(self) -> None:
        assert len(self.out) <= RULES.probes

    @rule(to=st.sampled_from(["open", "closed", "auto"]), for_ms=st.sampled_from([0, 0, 150, 1500]))
    def force(self, to: str, for_ms: int) -> None:
        self.expire_force()
        before = self.row
        assert before is not None
        row = self.ask(Force("b", to, RULES, for_ms), Row)
        if to == "auto":
            assert row.forced == ""
            assert (row.epoch > before.epoch) == bool(before.forced)
            assert row.state is (State.HALF_OPEN if before.forced else before.state)
        else:
            assert row.forced == to
            assert row.epoch > before.epoch
        self.see(row)

    @precondition(lambda self: any(row.epoch for row in self.rows))
    @rule(data=st.data())
    def row_is_restored(self, data: st.DataObject) -> None:
        self.expire_force()
        before = self.row
        assert before is not None
        old = data.draw(st.sampled_from([row for row in self.rows if row.epoch]))
        row = self.ask(Restore("b", old), Row)
        assert row.epoch == max(before.epoch, old.epoch)
        if old.epoch > before.epoch:
            same = msgspec.structs.replace(
                old, now_us=row.now_us, requests=0, failures=0, slow=0, reporters=0, failing=0
            )
            assert (
                msgspec.structs.replace(row, requests=0, failures=0, slow=0, reporters=0, failing=0) == same
            )
            self.hear()
            self.row = None
            self.void |= self.out
            self.out.clear()
            self.window = Window()
            self.expire_force()
        else:
            self.see(row)

    # Credentials

    @rule(nonce=st.sampled_from(["me", "you"]), lock_ms=st.sampled_from([100, 2000]), lost=st.booleans())
    def credential_is_locked(self, nonce: str, lock_ms: int, *, lost: bool) -> None:
        told = self.ask(Token("t", "lock", nonce, lock_ms=lock_ms), Tokened)
        free = self.holder in (None, nonce) or told.now_us >= self.held_until_us
        assert told.done == free
        if told.done:
            self.holder, self.held_until_us = nonce, told.now_us + lock_ms * 1000

    @rule(nonce=st.sampled_from(["me", "you"]), stale=st.booleans())
    def credential_is_stored(self, nonce: str, *, stale: bool) -> None:
        seen = self.ask(Token("t", "read"), Tokened)
        version = seen.version - 1 if stale else seen.version
        told = self.ask(Token("t", "store", nonce, version, nonce.encode()), Tokened)
        assert told.done == (self.holder == nonce and told.now_us < self.held_until_us and not stale)
        assert told.version == seen.version + told.done
        if told.done:
            self.holder = None


@pytest.mark.parametrize("opener", sorted(OPENERS))
def test_store_keeps_its_promises_whatever_happens(opener: str) -> None:
    with OPENERS[opener]() as backend:
        if not backend.steps_freely:
            pytest.skip("this store's clock is real")
    machine = type("Machine", (Machine,), {"opener": opener})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=70 if opener == "memory" else 15,  # a server's step is a round trip
            stateful_step_count=50,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )

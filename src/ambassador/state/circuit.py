"""A circuit as a store keeps it: the steps `Report`, `Probe`, `Force` and `Restore` of `protocol.py`.

Pure: the time comes as an argument, in microseconds of the store's clock, and so does chance, a number from 0 up to 1.
Rules that hold here:
- `epoch` grows with every change of state or force, and is never less than the clock was then.
- Outcomes count only while the circuit is CLOSED, unforced, and of the epoch that they were seen in; probes only while
  their lease is out. So a result of an earlier life changes nothing.
- There are never more leases out than `probes`, and none but in HALF_OPEN. A lease of an earlier epoch counts among
  them until its holder has told what came of it, at most until LATE_US after its deadline.

Each step answers what stands afterwards; `take_published` tells whether others must hear of it.
"""

from __future__ import annotations

from collections import deque
from math import ceil, inf
from typing import Final, NamedTuple, TypeAlias

from ambassador.state.protocol import (
    BUCKETS,
    LATE_US,
    SETTLING_US,
    Force,
    Probe,
    Probed,
    Report,
    Restore,
    Row,
    Rules,
    State,
    Verb,
)

_JITTER: Final = 0.1
_CALM: Final = 10
"""After so many times `open_ms` CLOSED the open time begins anew."""
_MOST_DOUBLINGS: Final = 40
_LONGEST_MS: Final = 10**12
_MOST_PROBES: Final = 1000
_IDLE_US: Final = 3600 * 1_000_000
"""A circuit that never changed and that nobody asks for is forgotten after an hour: it says nothing."""
_REMEMBERED_US: Final = 7 * 24 * _IDLE_US
"""One with an epoch is kept for a week: workers that know the epoch may come back."""


def is_sound(rules: Rules) -> bool:
    """Whether the numbers can be reckoned with."""
    return (
        rules.errors >= 0
        and rules.slow >= 0
        and BUCKETS <= rules.window_ms <= _LONGEST_MS
        and 0 <= rules.quorum <= 1
        and 0 <= rules.open_ms <= _LONGEST_MS
        and 0 < rules.probes <= _MOST_PROBES
        and 0 <= rules.max_open_ms <= _LONGEST_MS
    )


def open_time_us(rules: Rules, trips: int, chance: float) -> int:
    """How long a circuit stays open after so many trips in a row."""
    doubled_ms = rules.open_ms << min(trips - 1, _MOST_DOUBLINGS)
    return round(min(rules.max_open_ms, doubled_ms) * 1000 * (1 - _JITTER + 2 * _JITTER * chance))


_Sums: TypeAlias = list[int]
"""Requests, failures, slow ones."""


def _add(sums: _Sums, report: Report) -> None:
    sums[0] += report.requests
    sums[1] += report.failures
    sums[2] += report.slow


class _Reporter:
    """What one replica or worker reported in this half of the window, and in the one before."""

    __slots__ = ("before", "now", "voted_us")

    def __init__(self) -> None:
        self.now: _Sums = [0, 0, 0]
        self.before: _Sums = [0, 0, 0]
        self.voted_us: float = -inf

    def roll(self, *, follows: bool) -> None:
        self.before = self.now if follows else [0, 0, 0]
        self.now = [0, 0, 0]


class Counts(NamedTuple):
    """What a window holds."""

    requests: int = 0
    failures: int = 0
    slow: int = 0
    reporters: int = 0
    failing: int = 0
    """Of these, those that cross a threshold by themselves or voted."""
    by_errors: int = 0
    by_slow: int = 0
    voters: int = 0


class Window:
    """Outcomes since the circuit's last change, over BUCKETS buckets, and who reported them.

    Buckets and halves are known by when they began, so a window may change its length while it is in use.
    """

    __slots__ = ("_buckets", "_half_us", "_replicas", "_sums", "_workers", "first_us")

    def __init__(self) -> None:
        self._buckets: deque[tuple[int, _Sums]] = deque()
        """Each with when it began."""
        self._sums: _Sums = [0, 0, 0]
        self.first_us = 0
        """The first report since it was empty."""
        self._half_us = 0
        self._replicas: dict[str, _Reporter] = {}
        self._workers: dict[tuple[str, int], _Reporter] = {}

    def pass_to(self, now_us: int, window_us: int) -> None:
        """Forget what is over."""
        buckets = self._buckets
        width_us = window_us // BUCKETS
        oldest_us = now_us - now_us % width_us - window_us
        while buckets and buckets[0][0] <= oldest_us:
            for index, count in enumerate(buckets.popleft()[1]):
                self._sums[index] -= count
        half_us = now_us - now_us % (window_us // 2)
        if half_us > self._half_us:
            follows = half_us - self._half_us <= window_us // 2
            self._half_us = half_us
            _roll(self._replicas, now_us - window_us, follows=follows)
            _roll(self._workers, now_us - window_us, follows=follows)

    def add(self, now_us: int, window_us: int, report: Report) -> None:
        """Count a report; time has been passed to `now_us`."""
        buckets = self._buckets
        if report.requests or report.failures or report.slow:
            if not buckets:
                self.first_us = now_us
            start_us = now_us - now_us % (window_us // BUCKETS)
            if not buckets or buckets[-1][0] < start_us:
                buckets.append((start_us, [0, 0, 0]))
            _add(buckets[-1][1], report)
            _add(self._sums, report)
        replica = self._replicas.get(report.replica)
        if replica is None:
            replica = self._replicas[report.replica] = _Reporter()
        worker = self._workers.get((report.replica, report.slot))
        if worker is None:
            worker = self._workers[report.replica, report.slot] = _Reporter()
        _add(replica.now, report)
        _add(worker.now, report)
        if report.vote:
            replica.voted_us = worker.voted_us = now_us

    def counts(self, now_us: int, rules: Rules, *, of_replicas: bool) -> Counts:
        """What it holds, by replicas or by workers."""
        reporters = failing = by_errors = by_slow = voters = 0
        errors, slow = rules.errors, rules.slow
        oldest_vote_us = now_us - rules.window_ms * 1000
        known = self._replicas if of_replicas else self._workers
        for reporter in known.values():
            requests, failures, slows = reporter.now
            before = reporter.before
            requests += before[0]
            fails = crawls = False
            if requests:
                fails = (failures + before[1]) / requests >= errors
                crawls = (slows + before[2]) / requests >= slow
            votes = reporter.voted_us > oldest_vote_us
            by_errors += fails
            by_slow += crawls
            voters += votes
            # Who only voted is kept for a while after the vote is over.
            reporters += bool(requests or failures or slows or any(before)) or votes
            failing += fails or crawls or votes
        requests, failures, slows = self._sums
        return Counts(requests, failures, slows, reporters, failing, by_errors, by_slow, voters)


def _roll(
    reporters: dict[str, _Reporter] | dict[tuple[str, int], _Reporter], vote_us: int, *, follows: bool
) -> None:
    gone = []
    for name, reporter in reporters.items():
        reporter.roll(follows=follows)
        if not any(reporter.before) and reporter.voted_us <= vote_us:
            gone.append(name)
    for name in gone:
        del reporters[name]  # type: ignore[arg-type]


class Circuit:
    """One circuit.

    `chance` decides the jitter of an open time: 0 shortens it by 10 %, 1 would make it so much longer.
    """

    __slots__ = (
        "_counts",
        "_forced",
        "_forced_by",
        "_forced_reason",
        "_forced_until_us",
        "_leases",
        "_oks",
        "_open_until_us",
        "_published",
        "_since_us",
        "_state",
        "_trips",
        "_void",
        "_window",
        "epoch",
        "expires_us",
    )

    def __init__(self) -> None:
        self.epoch = 0
        self.expires_us: float = 0.0
        self._state = State.CLOSED
        self._since_us = 0
        self._open_until_us = 0
        self._trips = 0
        self._forced = ""
        self._forced_until_us = 0
        self._forced_by = ""
        self._forced_reason = ""
        self._window = Window()
        self._counts = Counts()
        """What the window held at the last report; of an OPEN circuit, what tripped it."""
        self._leases: dict[str, int] = {}
        """Probes that are out, with their deadlines."""
        self._void: dict[str, int] = {}
        """Those of earlier epochs, which say nothing any more, but are still on their way to the upstream."""
        self._oks = 0
        self._published = False

    def take_published(self) -> bool:
        """Whether it has changed since this was asked last."""
        published, self._published = self._published, False
        return published

    # Steps

    def report(self, report: Report, now_us: int, chance: float) -> Row:
        """`protocol.Report`."""
        self._arrive(now_us)
        if self._state is State.CLOSED and not self._forced:
            rules = report.rules
            if self._trips and now_us - self._since_us >= _CALM * rules.open_ms * 1000:
                self._trips = 0
            window_us = rules.window_ms * 1000
            window = self._window
            window.pass_to(now_us, window_us)
            told = bool(report.requests or report.failures or report.slow or report.vote)
            if told and report.epoch == self.epoch:
                window.add(now_us, window_us, report)
            of_replicas = report.live_replicas != 1
            self._counts = window.counts(now_us, rules, of_replicas=of_replicas)
            if report.epoch == self.epoch:
                live = report.live_replicas if of_replicas else report.live_workers
                if self._crosses(now_us, rules, live):
                    self._trip(now_us, rules, chance)
        return self.row(now_us)

    def probe(self, probe: Probe, now_us: int, chance: float) -> Probed:
        """`protocol.Probe`."""
        self._arrive(now_us)
        if probe.verb is Verb.ASK:
            done = self._ask(probe, now_us, chance)
        else:
            done = self._leases.pop(probe.id, None) is not None
            self._void.pop(probe.id, None)
            if done and probe.verb is Verb.FAILED:
                self._trip(now_us, probe.rules, chance)
            elif done and probe.verb is Verb.OK:
                self._oks += 1
                if self._oks >= probe.rules.probes:
                    self._change(now_us, State.CLOSED)
        return Probed(done, self.row(now_us))

    def force(self, force: Force, now_us: int) -> Row:
        """`protocol.Force`, whose `to` is one of the three."""
        self._arrive(now_us)
        if force.to != "auto":
            self._forced = force.to
            self._forced_until_us = now_us + force.for_ms * 1000 if force.for_ms else 0
            self._forced_by = force.by
            self._forced_reason = force.reason
            self._change(now_us, State.OPEN if force.to == "open" else State.CLOSED)
            self._open_until_us = self._forced_until_us if force.to == "open" else 0
        elif self._forced:
            self._let_go(now_us, State.HALF_OPEN)
        return self.row(now_us)

    def restore(self, restore: Restore, now_us: int) -> Row:
        """`protocol.Restore`."""
        self._arrive(now_us)
        row = restore.row
        if row.epoch > self.epoch:
            self.epoch = row.epoch
            self._state = row.state
            self._since_us = row.since_us
            self._open_until_us = row.open_until_us
            self._trips = row.trips
            self._forced = row.forced
            self._forced_until_us = row.forced_until_us
            self._forced_by = row.forced_by
            self._forced_reason = row.forced_reason
            self._empty()
            self._published = True
        return self.row(now_us)

    def row(self, now_us: int) -> Row:
        """How it stands."""
        self.expires_us = now_us + (_REMEMBERED_US if self.epoch else _IDLE_US)
        if self._forced and not self._forced_until_us:
            self.expires_us = inf
        counts = self._counts
        return Row(
            now_us,
            self._state,
            self.epoch,
            self._since_us,
            self._open_until_us,
            self._trips,
            self._forced,
            self._forced_until_us,
            self._forced_by,
            self._forced_reason,
            counts.requests,
            counts.failures,
            counts.slow,
            counts.reporters,
            counts.failing,
        )

    # What they are made of

    def _arrive(self, now_us: int) -> None:
        """End a force whose time is over."""
        if self._forced_until_us and now_us >= self._forced_until_us:
            self._let_go(now_us, State.HALF_OPEN if self._forced == "open" else self._state)

    def _let_go(self, now_us: int, state: State) -> None:
        self._forced = self._forced_by = self._forced_reason = ""
        self._forced_until_us = 0
        self._change(now_us, state)

    def _crosses(self, now_us: int, rules: Rules, live: int) -> bool:
        counts = self._counts
        quorum = max(ceil(rules.quorum * counts.reporters), min(2, live), 1)
        if counts.voters >= quorum:
            return True
        requests = counts.requests
        if not requests or requests < rules.min_requests:
            return False
        # Of one that is alone everything is told.
        if live > 1 and now_us - self._window.first_us < SETTLING_US:
            return False
        return (counts.failures / requests >= rules.errors and counts.by_errors >= quorum) or (
            counts.slow / requests >= rules.slow and counts.by_slow >= quorum
        )

    def _trip(self, now_us: int, rules: Rules, chance: float) -> None:
        """Open; `_counts` says why."""
        self._trips += 1
        counts = self._counts
        self._change(now_us, State.OPEN)
        self._counts = counts
        self._open_until_us = now_us + open_time_us(rules, self._trips, chance)

    def _ask(self, probe: Probe, now_us: int, chance: float) -> bool:
        leases = self._leases
        if any(deadline <= now_us for deadline in leases.values()):
            self._trip(now_us, probe.rules, chance)
        if self._state is State.OPEN and not self._forced and now_us >= self._open_until_us:
            self._change(now_us, State.HALF_OPEN)
        if self._state is not State.HALF_OPEN:
            return False
        if probe.id not in leases:
            self._void = {name: until for name, until in self._void.items() if until + LATE_US > now_us}
            if len(leases) + len(self._void) >= probe.rules.probes:
                return False
            leases[probe.id] = now_us + probe.timeout_ms * 1000
        return True

    def _change(self, now_us: int, state: State) -> None:
        """Begin a new epoch in `state`."""
        self.epoch = max(now_us, self.epoch + 1)
        if state is not self._state:
            self._state = state
            self._since_us = now_us
        self._open_until_us = 0
        self._empty()
        self._published = True

    def _empty(self) -> None:
        self._window = Window()
        self._counts = Counts()
        self._void |= self._leases
        self._leases.clear()
        self._oks = 0

"""A circuit as one worker knows it: the row that it heard of last, what follows from it, and how that is told.

Pure. The row's times are the store's; `store_time` maps them to this worker's clock.
"""

from __future__ import annotations

import enum
from math import inf
from typing import Final

import msgspec

from ambassador.printable import printable
from ambassador.state.protocol import Row, State
from ambassador.state.store_time import StoreTime

STATE_WORDS: Final = {State.CLOSED: "closed", State.OPEN: "open", State.HALF_OPEN: "half_open"}
_FORCED_RETRY_S: Final = 60.0
"""The longest `Retry-After` of a forced circuit: somebody may let go of it at any time."""


class Word(enum.Enum):
    """How a row that a store answered stands to the one that is known."""

    NEWER = 0
    SAME = 1
    OF_BEFORE = 2
    """It was asked for before the known one was."""
    LOST = 3
    """The store has lost a row that must be put back."""
    GIVEN_UP = 4
    """The store has lost a row that gives way to what it says now."""


class KnownCircuit:
    """`row` is None until a store has said something."""

    __slots__ = ("_known_at", "_overridden", "_time", "row")

    def __init__(self, time: StoreTime) -> None:
        self.row: Row | None = None
        self._time = time
        self._known_at = -inf
        self._overridden = -1

    def forced(self, now: float) -> str:
        """Which way it is held, "open" or "closed"; else empty."""
        row = self.row
        if row is None or not row.forced:
            return ""
        if row.forced_until_us and now >= self._time.here(row.forced_until_us):
            return ""
        return row.forced

    def forced_wait(self, now: float, open_ms: int) -> float:
        """In how many seconds it may be worth asking again, while it is forced."""
        row = self.row
        assert row is not None
        if not row.forced_until_us:
            return min(_FORCED_RETRY_S, open_ms / 1000)
        return min(_FORCED_RETRY_S, self._time.here(row.forced_until_us) - now)

    def state(self, now: float) -> State:
        """The circuit's state; a force that has run out counts as the store will take it."""
        row = self.row
        if row is None:
            return State.CLOSED
        if row.forced == "open" and not self.forced(now):
            return State.HALF_OPEN
        return row.state

    def open_left(self, now: float) -> float:
        """Seconds until probing may begin, of a circuit that is open; 0 or less: it may."""
        row = self.row
        assert row is not None
        return self._time.here(row.open_until_us) - now

    @property
    def closed_since(self) -> float:
        """When it closed, in monotonic seconds; -inf: it is not closed, or nobody knows."""
        row = self.row
        if row is None or row.state is not State.CLOSED or not row.since_us:
            return -inf
        return self._time.here(row.since_us)

    @property
    def is_plain(self) -> bool:
        """Nothing about it refuses anything."""
        return self.row is None or self.row.state is State.CLOSED

    # Rows

    def hear(self, row: Row, asked_at: float | None, now: float) -> None:
        """A row came, whatever it says: the clocks. `asked_at` None: it came by itself."""
        self._time.heard(row.now_us, asked_at, now)

    def compare(self, row: Row, asked_at: float, now: float) -> Word:
        """What an answer that was asked for at this time says. The higher epoch wins; a lower one, asked for after the
        known one was known, says that the store has lost that. It is put back if it is not closed, or forced.
        """
        mine = self.row
        if mine is None or row.epoch > mine.epoch:
            return Word.NEWER
        if row.epoch == mine.epoch:
            return Word.SAME
        if asked_at <= self._known_at:
            return Word.OF_BEFORE
        standing = self.forced(now) or (mine.state is not State.CLOSED and not mine.forced)
        # An order that the store was not told of, and whose time is over, has nothing to say to the others.
        let_go = mine.epoch == self._overridden and not mine.forced
        return Word.LOST if standing or let_go else Word.GIVEN_UP

    def take(self, row: Row, now: float) -> None:
        """Go by this row from now on."""
        self.row = row
        self._known_at = now

    def override(self, row: Row) -> None:
        """This row was not the store's: it is put there once the store answers."""
        self._overridden = row.epoch

    def close_here(self) -> None:
        """Take the circuit for closed until the store answers again."""
        if self.row is not None:
            self.row = msgspec.structs.replace(self.row, state=State.CLOSED)

    def inherit(self, other: KnownCircuit) -> None:
        """Know what another one knows."""
        self.row = other.row
        self._known_at = other._known_at
        self._overridden = other._overridden

    # What is told

    def window(self, now: float, window_ms: int) -> tuple[int, int, int] | None:
        """(requests, failures, slow) as last heard; None: that is too long ago."""
        row = self.row
        if row is None or now - self._time.here(row.now_us) > window_ms / 1000:
            return None
        return row.requests, row.failures, row.slow

    def word(self) -> str:
        """Its state in one word."""
        if self.row is None:
            return "closed"
        if self.row.forced:
            return f"forced {printable(self.row.forced)}"
        return STATE_WORDS[self.row.state]

    def text(self, before: Row | None, probe: str = "") -> str:
        """Its state, and the numbers that caused it. `before`: the row until then; `probe`: what is known of the probe
        that failed.
        """
        row = self.row
        assert row is not None
        if row.forced:
            # Another replica, or another program, may have written it into the store.
            by, reason = printable(row.forced_by), printable(row.forced_reason)
            return f"forced {printable(row.forced)} by {by or '-'}: {reason}"
        if row.state is State.OPEN:
            return _trip_text(row, before, probe)
        return STATE_WORDS[row.state]


def _trip_text(row: Row, before: Row | None, probe: str) -> str:
    seconds = max(0.0, (row.open_until_us - row.since_us) / 1e6)
    text = f"open for {seconds:.1f} s (trip {row.trips})"
    if row.reporters:
        return (
            f"{text}: {row.failures} of {row.requests} failed, {row.slow} were slow, "
            f"seen by {row.failing} of {row.reporters}"
        )
    if before is not None and before.state is not State.CLOSED:
        # Probes are in no window. Of a row that was put back into a store nobody knows the window any more.
        return f"{text}: {probe or 'a probe failed'}"
    return text


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker knows of a circuit. Times are the store's, in microseconds; 0: none."""

    name: str
    epoch: int
    state: str
    since_us: int
    open_until_us: int
    forced: str
    forced_until_us: int
    forced_by: str
    forced_reason: str
    window: tuple[int, int, int]
    now_us: int
    own_left_s: float | None
    own_why: str

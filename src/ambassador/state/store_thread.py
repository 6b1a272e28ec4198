"""The fleet's store behind two threads of a worker, because its client waits.

One thread connects and performs: it takes everything that was put meanwhile, as one batch, sends it and waits for the
answers. So one batch is under way at most; MIN_SPACING_S between two lets small ones grow into fewer, unless somebody
waits. The other thread hears what is published. Both connect again by themselves, one attempt at a time, after a
random time of up to 25 ms that doubles to 500 ms (full jitter: a whole fleet comes back at once).

Nothing here decides anything: each thread leaves `Report`s in one queue and rings the bell. Whether a batch took too
long is the worker's own thread to say, which reads `batch`; what a thread says afterwards about a batch that was given
up is that the store answers again.

Python's switch interval (5 ms) stays as it is, since the worker's thread lets go of the interpreter at every system
call. Measured beside a loop at 55,000 turns a second: an answer comes after 0.3 ms in the middle and 3 ms at 95 %,
with 5 ms, 1 ms and 0.2 ms alike. On an idle worker it takes 0.15 ms, and 120 µs of CPU on both threads; of a
batch of 50, 31 µs each.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

from ambassador.state import protocol
from ambassador.state.bridge import Asked, Batch, Bell
from ambassador.state.protocol import Answer, CannotServe, Event, NotAllowed, Operation, StoreLost
from ambassador.state.scope import MISSED

_LOG = logging.getLogger(__name__)

MIN_SPACING_S: Final = 0.002
"""Between two batches that nobody waits for. A pipeline costs the client 80 µs whatever is in it."""

RECONNECT_S: Final = (0.025, 0.5)
LOOK_S: Final = 1.0
"""Where the user may not subscribe, so often everybody is told to look for what has changed."""
_MOST_LOOKS: Final = 32
"""Looks before it is tried again whether the user may subscribe by now; at first after one, then twice as many each
time: a fleet that tries all the time fills the server's log of refusals."""
_BATCH: Final = 512  # operations: about 5 ms of one core of the store
_SHORT_LIFE_S: Final = 2.0
"""A store that says so soon after it was back that it cannot serve is back the next time only when it has taken writes
for PROOF_S, which doubles: one that is full takes some whenever something else goes, a few times a minute."""
PROOF_S: Final = (2.0, 8.0)
_PROVE_EVERY_S: Final = 0.25
_UNHEARD: Final = (
    10_000  # reports that the worker has not looked at; beyond, events are dropped, and that is told
)


class Subscription(Protocol):
    """What is published, on a connection of its own; iterated over by one thread."""

    def __iter__(self) -> Iterator[Event]:
        """Every event, as it comes. Raises `StoreLost`."""

    def stop(self) -> None:
        """Have the iteration end soon; from any thread."""

    def close(self) -> None:
        """Close the connection; from the thread that iterates."""


class Store(Protocol):
    """A client of the store that waits. All but `subscribe` is used by one thread."""

    @property
    def age_s(self) -> float:
        """How long ago the data began, as of the last `connect`: the oldest shard's; inf: buckets begin full."""

    def connect(self) -> None:
        """Connect, or connect again. Raises `StoreLost`."""

    def perform(self, operations: Sequence[Operation]) -> list[Answer]:
        """Have them done; the answers in the same order. Raises `StoreLost`."""

    def subscribe(self) -> Subscription:
        """Connect once more: what is published from now on is heard. Raises `StoreLost`. From another thread."""

    def close(self) -> None:
        """Close the connection."""


class Done(NamedTuple):
    """A batch was answered."""

    batch: Batch
    answers: list[Answer]


class Lost(NamedTuple):
    """The store is lost, and with it this batch."""

    batch: Batch
    why: str


class Up(NamedTuple):
    """The store is there, and answered the greeting. `born_at`: when its data began, not later than it was."""

    answers: list[Answer]
    born_at: float


class Refused(NamedTuple):
    """An attempt to connect failed."""

    why: str


class Heard(NamedTuple):
    """An event; None: some were missed, or may have been."""

    event: Event | None


Report: TypeAlias = Done | Lost | Up | Refused | Heard


class StoreThread:
    """Two daemon threads, from `start` to `stop`.

    `greeting` gives what is done first on a new connection: its answers prove that the store answers. `time` is the
    worker's clock, in seconds; `chance` gives numbers from 0 up to 1.
    """

    def __init__(
        self,
        store: Store,
        greeting: Callable[[], list[Operation]],
        bell: Bell,
        time: Callable[[], float],
        *,
        chance: Callable[[], float],
    ) -> None:
        self.batch: Batch | None = None
        self._store = store
        self._subscription: Subscription | None = None
        self._connections = 0
        self._greeting = greeting
        self._bell = bell
        self._time = time
        self._chance = chance
        self._reports: deque[Report] = deque()
        self._missed = False
        self._wanted = threading.Condition()
        self._outbox: deque[Asked] = deque()
        self._urgent = False
        self._sent_at = float("-inf")
        self._stopping = False
        self._stopped = threading.Event()
        self._connected = threading.Event()
        self._threads = [
            threading.Thread(target=self._perform, name="ambassador-state", daemon=True),
            threading.Thread(target=self._hear, name="ambassador-state-events", daemon=True),
        ]

    def start(self) -> None:
        """Begin to connect."""
        for thread in self._threads:
            thread.start()

    def stop(self, within_s: float) -> None:
        """Perform what was put before, and end. Threads that are stuck after that time are left behind."""
        with self._wanted:
            self._stopping = True
            self._wanted.notify()
        self._stopped.set()
        self._connected.set()
        self._end_subscription()
        until = self._time() + within_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - self._time()))

    # The worker's side

    def put(self, asked: Asked, *, urgent: bool) -> None:
        """Have it sent with the next batch, which goes at once if it is urgent."""
        with self._wanted:
            self._outbox.append(asked)
            if urgent:
                self._urgent = True
            self._wanted.notify()

    def take_back(self) -> list[Asked]:
        """What was put and is not under way."""
        with self._wanted:
            asked = list(self._outbox)
            self._outbox.clear()
        return asked

    @property
    def has_more(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._outbox)

    def reports(self) -> Iterator[Report]:
        """What there is to tell; each once."""
        for _ in range(len(self._reports)):
            yield self._reports.popleft()
        if self._missed:
            self._missed = False
            yield Heard(None)

    # The thread that performs

    def _perform(self) -> None:
        failures = 0
        proof_s = 0.0
        while not self._stopping:
            if self._connect(proof_s):
                failures = 0
                up_at = self._time()
                can_serve = self._converse()
                short = not can_serve and self._time() - up_at < _SHORT_LIFE_S
                proof_s = min(max(PROOF_S[0], 2 * proof_s), PROOF_S[1]) if short else 0.0
            else:
                failures += 1
            self._connected.clear()
            if self._stopping:
                self._connected.set()  # as `stop` has it, for the thread that hears
            if not self._stopping:
                self._stopped.wait(reconnect_delay_s(failures, self._chance()))
        self._store.close()

    def _connect(self, proof_s: float) -> bool:
        """Connect, and greet: that is a write. For `proof_s` more it is to work before anybody is told."""
        began = self._time()
        try:
            self._store.connect()
            answers = self._greet()
            self._end_subscription()
            self._connected.set()
            for _ in range(round(proof_s / _PROVE_EVERY_S)):
                if self._stopped.wait(_PROVE_EVERY_S):
                    return False
                answers = self._greet()
            self._report(Up(answers, began - self._store.age_s))
        except Exception as error:  # noqa: BLE001 - whatever a client raises, its store is not there; the report says why
            self._report(Refused(_reason(error)))
            return False
        return True

    def _greet(self) -> list[Answer]:
        answers = self._store.perform(self._greeting())
        for answer in answers:
            if isinstance(answer, protocol.Refused):
                raise CannotServe(answer.why)
        return answers

    def _converse(self) -> bool:
        """Perform batches until the store is lost or nothing more will come. False: it says that it cannot serve."""
        while (batch := self._next()) is not None:
            try:
                answers = self._store.perform(batch.operations)
            except Exception as error:  # noqa: BLE001 - likewise lost until it is back
                self.batch = None
                self._report(Lost(batch, _reason(error)))
                return not isinstance(error, CannotServe)
            self.batch = None
            self._report(Done(batch, answers))
        return True

    def _next(self) -> Batch | None:
        with self._wanted:
            while not self._outbox:
                if self._stopping:
                    return None
                self._wanted.wait()
            while not self._urgent and not self._stopping:
                left = self._sent_at + MIN_SPACING_S - self._time()
                if left <= 0:
                    break
                self._wanted.wait(left)
            asked = [self._outbox.popleft() for _ in range(min(len(self._outbox), _BATCH))]
            self._urgent = self._urgent and bool(self._outbox)
            self._sent_at = self._time()
            self.batch = Batch(asked, self._sent_at)
            return self.batch

    def _report(self, report: Report) -> None:
        self._reports.append(report)
        self._bell.ring()

    # The thread that hears

    def _hear(self) -> None:
        failures = 0
        looks = 1
        told = ""
        while not self._stopping:
            self._connected.wait()
            connection = self._connections
            try:
                with contextlib.closing(self._store.subscribe()) as self._subscription:
                    if connection == self._connections and not self._stopping:
                        failures, looks = 0, 1
                        self._report(Heard(None))
                        for event in self._subscription:
                            self._report_event(event)
            except NotAllowed:  # the supervisor's own attempt says so
                self._subscription = None
                self._look(looks)
                looks = min(2 * looks, _MOST_LOOKS)
                continue
            except StoreLost:  # the other thread's attempts say why
                failures += 1
            except Exception as error:  # noqa: BLE001 - a defect, which must be told: the other thread does not meet it
                failures += 1
                if (why := _reason(error)) != told:
                    told = why
                    _LOG.exception("the events of the state store are not heard")
            self._subscription = None
            self._stopped.wait(reconnect_delay_s(failures, self._chance()))

    def _look(self, times: int) -> None:
        """In place of events: say so often that there may have been some."""
        for _ in range(times):
            if self._stopped.wait(LOOK_S) or not self._connected.is_set():
                return
            self._report(Heard(Event(MISSED, "", b"")))

    def _end_subscription(self) -> None:
        """Have it made anew: after a failover it may go on with a server that nobody writes to."""
        self._connections += 1
        subscription = self._subscription
        if subscription is not None:
            subscription.stop()

    def _report_event(self, event: Event) -> None:
        if len(self._reports) < _UNHEARD:
            self._report(Heard(event))
        else:
            self._missed = True
            self._bell.ring()


def reconnect_delay_s(failures: int, chance: float) -> float:
    """How long to wait before the next attempt, after so many failures in a row; `chance` is 0..1."""
    first, longest = RECONNECT_S
    return chance * min(longest, first * 2.0 ** min(failures, 10))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, StoreLost) else f"{type(error).__name__}: {error}"

"""Concurrency: how many requests of a route may be in progress on this replica, over all its workers.

Phase ADMIT, behind the rate limits: a permit is taken before any work, and held until the answer's body has ended. The
worker decides from what it has in hand (`state/allotment.py`), which the replica's store divides exactly: 0.2 µs for a
request, and an operation of the store only when the hand is empty. What is beyond the limit waits in a queue that is
bounded, timed and in the order of arrival; what is beyond the queue is `overloaded` at once. A client that leaves gives
up its place.

Each worker that has requests has an equal part of the queue (at least one place): none knows how long the others' are.
A request that finds neither permit nor place may still have to wait for HOLD_S, while permits are on their way from
another worker that has too many.

With `adaptive` the store finds the limit from how long requests take (`state/gradient.py`): from the permit to the
answer's end, so without the time in this queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from msgspec import Struct

from ambassador.errors import Overloaded
from ambassador.proxy.lane import Timer, ended_by
from ambassador.settings import Count, CountOrNone, SecondsOrNone, Section
from ambassador.state.allotment import PULSE_S, Allotment
from ambassador.state.protocol import decode_share

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from ambassador.messages import Request, Waiter
    from ambassador.state.protocol import Event
    from ambassador.state.scope import Scope

DEFAULT_MAX: Final = 100
DEFAULT_ADAPTIVE_MAX: Final = 1000
DEFAULT_QUEUE: Final = 100
HOLD_S: Final = 0.02
"""How long a request without a place in the queue waits for permits on their way: as `state.max_wait`."""
LABEL: Final = "concurrency"
"""What its refusals are counted under, beside the names of the route's limits."""
_REFUSED: Final = frozenset({429, 503, 504})


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many requests may be in progress at once, on each replica. Unset: any number."""

    shorthand: ClassVar[str | None] = "max"

    max: Count | None = None
    """Requests in progress, until the end of the answer's body. With `adaptive`, the upper bound of that. Unset: 100,
    with `adaptive` 1000."""

    queue: CountOrNone | None = None
    """Requests that may wait for others to end; further ones are answered `overloaded`. Unset: 100; with `adaptive` 0,
    for what waits here is no less late than what waits at the upstream."""

    wait: SecondsOrNone = 1.0
    """How long one may wait before it is answered `overloaded`."""

    adaptive: bool = False
    """Find the number from how long answers take: as many as the upstream can work on without letting them wait."""

    min: Count | None = None
    """With `adaptive`: never fewer than this. Unset: 4."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """A lower bound without `adaptive`, or above the upper one."""
        if self.min is not None and not self.adaptive:
            yield "min", "has no meaning without 'adaptive: true'"
        elif self.least > self.most:
            yield "min", f"is more than 'max' ({self.most})"

    @property
    def most(self) -> int:
        """`max`, also where it is not written."""
        return self.max or (DEFAULT_ADAPTIVE_MAX if self.adaptive else DEFAULT_MAX)

    @property
    def least(self) -> int:
        """`min`, also where it is not written; 0 where the limit is fixed."""
        return (self.min or 4) if self.adaptive else 0

    @property
    def places(self) -> int:
        """`queue`, also where it is not written."""
        if self.queue is not None:
            return self.queue
        return 0 if self.adaptive else DEFAULT_QUEUE


class PermitStatus(Struct, frozen=True, kw_only=True, gc=False):
    """The permits of one route as one worker knows them, for `/api/limits`."""

    name: str
    key: str
    most: int
    """`max`."""
    limit: int
    """How many there are on this replica now: with `adaptive`, what was found."""
    in_hand: int
    """How many this worker may use; above 0, `limit` is as young as the last answer of the store."""
    in_use: int
    queued: int
    admitted: int
    """Since the config was loaded; so is `limited`."""
    limited: int


class Counts(Protocol):
    """Where one route's refusals and waits are counted."""

    def limited(self) -> None:
        """A request was refused."""

    def waited(self) -> None:
        """A request had to wait."""


class Clock(Protocol):
    """The lane: the time, and timers."""

    @property
    def now(self) -> float:
        """Seconds of a monotonic clock, as of the present batch."""

    def arm(self, timer: Timer) -> None:
        """Have its `expire` called at its `deadline`."""


class _Entry:
    """A request that waits."""

    __slots__ = ("admitted", "placed", "refused", "request", "waiter")

    def __init__(self, request: Request, waiter: Waiter, *, placed: bool) -> None:
        self.request = request
        self.waiter = waiter
        self.placed = placed
        """It has a place in the queue; else it waits for a permit on its way, or for a place."""
        self.admitted = False
        self.refused = False


class Bulkhead:
    """One route's permits in this worker, and who waits for them. It outlives the tables, as requests do."""

    def __init__(self, name: str, config: Config, store: Scope, clock: Clock, holder: str) -> None:
        self.name = name
        self.config = config
        self.store = store
        self._clock = clock
        self._counts: Counts | None = None
        self._queue: dict[_Entry, None] = {}
        self._held = 0
        """Those in it that have no place."""
        self._given_back = 0
        """Permits since the config was loaded; less those that were in use then."""
        self._limited = 0
        self._begun: Callable[[], object] = bool
        self.hand = Allotment(
            f"{LABEL}:{name}",
            store,
            clock,
            holder=holder,
            most=config.most,
            least=config.least,
            gained=self._serve,
        )

    def configure(self, config: Config, counts: Counts | None, begun: Callable[[], None]) -> None:
        """Go by other settings from now on. `begun` is called when there is something to be timed."""
        self.config = config
        self._counts = counts
        self._begun = begun
        self._given_back, self._limited = -self.hand.used, 0
        self.hand.configure(config.most, config.least)

    @property
    def waiting(self) -> int:
        """Requests in this worker's queue."""
        return len(self._queue)

    def status(self) -> PermitStatus:
        """What this worker tells for `/api/limits`."""
        hand = self.hand
        return PermitStatus(
            name=f"{self.name}/{LABEL}",
            key=self.name,
            most=hand.most,
            limit=hand.limit,
            in_hand=hand.may,
            in_use=hand.used,
            queued=hand.waiting,
            admitted=self._given_back + hand.used,
            limited=self._limited,
        )

    def hook(self, *, adaptive: bool) -> Callable[[Request], Awaitable[None] | None]:
        """What admits a request: None to go on, or a coroutine that waits; both raise `Overloaded`."""
        hand, clock, excess = self.hand, self._clock, self._excess
        if adaptive:
            ended = self._ended

            def admit_timed(request: Request) -> Awaitable[None] | None:
                if hand.used < hand.may:
                    hand.used += 1
                    request.at_end(partial(ended, clock.now))
                    return None
                return excess(request)

            return admit_timed
        give_back = self._give_back

        def admit(request: Request) -> Awaitable[None] | None:
            if hand.used < hand.may:
                hand.used += 1
                request.at_end(give_back)
                return None
            return excess(request)

        return admit

    def _take(self, request: Request) -> None:
        self.hand.used += 1
        if self.config.adaptive:
            request.at_end(partial(self._ended, self._clock.now))
        else:
            request.at_end(self._give_back)

    # The end of a request

    def _give_back(self, _status: int, _seconds: float) -> None:
        hand = self.hand
        hand.used -= 1
        self._given_back += 1
        if hand.over:
            hand.ended()
        if self._queue:
            self._serve()

    def _ended(self, began: float, status: int, _seconds: float) -> None:
        hand = self.hand
        if began >= hand.since and status:
            if status in _REFUSED:
                hand.sample(0.0, dropped=True)
            elif status < 500:
                hand.sample(self._clock.now - began, dropped=False)
        self._give_back(status, _seconds)

    def _serve(self) -> None:
        """There may be permits for those who wait: the first come first. Who has no place and no hope is told."""
        hand, queue = self.hand, self._queue
        while queue and hand.used < hand.may:
            entry = next(iter(queue))
            self._leave(entry)
            entry.admitted = True
            self._take(entry.request)
            entry.waiter.wake()
        if self._held and queue:
            self._see_to_held(list(queue))

    def _see_to_held(self, queue: list[_Entry]) -> None:
        """Some have no place: they get those that became free, or are told that there is no hope."""
        places, dry = self._places, self._is_dry(self._clock.now)
        for position, entry in enumerate(queue):
            if entry.placed or not (dry or position < places):
                continue
            if position < places and self.config.wait:
                self._held -= 1
                entry.placed = True
            else:
                entry.refused = True
            entry.waiter.wake()

    # The queue

    @property
    def _places(self) -> int:
        """This worker's part of the queue."""
        return ceil(self.config.places / self.hand.holders)

    def _is_dry(self, now: float) -> bool:
        """No permits are on their way to this worker."""
        hand = self.hand
        return hand.may >= hand.limit or now < hand.dry_until

    def _excess(self, request: Request) -> Awaitable[None] | None:
        """There is no permit in hand."""
        hand, now = self.hand, self._clock.now
        waiter = request.waiter
        placed = len(self._queue) < self._places
        placed = placed and self.config.wait > 0
        held = not placed and self._held < hand.limit and not self._is_dry(now)
        if waiter is None or not (held or placed):
            raise self._refuse()
        return self._wait(_Entry(request, waiter, placed=placed))

    async def _wait(self, entry: _Entry) -> None:
        """Wait until `_serve` has let it through. Raises `Overloaded`, and what `rest` raises."""
        hand, clock = self.hand, self._clock
        self._queue[entry] = None
        self._held += not entry.placed
        hand.waiting = len(self._queue)
        if self._counts is not None:
            self._counts.waited()
        began = clock.now
        try:
            if not self._is_dry(clock.now):
                hand.ask()
            self._begun()
            while not entry.admitted:
                until = began + ended_by(self.config.wait if entry.placed else HOLD_S)
                if clock.now >= until or entry.refused:
                    raise self._refuse()
                await entry.waiter.rest(until)
        finally:
            if not entry.admitted:
                self._leave(entry)

    def _leave(self, entry: _Entry) -> None:
        del self._queue[entry]
        self._held -= not entry.placed
        self.hand.waiting = len(self._queue)

    def _refuse(self) -> Overloaded:
        self._limited += 1
        if self._counts is not None:
            self._counts.limited()
        return Overloaded(f"{self.hand.limit} requests of route {self.name} may be in progress at once")

    def pulse(self, now: float) -> None:
        """See to what is timed."""
        self.hand.pulse(now)

    @property
    def is_idle(self) -> bool:
        """There is nothing to see to."""
        return self.hand.is_idle


class Bulkheads(Timer):
    """All of a worker. `holder` is unique to this worker and this life of it."""

    def __init__(self, clock: Clock, *, holder: str = "worker") -> None:
        super().__init__()
        self._clock = clock
        self._holder = holder
        self._known: dict[str, Bulkhead] = {}
        self._stores: set[Scope] = set()

    def __iter__(self) -> Iterator[Bulkhead]:
        """Those there are, also of tables that were replaced as long as something is in use."""
        return iter(self._known.values())

    def get(self, name: str, config: Config, store: Scope) -> Bulkhead:
        """The permits of a route, for a table that is being made. The settings hold from `install` on."""
        known = self._known.get(name)
        if known is not None and known.store is store:
            return known
        return Bulkhead(name, config, store, self._clock, self._holder)

    def install(self, bulkheads: Iterable[tuple[Bulkhead, Config, Counts | None]]) -> None:
        """These are those of the table that is served from now on."""
        self._known = {name: each for name, each in self._known.items() if not each.is_idle}
        for bulkhead, config, counts in bulkheads:
            self._known[bulkhead.name] = bulkhead
            bulkhead.configure(config, counts, self._watch)
            if bulkhead.store not in self._stores:
                self._stores.add(bulkhead.store)
                bulkhead.store.listen("permits", self._heard)
                bulkhead.store.on_up(self._again)
        self._watch()

    def leave(self) -> None:
        """The worker ends: others need not wait until the store has forgotten it."""
        for bulkhead in self._known.values():
            bulkhead.hand.leave()

    def _heard(self, event: Event) -> None:
        kind, _, name = event.name.partition(":")
        bulkhead = self._known.get(name) if kind == LABEL else None
        if bulkhead is not None:
            bulkhead.hand.heard(decode_share(event.body))

    def _again(self) -> None:
        """The store is back, and knows nothing or too much of this worker."""
        for bulkhead in self._known.values():
            if not bulkhead.is_idle:
                bulkhead.hand.ask()

    def _watch(self) -> None:
        """Be called when it is time, as long as there is anything to see to."""
        if self.deadline > self._clock.now + PULSE_S and not all(each.is_idle for each in self):
            self.deadline = self._clock.now + PULSE_S
            self._clock.arm(self)

    def expire(self) -> None:
        """It is time."""
        self.deadline = float("inf")
        now = self._clock.now
        for bulkhead in self._known.values():
            bulkhead.pulse(now)
        self._watch()

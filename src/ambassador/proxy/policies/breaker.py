"""Breaker: no attempts at an upstream that fails them, until probes show that it is well again.

Phase ATTEMPT. What is decided, and by whom, is in `state/gate.py`; here is what a breaker's settings mean, and what an
exchange calls. `RoutePlan.gates` and `Endpoint.gate` hold `Breaker` objects, outermost first. Per attempt, once its
endpoint is picked:

    guards = guards_of(plan.gates, endpoint)
    entry = enter(guards, now, timeout_s, waiter)      # or closed(guards): no waiting, None unless all are closed
    … a `Refusal` ends the attempt, an awaitable gives one or a `Ticket`; the attempt is cut at `ticket.until` …
    settle(ticket, outcome, seconds, now)              # exactly once, whatever happens

Measured (CPython 3.11, timeit, best of 9): with one closed breaker `closed` and `answered` take 0.25 µs together, of
which counting a good answer is 0.12.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Protocol, TypeAlias
from weakref import ref

from msgspec import Meta

from ambassador.errors import BreakerOpen
from ambassador.proxy.content import NOTHING, contents
from ambassador.proxy.lane import ended_by
from ambassador.proxy.statuses import spelt_out
from ambassador.settings import (
    Count,
    CountOrNone,
    FailureCondition,
    Fraction,
    Seconds,
    SecondsRange,
    Section,
)
from ambassador.state.passes import WAITING, Pass, Refused, Result
from ambassador.state.probe_leases import KEEP_S
from ambassador.state.protocol import Rules

if TYPE_CHECKING:
    from ambassador.messages import Waiter
    from ambassador.proxy.breakers import Breakers
    from ambassador.state.gate import Gate
    from ambassador.state.scope import Scope

KINDS: Final = ("timeout", "connect", "reset")
"""The failures without a status that `failures` can name."""
LONGEST_PROBE_S: Final = 10.0
"""A probe whose head has not come is cut and counted failed after this, if the route does not end it before (contract
7.6); one whose head has come is judged by that then."""
_NEVER: Final = 2.0
"""A share that is not reached."""


class Slow(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Slow answers count as well: a service that is slow for everybody is as good as down."""

    shorthand: ClassVar[str | None] = "over"

    over: Seconds
    """Slower than this, from the attempt's first byte sent to the end of the answer's body (of a stream: to its
    headers), is slow."""

    percent: Fraction = 0.8
    """The share of slow answers that opens the breaker."""

    @classmethod
    def refusal(cls, field: str, value: Any) -> str | None:
        """A share that is always reached."""
        if field == "percent" and not value:
            return "0% would open the breaker at the first answer"
        return None


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When attempts are no longer made, and how the upstream is tried again. Off unless written."""

    shorthand: ClassVar[str | None] = "errors"

    errors: Fraction | None = 0.5
    """The share of failures in the window that opens the breaker. `off`: failures alone do not."""

    slow: Slow | None = None
    """The share of slow answers that opens it. Unset: they do not."""

    min_requests: Count = 20
    """Fewer requests in the window than this say nothing."""

    window: Seconds = 10.0
    """What is looked at, in ten buckets; emptied on each change of state."""

    consecutive: CountOrNone = 5
    """Failures in a row of kind `connect`, `reset` or `timeout`, as one worker sees them, that open that worker's own
    breaker at once and are its vote for opening all. 0: never."""

    open_for: SecondsRange = (5.0, 60.0)
    """How long it stays open: the first time, doubling with each failed recovery up to the second. One value does not
    double. ±10 % by chance."""

    probes: Annotated[Count, Meta(le=100)] = 3
    """So many requests at most try the upstream while it is half-open, over the whole fleet; so many successes in a
    row close it, one failure opens it again."""

    failures: tuple[FailureCondition, ...] = ("5xx", "timeout", "connect", "reset")
    """What counts as a failure: `timeout`, `connect`, `reset`, statuses (`429`), ranges (`502-504`), classes
    (`5xx`), and what the answer says whatever its status: `{header: NAME=VALUE}`, `{json: PATH=VALUE}`,
    `{body: REGEX}`. Bodies are looked at up to 64 KiB, before their head is passed on."""

    scope: Literal["upstream", "endpoint", "route"] = "upstream"
    """What opens: the upstream for every route to it, each endpoint by itself (at most half of them; beyond that they
    are used all the same), or this route."""

    shared: bool = True
    """Whether all replicas decide together. `false`: the workers of each replica for themselves."""

    quorum: Fraction = 0.3
    """The share of replicas (with one replica: of its workers) that must see the failures, and at least two where two
    live. One that sees them without a quorum opens for itself only."""

    @classmethod
    def refusal(cls, field: str, value: Any) -> str | None:
        """Values that a breaker cannot work with."""
        if field == "errors" and value == 0:
            return "0% would open the breaker at the first answer; 'off' does not look at errors"
        if field == "window" and not 1 <= value <= 3600:
            return "must be from 1s to 1h"
        if field == "open_for" and value[0] < 0.1:
            return "must be at least 100ms"
        return None

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Values with which a breaker would never open."""
        if self.errors is None and self.slow is None and not self.consecutive:
            yield None, "would never open: 'errors' and 'slow' are off and 'consecutive' is 0"
        if not self.failures and (self.errors is not None or self.consecutive):
            yield "failures", "must not be empty"

    @property
    def kinds(self) -> frozenset[str]:
        """The failures without a status."""
        return frozenset(self.failures).intersection(KINDS)

    @property
    def statuses(self) -> frozenset[int]:
        """The statuses that are failures, ranges and classes spelt out."""
        return spelt_out(self.failures, {*KINDS, *self.contents})

    @property
    def contents(self) -> frozenset[str]:
        """The failures that an answer tells itself."""
        return contents(self.failures)

    @property
    def rules(self) -> Rules:
        """As the state store takes it."""
        return Rules(
            errors=_NEVER if self.errors is None else self.errors,
            slow=_NEVER if self.slow is None else self.slow.percent,
            min_requests=self.min_requests,
            window_ms=round(self.window * 1000),
            quorum=self.quorum,
            open_ms=round(self.open_for[0] * 1000),
            max_open_ms=round(self.open_for[1] * 1000),
            probes=self.probes,
        )


def endpoint_name(upstream: str, url: str) -> str:
    """What the breaker of an endpoint is called: `UPSTREAM/host:port`."""
    return f"{upstream}/{url.removeprefix('http://').removeprefix('https://')}"


def route_name(route: str) -> str:
    """What a route's own breaker is called."""
    return f"route:{route}"


# ----- at run time ----------------------------------------------------------------------------------------------------


class Refusal:
    """No attempt: `breaker` is open. `retry_after_s` is when another may be worth it."""

    __slots__ = ("breaker", "retry_after_s")

    def __init__(self, breaker: str, retry_after_s: float) -> None:
        self.breaker = breaker
        self.retry_after_s = retry_after_s

    def error(self) -> BreakerOpen:
        """The same for the client."""
        return BreakerOpen(f"the breaker {self.breaker} is open", retry_after_s=self.retry_after_s)


class Ticket:
    """The right to make one attempt: every breaker that was passed, and how. Never changed, so it may be given twice.

    `until`: when the attempt must have ended, a time of the lane's clock; a probe may not take for ever.
    """

    __slots__ = ("entries", "until")

    def __init__(self, entries: Sequence[tuple[Breaker, Pass]], until: float = inf) -> None:
        self.entries = entries
        self.until = until


class Breaker:
    """A gate, what counts as a failure for it, and where its store is.

    `kind` is the config's `scope`; `store` who is asked. Made by `Breakers.get`.
    """

    __slots__ = (
        "_breakers", "_contents", "_kinds", "_shut", "_slow_s", "_statuses", "_was_open", "config", "gate", "kind", "name", "plain",
        "plain_stamp", "store", "waiter",
    )  # fmt: skip

    def __init__(self, name: str, config: Config, gate: Gate, store: Scope, breakers: Breakers) -> None:
        self.name = name
        self.config = config
        self.kind = config.scope
        self.gate = gate
        self.store = store
        self.waiter: Waiter | None = None
        """The request that waits for the lease that is asked for."""
        # Held by an endpoint of it: a cycle would keep a table that a reload has replaced.
        self._shut: ref[Shut] | None = None
        self._was_open = False
        self.plain_stamp = gate.stamp
        self.plain = Ticket(((self, gate.stamp),))
        """The ticket of every attempt while it is closed, as of `plain_stamp`."""
        self._breakers = breakers
        self._kinds = config.kinds
        self._statuses = config.statuses
        self._contents = config.contents
        self._slow_s = inf if config.slow is None else config.slow.over

    @property
    def is_open(self) -> bool:
        """Not simply closed."""
        return self.gate.is_open

    @property
    def now(self) -> float:
        """The lane's time."""
        return self._breakers.now

    async def rest(self, waiter: Waiter, held_s: float) -> None:
        """Wait for the lease that was asked for, at most `state.max_wait`, of which `held_s` is over."""
        left_s = self._breakers.max_wait_s - held_s
        if left_s <= 0:
            return
        self.waiter = waiter
        try:
            await waiter.rest(self.now + ended_by(left_s))
        finally:
            if self.waiter is waiter:
                self.waiter = None

    def enter(self, now: float, timeout_s: float) -> Pass | Refusal | None:
        """A pass or not. None: a lease was asked for, `waiter` is woken when it is there or not."""
        gate = self.gate
        if not gate.is_open:
            return gate.stamp
        if self._slow_s < inf:  # the head has its time all the same, and the body is to be seen to be slow
            timeout_s = max(timeout_s, self._slow_s + KEEP_S)
        entry = gate.enter(now, self._breakers.random(), min(timeout_s, LONGEST_PROBE_S))
        self._breakers.attend(self)
        if entry is WAITING:
            return None
        if isinstance(entry, Refused):
            return Refusal(self.name, entry.retry_after_s)
        assert isinstance(entry, Pass)
        return entry

    def renew_plain(self) -> Ticket:
        """Make `plain` of now."""
        self.plain_stamp = self.gate.stamp
        self.plain = Ticket(((self, self.plain_stamp),))
        return self.plain

    def note_shut(self) -> None:
        """Have whoever counts endpoints that are not closed count this one."""
        if self._shut is not None and self._was_open is not self.gate.is_open:
            shut = self._shut()
            if shut is not None:
                self._was_open = self.gate.is_open
                shut.shut += 1 if self._was_open else -1

    def guard(self, shut: Shut) -> None:
        """This is an endpoint's breaker: count it there from now on."""
        self._shut = ref(shut)
        self._was_open = False
        self.note_shut()

    def unguard(self) -> None:
        """Its endpoint has gone: it is counted no more."""
        shut = None if self._shut is None else self._shut()
        if shut is not None and self._was_open:
            shut.shut -= 1
        self._shut, self._was_open = None, False

    def welcomes(self, now: float) -> bool:
        """Whether its endpoint is worth picking where there are others."""
        if not self.gate.is_open:
            return True
        welcome = self.gate.welcomes(now)
        self._breakers.attend(self)
        return welcome

    def answered(self, given: Pass, status: int, seconds: float, now: float) -> None:
        """`settle` for an answer that came to its end."""
        if status in self._statuses or seconds > self._slow_s or not self.gate.count(given, now):
            self._settle(given, self._result(str(status), seconds, NOTHING), now, seconds)

    def settle(
        self, given: Pass, outcome: str, seconds: float, now: float, found: frozenset[str] = NOTHING
    ) -> None:
        """What came of the attempt: a status as text, or a word of `observe.metrics.RESULTS`.

        `seconds`: from the attempt's first byte sent to its answer's end (of a stream: to the headers). `found`: the
        content conditions that the answer met.
        """
        self._settle(given, self._result(outcome, seconds, found), now, seconds)

    def _settle(self, given: Pass, result: Result, now: float, seconds: float) -> None:
        self.gate.settle(given, result, now, self._breakers.random(), seconds)
        self._breakers.attend(self)

    def _result(self, outcome: str, seconds: float, found: frozenset[str]) -> Result:
        if outcome.isdigit():
            slow = seconds > self._slow_s
            if int(outcome) in self._statuses or not found.isdisjoint(self._contents):
                return Result.SLOW_FAILED if slow else Result.FAILED
            return Result.SLOW if slow else Result.GOOD
        kind = _SAME.get(outcome, outcome)
        if kind not in KINDS:
            return Result.NOTHING
        return Result.HARD if kind in self._kinds else Result.GOOD


_SAME: Final[Mapping[str, str]] = {"protocol": "reset", "refused_stream": "reset"}
"""Other words for failures that end a connection."""


class Shut(Protocol):
    """Who counts the endpoints that are not simply closed: an upstream."""

    shut: int


class Guarded(Protocol):
    """An endpoint."""

    gate: Breaker | None
    panic: bool


Guards: TypeAlias = Sequence[Breaker]


def guards_of(gates: tuple[Breaker, ...], endpoint: Guarded) -> Guards:
    """The breakers of one attempt, outermost first.

    That of an endpoint is left out while too many of its upstream's endpoints are open (`Endpoint.panic`): unless a
    probe can be made.
    """
    gate = endpoint.gate
    if gate is None or (endpoint.panic and gate.is_open and not gate.gate.has_lease):
        return gates
    return (*gates, gate)


def closed(guards: Guards) -> Ticket | None:
    """A ticket if all of them are simply closed, as they nearly always are; else None: it takes an `enter`."""
    if len(guards) == 1:
        (breaker,) = guards
        gate = breaker.gate
        if gate.is_open:
            return None
        return breaker.plain if breaker.plain_stamp is gate.stamp else breaker.renew_plain()
    if any(breaker.gate.is_open for breaker in guards):
        return None
    return Ticket([(breaker, breaker.gate.stamp) for breaker in guards])


def enter(
    guards: Guards, now: float, timeout_s: float, waiter: Waiter | None = None, *, held_s: float = 0.0
) -> Ticket | Refusal | Awaitable[Ticket | Refusal]:
    """May the attempt be made? `timeout_s`: the longest that it may take until its answer's head.

    An awaitable waits for a probe's lease, at most `state.max_wait`; only with a `waiter`. `held_s`: how long the
    request has waited for the state store already.
    """
    entries: list[tuple[Breaker, Pass]] = []
    for at, breaker in enumerate(guards):
        given = breaker.enter(now, timeout_s)
        if isinstance(given, Pass):
            entries.append((breaker, given))
        elif isinstance(given, Refusal) or waiter is None:
            _give_back(entries, now)
            return given or Refusal(breaker.name, 1.0)
        else:
            return _wait(guards[at:], entries, timeout_s, waiter, held_s)
    return Ticket(entries, min((given.until for _, given in entries), default=inf))


async def _wait(
    guards: Guards, entries: list[tuple[Breaker, Pass]], timeout_s: float, waiter: Waiter, held_s: float
) -> Ticket | Refusal:
    """From the breaker on that has asked for a lease."""
    asking = guards[0]
    try:
        await asking.rest(waiter, held_s)
    except BaseException:
        _give_back(entries, asking.now)
        raise
    for breaker in guards:
        given = breaker.enter(asking.now, timeout_s)
        if not isinstance(given, Pass):
            _give_back(entries, asking.now)
            return given or Refusal(breaker.name, 1.0)
        entries.append((breaker, given))
    return Ticket(entries, min((given.until for _, given in entries), default=inf))


def _give_back(entries: list[tuple[Breaker, Pass]], now: float) -> None:
    for breaker, given in entries:
        breaker.settle(given, "cancelled", 0.0, now)


def settle(ticket: Ticket, outcome: str, seconds: float, now: float, found: frozenset[str] = NOTHING) -> None:
    """Tell every breaker that was passed what came of the attempt; see `Breaker.settle`. `cancelled`: nothing."""
    for breaker, given in ticket.entries:
        breaker.settle(given, outcome, seconds, now, found)


def answered(ticket: Ticket, status: int, seconds: float, now: float) -> None:
    """`settle` for an answer that came to its end."""
    for breaker, given in ticket.entries:
        breaker.answered(given, status, seconds, now)

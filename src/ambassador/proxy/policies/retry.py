"""Retry: another attempt when one failed in a way that another can mend."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from msgspec import Meta

from ambassador.proxy.content import CONTENT, contents
from ambassador.proxy.methods import IDEMPOTENT
from ambassador.proxy.statuses import spelt_out
from ambassador.settings import (
    BytesOrNone,
    CountOrNone,
    Fraction,
    Method,
    RetryCondition,
    Seconds,
    SecondsRange,
    Section,
)
from ambassador.state.protocol import Lease, Leased

if TYPE_CHECKING:
    from ambassador.state.protocol import Answer
    from ambassador.state.scope import Scope

KINDS = ("connect", "reset", "refused_stream", "timeout", CONTENT)
"""The failures without a status that `when` can name."""


class Budget(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many retries an upstream gets at most, so that retries cannot become the load that keeps it down."""

    shorthand: ClassVar[str | None] = "percent"

    percent: Fraction = 0.2
    """Retries in proportion to first attempts. Linkerd and Finagle: 20 %."""

    min_per_second: Annotated[float, Meta(ge=0)] = 10.0
    """Retries a second that are allowed whatever the proportion, so that a quiet route can retry at all. Counted by
    each worker; with `shared: true` by all together."""

    shared: bool = False
    """Whether the budget is held over all workers of all replicas: their attempts together are at most
    (1 + `percent`) × requests and a floor beyond that, `min_per_second` × 10 at once and then `min_per_second`; once,
    not once for each worker."""


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a failed attempt is made again, how often, and after how long a wait."""

    shorthand: ClassVar[str | None] = "attempts"
    aliases: ClassVar[Mapping[str, str]] = {"on": "when"}

    attempts: Annotated[CountOrNone, Meta(le=10)] = 2
    """Extra attempts after the first. 0: none."""

    when: tuple[RetryCondition, ...] = ("connect", "refused_stream", "reset", "502-504")
    """What is tried again: `connect`, `reset`, `refused_stream`, `timeout`, statuses (`429`), ranges (`502-504`),
    classes (`5xx`); and what an answer says whatever its status, `{header: NAME=VALUE}`, `{json: PATH=VALUE}`,
    `{body: REGEX}`, or `content`: whatever of that kind the breakers on the way name in `failures`."""

    methods: Literal["idempotent", "all"] | tuple[Method, ...] = "idempotent"
    """Methods that are tried again: `idempotent` (GET, HEAD, OPTIONS, TRACE, PUT, DELETE, and any request with an
    `idempotency-key`), `all`, or a list. `connect` and `refused_stream` apply to every method, since the upstream
    has not seen the request."""

    backoff: SecondsRange = (0.025, 0.25)
    """Wait before a retry: a random time up to the first value, doubling with each attempt up to the second (full
    jitter). Envoy and Linkerd: 25 ms."""

    budget: Budget = Budget()
    """A bound on retries over all requests to the upstream."""

    buffer: BytesOrNone = 65536
    """A request body up to this size is kept so that it can be sent again; a longer one streams and is not replayed."""

    retry_after: Seconds | None = 300.0
    """The longest `Retry-After` of an upstream that is waited for; not where another endpoint is there to try, but for
    that of a 429. `off`: the header is not looked at."""

    @property
    def kinds(self) -> frozenset[str]:
        """The failures without a status that are tried again: a subset of `KINDS`."""
        return frozenset(self.when).intersection(KINDS) | ({CONTENT} if self.contents else set())

    @property
    def statuses(self) -> frozenset[int]:
        """The statuses that are tried again, ranges and classes spelt out."""
        return spelt_out(self.when, {*KINDS, *self.contents})

    @property
    def contents(self) -> frozenset[str]:
        """What an answer says that is tried again."""
        return contents(self.when)


UNSET = Config(attempts=1, when=("connect", "refused_stream"))
"""What a route has that says nothing about retries: one more attempt where the upstream cannot have seen the first."""


_BUDGET_SECONDS = 10
"""Over how long requests earn and retries spend. Finagle and Linkerd: 10 s."""


class RetryBudget:
    """How many retries are left: a share of the requests of the last 10 s, plus a floor.

    Counted by one worker, in buckets of one second; `now` is in seconds of any monotonic clock. Source: Finagle's
    RetryBudget. Depositing costs one comparison and one addition, since it happens for every request.
    """

    __slots__ = ("_floor", "_next", "_requests", "_retries", "_share", "requests")

    def __init__(self, *, percent: float, min_per_second: float) -> None:
        self._share = percent
        self._floor = min_per_second * _BUDGET_SECONDS
        self._requests = [0] * _BUDGET_SECONDS
        self._retries = [0] * _BUDGET_SECONDS
        self._next = 0.0
        self.requests = 0

    def deposit(self, now: float) -> None:
        """Count a first attempt."""
        if now >= self._next:
            self._rotate(now)
        self.requests += 1

    def spend(self, now: float) -> None:
        """Count a retry that somebody in front makes: it loads the upstream as one of our own would."""
        if now >= self._next:
            self._rotate(now)
        self._retries[0] += 1

    def withdraw(self, now: float) -> bool:
        """Take one retry. False if the budget is spent."""
        if now >= self._next:
            self._rotate(now)
        earned = self._share * (sum(self._requests) + self.requests) + self._floor
        if sum(self._retries) + 1 > earned:
            return False
        self._retries[0] += 1
        return True

    def _rotate(self, now: float) -> None:
        elapsed = min(_BUDGET_SECONDS, int(now - self._next) + 1)
        self._requests = [0] * (elapsed - 1) + [self.requests] + self._requests
        del self._requests[_BUDGET_SECONDS - 1 :]
        self._retries = [0] * elapsed + self._retries
        del self._retries[_BUDGET_SECONDS:]
        self.requests = 0
        self._next = now + 1.0 if elapsed == _BUDGET_SECONDS else self._next + elapsed


_AHEAD: Final = 2
"""Tokens that a quiet worker holds, so that its first retries need not ask."""
_ASK_EVERY_S: Final = 0.05
_KEPT_S: Final = 2
"""Of what a worker's own requests earned, the last seconds are kept for its own retries, the rest is shared."""
_SAVED_REQUESTS: Final = 1000
"""What requests earned is saved up to this many, beside the floor."""


class SharedRetryBudget:
    """The same over a fleet. Attempts of all together are at most (1 + percent) * requests + floor, at any time.

    A worker may spend at once what its own requests have earned. Of that it gives what it does not need to the bucket
    `key` of the store (`credit`), and takes tokens out of it before it needs them: those that others have given, and
    the floor, with which the bucket is made and which it gains. Every token is taken from one place before it is in
    another, so a lost message loses tokens and never makes any. While the store is away there is the worker's part of
    the floor.
    """

    __slots__ = (
        "_alone", "_asking", "_demand", "_depth", "_earned", "_floor", "_kept", "_key", "_leased", "_next", "_next_ask",
        "_per_second", "_share", "_store", "requests",
    )  # fmt: skip

    def __init__(self, *, percent: float, min_per_second: float, store: Scope, key: str) -> None:
        self._share = percent
        self._per_second = min_per_second
        self._floor = min_per_second * _BUDGET_SECONDS
        self._depth = self._floor + percent * _SAVED_REQUESTS
        self._store = store
        self._key = key
        self._next = 0.0
        self._next_ask = 0.0
        self._asking = False
        self._earned = 0.0
        self._kept: deque[float] = deque([0.0] * _KEPT_S, _KEPT_S)
        self._leased = 0
        self._demand = 0
        self._alone: RetryBudget | None = None
        self.requests = 0

    def deposit(self, now: float) -> None:
        """Count a first attempt."""
        if now >= self._next:
            self._rotate(now)
        self.requests += 1

    def spend(self, now: float) -> None:
        """Count a retry that somebody in front makes: less of what requests earn here is left for our own."""
        if now >= self._next:
            self._rotate(now)
        self._earn()
        self._earned = max(self._earned - 1.0, -self._floor)

    def withdraw(self, now: float) -> bool:
        """Take one retry. False if the budget is spent."""
        if now >= self._next:
            self._rotate(now)
        self._demand += 1
        self._earn()
        if self._earned >= 1:
            self._earned -= 1
            return True
        if self._leased:
            self._leased -= 1
            self._ask(now, 0.0)
            return True
        if self._store.up:
            self._ask(now, 0.0)
            return False
        if self._alone is None:
            self._alone = RetryBudget(percent=0.0, min_per_second=self._per_second / self._store.workers)
        return self._alone.withdraw(now)

    def _earn(self) -> None:
        earned = self.requests * self._share
        self.requests = 0
        self._earned += earned
        self._kept[-1] += earned

    def _rotate(self, now: float) -> None:
        """Once a second: share what is not needed here, and have some tokens in hand."""
        self._earn()
        surplus = max(0.0, self._earned - sum(self._kept))
        self._earned -= surplus
        self._kept.append(0.0)
        self._next = now + 1.0
        self._ask(now, surplus)
        self._demand = 0
        if self._store.up:
            self._alone = None

    def _ask(self, now: float, credit: float) -> None:
        share = int(self._depth / (2 * self._store.workers))
        want = max(0, min(max(_AHEAD, self._demand), max(1, share)) - self._leased)
        if self._asking or not self._store.up or now < self._next_ask:
            want = 0
        if not self._store.up or (not want and not credit):
            return
        if want:
            self._asking = True
            self._next_ask = now + _ASK_EVERY_S
        self._store.ask(
            Lease(
                self._key,
                self._per_second,
                self._depth,
                want,
                credit=credit,
                start=self._floor,
            ),
            self._answered if want else None,
        )

    def _answered(self, answer: Answer | None) -> None:
        self._asking = False
        if isinstance(answer, Leased):
            self._leased += answer.granted


class RetryPolicy:
    """A route's `retry`, compiled: plain decisions, no I/O, no clock, no randomness of its own.

    `store` and `key`: where a shared budget is, and what it is called there.
    """

    __slots__ = (
        "_any_content",
        "_contents",
        "_kinds",
        "_methods",
        "attempts",
        "base_s",
        "budget",
        "buffer",
        "cap_s",
        "retry_after_s",
        "statuses",
    )

    def __init__(self, config: Config, store: Scope | None = None, key: str = "") -> None:
        self.attempts = config.attempts
        self._kinds = config.kinds
        self.statuses = config.statuses
        self._any_content = CONTENT in config.when
        self._contents = config.contents
        self._methods: frozenset[str] | None
        if config.methods == "idempotent":
            self._methods = IDEMPOTENT
        else:
            self._methods = None if config.methods == "all" else frozenset(config.methods)
        self.base_s, self.cap_s = config.backoff
        self.buffer = config.buffer
        self.retry_after_s = config.retry_after
        percent, min_per_second = config.budget.percent, config.budget.min_per_second
        self.budget: RetryBudget | SharedRetryBudget
        if config.budget.shared and store is not None:
            self.budget = SharedRetryBudget(
                percent=percent, min_per_second=min_per_second, store=store, key=key
            )
        else:
            self.budget = RetryBudget(percent=percent, min_per_second=min_per_second)

    def reason(self, status: str, found: frozenset[str]) -> str:
        """What `allows` is to be asked of an answer with this status, as text, that met these content conditions."""
        minds = found and (self._any_content or not found.isdisjoint(self._contents))
        return CONTENT if minds else status

    def allows(self, reason: str, method: str, *, keyed: bool) -> bool:
        """Whether a failure of this kind (`KINDS`, or a status as text) may be tried again for this request.

        `keyed`: it has an `idempotency-key`. What the upstream cannot have seen is tried again whatever the method.
        """
        if reason not in self._kinds and not (reason.isdigit() and int(reason) in self.statuses):
            return False
        if reason in ("connect", "refused_stream"):
            return True
        return keyed or self._methods is None or method in self._methods

    def delay_s(self, retry: int, random: float, retry_after_s: float | None) -> float | None:
        """How long to wait before the `retry`-th retry (1 for the first), or None if it must not be made.

        Full jitter: uniform in [0, min(cap, (2^retry - 1) * base)), `random` in [0, 1) (AWS, Envoy). An upstream's
        `Retry-After` is waited for, spread over half as much again so that clients do not return together; one over
        the cap forbids the retry.
        """
        wait = random * min(self.cap_s, ((1 << retry) - 1) * self.base_s)
        if retry_after_s is None or self.retry_after_s is None:
            return wait
        if retry_after_s > self.retry_after_s:
            return None
        return max(wait, retry_after_s * (1.0 + random / 2))

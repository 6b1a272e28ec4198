"""Limit: how many requests may pass, over all workers and replicas.

Phase ADMIT for a route's limits; an upstream's, which are quotas of the remote service, are charged directly before
the first byte of each attempt. The decision is made from tokens that the worker has leased (`state.holding`), so it
neither waits nor asks anybody: 0.07 µs, by a client's address 0.19. Several limits of a route are charged all or
nothing, which needs no taking back, since one thread decides. A refusal costs 1.1 µs, less than what is spent to
answer it.

Where tokens are short the request waits for the lease, at most `max_wait` over all limits and attempts, and after that
for `wait`, if that is set: in the order of arrival, a request is only served when it is the first in all queues that it
is in. What cannot be served in time is refused at once.

The limit and its keys are `limit_keys`, the queue of who waits is `limit_queue`.
"""

from __future__ import annotations

import itertools
import math
from bisect import insort
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from msgspec import Meta

from ambassador.errors import Limited
from ambassador.proxy.lane import ended_by
from ambassador.proxy.limit_keys import NO_VALUE, Counts, Key, Limit, LimitStatus, Needs, NoCounts
from ambassador.proxy.limit_queue import Entry, asks, comes, is_refused, lacking, pump
from ambassador.settings import Count, CountOrNone, LimitCost, LimitPer, Name, Rate, SecondsOrNone, Section
from ambassador.state.account import Account, OnLoss, Source
from ambassador.state.holding import LONGEST_HOLD_S, PHI, Load, Terms, terms, window_terms

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from ambassador.messages import Fields, Request
    from ambassador.state.scope import Clock, Scope

DEFAULT_NAME: Final = "limit"
MOST_WAITING: Final = 1024
"""Requests that wait for tokens of one route, in each worker. Further ones are refused."""
_SLOW_BURST: Final = 10


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may pass: `burst` at once, `rate` in the long run, whatever the number of workers and replicas that
    share the state. Of the burst 80 % can be taken at one instant.
    """

    shorthand: ClassVar[str | None] = "rate"

    name: Name | None = None
    """Identifies the limit in `RateLimit`, metrics and commands. Unset: `limit`. Several limits of one route need
    different names."""

    rate: Rate | None = None
    """Requests (or units of `cost`) a period: `100/s`, `5000/m`, `1e6/d`."""

    quota: Rate | None = None
    """Instead of `rate`: so many in each calendar window in UTC, all of it at once if need be: `1e6/d`."""

    burst: Count | None = None
    """What may pass at once after a quiet time. Unset: one second of a rate `/s`; of slower ones 10, or one period's
    amount if that is less. Full use of the rate needs at least what comes in 50 ms."""

    per: LimitPer | None = None
    """Whose requests are counted together: `route`, `client` (its name; nobody known: the key `-`), `client_ip`,
    `header:NAME` (without it, or with several values: the key `-`), `upstream`. Unset: `route`; for the limit of an
    upstream, `upstream`."""

    cost: LimitCost = "1"
    """What a request takes: a number, or `header:NAME`, a header that holds one (missing: 1; no whole number:
    refused; taken for 1 at least and for 80 % of the burst at most)."""

    mode: Literal["strict", "bounded", "local"] = "strict"
    """`strict`: never more than promised; a request may wait for the store, for `state.max_wait` at most. `bounded`:
    never waits; each worker may exceed by `credit`. `local`: each replica for itself, without the store."""

    credit: CountOrNone | None = None
    """With `mode: bounded`: tokens by which each worker may be in debt. Unset: 1."""

    wait: SecondsOrNone = 0.0
    """How long a request may queue for tokens before it is refused."""

    status: Annotated[int, Meta(ge=400, le=599)] = 429
    """The status of a refusal."""

    @classmethod
    def refusal(cls, field: str, value: Any) -> str | None:
        """A quota of which a part would be left over."""
        if field == "quota" and value is not None and (value[0] != int(value[0]) or value[0] < 1):
            return "must be a whole number for each window"
        return None

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Not exactly one of `rate` and `quota`, or a cost that could never be paid."""
        if self.credit is not None and self.mode != "bounded":
            yield "credit", "has no meaning without 'mode: bounded'"
        if (self.rate is None) == (self.quota is None):
            yield None, "needs exactly one of 'rate' and 'quota'"
            return
        if self.quota is not None and self.burst is not None:
            yield "burst", "has no meaning with 'quota', whose windows begin full"
        depth = self.terms.depth
        if not self.cost.startswith("header:") and int(self.cost) > depth:
            share = "" if depth == self.whole else f", {100 * (1 - PHI):.0f} % of the burst of {self.whole}"
            yield "cost", f"is more than can ever be there at once: {depth}{share}"

    @property
    def debt(self) -> float:
        """Tokens by which a worker may be in debt; 0 where the mode is not `bounded`."""
        if self.mode != "bounded":
            return 0.0
        return 1.0 if self.credit is None else float(self.credit)

    @property
    def label(self) -> str:
        """The name, also where none is written."""
        return self.name or DEFAULT_NAME

    @property
    def written(self) -> tuple[float, int]:
        """`rate` or `quota`: the amount and the seconds of its period."""
        chosen = self.rate or self.quota
        assert chosen is not None
        return chosen

    @property
    def whole(self) -> int:
        """The burst, also where none is written; of a quota, all of it."""
        amount, period_s = self.written
        if self.quota is not None:
            return int(amount)
        if self.burst is not None:
            return self.burst
        return max(1, int(amount if period_s == 1 else min(_SLOW_BURST, amount)))

    @property
    def terms(self) -> Terms:
        """What follows from it for the store and the workers."""
        amount, period_s = self.written
        if self.quota is not None:
            return window_terms(int(amount), period_s)
        return terms(amount / period_s, self.whole)


class LimitPolicy:
    """The limits of a route (or of an upstream), compiled. See the module's docstring.

    The hook returns None to go on, or a coroutine that waits for tokens and returns None; both raise `Limited`. The
    coroutine waits by the request's `waiter` only; a request without one is never kept waiting.
    """

    def __init__(self, limits: Sequence[Limit], *, clock: Clock, max_wait_s: float) -> None:
        self.limits = tuple(limits)
        self._clock = clock
        self._max_wait_s = max_wait_s
        self._wait_s = min(limit.wait_s for limit in limits)
        self._strict = any(limit.config.mode != "bounded" for limit in limits)
        self._numbers = itertools.count()
        self.waiting = 0
        """Requests that wait."""
        for limit in self.limits:
            limit.source.tell(self._changed)
        policies = b", ".join(limit.policy_item for limit in limits)
        self._policies = policies
        self._tail = b"\r\nratelimit-policy: %b\r\n" % policies
        self.answer_lines: Callable[[Request], bytes] = self._make_lines()
        self.take = self._make_take()
        """Charges a request without a look at it. False: it is not charged, the hook decides. None: its head is to be
        looked at."""

    def hook(self) -> Callable[[Request], Awaitable[None] | None]:
        """What charges a request, for a route; and an attempt, directly before its first byte, for an upstream.

        The quickest that these limits allow. Not kept: it refers to this object.
        """
        clock, slowly = self._clock, self._slowly
        first = self.limits[0]
        if len(self.limits) > 1 or first.cost is None:
            return self._several
        cost, only, take, account_of, refuse = (
            first.cost,
            first.only,
            self.take,
            first.account,
            self._refuse_again,
        )
        if only is not None and take is not None:

            def admit_all(request: Request) -> Awaitable[None] | None:
                if take():
                    return None
                now = clock.now
                if now < only.dry_until:
                    raise refuse(only, cost, now)
                return slowly(request)

            return admit_all

        def admit_keyed(request: Request) -> Awaitable[None] | None:
            key = account_of(request)
            left = key.balance - cost
            now = clock.now
            if left >= key.reserve and now < key.until:
                key.balance = left
                return None
            if now < key.dry_until:
                raise refuse(key, cost, now)
            return slowly(request)

        return admit_keyed

    def _make_take(self) -> Callable[[], bool] | None:
        clock, first = self._clock, self.limits[0]
        cost, only = first.cost, first.only
        if len(self.limits) > 1 or cost is None or only is None:
            return None

        def take() -> bool:
            left = only.balance - cost
            if left >= only.reserve and clock.now < only.until:
                only.balance = left
                return True
            return False

        return take

    def _refuse_again(self, key: Key, cost: float, now: float) -> Limited:
        """The error for a request that finds what the last one found."""
        limit = self.limits[0]
        key.arrive(cost)
        if not (self._wait_s and key.queue):
            key.starve(cost)
        key.limited += 1
        limit.counts.limited()
        return limit.refusal(limit.reached, retry_after_s=key.dry_from - now)

    def _several(self, request: Request) -> Awaitable[None] | None:
        now = self._clock.now
        needs = [(limit.account(request), limit.cost_of(request)) for limit in self.limits]
        for account, cost in needs:
            if account.balance - cost < account.reserve or now >= account.until:
                return self._slowly(request, needs)
        for account, cost in needs:
            account.balance -= cost
        return None

    def _slowly(self, request: Request, needs: Needs | None = None) -> Awaitable[None] | None:
        """Decide where the short way did not: tokens expired, a lease is due, or there is too little."""
        now = self._clock.now
        if needs is None:
            needs = [(limit.account(request), limit.cost_of(request)) for limit in self.limits]
        short = [(key, cost) for key, cost in needs if key.queue or not key.ready(cost, now)]
        if not short:
            for key, cost in needs:
                key.spend(cost, now)
                key.pump(now)
            return None
        lease_s = ended_by(max(0.0, self._max_wait_s - request.held_s)) if self._strict else 0.0
        last = now + lease_s + self._wait_s
        # Who is far under the limit and finds too little waits for that as for an answer: it is soon there.
        quiet = all(key.is_quiet for key, _ in short)
        wait_s = max(self._wait_s, lease_s) if quiet else self._wait_s
        earliest = now
        late: Needs = []
        for key, cost in short:
            key.arrive(cost)
            if not (self._wait_s and key.queue):
                key.starve(cost)
            there = comes(key, key.ahead + cost, now)
            earliest = max(earliest, there)
            if there > now + wait_s:
                late.append((key, cost))
        if late:
            if len(needs) == 1:
                key, cost = needs[0]
                if key.terms.window_s:
                    # However long it is used up: it is asked again before.
                    earliest = min(earliest, key.none_before(now), now + LONGEST_HOLD_S)
                key.dry_until = earliest - wait_s
                key.dry_from = now + key.retry_after_s(cost, now)
            raise self._refuse(late, now)
        asked = [key for key, cost in short if not key.queue and asks(key, cost, now)]
        waiter = request.waiter
        # Who has waited for the store as long as it may elsewhere is decided by the fallback, and not refused for that.
        never = last <= now and not self._strict
        if waiter is None or never or self.waiting >= MOST_WAITING:
            raise self._refuse(lacking(short, now), now)
        entry = Entry(
            next(self._numbers),
            needs,
            waiter,
            now=now,
            lease_until=now + lease_s,
            tokens_until=now + wait_s,
            last=last,
        )
        entry.asked.update(asked)
        return self._wait(request, entry, short)

    def _refuse(self, lacks: Needs, now: float) -> Limited:
        """The error for a request, which the limit names that lasts longest. `lacks`: why it is refused. A limit that
        only has no tokens in hand is none of them, and does not count it.
        """
        longest, named = -1.0, self.limits[0]
        for key, cost in lacks:
            key.limited += 1
            limit = next(limit for limit in self.limits if limit.source is key.source)
            limit.counts.limited()
            seconds = key.retry_after_s(cost, now)
            if seconds > longest:
                longest, named = seconds, limit
        return named.refusal(named.reached, retry_after_s=max(1.0, longest))

    # Waiting

    async def _wait(self, request: Request, entry: Entry, short: Needs) -> None:
        """Wait until `_admit` has let it through. Raises `Limited`, and what `rest` raises."""
        clock = self._clock
        began = clock.now
        self.waiting += 1
        for key, cost in short:
            self._join(key, cost, entry, began)
            self._counts_of(key).waited()
        try:
            while not self._admit(entry, clock.now):
                now = clock.now
                if now >= entry.last and self._admit_in_turn(entry, now):
                    break
                if now >= entry.last or is_refused(entry, now):
                    raise self._refuse(lacking(entry.blocking(now), now), now)
                await entry.waiter.rest(self._next_look(entry, now))
        finally:
            now = clock.now
            self.waiting -= 1
            # Who goes on waiting for tokens does not wait for an answer any more.
            until = entry.lease_until if self._wait_s else now
            request.held_s += max(0.0, min(now, until) - began)
            self._leave(entry, now)

    def _counts_of(self, key: Key) -> Counts:
        return next(limit.counts for limit in self.limits if limit.source is key.source)

    def _join(self, key: Key, cost: float, entry: Entry, now: float) -> None:
        insort(key.queue, entry)
        entry.queued.add(key)
        key.ahead += cost
        if not key.blocked:
            key.block(blocked=True, now=now)

    def _leave(self, entry: Entry, now: float) -> None:
        """Take it out of its queues; whoever is the first now looks after the queue."""
        for key in entry.queued:
            key.queue.remove(entry)
            key.ahead -= entry.costs[key]
            if key.queue:
                key.queue[0].waiter.wake()
            else:
                key.block(blocked=False, now=now)
        entry.queued.clear()

    def _admit(self, entry: Entry, now: float) -> bool:
        """Let it through if it is the first in all its queues and all its tokens are there; else ask for them."""
        if entry.admitted:
            return True
        ready = True
        for key, cost in entry.needs:
            queue = key.queue
            if queue and queue[0] < entry:
                ready = False
            elif not key.ready(cost, now, late=entry.is_late(key, now)):
                ready = False
                pump(key, now, entry)
            else:
                continue
            if key not in entry.queued:
                key.arrive(cost)
                self._join(key, cost, entry, now)
        if not ready:
            return False
        entry.admitted = True
        for key, cost in entry.needs:
            if key in entry.queued:
                key.unarrive(cost)
            key.spend(cost, now)
        self._leave(entry, now)
        for key, _ in entry.needs:
            pump(key, now, None)
        return True

    def _admit_in_turn(self, entry: Entry, now: float) -> bool:
        """Its time is over, and others are before it: they came at the same instant, and wake after it. What the
        fallback has is theirs first, and then its own.
        """
        for key in list(entry.queued):
            while (first := key.queue[0]) < entry and self._admit(first, now):
                first.waiter.wake()
        return self._admit(entry, now)

    def _changed(self, key: Account) -> None:
        """Tokens may have come: serve who waits, in order; who cannot be served any more is told."""
        assert isinstance(key, Key)
        now = self._clock.now
        key.dry_until = -math.inf
        while key.queue:
            entry = key.queue[0]
            if not self._admit(entry, now):
                break
            entry.waiter.wake()
        cost = 0.0
        for position, entry in enumerate(key.queue):
            cost += entry.costs[key]
            if comes(key, cost, now) > max(now, entry.tokens_until):
                entry.hopeless = True
            if position == 0 or entry.hopeless:
                entry.waiter.wake()

    def _next_look(self, entry: Entry, now: float) -> float:
        """When to look again if nobody wakes it. Only the first of a queue looks after its account's times."""
        times = [entry.last, entry.lease_until, entry.share_from]
        for key in entry.queued:
            if key.queue[0] is entry:
                times += [
                    key.none_before(now),
                    key.sent_at + self._max_wait_s / 2,
                    key.sent_at + self._max_wait_s,
                ]
        return min(time for time in times if time > now)

    # What answers say

    def answer_fields(self, request: Request) -> Fields:
        """`RateLimit` and `RateLimit-Policy` of an answer to this request."""
        return [
            (b"ratelimit", b", ".join([limit.item(request) for limit in self.limits])),
            (b"ratelimit-policy", self._policies),
        ]

    def _make_lines(self) -> Callable[[Request], bytes]:
        """What gives the same as it goes on the wire, each line ended. For one limit that refills: from a table."""
        tail, limits = self._tail, self.limits
        first = limits[0]
        if len(limits) > 1 or first.source.terms.window_s:
            return lambda request: (
                b"ratelimit: %b%b"
                % (
                    b", ".join([limit.item(request) for limit in limits]),
                    tail,
                )
            )
        account_of, item, step, table = first.account, first.item, first.step, first.lines

        def lines(request: Request) -> bytes:
            key = account_of(request)
            left = key.balance + key.extra
            if key.left > 0.0:
                left += key.left
            steps = int(left) // step
            found = table.get(steps)
            if found is None:
                found = table[steps] = b"ratelimit: %b%b" % (item(request), tail)
            return found

        return lines

    # Around it

    def status(self) -> list[LimitStatus]:
        """What this worker tells for `/api/limits`: the keys of each limit with most traffic."""
        return [entry for limit in self.limits for entry in limit.status()]

    def retire(self) -> None:
        """Give back what can be given back: this policy serves no new request, or the worker ends."""
        now = self._clock.now
        for limit in self.limits:
            limit.retire(now)


def owner_of_upstream(name: str) -> str:
    """What stands for an upstream where a route could stand: no route has such a name."""
    return f"@{name}"


def compile_limits(
    configs: Sequence[Config],
    *,
    route: str,
    clock: Clock,
    fleet: Scope,
    replica: Scope,
    max_wait_s: float,
    on_loss: OnLoss,
    random: Callable[[], float],
    upstream: str = NO_VALUE,
    of_upstream: bool = False,
    expected_replicas: int = 1,
    load: Load | None = None,
    counts: Callable[[str], Counts] | None = None,
    credentials: Collection[str] = (),
) -> LimitPolicy | None:
    """The limits of `route` (or with `of_upstream`, of the upstream of that name), or None where there are none.

    `fleet` and `replica` are the worker's scopes, the same object where there is no store beyond the replica's.
    `max_wait_s` and `on_loss` as in `state`; `random` gives numbers in [0, 1). `load` is one for all limits of a
    worker. `counts` gives what counts the limit with this name. `credentials`: headers that hold them, lower case,
    beside those that always do.
    """
    if not configs:
        return None
    load = load or Load()
    limits: list[Limit] = []
    for config in configs:
        counted = counts(config.label) if counts is not None else NoCounts()
        store = replica if config.mode == "local" else fleet
        source = Source(
            config.terms,
            fleet=store,
            replica=None if store is replica else replica,
            clock=clock,
            load=load,
            random=random,
            max_wait_s=max_wait_s,
            on_loss=on_loss,
            credit=config.debt,
            expected_replicas=expected_replicas,
            expired=counted.expired,
        )
        per = config.per or ("upstream" if of_upstream else "route")
        constant = None
        if per == "upstream":
            constant = route if of_upstream else upstream
        elif per == "route" and not of_upstream:
            constant = route
        owner = owner_of_upstream(route) if of_upstream else route
        limits.append(
            Limit(
                config,
                ident=f"{owner}/{config.label}",
                source=source,
                counts=counted,
                per=per,
                constant=constant,
                secret=per.removeprefix("header:") in credentials,
            )
        )
    return LimitPolicy(limits, clock=clock, max_wait_s=max_wait_s)

"""Limit: how many requests may pass, over all workers and replicas.

Phase ADMIT for a route's limits; an upstream's, which are quotas of the remote service, are charged directly before
the first byte of each attempt. The decision is made from tokens that the worker has leased (`state.holding`), so it
neither waits nor asks anybody: 0.07 µs, by a client's address 0.19. Several limits of a route are charged all or
nothing, which needs no taking back, since one thread decides. A refusal costs 1.1 µs, less than what is spent to
answer it.

Where tokens are short the request waits for the lease, at most `max_wait` over all limits and attempts, and after that
for `wait`, if that is set: in the order of arrival, a request is only served when it is the first in all queues that it
is in. What cannot be served in time is refused at once.

A key of a limit (a client, a header's value) has an account as long as it is used: at most MOST_KEYS of each limit and
worker are kept, those not used for longest are dropped, which costs no more than the tokens in hand.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import re
from bisect import insort
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Protocol, TypeAlias

from msgspec import Meta, Struct

from ambassador.errors import Limited
from ambassador.proxy.lane import ended_by
from ambassador.settings import Count, CountOrNone, LimitCost, LimitPer, Name, Rate, SecondsOrNone, Section
from ambassador.state.account import Account, OnLoss, Source
from ambassador.state.holding import LONGEST_HOLD_S, PHI, Load, Terms, terms, window_terms
from ambassador.state.protocol import MAX_KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ambassador.messages import Fields, Request, Waiter
    from ambassador.state.scope import Clock, Scope

DEFAULT_NAME: Final = "limit"
NO_VALUE: Final = "-"
"""The key of requests without the header that a limit goes by."""
MOST_KEYS: Final = 16_384
"""Accounts of each limit and worker: 1 KiB each."""
MOST_WAITING: Final = 1024
"""Requests that wait for tokens of one route, in each worker. Further ones are refused."""
MOST_TOLD: Final = 20
"""Keys of each limit that `status` tells about."""
_SLOW_BURST: Final = 10
_INTEGER: Final = re.compile(rb"[+-]?[0-9]+").fullmatch
_CREDENTIALS: Final = frozenset({"authorization", "proxy-authorization", "x-api-key", "cookie"})
"""Headers whose values are hashed: keys are put into the store, and told by `/api/limits`."""


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
    """Whose requests are counted together: `route`, `client_ip`, `header:NAME` (without it: the
    key `-`), `upstream`. Unset: `route`; for the limit of an upstream, `upstream`."""

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

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Not exactly one of `rate` and `quota`, or a cost that could never be paid."""
        if self.credit is not None and self.mode != "bounded":
            yield "credit", "has no meaning without 'mode: bounded'"
        if (self.rate is None) == (self.quota is None):
            yield None, "needs exactly one of 'rate' and 'quota'"
            return
        if self.quota is not None:
            if self.burst is not None:
                yield "burst", "has no meaning with 'quota', whose windows begin full"
            if self.quota[0] != int(self.quota[0]) or self.quota[0] < 1:
                yield "quota", "must be a whole number for each window"
                return
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


class LimitStatus(Struct, frozen=True, kw_only=True, gc=False):
    """One key of a limit as one worker knows it, for `/api/limits`. Counts are since the config was loaded."""

    name: str
    rate: str
    """What holds, as is `burst`: less than the config says while other replicas' configs say less."""
    burst: int
    key: str
    held: float
    """Tokens in this worker's hand."""
    left: float
    """Tokens in the store, as of its last answer, and what came since if nobody took any."""
    age_s: float | None
    """How old that answer is; None: there was none."""
    admitted: int
    """Tokens that requests have spent."""
    fallback: int
    """Of these, what was admitted without the store's tokens: by a credit, or because it was late or away."""
    limited: int
    """Requests that were refused."""


class Counts(Protocol):
    """Where one limit counts."""

    def limited(self) -> None:
        """A request was refused."""

    def waited(self) -> None:
        """A request had to wait."""

    def expired(self, tokens: float) -> None:
        """Tokens were leased and not spent in time."""


class NoCounts:
    """Counts nothing."""

    def limited(self) -> None:
        """Nothing."""

    def waited(self) -> None:
        """Nothing."""

    def expired(self, tokens: float) -> None:
        """Nothing."""


class _Key(Account):
    """An account, and who waits for its tokens."""

    __slots__ = ("ahead", "dry_from", "dry_until", "queue")

    def __init__(self, key: str, source: Source, now: float) -> None:
        super().__init__(key, source, now)
        self.queue: list[_Entry] = []
        """In the order of arrival."""
        self.ahead = 0.0
        """What they cost."""
        self.dry_until = -math.inf
        """Before this, what a request of one limit takes cannot be there in time: it is refused without a look."""
        self.dry_from = 0.0
        """When it may be there."""


_Needs: TypeAlias = "list[tuple[_Key, float]]"
"""What a request takes, and from which accounts."""


class _Entry:
    """A request that waits."""

    __slots__ = (
        "admitted",
        "asked",
        "costs",
        "hopeless",
        "last",
        "lease_until",
        "needs",
        "number",
        "queued",
        "share_from",
        "tokens_until",
        "waiter",
    )

    def __init__(
        self,
        number: int,
        needs: _Needs,
        waiter: Waiter,
        *,
        now: float,
        lease_until: float,
        tokens_until: float,
        last: float,
    ) -> None:
        self.number = number
        self.needs = needs
        self.costs = dict(needs)
        self.waiter = waiter
        self.lease_until = lease_until
        """An answer that has not come by then is decided by the fallback."""
        self.share_from = (now + lease_until) / 2
        """From then on the share is asked as well."""
        self.tokens_until = tokens_until
        """Tokens that come later are not waited for."""
        self.last = last
        self.admitted = False
        self.hopeless = False
        """What it needs cannot come in time: it is refused when it looks."""
        self.asked: set[_Key] = set()
        """Accounts of which a lease was sent that counted it."""
        self.queued: set[_Key] = set()

    def is_late(self, key: _Key, now: float) -> bool:
        """The answer to the account's lease can be waited for no longer. Leases sent afterwards are for tokens, unless
        what the answer brought had expired on its way.
        """
        return now >= self.lease_until and (self.lease_until >= key.sent_at or key.in_vain)

    def is_soon_late(self, now: float) -> bool:
        """Half of the time is left at most that it may wait for an answer: as much as a share may need for its own."""
        return self.share_from <= now <= self.lease_until

    def blocking(self, now: float) -> _Needs:
        """What keeps it waiting."""
        return [(key, cost) for key, cost in self.needs if not key.ready(cost, now)] or self.needs

    def __lt__(self, other: _Entry) -> bool:
        """Queues are in the order of arrival, all of them: so no two requests can wait for each other."""
        return self.number < other.number


class Limit:
    """One limit, compiled: its accounts, and how a request finds its own."""

    def __init__(
        self, config: Config, *, ident: str, source: Source, counts: Counts, per: str, constant: str | None
    ) -> None:
        self.config = config
        self.label = config.label
        self.id = ident
        self.source = source
        self.counts = counts
        self.wait_s = config.wait
        self.refusal = Limited.with_status(config.status)
        self.reached = f"limit '{self.label}' is reached"
        self.configured = source.terms
        """What the config says; `terms` is what holds."""
        self.most_cost = source.terms.depth
        self.cost: float | None = None
        self._cost_header = b""
        if config.cost.startswith("header:"):
            self._cost_header = config.cost.removeprefix("header:").encode()
        else:
            self.cost = float(config.cost)
        self._value_of = _value_of(per)
        self._hides_values = per.removeprefix("header:").lower() in _CREDENTIALS
        self.accounts: dict[str | bytes, _Key] = {}
        """Those used last; older ones are in `_older`, which is dropped when this is full."""
        self._older: dict[str | bytes, _Key] = {}
        self.only = None if constant is None else self._open(constant)
        """The account of all requests, where there is but one."""
        self._window_s = source.terms.window_s
        self._items: dict[int, bytes] = {}
        """Members of `RateLimit` by how many steps of tokens are left: at most two thousand."""
        self.lines: dict[int, bytes] = {}
        """The same with all that comes with them on the wire."""
        self._policy = _policy_item(config)
        amount, period_s = config.written
        self.written = f"{amount:.15g}/{_PERIODS[period_s]}"
        self.step = 1 if self._window_s else max(1, source.terms.depth // 1000)

    @property
    def terms(self) -> Terms:
        """What holds: what the config says, or less while other replicas' configs say less."""
        return self.source.terms

    def obey(self, terms: Terms) -> None:
        """Have other terms hold, for all keys."""
        self.source.obey(terms)
        self.most_cost = terms.depth
        self._items.clear()
        self.lines.clear()
        for account in self.all_accounts():
            account.obey(terms)
            account.dry_until = -math.inf

    def account(self, request: Request) -> _Key:
        """The account that a request is charged to."""
        only = self.only
        if only is not None:
            return only
        value = self._value_of(request)
        account = self.accounts.get(value)
        return account if account is not None else self._reopen(value)

    def _reopen(self, value: str | bytes) -> _Key:
        account = self._older.pop(value, None)
        if account is not None:
            self.accounts[value] = account
        else:
            account = self._open(value)
        if len(self.accounts) > MOST_KEYS // 2:
            self._forget()
        return account

    def _open(self, value: str | bytes) -> _Key:
        key = _key(self.id, value, hidden=self._hides_values and value != NO_VALUE)
        account = _Key(key, self.source, self.source.clock.now)
        self.accounts[value] = account
        return account

    def _forget(self) -> None:
        """Drop the accounts that were not used since half of the room was filled anew."""
        now = self.source.clock.now
        for account in self._older.values():
            account.give_back(now)
        self._older, self.accounts = self.accounts, {}

    def retire(self, now: float) -> None:
        """Give back what can be given back, and forget the keys. Who waits goes on."""
        for account in self.all_accounts():
            account.give_back(now)
        self.accounts, self._older = {}, {}

    def all_accounts(self) -> Iterator[_Key]:
        """All there are."""
        return itertools.chain(self.accounts.values(), self._older.values())

    def cost_of(self, request: Request) -> float:
        """What a request takes. Raises `Limited` when its header does not hold a number."""
        if self.cost is not None:
            return min(self.cost, self.most_cost)
        value = _header(request, self._cost_header)
        if value is None:
            return 1.0
        if _INTEGER(value) is None:
            self.counts.limited()
            raise self.refusal(f"the cost of limit '{self.label}' is no number", retry_after_s=1.0)
        if value.startswith(b"-"):
            return 1.0
        digits = value.lstrip(b"+0")
        # Longer ones are more than any limit has, and slow to read.
        return float(
            min(max(1, int(digits or b"0")), self.most_cost) if len(digits) <= 15 else self.most_cost
        )

    def item(self, request: Request) -> bytes:
        """The limit's member of `RateLimit`: what is left as far as this worker knows, and when all is there again."""
        key = self.account(request)
        there = key.left
        left = int(key.balance + key.extra + there if there > 0.0 else key.balance + key.extra) // self.step
        if self._window_s:
            seconds = math.ceil(min(key.window_ends - self.source.clock.now, self._window_s))
            return self._window_item(left, max(0, seconds))
        item = self._items.get(left)
        return self._make_item(left) if item is None else item

    def _make_item(self, steps: int) -> bytes:
        terms = self.source.terms
        left = min(max(0, steps * self.step), self.config.whole)
        seconds = max(0, math.ceil((terms.depth - left) / terms.rate))
        item = self._items[steps] = b'"%b";r=%d;t=%d' % (self.label.encode(), left, seconds)
        return item

    def _window_item(self, steps: int, seconds: int) -> bytes:
        return b'"%b";r=%d;t=%d' % (self.label.encode(), max(0, steps * self.step), seconds)

    @property
    def policy_item(self) -> bytes:
        """The limit's member of `RateLimit-Policy`."""
        return self._policy

    def status(self) -> list[LimitStatus]:
        """The keys with most traffic, as this worker knows them."""
        now = self.source.clock.now
        top = heapq.nlargest(
            MOST_TOLD,
            self.all_accounts(),
            key=lambda account: account.spent + account.otherwise + account.limited,
        )
        return [self._status(account, now) for account in top]

    def _status(self, account: _Key, now: float) -> LimitStatus:
        age_s = None if account.seen_at == -math.inf else max(0.0, now - account.seen_at)
        gain = 0.0 if self._window_s or age_s is None else self.source.terms.rate * age_s
        return LimitStatus(
            name=self.id,
            rate=self._rate_text(),
            burst=round(self.terms.burst),
            key=account.key[len(self.id) + 1 :],
            held=max(0.0, account.tokens(now)),
            left=min(float(self.source.terms.depth), max(0.0, account.left) + gain),
            age_s=age_s,
            admitted=round(account.spent + account.otherwise),
            fallback=round(account.otherwise),
            limited=account.limited,
        )

    def _rate_text(self) -> str:
        terms = self.terms
        if terms == self.configured:
            return self.written
        period_s = self.config.written[1]
        return f"{terms.rate * period_s:.15g}/{_PERIODS[period_s]}"


_PERIODS: Final = {1: "s", 60: "m", 3600: "h", 86400: "d"}


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

    def hook(self) -> Callable[[Request], Awaitable[None] | None]:
        """What charges a request, for a route; and an attempt, directly before its first byte, for an upstream.

        The quickest that these limits allow. What is written here twice is one comparison and a subtraction. Not kept:
        it refers to this object.
        """
        clock, slowly = self._clock, self._slowly
        first = self.limits[0]
        if len(self.limits) > 1 or first.cost is None:
            return self._several
        cost, only, account_of, refuse = first.cost, first.only, first.account, self._refuse_again
        if only is not None:

            def admit_all(_: Request) -> Awaitable[None] | None:
                left = only.balance - cost
                now = clock.now
                if left >= only.reserve and now < only.until:
                    only.balance = left
                    return None
                if now < only.dry_until:
                    raise refuse(only, cost, now)
                return slowly(_)

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

    def _refuse_again(self, key: _Key, cost: float, now: float) -> Limited:
        """The error for a request that finds what the last one found."""
        limit = self.limits[0]
        key.arrive(cost)
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

    def _slowly(self, request: Request, needs: _Needs | None = None) -> Awaitable[None] | None:
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
        comes = now
        for key, cost in short:
            key.arrive(cost)
            comes = max(comes, _comes(key, key.ahead + cost, now))
        if comes > now + wait_s:
            if len(needs) == 1:
                key, cost = needs[0]
                key.dry_until = comes - wait_s
                key.dry_from = now + key.retry_after_s(cost, now)
            raise self._refuse(short, now)
        asked = [key for key, cost in short if not key.queue and _asks(key, cost, now)]
        waiter = request.waiter
        if waiter is None or last <= now or self.waiting >= MOST_WAITING:
            raise self._refuse(short, now)
        entry = _Entry(
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

    def _refuse(self, short: _Needs, now: float) -> Limited:
        """The error for a request, which the limit names that lasts longest."""
        longest, named = -1.0, self.limits[0]
        for key, cost in short:
            key.limited += 1
            limit = next(limit for limit in self.limits if limit.source is key.source)
            limit.counts.limited()
            seconds = key.retry_after_s(cost, now)
            if seconds > longest:
                longest, named = seconds, limit
        return named.refusal(named.reached, retry_after_s=max(1.0, longest))

    # Waiting

    async def _wait(self, request: Request, entry: _Entry, short: _Needs) -> None:
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
                if now >= entry.last or _is_refused(entry, now):
                    raise self._refuse(entry.blocking(now), now)
                await entry.waiter.rest(self._next_look(entry, now))
        finally:
            now = clock.now
            self.waiting -= 1
            request.held_s += max(0.0, min(now, entry.lease_until) - began)
            self._leave(entry, now)

    def _counts_of(self, key: _Key) -> Counts:
        return next(limit.counts for limit in self.limits if limit.source is key.source)

    def _join(self, key: _Key, cost: float, entry: _Entry, now: float) -> None:
        insort(key.queue, entry)
        entry.queued.add(key)
        key.ahead += cost
        if not key.blocked:
            key.block(blocked=True, now=now)

    def _leave(self, entry: _Entry, now: float) -> None:
        """Take it out of its queues; whoever is the first now looks after the queue."""
        for key in entry.queued:
            key.queue.remove(entry)
            key.ahead -= entry.costs[key]
            if key.queue:
                key.queue[0].waiter.wake()
            else:
                key.block(blocked=False, now=now)
        entry.queued.clear()

    def _admit(self, entry: _Entry, now: float) -> bool:
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
                _pump(key, now, entry)
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
            _pump(key, now, None)
        return True

    def _changed(self, key: Account) -> None:
        """Tokens may have come: serve who waits, in order; who cannot be served any more is told."""
        assert isinstance(key, _Key)
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
            if _comes(key, cost, now) > max(now, entry.tokens_until):
                entry.hopeless = True
            if position == 0 or entry.hopeless:
                entry.waiter.wake()

    def _next_look(self, entry: _Entry, now: float) -> float:
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
) -> LimitPolicy | None:
    """The limits of `route` (or with `of_upstream`, of the upstream of that name), or None where there are none.

    `fleet` and `replica` are the worker's scopes, the same object where there is no store beyond the replica's.
    `max_wait_s` and `on_loss` as in `state`; `random` gives numbers in [0, 1). `load` is one for all limits of a
    worker. `counts` gives what counts the limit with this name.
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
            )
        )
    return LimitPolicy(limits, clock=clock, max_wait_s=max_wait_s)


def _comes(key: _Key, cost: float, now: float) -> float:
    """When so many tokens can be there at the earliest, even if all that comes is for this worker."""
    earliest = key.none_before(now)
    if key.terms.window_s or now - key.seen_at > LONGEST_HOLD_S:
        return earliest
    return max(earliest, now + key.retry_after_s(cost - key.tokens(now), now))


def _is_refused(entry: _Entry, now: float) -> bool:
    """It waits for what cannot come in time: for the store's answer, but for tokens only as long as `wait` says."""
    until = max(now, entry.tokens_until)
    return entry.hopeless or any(
        key.none_before(now) > until for key in entry.queued if not key.ready(entry.costs[key], now)
    )


def _asks(key: _Key, cost: float, now: float) -> bool:
    """Ask for what one request needs, with nobody before it; whether a lease was sent that counts it."""
    asking = key.asking
    key.pump(now, waiting=cost, fresh=cost, first=cost)
    return key.asking and not asking


def _pump(key: _Key, now: float, blocked: _Entry | None) -> None:
    """Ask for all that wait. Of it, what was not asked for yet, and the first, is what the store does not cut."""
    if not key.queue and blocked is None:
        key.pump(now)
        return
    head = key.queue[0] if key.queue else blocked
    if blocked is not None and (head is None or blocked < head):
        head = blocked
    late = head is not None and head.is_soon_late(now)
    if key.asking and not late and not key.is_late(now):
        return
    waiting, fresh, first = key.ahead, 0.0, 0.0
    unasked: list[_Entry] = []
    for position, entry in enumerate(key.queue):
        if position == 0 or key not in entry.asked:
            fresh += entry.costs[key]
            unasked.append(entry)
        if position == 0:
            first = entry.costs[key]
    if blocked is not None and key not in blocked.queued:
        waiting += blocked.costs[key]
        fresh += blocked.costs[key]
        first = blocked.costs[key]
        unasked.append(blocked)
    asking = key.asking
    key.pump(now, waiting=waiting, fresh=fresh, first=first, late=late)
    if key.asking and not asking:
        for entry in unasked:
            entry.asked.add(key)


def _key(ident: str, value: str | bytes, *, hidden: bool = False) -> str:
    """The bucket's key; what is hidden, would be too long, or is no text, is hashed."""
    try:
        text = value if isinstance(value, str) else value.decode()
        key = f"{ident}:{text}"
        if not hidden and len(key.encode()) <= MAX_KEY_BYTES:
            return key
    except UnicodeError:
        pass
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
    key = f"{ident}:#{digest}"
    if len(key.encode()) <= MAX_KEY_BYTES:
        return key
    return f"{hashlib.blake2b(ident.encode(), digest_size=16).hexdigest()}:#{digest}"


def _policy_item(config: Config) -> bytes:
    """`"name";q=…;w=…`: whole numbers, so half a request a second is one in two."""
    amount, period_s = config.written
    part = Fraction(amount).limit_denominator(1_000_000)
    return b'"%b";q=%d;w=%d' % (config.label.encode(), part.numerator, period_s * part.denominator)


def _header(request: Request, name: bytes) -> bytes | None:
    """A header's value; of several, all of them."""
    found = None
    for key, value in request.headers:
        if len(key) == len(name) and key.lower() == name:
            found = value if found is None else b"%b, %b" % (found, value)
    return found


def _value_of(per: str) -> Callable[[Request], str | bytes]:
    """What gives a request's key."""
    if per.startswith("header:"):
        name = per.removeprefix("header:").lower().encode()

        def of_header(request: Request) -> str | bytes:
            value = _header(request, name)
            return NO_VALUE if value is None else value

        return of_header
    return _VALUES[per]


_VALUES: Final[dict[str, Callable[[Request], str | bytes]]] = {
    "client": lambda request: request.client or NO_VALUE,
    "client_ip": lambda request: request.client_ip or NO_VALUE,
    "route": lambda request: request.route,
    "upstream": lambda _: NO_VALUE,
}

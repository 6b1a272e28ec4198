"""What one worker holds of one bucket: tokens that were leased before they are spent, and when to lease more. Pure.

The store debits tokens before a worker may spend them, and they expire in the worker, so a worker decides from its own
memory and the fleet still keeps the limit. For a limit of R tokens a second and a burst of B, with phi = 0.2:

- the store's bucket holds at most `depth` = (1 - phi) B, and a leased token may be spent for `life` = phi B / R;
- a worker counts that life from when it *sent* the lease, so no two clocks are compared;
- hence tokens spent in a window [t, t+D] were granted in [t - life, t+D], and of those there are at most
  depth + R (D + life) = B + R D: nothing is ever over-admitted, whatever is lost, late or dead.

phi, depth and life come from the configured limit alone (`Terms`): two workers that computed them from what they
measured would break the proof. Bursts under 5 have no room for a phi: their depth is B, they are leased one by one as
they are needed, and what was leased is good for 50 ms, which is by how much they may exceed. Where phi B / R is under
10 ms a token would expire on its way, so it lives 10 ms; such a limit may exceed by R * 10 ms (bursts under 50 ms of
the rate, of which a check of the config warns).

A worker leases ahead only where that pays: where it would spend at least 4 tokens of a lease within their life. Below,
it leases on demand, exactly what waits: with a lease after each request most tokens of a cold key would expire unused.
When the bucket cannot give what was asked for, the worker does not ask again for about 50 ms (`span_s`, with jitter;
less where tokens live less than 83 ms, for such a bucket would be full again before anybody asked):
in steady overload each gets its share of what came in meanwhile, in proportion to its demand, and the store has a load
that does not grow with the requests that are refused.

What was spent without a lease is a *debt*: in bounded mode up to the worker's credit, and what a fallback admitted
while the store did not answer. It is told with the next lease, until that is acknowledged, and an answer that comes
late pays for it first. Tokens of a lease without an answer count as lost.

Where most of a bucket is left, tokens that expire unspent cost nobody anything. So with more busy keys than one of the
worker's 500 leases a second for each in 50 ms would do, leases there hold what is spent in a token's whole life and
three standard deviations more, within what comes in: a key then asks about once in that time.

Where a round trip is a large part of a token's life, the next lease is sent before the last one is answered, at most
ten in that life: what is in hand and on its way is kept at what will be spent until the next can be here.

The demand estimator is r = r exp(-dt/tau) + (n/dt) (1 - exp(-dt/tau)): an average of 1/dt over single requests would be
biased high, which wasted 8-10 % of the capacity in simulation. What was spent is worked out from the balance whenever
the estimate is needed, so a decision that finds tokens touches nothing but the balance.
"""

from __future__ import annotations

import math
from bisect import insort
from math import inf
from typing import Final, NamedTuple

import msgspec

from ambassador.state.protocol import EPOCH_S, Lease, Leased

PHI: Final = 0.2
"""The part of the burst that is spread over the tokens' life. 0.05 to 0.3 work; less makes more leases."""
SMALL_BURST: Final = 5
SMALL_LIFE_S: Final = 0.05
SHORTEST_LIFE_S: Final = 0.01
SLOW_RATE: Final = 1.0
"""Limits of so many tokens a second and less lease on demand whatever they are asked for. So their tokens need not live
as long as the burst allows, and after a loss of the store's data that part of the burst is for new clients: else the
first request of each would be refused, of a limit by the hour for minutes."""
SLOW_LIFE_S: Final = 5.0
"""How long their tokens live: what one request did not take in the end (another limit refused it, its client went) is
for the next until then. Longer would leave less after a loss."""
LONGEST_HOLD_S: Final = 1.0
"""A bucket that is empty for longer is asked again all the same: its rate may have been raised, or its data lost."""
KEY_OPS: Final = 500.0
"""Leases a second that a worker spreads over its active keys."""
LEAST_SPAN_S: Final = 0.05
"""A lease holds what is wanted in at least this time, if it lives as long. An empty bucket is not asked again for as
long: simulated, that makes 288 leases a second where 20 ms had 527."""
LOT_OF_RTT: Final = 1.25
"""A lease holds what is wanted in at least so many round trips, if it lives as long."""
FAR_PART: Final = 8
"""A store is far away where a round trip takes more than this part of a token's life."""
FAR_SPACINGS: Final = 10
"""Of a far store so many leases are sent in a token's life, if the keys are few."""
FAR_FULL: Final = 0.9
"""Of what is spent in a token's life, so much is in hand and on its way at most, where the store is far..."""
FAR_AMPLE: Final = 1.1
"""... and so much where it costs nobody anything that some of it expires."""
MOST_OUT: Final = 8
"""Leases of one key under way at most, where the store is far."""
SLOW_RTT: Final = 1.4
"""A far store may take so many times as long as it usually does."""
SIGMAS: Final = 3.0
"""What is leased for chance, beyond the expected, where tokens are ample."""
AMPLE_PART: Final = 2
"""Tokens are ample while more than this part of the bucket is left."""
SPARED_PART: Final = 8
"""Of what is left in an ample bucket all workers together lease no more than this part to be on the safe side: the
rest is for whoever presses."""
WORTH_AMPLE: Final = 1.0
"""Of a lease must be spent, in expectation, where it costs nobody anything that the rest expires: with less there were
more leases than requests."""
WORTH_SPARED: Final = 2.0
"""Less to be on the safe side is not worth it: such small buckets are leased as they are needed."""
OPS_USED: Final = 0.8
"""Of `KEY_OPS`, by leases that are renewed before their time."""
WORTH_TOKENS: Final = 4.0
"""Of a lease must be spent, in expectation, or leasing ahead does not pay."""
WORTH_SCARCE: Final = 6.0
"""The same while others are refused: simulated, of lots of 4 about 5 % expire, of lots of 6 not 2 %. It costs leases:
1,054 a second in place of 548 with a burst of 70 ms at 150 % of the rate."""
SCARCE_S: Final = 1.0
"""For so long after the bucket gave too little tokens count as scarce."""
UNIT_MEMORY: Final = 8
"""A great cost is remembered for about so many requests."""
QUIET_PART: Final = 2
"""Who asks for less than this part of the rate is far under the limit."""
LONG_LIFE_S: Final = 1.0
"""Tokens that live longer are leased ahead only while more of them are left than are worth it."""
DEMAND_TAU_S: Final = 0.5
RUSH_TAU_S: Final = 0.05
"""Of the quick estimate that sizes lots of a far store where tokens are ample: demand that has just begun is not leased
for a second in lots that are too small. With 30 ms to the store 10 % of the requests of its first seconds waited."""
WINDOW_SPAN_S: Final = 0.25
"""A lease of a calendar window holds what is wanted in this time: what a worker that dies has in hand is gone."""
WINDOW_GUARD_S: Final = 0.05
"""Tokens of a calendar window are not spent in its last moment."""
FIRST_RTT_S: Final = 0.002
"""What a lease is thought to take before one was answered."""


class Terms(msgspec.Struct, frozen=True):
    """What follows from a limit as it is configured, the same in every worker. See the module's docstring."""

    rate: float
    """R, tokens a second; for a calendar window what it gives on average."""
    burst: float
    """B; of a calendar window: all its tokens."""
    depth: int
    """What the store's bucket holds at most, at least 1."""
    life_s: float
    """How long a leased token may be spent; infinite in a calendar window, where the store says it."""
    ahead: bool
    """Whether leasing ahead may pay at all."""
    window_s: int = 0
    """The length of the calendar window; 0: a bucket that refills."""

    @property
    def birth(self) -> float:
        """What the bucket of a store that lost its data may begin with (`bucket.py` has the proof)."""
        return 0.0 if self.window_s else max(0.0, self.burst - self.depth - self.rate * self.life_s)


def terms(rate: float, burst: float) -> Terms:
    """The terms of a bucket that gains `rate` > 0 tokens a second and has a burst of `burst` >= 1."""
    if burst < SMALL_BURST:
        return Terms(rate, burst, max(1, math.floor(burst)), SMALL_LIFE_S, ahead=False)
    life_s = max(PHI * burst / rate, SHORTEST_LIFE_S)
    is_slow = rate <= SLOW_RATE
    if is_slow:
        life_s = min(life_s, SLOW_LIFE_S)
    # floor(0.8 * 10) must be 8 whatever binary fractions say.
    depth = max(1, math.floor((1 - PHI) * burst + 1e-9))
    return Terms(rate, burst, depth, life_s, ahead=not is_slow)


def window_terms(amount: int, window_s: int) -> Terms:
    """The terms of `amount` tokens in each calendar window of `window_s` seconds."""
    return Terms(amount / window_s, amount, amount, inf, ahead=True, window_s=window_s)


class Load:
    """How many keys a worker leases for: what says how seldom it may ask for each."""

    __slots__ = ("_before", "_epoch", "_now")

    def __init__(self) -> None:
        self._epoch = 0
        self._now = 0
        self._before = 0

    def count(self, epoch: int) -> None:
        """A key is leased for the first time in this epoch."""
        if epoch != self._epoch:
            self._before = self._now if epoch == self._epoch + 1 else 0
            self._now = 0
            self._epoch = epoch
        self._now += 1

    @property
    def keys(self) -> int:
        """Keys that were leased in this or the last epoch, the greater number."""
        return max(self._now, self._before)


class _Plan(NamedTuple):
    """How a key is leased ahead for now."""

    lasting: int
    """What a lease holds that is to last until it expires; 0: it holds less."""
    early_s: float
    """How long before it expires it is renewed then, by the first request: who comes first after it would wait."""
    spacing_s: float
    """How long after a lease the next may be sent that does not wait for its answer."""


class _Out(NamedTuple):
    """A lease that is under way."""

    lease: Lease
    at: float
    """When it was sent."""
    debt: float
    """What it tells of the debt."""


class Holding:
    """Tokens of one bucket in one worker. Times are seconds of the worker's monotonic clock.

    The decision of nearly every request needs no call, only this:

        left = holding.balance - cost
        if left >= holding.reserve and now < holding.until:
            holding.balance = left

    Whenever that is not so, `take` decides, and `ask` says whether it is time for a lease.
    """

    __slots__ = (
        "_arrived", "_base", "_epoch", "_expires", "_folded_at", "_later", "_out",
        "_plan", "asking", "balance", "blocked", "debt", "demand", "expired", "extra", "held_until", "in_vain", "key", "lacking", "leased",
        "left", "most", "reserve", "rtt_s", "rush", "seen_at", "sent_at", "sharers", "start", "terms", "unit", "until", "window",
        "window_ends",
    )  # fmt: skip

    def __init__(self, key: str, terms: Terms, now: float) -> None:
        self.key = key
        self.terms = terms
        self.balance = 0.0
        """Tokens of the lot that expires first."""
        self.extra = 0.0
        """Tokens of later lots."""
        self.reserve = inf
        """What the short decision must leave: below, more is to be leased."""
        self.until = -inf
        """The short decision holds before this time."""
        self.blocked = False
        """Somebody waits for tokens, so that nobody else may take any. See `block`."""
        self._expires = -inf
        self._later: list[tuple[float, float]] = []
        self._base = self._arrived = 0.0
        self._folded_at = now
        self.demand = 0.0
        """Tokens a second that are asked for, refused ones too, as of the last lease."""
        self.rush = 0.0
        """The same by a quicker estimate."""
        self.asking = False
        """A lease is out."""
        self.sent_at = -inf
        """When it was sent; of two, the first; of none, the last one."""
        self._out: list[_Out] = []
        self._plan = _Plan(0, 0.0, LEAST_SPAN_S)
        self.held_until = -inf
        """Until then no lease is sent: the bucket gave too little."""
        self.rtt_s = FIRST_RTT_S
        self.left = 0.0
        """Tokens in the bucket after the last answer."""
        self.seen_at = -inf
        """When that came; -inf: never."""
        self.in_vain = False
        """What the last answer brought had expired on its way: the worker stood still, or the store did."""
        self.sharers = 1
        self.window = 0
        """The calendar window that the tokens belong to."""
        self.window_ends = inf
        self.start: float | None = None
        """What the bucket holds if the next lease makes it; None: what the store's rule says."""
        self.most: float | None = None
        """What the bucket is lowered to by the next lease; None: it is not."""
        self.debt = 0.0
        """Spent without a lease and not yet acknowledged."""
        self.unit, self.lacking = 1.0, 0.0
        """What a request takes: the greatest cost of late, seen where the short decision did not do. And the greatest
        that was refused for want of it since the last lease."""
        self._epoch = -1
        self.leased = self.expired = 0.0
        """Tokens that nobody spent in time."""

    # Spending

    def tokens(self, now: float) -> float:
        """What may be spent now."""
        if now >= self._expires:
            self._advance(now)
        return self.balance + self.extra

    def take(self, cost: float, now: float) -> bool:
        """Spend `cost`, the tokens that expire first, or nothing. Who waits has asked for it by `arrive` already."""
        if now >= self._expires:
            self._advance(now)
        while self.balance < cost and self._later:
            # A cost over two lots: what is left of both lives as long as the older one.
            expires, count = self._later.pop(0)
            if self.balance <= 0.0:
                self._expires = expires
            self.extra -= count
            self.balance += count
            self._base += count
        if self.balance < cost:
            return False
        self.balance -= cost
        self._see(cost)
        self._aim(now)
        return True

    def arrive(self, cost: float) -> None:
        """Count a request that found too little: demand is what is asked for, not what is given."""
        self._arrived += cost
        self._see(cost)

    def starve(self, cost: float) -> None:
        """So much was not there for a request: if small ones take all that comes, the store may hold that back for the
        next one that needs it (`Lease.lacks`). Not to be called for one behind others that wait for tokens: what was
        held back for it would be missing to those.
        """
        self.lacking = max(self.lacking, cost)

    def _see(self, cost: float) -> None:
        self.unit = max(cost, self.unit + (cost - self.unit) / UNIT_MEMORY)

    def unarrive(self, cost: float) -> None:
        """What was counted by `arrive` is spent after all, which counts by itself."""
        self._arrived -= cost

    def block(self, *, blocked: bool, now: float) -> None:
        """Somebody waits, so the short decision must fail; or nobody does any more."""
        self.blocked = blocked
        self._aim(now)

    def _advance(self, now: float) -> None:
        """Drop what has expired."""
        self._fold_spent()
        self.expired += self.balance
        self.balance = 0.0
        while self._later:
            self._expires, self.balance = self._later.pop(0)
            self.extra -= self.balance
            if now < self._expires:
                break
            self.expired += self.balance
            self.balance = 0.0
        self._base = self.balance
        self._aim(now)

    def _fold_spent(self) -> None:
        self._arrived += self._base - self.balance
        self._base = self.balance

    def _fold(self, now: float) -> None:
        """Bring `demand` up to date."""
        self._fold_spent()
        elapsed = now - self._folded_at
        arrived, self._arrived = max(0.0, self._arrived), 0.0
        if elapsed <= 0.0:
            self.demand += arrived / DEMAND_TAU_S
            self.rush += arrived / RUSH_TAU_S
            return
        rate = arrived / elapsed
        kept = math.exp(-elapsed / DEMAND_TAU_S)
        self.demand = self.demand * kept + rate * (1.0 - kept)
        kept = math.exp(-elapsed / RUSH_TAU_S)
        self.rush = self.rush * kept + rate * (1.0 - kept)
        self._folded_at = now

    @property
    def spent(self) -> float:
        """Tokens that were leased and then spent."""
        return self.leased - self.expired - self.balance - self.extra

    # Leasing

    def is_scarce(self, now: float) -> bool:
        """The bucket gave too little, not long ago."""
        return now < self.held_until + SCARCE_S

    def _is_ample(self, now: float) -> bool:
        """Most of the bucket was left, and nothing was short lately: what expires unspent is missing nowhere."""
        terms = self.terms
        if terms.window_s or self.seen_at == -inf or self.is_scarce(now):
            return False
        return self._there(now) > terms.depth / AMPLE_PART

    def _there(self, now: float) -> float:
        """What the bucket holds if nobody took anything since the last answer, which there was."""
        return min(self.left + self.terms.rate * (now - self.seen_at), float(self.terms.depth))

    @property
    def _is_far(self) -> bool:
        return self.rtt_s > self.terms.life_s / FAR_PART

    def _leases_ahead(self, now: float) -> bool:
        terms = self.terms
        if not terms.ahead:
            return False
        worth = WORTH_AMPLE if self._plan.lasting else WORTH_SCARCE if self.is_scarce(now) else WORTH_TOKENS
        worth *= self.unit
        if self.demand * (min(terms.life_s, 1.0) - self.rtt_s) < worth:
            return False
        # The last tokens of a slow bucket are nobody's before they are needed: in one worker's hand they would be
        # missing for long where the next request comes.
        return terms.life_s < LONG_LIFE_S or self.left + terms.rate >= worth

    def _low(self) -> float:
        """Below this many tokens a lease would come too late."""
        if self._is_far:
            meanwhile = self.demand * SLOW_RTT * self.rtt_s
            return meanwhile + 2 * math.sqrt(meanwhile) + self.unit
        return self.demand * 2 * self.rtt_s + self.unit

    def _aim(self, now: float) -> None:
        """Set what the short decision must keep to."""
        if self.blocked:
            self.reserve = inf
            return
        self.reserve = 0.0
        self.until = self._expires
        if not self._leases_ahead(now):
            return
        if self._out:
            if self._may_overlap(now):
                self.until = min(self.until, self._out[-1].at + self._plan.spacing_s)
            return
        if self._later and not self._is_far:
            return
        if now < self.held_until:
            self.until = min(self.until, self.held_until)
            return
        self.reserve = max(0.0, self._low() - self.extra)
        self.until -= max(self._plan.early_s, min(2 * self.rtt_s, self.terms.life_s / 4))

    def _may_overlap(self, now: float) -> bool:
        """A second lease may be sent while one is out: where the store is so far away that the tokens of one would have
        expired, or be spent, before those of the next are here.
        """
        return len(self._out) < MOST_OUT and self._is_far and not self.is_scarce(now)

    @property
    def is_quiet(self) -> bool:
        """It asks for little of the limit, if all workers ask for as much: who is refused then, is so by accident."""
        return not self.terms.window_s and self.demand * self.sharers * QUIET_PART <= self.terms.rate

    def span_s(self, keys: int) -> float:
        """How much time's demand a lease holds at least, and how seldom an empty bucket is asked, with `keys` active
        keys.
        """
        if self.terms.window_s:
            return max(WINDOW_SPAN_S, keys / KEY_OPS)
        return max(min(keys / KEY_OPS, 0.6 * self.terms.life_s), min(LEAST_SPAN_S, 0.6 * self.terms.life_s))

    def _lot_s(self, keys: int) -> float:
        """How much time's demand a lease holds: as one is out at a time, no less than what is spent until the next can
        be here. With 100 ms to Redis a lot of 50 ms left a third of the requests waiting.
        """
        return max(self.span_s(keys), min(LOT_OF_RTT * self.rtt_s, 0.6 * self.terms.life_s))

    def ask(
        self, now: float, load: Load, *, waiting: float = 0.0, fresh: float = 0.0, first: float = 1.0
    ) -> Lease | None:
        """The lease that is to be sent now, or None.

        `waiting` are the costs of all that wait, `fresh` of those among them for which nothing was asked yet, and of
        the first: what the store does not cut. `first` is that first one's alone: less is of no use. Whoever gets a
        lease sends it, and then calls `answered` or `lost`.
        """
        if self._out and not (self._may_overlap(now) and now >= self._out[-1].at + self._plan.spacing_s):
            return None
        self._fold(now)
        self._plan = self._make_plan(load.keys, now)
        terms = self.terms
        held = self.tokens(now)
        coming = sum(out.lease.want for out in self._out)
        short = min(max(0.0, waiting - held - coming), terms.depth)
        want = short
        if now < self.held_until:
            want = 0.0  # debts are told all the same
        elif self._leases_ahead(now):
            want = max(want, self._ahead(now, held, coming, load, waiting=waiting))
        debt = self._untold
        if want <= 0.0 and (debt <= 0.0 or self._out):
            self._aim(now)
            return None
        need = first - held - coming if waiting else 0.0
        self.lacking = max(self.lacking, need)
        return self._send(
            now,
            load,
            math.ceil(want),
            math.ceil(min(fresh, want)),
            math.ceil(need if need > 0 else self.unit),
        )

    def _make_plan(self, keys: int, now: float) -> _Plan:
        """How to lease ahead with so many active keys. If they are so many that an operation in 50 ms for each were too
        many, and the bucket is ample, leases are to last until they expire.
        """
        life_s = self.terms.life_s
        plan = _Plan(0, 0.0, max(keys / KEY_OPS, min(LEAST_SPAN_S, life_s / FAR_SPACINGS)))
        if keys <= LEAST_SPAN_S * KEY_OPS or life_s >= LONG_LIFE_S or not self._is_ample(now):
            return plan
        early_s = life_s + 1 / max(self.demand, 1e-3) - keys / (OPS_USED * KEY_OPS)
        early_s = min(max(0.0, early_s), life_s / 2)
        mean = self.demand * life_s
        # If all lease as much as this worker, no more than what comes in: so the bucket stays ample.
        gain = self.terms.rate * (life_s - early_s) / self.sharers
        spared = min(self._spared(now), gain - mean)
        if spared < WORTH_SPARED:
            return plan
        return plan._replace(lasting=math.ceil(mean + min(SIGMAS * math.sqrt(mean), spared)), early_s=early_s)

    def _ahead(self, now: float, held: float, coming: float, load: Load, *, waiting: float) -> float:
        """How much to lease ahead now, with `held` in hand and `coming` on its way; 0: nothing."""
        soon = self._expires - now < max(2 * self.rtt_s, self._plan.early_s) and not self._later
        low = self._low()
        due = waiting > held + coming or held + coming < low or (soon and not self._out)
        far = self._is_far and not self.is_scarce(now)
        if not due and not far:
            return 0.0
        if self._plan.lasting:
            lot = float(self._plan.lasting)
        elif far:
            # What is there when the one after this one comes, but no more than can be spent before it expires.
            level = self._far_level(self.demand, FAR_FULL)
            if self._is_ample(now):
                level = min(
                    self._far_level(max(self.demand, self.rush), FAR_AMPLE), level + self._spared(now)
                )
            lot = level - self._lasts(now) - coming + waiting
            if lot < 1.0:
                return 0.0
        else:
            lot = self.demand * self._lot_s(load.keys)
        unit = math.ceil(self.unit)
        lot = unit * (math.floor(lot / unit) if self.is_scarce(now) else math.ceil(lot / unit))
        return max(unit, min(lot, self._largest()))

    def _far_level(self, demand: float, full: float) -> float:
        mean = demand * (self._plan.spacing_s + SLOW_RTT * self.rtt_s)
        return min(mean + 2 * math.sqrt(mean) + 1, full * demand * self.terms.life_s)

    def _spared(self, now: float) -> float:
        """What may be leased beyond the expected, of an ample bucket."""
        return self._there(now) / (SPARED_PART * self.sharers)

    def _lasts(self, now: float) -> float:
        """What is held and will be spent: not what expires before the next lease is here and nobody comes for."""
        here = now + self.rtt_s
        if here < self._expires:
            return self.balance + self.extra
        lasts = sum(count for expires, count in self._later if expires > here)
        return lasts + min(self.balance + self.extra - lasts, self.demand * self.rtt_s)

    @property
    def _untold(self) -> float:
        """What of the debt no lease that is out tells."""
        return max(0.0, self.debt - sum(out.debt for out in self._out))

    def _largest(self) -> float:
        """No lease takes more than half of a bucket; of a calendar window, not more than its part of what is left."""
        if self.terms.window_s:
            left = self.left if self.seen_at > -inf else 1.0
            return max(1.0, left / (4 * self.sharers))
        return math.ceil(self.terms.depth / 2)

    def _send(self, now: float, load: Load, want: int, least: int, first: int = 0) -> Lease:
        terms = self.terms
        epoch = int(now / EPOCH_S)
        tells = epoch != self._epoch
        if tells:
            self._epoch = epoch
            load.count(epoch)
        debt = self._untold
        lease = Lease(
            self.key,
            rate=terms.rate,
            depth=terms.depth,
            want=want,
            least=least,
            demand=self.demand,
            tells_demand=tells,
            debt=debt,
            window_s=terms.window_s,
            start=self.start,
            most=self.most,
            first=min(first, want),
            lacks=math.ceil(self.lacking),
            birth=terms.birth,
            knows=bool(terms.window_s) and self.seen_at > -inf and now < self.window_ends and self.left >= 1,
        )
        self.lacking = 0.0
        if not self._out:
            self.sent_at = now
        self._out.append(_Out(lease, now, debt))
        self.asking = True
        self._aim(now)
        return lease

    def _returned(self, asked: Lease) -> _Out:
        """Take a lease off those that are out."""
        out = next(out for out in self._out if out.lease is asked)
        self._out.remove(out)
        if self._out:
            self.sent_at = self._out[0].at
        else:
            self.asking = False
        return out

    def answered(self, answer: Leased, asked: Lease, now: float, random: float, load: Load) -> None:
        """The answer to `asked`, a lease that is out. `random` in [0, 1)."""
        terms = self.terms
        out = self._returned(asked)
        took = now - out.at
        # The first one is taken as it is: a store that is far away is so from the beginning.
        first = self.seen_at == -inf and not terms.window_s
        self.rtt_s = took if first else self.rtt_s + (took - self.rtt_s) / 8
        self.left = answer.left
        self.seen_at = now
        self.sharers = answer.sharers
        self.debt = max(0.0, self.debt - out.debt)
        granted = float(answer.granted)
        if terms.window_s:
            self.window = answer.window
            self.window_ends = out.at + answer.window_left_ms / 1000
            expires = self.window_ends - WINDOW_GUARD_S
        else:
            expires = out.at + terms.life_s
        paid = min(granted, self._untold)  # a fallback has admitted what these tokens were asked for
        self.debt -= paid
        granted -= paid
        self.leased += granted
        self.in_vain = granted > 0.0 and expires <= now
        if granted > 0.0:
            self._store(granted, expires, now)
        if answer.granted < asked.want and not (
            answer.left >= terms.depth / 2 and answer.granted >= max(1, asked.least)
        ):
            self._hold(answer, asked, now, random, load)
        self._aim(now)

    def _store(self, granted: float, expires: float, now: float) -> None:
        if expires <= now:
            self.expired += granted
            return
        if now >= self._expires:
            self._advance(now)
        if self.balance <= 0.0 and not self._later:
            self._fold_spent()
            self._expires, self.balance, self._base = expires, granted, granted
        elif expires < self._expires:
            # It was overtaken: what expires first is to be spent first.
            self._fold_spent()
            self._later.insert(0, (self._expires, self.balance))
            self.extra += self.balance
            self._expires, self.balance, self._base = expires, granted, granted
        else:
            insort(self._later, (expires, granted))
            self.extra += granted

    def _hold(self, answer: Leased, asked: Lease, now: float, random: float, load: Load) -> None:
        # Who is far under the limit finds an empty bucket by accident (the store lost its data): its leases are few.
        # Unless what is there is held back for somebody else.
        is_held_back = not answer.granted and answer.left >= max(1, asked.first)
        soon = self.is_quiet and not is_held_back
        pace = 0.0 if soon else self.span_s(load.keys) * (0.75 + random / 2)
        if self.terms.window_s:
            next_token = self.window_ends - now if answer.left < 1 else 0.0
        else:
            missing = max(1.0, asked.first - answer.granted) - answer.left
            next_token = max(0.0, missing) / self.terms.rate
        self.held_until = now + max(pace, min(next_token, LONGEST_HOLD_S))

    def lost(self, asked: Lease, now: float) -> None:
        """A lease has no answer: what it may have brought is lost; its debt is told again."""
        self._returned(asked)
        self._aim(now)

    def retry_after_s(self, cost: float, now: float) -> float:
        """When `cost` tokens can be there at the earliest, as far as is known: seconds from now, 0 for at once."""
        if self.seen_at == -inf:
            return 0.0
        held = max(0.0, self.held_until - now)
        if self.terms.window_s:
            return max(held, self.window_ends - now) if self.left < cost else held
        there = self.left + self.terms.rate * (now - self.seen_at)
        return max(held, (cost - there) / self.terms.rate)

    def lack(self, now: float, full: float = inf) -> float:
        """What the bucket lacks from full, or from `full` if that is less, if nobody else has taken anything since the
        last answer.
        """
        if self.seen_at == -inf:
            return 0.0
        there = self.left + self.terms.rate * (now - self.seen_at)
        return min(max(0.0, min(self.terms.depth, full) - there), self.terms.burst)

    def give_back(self, now: float) -> Lease | None:
        """Give up everything: a lease that returns what is held of a calendar window, to be sent once, its answer not
        waited for; None where nothing can be returned. Tokens of a bucket that refills just expire.
        """
        held = self.tokens(now)
        self._fold_spent()
        self._later.clear()
        self.extra = 0.0
        self.expired += held
        self.balance = self._base = 0.0
        self._expires = -inf
        self._aim(now)
        if not self.terms.window_s or held < 1:
            return None
        return Lease(
            self.key,
            rate=self.terms.rate,
            depth=self.terms.depth,
            want=0,
            window_s=self.terms.window_s,
            back=math.floor(held),
            back_window=self.window,
        )


class OwnShare:
    """The last resort of a worker that reaches no store at all: a bucket of its own, which begins with `start`."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float, *, start: float = 0.0) -> None:
        self.rate = rate
        self.burst = max(1.0, burst)
        self._tokens = min(start, self.burst)
        self._at = now

    def tokens(self, now: float) -> float:
        """What may be spent now."""
        self._tokens = min(self.burst, self._tokens + self.rate * max(0.0, now - self._at))
        self._at = max(now, self._at)
        return self._tokens

    def lower(self, most: float, now: float) -> None:
        """Have it hold at most so much now."""
        self._tokens = min(self.tokens(now), max(0.0, most))

    def take(self, cost: float, now: float) -> bool:
        """Spend `cost` or nothing."""
        if self.tokens(now) < cost:
            return False
        self._tokens -= cost
        return True

    def lack(self, now: float, full: float = inf) -> float:
        """What it lacks from full, or from `full` if that is less."""
        return max(0.0, min(self.burst, full) - self.tokens(now))

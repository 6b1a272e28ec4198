"""One key of a limit in one worker: where its tokens come from, and what decides while the store does not answer.

Tokens are spent in this order:
1. What the worker holds of the fleet's bucket.
2. In bounded mode, its credit: only while the bucket is not known to be overdrawn, so debts are always paid back.
3. While the store is away, or has left a lease unanswered for `max_wait_s`, or refused it: what `on_loss` says. `open`
   admits, `closed` does not, `share` spends what is held of the *replica's* bucket, leased by all its workers as usual:
   rate R / replicas, burst B / replicas. It begins with this replica's part of what the fleet's bucket had left when it
   was last heard of; for a key that was never heard of, with what the share gained since the loss, and one token at
   least: a new or quiet client is not refused because the store is away or slow. Where the store is farther away than
   `max_wait_s`, it is asked before the tokens in hand end, for what comes in 50 ms. A worker has one batch under way,
   so with 100 ms to the store tokens that live 200 often end before the next ones are here: 10 % of the requests
   waited in simulation, and 2 % do now. The share goes on for half a second after the store is back, which may have
   lost its data: then its buckets are empty at first.
4. While the store is only late, for a client far under its limit, or while most of the bucket is known to be left:
   this worker's part of what it is known to hold; of a key that was never heard of, one token.
   Likewise where the store says that its data began anew, and its new bucket has too little: this worker's part of what
   the old one was known to hold then.
   Of a calendar window that was heard to be used up, nothing is admitted before its end.
5. While even the replica's store does not answer: a bucket of the worker's own, R / workers, which begins empty; with
   one token where the fleet's bucket was known to hold one for each worker. The share is told it as a debt.

Both 3 and 5 refill while nobody needs them, and the fleet's bucket does not if it is pressed. So whenever they are used
they are lowered to their part of what that could hold by now: in steady overload a loss brings nobody a second burst.

What was admitted by 3 to 5 is owed. While the store is only late, others go on taking from the fleet's bucket, so all
of it is a debt. While it is away nobody does, and the bucket refills: then it becomes a debt, with the first lease
afterwards, only as far as the share's bucket could not have refilled meanwhile (each worker its part of that); posting
a whole outage would starve the key for as long as it lasted. Under `open` nothing is owed.

Nothing here waits; who does is told when tokens may have come (`Source.tell`).
"""

from __future__ import annotations

import math
import weakref
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ambassador.state.holding import LEAST_SPAN_S, Holding, Load, OwnShare, Terms, terms, window_terms
from ambassador.state.protocol import TELLING_US, Lease, Leased, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from ambassador.state.protocol import Answer
    from ambassador.state.scope import Clock, Scope

OnLoss: TypeAlias = Literal["share", "closed", "open"]

_REFUSED_S: Final = 1.0
"""A store that refuses a lease (out of memory) is asked again after so long."""
_UNHEARD_S: Final = 0.05
"""A share of a key that was never heard of holds what comes in so long, while the store is only late: what is admitted
until its first answer is a debt, and no more than 5 % of what a second gives."""
_BRIDGED_S: Final = 0.01
"""So long before what is in hand ends, the share is asked for what bridges the time until a far store's answer."""
_TELLING_S: Final = TELLING_US / 1e6
"""If the store forgot that a calendar window was used up, nothing is taken for so long: the others ask once a second
(`LONGEST_HOLD_S`), and tell it then."""
_SETTLING_S: Final = 0.5
"""After an outage only debts are told for so long, the share goes on deciding: a worker takes so long to reconnect at
most, and whoever is back first would spend what the others' debts are to be paid from."""
_MOST_OWING: Final = 10_000
"""Keys whose debts are told as soon as the store is back; of others, when they are used again."""


class Source:
    """Where the tokens of one limit come from, for all its keys.

    `fleet` holds the buckets; `replica` is the store of the share that takes over, None where there is no other (the
    fleet's is the replica's already). `max_wait_s`: after so long a lease counts as unanswered. `credit` 0: strict.
    `expected_replicas` stands where replicas were never counted. `expired` is told tokens that nobody spent in time.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        fleet: Scope,
        replica: Scope | None,
        clock: Clock,
        load: Load,
        random: Callable[[], float],
        max_wait_s: float,
        on_loss: OnLoss = "share",
        credit: float = 0.0,
        expected_replicas: int = 1,
        expired: Callable[[float], None] | None = None,
    ) -> None:
        self.terms = terms
        self.fleet = fleet
        self.replica = replica
        self.clock = clock
        self.load = load
        self.random = random
        self.max_wait_s = max_wait_s
        self.on_loss = on_loss
        self.credit = credit
        self.expired = expired or _nobody
        self._changed: weakref.WeakMethod[Callable[[Account], None]] | None = None
        self._expected_replicas = expected_replicas
        self._down_at: float | None = None
        self._lost_at: float | None = None
        self._losses = fleet.losses
        self.settled_at = -inf
        """Until then keys that were not used before are decided by the share: the store has just come back."""
        self._parts = 0
        self._share_terms = terms
        self.owing: set[Account] = set()
        self.stores = 0
        """How often the store was back: each time it may be another server."""
        self.counting: set[Account] = set()
        """Accounts that took something out of a calendar window."""
        fleet.on_up(self._is_back)

    def tell(self, changed: Callable[[Account], None]) -> None:
        """Have this method called when an account's tokens may have come. Its object is not kept alive by that: an old
        generation of the config is to go when nobody uses it, not when the collector looks that far.
        """
        self._changed = weakref.WeakMethod(changed)

    def changed(self, account: Account) -> None:
        """Tokens may have come."""
        method = self._changed() if self._changed is not None else None
        if method is not None:
            method(account)

    def down_since(self, now: float) -> float | None:
        """When the fleet's store was first seen to be away; None if it answers, and has for a while."""
        if self.fleet.up:
            self._down_at = None
            return self._lost_at if now < self.settled_at else None
        if self._down_at is None:
            self._down_at = self._lost_at = now
        return self._down_at

    def could_hold(self, now: float) -> float:
        """What is owed to the fleet's bucket at most: what it can hold. One of a store that lost its data began then.
        So much is taken for older as shares knew too late of what the bucket had left when the store was lost.
        """
        terms = self.terms
        return min(float(terms.depth), terms.birth + terms.rate * (now - self.fleet.born_at + LEAST_SPAN_S))

    @property
    def parts(self) -> int:
        """Replicas that a share is computed by."""
        replicas = self.fleet.replicas
        return replicas if replicas > 1 else max(1, self._expected_replicas)

    def obey(self, terms: Terms) -> None:
        """Other terms hold from now on; have each account obey them as well."""
        self.terms = terms
        self._parts = 0

    def share_terms(self) -> Terms:
        """The terms of a share of a limit that refills."""
        parts = self.parts
        if parts != self._parts:
            self._parts = parts
            whole = self.terms
            self._share_terms = terms(whole.rate / parts, max(1.0, whole.burst / parts))
        return self._share_terms

    def _is_back(self) -> None:
        self.stores += 1
        owing, self.owing = self.owing, set()
        now = self.clock.now
        if self._losses != self.fleet.losses:
            self._losses = self.fleet.losses
            self.settled_at = now + _SETTLING_S
        for account in owing:
            account.settle(now)
        self.counting = {account for account in self.counting if now < account.window_ends}
        for account in self.counting:
            account.look_again(now)


def _nobody(_: object) -> None:
    """For what nobody asked to be told."""


class Account(Holding):
    """What one worker has of one key. See the module's docstring."""

    __slots__ = (
        "_born_us", "_charged", "_known_store", "_left_before", "_lost_part", "_mark", "_own", "_refused_until", "_seen_before", "_settled_at", "_share", "_told_expired", "credited", "limited", "otherwise", "owed", "source",
    )  # fmt: skip

    def __init__(self, key: str, source: Source, now: float) -> None:
        super().__init__(key, source.terms, now)
        self.source = source
        self.left = float(source.terms.depth)
        self.owed = 0.0
        """Admitted by a fallback while the store was away, and not yet a debt."""
        self.otherwise = 0.0
        """Tokens that were spent without being held."""
        self.credited = 0.0
        """Of these, those that the credit of bounded mode covered: the store is told of them at once."""
        self.limited = 0
        """Requests that were refused."""
        self._charged = 0.0
        """Of the debt, what the share has paid for as well."""
        self._left_before, self._seen_before = self.left, -inf
        """`left` and `seen_at`, but for what a store says while it has just come back: that is about others' debts."""
        self._share: Holding | None = None
        self._own: OwnShare | None = None
        self._refused_until = -inf
        self._settled_at = source.settled_at
        self.held_until = max(self.held_until, self._settled_at)
        self._told_expired = 0.0
        self._born_us = 0
        """When the data of the store began that was last heard of."""
        self._lost_part = 0.0
        """Of what the bucket was known to hold when the store lost its data: this worker's part, as far as unused."""
        self._known_store = source.stores
        self._mark = 0.0
        """`leased` and `otherwise` when the present calendar window began, and what was given back since."""

    def obey(self, terms: Terms) -> None:
        """Other terms hold from now on, of a window of the same length. What is in hand stays, for as long as it was
        leased: that much more than the new terms say may be spent, once.
        """
        self.terms = terms
        self.left = min(self.left, float(terms.depth))
        self._own = None  # made anew, from what is left

    def inherit(self, other: Account, now: float) -> None:
        """Go on with what the account of the same key knew of the present calendar window in the config before: that it
        is used up, as each new config would else admit something while the store is late, and this worker's part in
        that. To be called before anything is asked; what `other` had in hand is not taken over.
        """
        if other.seen_at == -inf or now >= other.window_ends:
            return
        self.window, self.window_ends, self._born_us = other.window, other.window_ends, other._born_us
        # The store counts what is used, so a greater quota leaves more.
        self.left = other.left + self.terms.depth - other.terms.depth
        self.seen_at = other.seen_at
        self._left_before, self._seen_before = self.left, self.seen_at
        told = max(0.0, other.used - other.debt - other.owed - math.floor(other.tokens(now)))
        self._mark = -told
        if told and len(self.source.counting) < _MOST_OWING:
            self.source.counting.add(self)

    # Deciding

    def is_degraded(self, now: float) -> bool:
        """The store does not decide now: it is away, or late, or refuses."""
        source = self.source
        return (
            not source.fleet.up
            or (self.asking and now >= self.sent_at + source.max_wait_s)
            or now < self._refused_until
            or now < self._settled_at
        )

    def ready(self, cost: float, now: float, *, late: bool = False) -> bool:
        """Whether `spend` would do it. `late`: the answer can be waited for no longer, so the fallback decides."""
        if self.tokens(now) >= cost or self._has_credit(cost, now) or self._has_lost_part(cost, now):
            return True
        if not (late and (self.asking or self.in_vain)) and not self.is_degraded(now):
            return False
        on_loss = self.source.on_loss
        if on_loss != "share":
            return on_loss == "open"
        if self.is_used_up(cost, now):
            return False
        share = self._share
        if share is not None and share.tokens(now) >= cost:
            return True
        if self._knows_enough(cost, now):
            return True
        return self._is_alone(now, late=late) and self._last_resort(now).tokens(now) >= cost

    def spend(self, cost: float, now: float) -> None:
        """Spend what `ready` found to be there."""
        if self.take(cost, now):
            return
        self.otherwise += cost
        self.arrive(cost)
        if self._has_credit(cost, now):
            self.credited += cost
            self.debt += cost
            return
        if self._has_lost_part(cost, now):
            self._lost_part -= cost
            self.debt += cost
            return
        if self.source.on_loss == "open":
            return
        late = self.source.fleet.up
        if late:
            self.debt += cost
        else:
            self._cut_off()
            self.owed += cost
        if len(self.source.owing) < _MOST_OWING:
            self.source.owing.add(self)
        share = self._share
        if share is not None and share.take(cost, now):
            self._charged += cost if late else 0.0
            return
        knew = self._knows_enough(0.0, now)  # as it did before the cost became a debt
        self._last_resort(now).take(cost, now)
        if share is not None and not knew:
            share.debt = min(share.debt + cost, float(share.terms.depth))
            self._charged += cost if late else 0.0

    def none_before(self, now: float) -> float:
        """Until when nothing can come, as far as is known; `now` or before: an answer is due, or may be asked for."""
        if not self.is_degraded(now):
            return -inf if self.asking else self.held_until
        if self.seen_at == -inf and self.asking and self.source.fleet.up:
            return -inf  # the share knows nothing of this key: its first answer is worth waiting for
        if self.source.on_loss == "closed":
            return now + _REFUSED_S
        if self.source.on_loss == "share" and self.is_used_up(1.0, now):
            return self.window_ends
        share = self._share
        return -inf if share is None or share.asking or self._is_alone(now, late=False) else share.held_until

    def retry_after_s(self, cost: float, now: float) -> float:
        """When `cost` tokens can be there at the earliest: seconds from now."""
        share = self._share
        if share is not None and self.is_degraded(now):
            return share.retry_after_s(cost, now)
        return super().retry_after_s(cost, now)

    def _has_credit(self, cost: float, now: float) -> bool:
        credit = self.source.credit
        if not credit or self.debt + cost > credit:
            return False
        return self.seen_at == -inf or self.left + self._gain(now - self.seen_at) >= 0.0

    def _has_lost_part(self, cost: float, now: float) -> bool:
        """The store has lost its data, and its new bucket lacks what the old one was known to have."""
        if self._lost_part < cost or not self.source.fleet.up:
            return False
        return self.left + self._gain(now - self.seen_at) < cost

    def is_used_up(self, cost: float, now: float) -> bool:
        """The calendar window had less when the store was last heard, and nothing comes before its end: no fallback."""
        return (
            bool(self.terms.window_s) and self.left < cost and self.seen_at > -inf and now < self.window_ends
        )

    def _gain(self, seconds: float) -> float:
        return 0.0 if self.terms.window_s else self.terms.rate * seconds

    def _knows_enough(self, cost: float, now: float) -> bool:
        """The store is only late, and as far as is known the bucket has enough for each worker to take this: a client
        far under its limit is not refused because the store is far away, nor is one whose requests nearly all come to
        this worker. It becomes a debt at once. Of a key that was never heard of it is one token.
        """
        if not self.source.fleet.up or not (self.is_quiet or self._is_ample(now)):
            return False
        share = self._share
        if self.seen_at == -inf and share is not None and share.left < 0.0:
            return False  # others press here
        part = min(self._known_left(now), float(self.terms.depth)) / max(1, self.source.fleet.workers)
        return (part if self.seen_at > -inf else min(1.0, math.floor(part))) - self.debt >= cost

    def _is_alone(self, now: float, *, late: bool) -> bool:
        """No store answers. `late`: in time for who can wait no longer."""
        replica, share = self.source.replica, self._share
        if replica is None or not replica.up:
            return True
        if late:
            # It was not asked (the worker stalled), or has not answered; before `held_until` it has nothing, unless the
            # fleet's bucket was heard of since: the share may have been made before anybody had.
            return share is None or share.asking or now >= share.held_until or share.seen_at < self.seen_at
        return share is not None and share.asking and now >= share.sent_at + self.source.max_wait_s

    def _last_resort(self, now: float) -> OwnShare:
        workers = max(1, self.source.fleet.workers)
        known = self._known_left(now)
        if self._own is None:
            # A client far under its limit is not refused because this machine stalls; one that presses gets nothing.
            start = 1.0 if known >= workers else 0.0
            self._own = OwnShare(self.terms.rate / workers, self.terms.burst / workers, now, start=start)
        elif self.seen_at > -inf:
            most = known / workers
            share = self._share
            if share is not None and share.seen_at > self.seen_at:
                there = share.left + share.terms.rate * (now - share.seen_at)
                most = min(most, there / share.sharers)
            self._own.lower(most, now)
        return self._own

    def _known_left(self, now: float) -> float:
        """What the fleet's bucket holds if nobody took anything since it was last heard of."""
        if self.seen_at == -inf or now >= self.window_ends:
            return float(self.terms.depth)
        return self.left + self._gain(now - self.seen_at)

    # Asking

    def pump(
        self, now: float, *, waiting: float = 0.0, fresh: float = 0.0, first: float = 1.0, late: bool = False
    ) -> None:
        """Send the lease that is due, if one is. What waits is told as `Holding.ask` has it. `late`: the first that
        waits will soon have waited for as long as it may, so the share is asked too.
        """
        source = self.source
        if source.fleet.up and not self.asking and now >= self._refused_until:
            if self.owed:
                self._incur(now)
            if self._known_store != source.stores and self.seen_at > -inf:
                # What a failover made the master has not heard the last that the old one gave out, and has refilled
                # since. There can be no more than was left when this worker last heard, and what came since.
                self.most = self.left + self._gain(now - self.seen_at + self.rtt_s)
            lease = self.ask(now, source.load, waiting=waiting, fresh=fresh, first=first)
            if lease is not None:
                source.fleet.ask(lease, partial(self._is_answered, lease))
        if source.on_loss != "share" or source.replica is None:
            return
        bridging = self.demand * LEAST_SPAN_S if self._is_bridged(now) else 0.0
        if waiting and (self.is_late(now) or (late and self.asking)):
            self._pump_share(now, waiting, first, source.replica, bridging=bridging)
        elif bridging and self._ends_soon(now):
            self._pump_share(now, 0.0, first, source.replica, bridging=bridging)

    def settle(self, now: float) -> None:
        """The store is back after an outage in which the fallback decided: tell what is owed, and nothing else yet."""
        self._settled_at = now + _SETTLING_S
        self.held_until = max(self.held_until, self._settled_at)
        self.pump(now)

    def look_again(self, now: float) -> None:
        """See whether the store still counts what this worker took, though nobody asks for more here."""
        if self.asking or not self.source.fleet.up:
            return
        lease = self._send(now, self.source.load, 0, 0)
        self.source.fleet.ask(lease, partial(self._is_answered, lease))

    def is_late(self, now: float) -> bool:
        """Tokens of the share may be needed soon: it is asked before it is clear that the answer comes too late, and at
        once where answers usually do.
        """
        if self.is_degraded(now):
            return True
        patience = self.source.max_wait_s / 2
        return self.asking and (self.rtt_s > patience or now >= self.sent_at + patience)

    def _is_bridged(self, now: float) -> bool:
        """The store is so far away that tokens may end before the next ones are here, though there are enough: the
        share bridges that, and is asked for more than what waits already.
        """
        source = self.source
        return (
            self.asking
            and self.rtt_s > source.max_wait_s
            and source.fleet.up
            and now >= self.sent_at + source.max_wait_s
            and not self.is_scarce(now)
        )

    def _ends_soon(self, now: float) -> bool:
        """What is in hand ends before a share that is asked now has answered, and a little after."""
        ends = self._later[-1][0] if self._later else self._expires
        return ends < now + _BRIDGED_S or self.tokens(now) < self.demand * _BRIDGED_S + self.unit

    def _pump_share(
        self, now: float, waiting: float, first: float, replica: Scope, *, bridging: float = 0.0
    ) -> None:
        share = self._share
        if share is None:
            share = self._share = Holding(self.key, self._share_terms(now), now)
        else:
            share.terms = self._share_terms(now)
        share.start = self._start_of_share(now, share.terms.rate)
        # Who never heard of the fleet's bucket knows less than those who use the share already.
        share.most = share.start if self._seen_before > -inf else None
        lease = share.ask(
            now, self.source.load, waiting=waiting + bridging, fresh=waiting, first=first if waiting else 1.0
        )
        if lease is not None:
            replica.ask(lease, partial(self._share_is_answered, share, lease))

    def _share_terms(self, now: float) -> Terms:
        source = self.source
        if not self.terms.window_s:
            return source.share_terms()
        # Of a calendar window a share is a part of what was left of it.
        part = self._known_left(now) / source.parts
        if source.fleet.up and self.seen_at > -inf:
            part = math.floor(part)  # the store is only late: it will say who has the rest
        return window_terms(max(0, math.ceil(part)), self.terms.window_s)

    def _start_of_share(self, now: float, rate: float) -> float:
        if self._seen_before > -inf:
            return self._left_before / self.source.parts + rate * (now - self._seen_before)
        down_at = self.source.down_since(now)
        if down_at is None:
            return max(1.0, rate * (max(0.0, now - max(self.sent_at, self._settled_at)) + _UNHEARD_S))
        return max(1.0, rate * (now - down_at))

    def _is_answered(self, lease: Lease, answer: Answer | None) -> None:
        source = self.source
        now = source.clock.now
        if self.owed:
            self._incur(now)
        if isinstance(answer, Leased):
            self._remember_bucket(answer, now)
            self._known_store, self.most = source.stores, None
            was_spent = self.seen_at > -inf and self.left < 1
            forgotten = self._remember_window(lease, answer)
            self.answered(answer, lease, now, source.random(), source.load)
            self._charged = min(self._charged, self.debt)
            if now >= self._settled_at:
                self._left_before, self._seen_before = self.left, self.seen_at
            if self.terms.window_s and answer.granted and len(source.counting) < _MOST_OWING:
                source.counting.add(self)
            if forgotten and was_spent:
                self.held_until = max(self.held_until, now + _TELLING_S)
            if self.debt:
                self.pump(now)
        else:
            self.lost(lease, now)
            if not source.fleet.up:
                self._cut_off()
            if isinstance(answer, Refused):
                self._refused_until = now + _REFUSED_S
        if self.expired > self._told_expired:
            source.expired(self.expired - self._told_expired)
            self._told_expired = self.expired
        source.changed(self)

    def _share_is_answered(self, share: Holding, lease: Lease, answer: Answer | None) -> None:
        source = self.source
        now = source.clock.now
        if isinstance(answer, Leased):
            share.answered(answer, lease, now, source.random(), source.load)
        else:
            share.lost(lease, now)
        source.changed(self)

    def _cut_off(self) -> None:
        """The store is away: what it was not told before is owed like what comes from now on, where the share has paid
        for it.
        """
        charged, self._charged = min(self._charged, self.debt), 0.0
        self.debt -= charged
        self.owed += charged

    def _incur(self, now: float) -> None:
        """Make a debt of what is owed, as far as what admitted it could not have refilled."""
        owed, self.owed = self.owed, 0.0
        self.source.owing.discard(self)
        if not self.terms.window_s:
            full = self.source.could_hold(now)
            lack = 0.0 if self._own is None else self._own.lack(now, full / max(1, self.source.fleet.workers))
            if self._share is not None:
                lack += self._share.lack(now, full / self.source.parts) / self._share.sharers
            owed = min(owed, lack)
        self.debt += owed

    def _remember_window(self, lease: Lease, answer: Leased) -> bool:
        """If the store has lost how much of a calendar window is used, tell it this worker's part of that again."""
        if not self.terms.window_s:
            return False
        born_us, self._born_us = self._born_us, answer.born_us
        if answer.window != self.window:
            self._mark = self.leased + self.otherwise
            return False
        told = self.used - self.debt - self.owed
        counted = self.terms.depth - answer.left - answer.granted - lease.debt
        # Whatever others give back, this worker's part stays counted.
        forgotten = counted < told or bool(born_us and answer.born_us and born_us != answer.born_us)
        if forgotten:
            self.debt += max(0.0, told)
            if self.seen_at > -inf and self.left < 1:
                # The window was used up, by others perhaps: what the store gave out again pays for that.
                self.debt = max(self.debt, answer.granted + lease.debt)
        return forgotten

    def _remember_bucket(self, answer: Leased, now: float) -> None:
        """If the store has lost what was in a bucket that refills, spare this worker's part of what is known of it."""
        if self.terms.window_s:
            return
        source = self.source
        born_us, self._born_us = self._born_us, answer.born_us
        if born_us and answer.born_us and born_us != answer.born_us and source.on_loss != "closed":
            known = self.left
            if self._known_store == source.stores:
                # What came in until then; while the store was away, that was the share's.
                known += self._gain(max(0.0, now - self.seen_at - (answer.now_us - answer.born_us) / 1e6))
            known = min(known, float(self.terms.depth))
            self._lost_part = known / max(1, source.fleet.workers) - self.debt - self.owed
        if self._lost_part <= answer.left:
            self._lost_part = 0.0  # the new one has as much

    @property
    def used(self) -> float:
        """Tokens that this worker took out of the present calendar window."""
        return self.leased + self.otherwise - self._mark

    def give_back(self, now: float) -> Lease | None:
        """Give up what is held: see `Holding.give_back`; it is sent."""
        lease = super().give_back(now)
        if lease is not None:
            self._mark += lease.back
            self.source.fleet.ask(lease)
        return lease

"""The queue of a limit's key: requests that wait for its tokens, and how long each may.

All queues are in the order of arrival, so no two requests that are in several can wait for each other. A request waits
for an answer of the store until `lease_until`, and for tokens until `tokens_until`; what cannot come by then is not
waited for. Of what all of them need, `pump` asks the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ambassador.state.holding import LONGEST_HOLD_S

if TYPE_CHECKING:
    from ambassador.messages import Waiter
    from ambassador.proxy.limit_keys import Key, Needs


class Entry:
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
        needs: Needs,
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
        self.asked: set[Key] = set()
        """Accounts of which a lease was sent that counted it."""
        self.queued: set[Key] = set()

    def is_late(self, key: Key, now: float) -> bool:
        """The answer to the account's lease can be waited for no longer. Where tokens are scarce, leases sent
        afterwards are for those, unless what the answer brought had expired on its way. Where they are not, the answer
        was for those before it, and the store has its own.
        """
        if now < self.lease_until:
            return False
        return self.lease_until >= key.sent_at or key.in_vain or not key.is_scarce(now)

    def is_soon_late(self, now: float) -> bool:
        """Half of the time is left at most that it may wait for an answer: as much as a share may need for its own."""
        return self.share_from <= now <= self.lease_until

    def blocking(self, now: float) -> Needs:
        """What keeps it waiting."""
        return [(key, cost) for key, cost in self.needs if not key.ready(cost, now)] or self.needs

    def __lt__(self, other: Entry) -> bool:
        """Queues are in the order of arrival, all of them: so no two requests can wait for each other."""
        return self.number < other.number


def comes(key: Key, cost: float, now: float) -> float:
    """When so many tokens can be there at the earliest, even if all that comes is for this worker. Of a calendar window
    that has too little left: when it ends. But once a second it is asked whether somebody gave some back.
    """
    earliest = key.none_before(now)
    if key.terms.window_s:
        known = now < max(key.held_until, key.seen_at + LONGEST_HOLD_S) or key.is_degraded(now)
        return key.window_ends if known and key.is_used_up(cost - key.tokens(now), now) else earliest
    if now - key.seen_at > LONGEST_HOLD_S:
        return earliest
    return max(earliest, now + key.retry_after_s(cost - key.tokens(now), now))


def lacking(needs: Needs, now: float) -> Needs:
    """Of what a request has not got, that which the bucket cannot have now either; all of it if that is not known."""
    return [(key, cost) for key, cost in needs if comes(key, cost, now) > now] or needs


def is_refused(entry: Entry, now: float) -> bool:
    """It waits for what cannot come in time: for the store's answer, but for tokens only as long as `wait` says."""
    until = max(now, entry.tokens_until)
    return entry.hopeless or any(
        key.none_before(now) > until for key in entry.queued if not key.ready(entry.costs[key], now)
    )


def asks(key: Key, cost: float, now: float) -> bool:
    """Ask for what one request needs, with nobody before it; whether a lease was sent that counts it."""
    asking = key.asking
    key.pump(now, waiting=cost, fresh=cost, first=cost)
    return key.asking and not asking


def pump(key: Key, now: float, blocked: Entry | None) -> None:
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
    unasked: list[Entry] = []
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

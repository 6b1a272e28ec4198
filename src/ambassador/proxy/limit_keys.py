"""The keys of a limit: how a request finds the account that it is charged to, and what is told about them.

A key (a client, a header's value) has an account as long as it is used: at most MOST_KEYS of each limit and worker are
kept, those not used for longest are dropped, which costs no more than the tokens in hand: a few with each that comes,
for to drop thousands at once takes 20 to 50 ms. Values that are secrets, long
or no text are hashed before they become keys: keys are put into the store, and told by `/api/limits`.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from msgspec import Struct

from ambassador.errors import Limited
from ambassador.proxy.fields import CREDENTIALS
from ambassador.state.account import Account, Source
from ambassador.state.protocol import MAX_KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ambassador.messages import Request
    from ambassador.proxy.limit_queue import Entry
    from ambassador.proxy.policies.limit import Config
    from ambassador.state.holding import Terms

NO_VALUE: Final = "-"
"""The key of requests without the header that a limit goes by, or with several values of it."""
MOST_KEYS: Final = 16_384
"""Accounts of each limit and worker: 1 KiB each."""
_DROPPED_AT_ONCE: Final = 2
"""With each account that is opened: twice as fast as they come, so they are gone before the next are to be dropped."""
MOST_TOLD: Final = 20
"""Keys of each limit that `status` tells about."""
_INTEGER: Final = re.compile(rb"[+-]?[0-9]+").fullmatch


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
    """Of these, what was admitted without the store's tokens, because it was late or away."""
    credit: int
    """Of these, what was admitted by the credit of bounded mode, ahead of the store's tokens."""
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


class Key(Account):
    """An account, and who waits for its tokens."""

    __slots__ = ("ahead", "dry_from", "dry_until", "queue")

    def __init__(self, key: str, source: Source, now: float) -> None:
        super().__init__(key, source, now)
        self.queue: list[Entry] = []
        """In the order of arrival."""
        self.ahead = 0.0
        """What they cost."""
        self.dry_until = -math.inf
        """Before this, what a request of one limit takes cannot be there in time: it is refused without a look."""
        self.dry_from = 0.0
        """When it may be there."""


Needs: TypeAlias = "list[tuple[Key, float]]"
"""What a request takes, and from which accounts."""


class Limit:
    """One limit, compiled: its accounts, and how a request finds its own."""

    def __init__(
        self,
        config: Config,
        *,
        ident: str,
        source: Source,
        counts: Counts,
        per: str,
        constant: str | None,
        secret: bool = False,
    ) -> None:
        """`secret`: the values of the header that it goes by are credentials, whatever its name."""
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
        self._hides_values = secret or per.removeprefix("header:").lower().encode() in CREDENTIALS
        self.accounts: dict[str | bytes, Key] = {}
        """Those used last; older ones are in `_older`, which is to be dropped when this is full: `_dropping`."""
        self._older: dict[str | bytes, Key] = {}
        self._dropping: dict[str | bytes, Key] = {}
        self._before: dict[str | bytes, Key] = {}
        """Accounts of the config before, for those that are opened here."""
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

    def inherit(self, other: Limit) -> None:
        """Go on with what was known of the keys of the same limit in the config before, if both are quotas of windows
        of the same length, in the same store. To be called before the first request.
        """
        if (
            not self._window_s
            or (self._window_s, self.source.fleet) != (other._window_s, other.source.fleet)
            or self.config.per != other.config.per
        ):
            return
        if self.only is None or other.only is None:
            self._before = dict(itertools.islice(other._known(), MOST_KEYS))
        elif self.only.key == other.only.key:
            self.only.inherit(other.only, self.source.clock.now)

    def _known(self) -> Iterator[tuple[str | bytes, Key]]:
        """Values and their accounts, those used last first."""
        known = {**self._before, **self._dropping, **self._older, **self.accounts}
        return reversed(known.items())

    def account(self, request: Request) -> Key:
        """The account that a request is charged to."""
        only = self.only
        if only is not None:
            return only
        value = self._value_of(request)
        account = self.accounts.get(value)
        return account if account is not None else self._reopen(value)

    def _reopen(self, value: str | bytes) -> Key:
        account = self._older.pop(value, None) or self._dropping.pop(value, None)
        if account is not None:
            self.accounts[value] = account
        else:
            account = self._open(value)
        if self._dropping:
            self._drop(_DROPPED_AT_ONCE)
        if len(self.accounts) > MOST_KEYS // 2:
            self._forget()
        return account

    def _open(self, value: str | bytes) -> Key:
        key = _key(self.id, value, hidden=self._hides_values and value != NO_VALUE)
        now = self.source.clock.now
        account = Key(key, self.source, now)
        before = self._before.pop(value, None)
        if before is not None:
            account.inherit(before, now)
        self.accounts[value] = account
        return account

    def _forget(self) -> None:
        """Begin to drop the accounts that were not used since half of the room was filled anew."""
        self._drop(len(self._dropping))
        self._dropping, self._older, self.accounts = self._older, self.accounts, {}

    def _drop(self, count: int) -> None:
        now = self.source.clock.now
        for _ in range(min(count, len(self._dropping))):
            self._dropping.popitem()[1].give_back(now)

    def retire(self, now: float) -> None:
        """Give back what can be given back, and forget the keys. Who waits goes on."""
        for account in self.all_accounts():
            account.give_back(now)
        self.accounts, self._older, self._dropping = {}, {}, {}

    def all_accounts(self) -> Iterator[Key]:
        """All there are."""
        return itertools.chain(self.accounts.values(), self._older.values(), self._dropping.values())

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.accounts) + len(self._older) + len(self._dropping)

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

    def _status(self, account: Key, now: float) -> LimitStatus:
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
            fallback=round(account.otherwise - account.credited),
            credit=round(account.credited),
            limited=account.limited,
        )

    def _rate_text(self) -> str:
        terms = self.terms
        if terms == self.configured:
            return self.written
        period_s = self.config.written[1]
        return f"{terms.rate * period_s:.15g}/{_PERIODS[period_s]}"


_PERIODS: Final = {1: "s", 60: "m", 3600: "h", 86400: "d"}


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
            found = None
            for key, value in request.headers:
                if len(key) == len(name) and key.lower() == name:
                    if found is not None and found != value:
                        return NO_VALUE  # else with each further one a client had another key
                    found = value
            return NO_VALUE if found is None else found

        return of_header
    return _VALUES[per]


_VALUES: Final[dict[str, Callable[[Request], str | bytes]]] = {
    "client": lambda request: request.client or NO_VALUE,
    "client_ip": lambda request: request.client_ip or NO_VALUE,
    "route": lambda request: request.route,
    "upstream": lambda _: NO_VALUE,
}

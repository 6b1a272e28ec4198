"""Cool-down: an upstream that says `Retry-After` is left alone until then, by every replica.

Phase ATTEMPT, beside the breaker: before an attempt `left` says for how long none may be made, after an answer's head
`heard` takes what it asks for. What is refused is `breaker_open` with `Retry-After`; nothing was sent.

A pause is a named value of the fleet's store that lasts as long as the pause, and the longest one holds (`Put` with
`longest`). A worker learns of the others' by events, and reads those that it does not know of: at the start, when the
store is back, and at the first request with a credential that it has not seen lately. Nothing waits for that. The
replica's own store has the pauses that its workers heard of too: by it they go on together while the fleet's is away.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Protocol
from weakref import ref

from ambassador.errors import BreakerOpen
from ambassador.proxy.fields import CREDENTIALS
from ambassador.proxy.retry_after import retry_after_s
from ambassador.settings import Seconds, Section
from ambassador.state.protocol import Get, Named, Put, decode_named
from ambassador.state.scope import MISSED

if TYPE_CHECKING:
    from ambassador.messages import Fields
    from ambassador.state.protocol import Answer, Event
    from ambassador.state.scope import Clock, Scope, Scopes

_REMEMBERED: Final = 4096
"""Credentials in each worker; the one that came first is forgotten, and read again when it comes."""
_PAUSING: Final = frozenset({429, 503})
_KIND: Final = "cooldown"
_ALL: Final = "*"
_NOBODY: Final = "-"


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a 429 or 503 with `Retry-After` pauses, for every replica. Off unless written."""

    shorthand: ClassVar[str | None] = "scope"

    scope: Literal["credential", "endpoint", "upstream"] = "credential"
    """Requests with the same credential, the endpoint that said so, or the whole upstream. A credential is what the
    upstream sees: with `auth`, the ambassador's, one for all clients (with `auth: {exchange: …}`, one for each caller's
    token); else the first of the client's `authorization`, `x-api-key` and `cookie`. Requests without one are one."""

    max: Seconds = 300.0
    """The longest pause; a longer `Retry-After` counts as this. Of several the longest counts."""


class Endpoint(Protocol):
    """One server."""

    @property
    def url(self) -> str:
        """Its name."""

    paused_until: float


class Upstream(Protocol):
    """A service. `shut` counts the endpoints that are not like the others."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """Its servers."""

    shut: int


class Cooldowns:
    """All cool-downs of a worker: pauses outlive the tables. `wall_s` tells the time of day, for dates."""

    __slots__ = ("_clock", "_cooldowns", "_stores", "_wall_s")

    def __init__(self, clock: Clock, wall_s: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall_s = wall_s
        self._cooldowns: dict[str, Cooldown] = {}
        self._stores: set[Scope] = set()

    def get(self, config: Config, upstream: Upstream, scopes: Scopes) -> Cooldown:
        """The cool-down of an upstream, for a table that is being made."""
        return Cooldown(config, upstream, scopes, self._clock, self._wall_s)

    def install(self, cooldowns: Iterable[Cooldown]) -> None:
        """These are the cool-downs of the table that is served from now on."""
        before, self._cooldowns = self._cooldowns, {each.name: each for each in cooldowns}
        for cooldown in self._cooldowns.values():
            for store in cooldown.stores:
                if store not in self._stores:
                    self._stores.add(store)
                    store.listen("value", partial(self._told, store))
                    store.on_up(partial(self._again, store))
                    store.listen(MISSED, partial(self._look, store))
            old = before.get(cooldown.name)
            if old is not None:
                cooldown.inherit(old)
            cooldown.read_known()

    def _told(self, store: Scope, event: Event) -> None:
        kind, _, rest = event.name.partition(":")
        name, _, key = rest.partition(":")
        cooldown = self._cooldowns.get(name) if kind == _KIND else None
        if cooldown is not None and store in cooldown.stores:
            cooldown.learn(key, decode_named(event.body))

    def _look(self, store: Scope, _: Event) -> None:
        """Events are not heard."""
        for cooldown in self._of(store):
            cooldown.read_known()

    def _again(self, store: Scope) -> None:
        """The store is back: it may have lost what this worker knows, or know more."""
        for cooldown in self._of(store):
            cooldown.tell_all()
            cooldown.read_known()

    def _of(self, store: Scope) -> list[Cooldown]:
        return [cooldown for cooldown in self._cooldowns.values() if store in cooldown.stores]


class Cooldown:
    """One upstream's pauses, as a worker knows them."""

    __slots__ = ("_clock", "_config", "_until", "_upstream", "_wall_s", "name", "stores")

    def __init__(
        self, config: Config, upstream: Upstream, scopes: Scopes, clock: Clock, wall_s: Callable[[], float]
    ) -> None:
        self.name = upstream.name
        self.stores = (scopes.fleet,) if scopes.replica is scopes.fleet else (scopes.fleet, scopes.replica)
        """The fleet's, and the replica's own if that is another."""
        self._config = config
        # Its owner: a cycle would keep a table that a reload has replaced.
        self._upstream = ref(upstream)
        self._clock = clock
        self._wall_s = wall_s
        self._until: OrderedDict[str, float] = OrderedDict()

    @property
    def spares_others(self) -> bool:
        """A pause is of the endpoint that asks for it alone."""
        return self._config.scope == "endpoint"

    def left(self, fields: Fields, endpoint: Endpoint) -> float:
        """How long no attempt may be made for a request with these fields, in seconds; 0: now."""
        if not self._until and self._config.scope != "credential":
            return 0.0
        key = self._key(fields, endpoint)
        until = self._until.get(key)
        if until is None:
            self._remember(key, 0.0)
            if self._config.scope == "credential":
                self._read(key)
            return 0.0
        return max(0.0, until - self._clock.now)

    def error(self, left_s: float) -> BreakerOpen:
        """What a request is told that may not be sent for so long."""
        return BreakerOpen(f"the upstream {self.name} has asked for a pause", retry_after_s=left_s)

    def heard(self, fields: Fields, endpoint: Endpoint, status: int, after: bytes | None) -> None:
        """An answer's status and its `Retry-After`, to a request with these fields."""
        if status not in _PAUSING or after is None:
            return
        asked = retry_after_s(after, self._wall_s())
        if not asked:
            return
        pause = min(asked, self._config.max)
        key = self._key(fields, endpoint)
        if self._pause(key, pause):
            self._tell(key, pause)

    def _key(self, fields: Fields, endpoint: Endpoint) -> str:
        if self._config.scope == "upstream":
            return _ALL
        if self._config.scope == "endpoint":
            return endpoint.url
        found = {name.lower(): value for name, value in fields if name.lower() in CREDENTIALS}
        for name in CREDENTIALS:
            if name in found:
                # A hash: credentials are never put into a store.
                return hashlib.blake2b(found[name], digest_size=16, person=name).hexdigest()
        return _NOBODY

    def _endpoints(self) -> Sequence[Endpoint]:
        upstream = self._upstream()
        return () if upstream is None else upstream.endpoints

    def _known(self) -> list[str]:
        """The keys that are known before any request."""
        if self._config.scope == "endpoint":
            return [endpoint.url for endpoint in self._endpoints()]
        return [_ALL if self._config.scope == "upstream" else _NOBODY]

    def _remember(self, key: str, until: float) -> None:
        self._until[key] = until
        self._until.move_to_end(key)
        if len(self._until) > _REMEMBERED:
            self._until.popitem(last=False)

    def _pause(self, key: str, pause: float) -> bool:
        """Pause for so long from now on; False if it is paused for longer already."""
        until = self._clock.now + pause
        if until <= self._until.get(key, 0.0):
            return False
        self._remember(key, until)
        upstream = self._upstream()
        for endpoint in self._endpoints() if self._config.scope == "endpoint" else ():
            if endpoint.url == key and upstream is not None:
                # Counted as long as the table lives: who picks looks at the time.
                upstream.shut += not endpoint.paused_until
                endpoint.paused_until = until
        return True

    def follow(self, upstream: Upstream) -> None:
        """The upstream has other endpoints: new ones may have asked for a pause before they came."""
        if self._config.scope != "endpoint":
            return
        for endpoint in upstream.endpoints:
            if endpoint.paused_until:
                continue
            until = self._until.get(endpoint.url)
            if until is None:
                self._read(endpoint.url)
            elif until > self._clock.now:
                upstream.shut += 1
                endpoint.paused_until = until

    # With the others

    def _tell(self, key: str, pause: float) -> None:
        name = f"{_KIND}:{self.name}:{key}"
        for store in self.stores:
            store.ask(Put(name, b"", max(1, round(pause * 1000)), longest=True, publish=True))

    def _read(self, key: str) -> None:
        store = next((store for store in self.stores if store.up), self.stores[0])
        store.ask(Get(f"{_KIND}:{self.name}:{key}"), partial(self._answered, key))

    def _answered(self, key: str, answer: Answer | None) -> None:
        if isinstance(answer, Named):
            self.learn(key, answer)

    def learn(self, key: str, value: Named) -> None:
        """The store has a pause, or none."""
        if value.version:
            self._pause(key, min(value.ttl_ms / 1000, self._config.max))

    def read_known(self) -> None:
        """Ask for the pauses whose keys are known."""
        for key in self._known():
            self._read(key)

    def tell_all(self) -> None:
        """Tell the store of every pause."""
        now = self._clock.now
        for key, until in list(self._until.items()):
            if until > now:
                self._tell(key, until - now)

    def inherit(self, other: Cooldown) -> None:
        """Go on with the pauses of the same upstream in the table before."""
        if other._config.scope != self._config.scope:
            return
        now = self._clock.now
        for key, until in other._until.items():
            if until > now:
                self._pause(key, min(until - now, self._config.max))

"""Cache: answers to GET that are given again, and identical requests that go up as one.

Phase REPEAT, outside the attempts: an answer from here makes none, and counts against no upstream. A shared cache as of
RFC 9111, in the memory of each worker: `proxy/freshness.py` says what may be stored and how long it is fresh,
`proxy/shelf.py` what it is found by. Answers are recorded as they pass; none is held back for that.

Identical requests that meet make one *flight*: the first leads and goes up, the others wait for its answer to be whole.
- Only requests that the same stored answer could answer join: the same target, credentials, and fields.
- To whom an answer may be given is known when its head has come. One that the cache might keep (fresh, and not for one
  user only) is for all; any other for the client who asked: the same name, or the same address where there is none.
  Other clients' requests then make flights of their own, and do so from the start for the next seconds.
- No answer (the leader has failed), or one that is an error, not for others, too large, or a stream lets them go at
  once: they all go up themselves, and so do identical ones for the next seconds. To try one after another would take
  the time of each from all that are behind. An answer whose body takes longer than `_BODY_S` lets them go as well: a
  client that reads slowly must not hold up others.
- If the leader leaves, which says nothing of the answer, the first that notices leads the next flight. Nobody waits for
  more than `_FLIGHTS` leaders, nor beyond a time of his own, which leaves enough for an attempt. Everybody's own
  deadline holds, and nothing is kept of one who leaves.
- A request that changes the target (`proxy/changes.py`) ends its flights: nobody joins one that began before.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Collection, Iterator
from math import inf
from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypeAlias

from ambassador.proxy import freshness
from ambassador.proxy.shelf import Kept, Key, Shelf
from ambassador.settings import Bytes, MatchHeader, Seconds, Section

if TYPE_CHECKING:
    from ambassador.messages import Fields, Request, ResponseHead, Waiter
    from ambassador.state.scope import Clock

DEFAULT_MAX: Final = 64 * 2**20
"""Bytes of answers in each worker where the config says nothing."""
_BODY_S: Final = 1.0
"""How long after its head the body of an answer is waited for by those who have not asked for it themselves."""
_FLIGHTS: Final = 2
_APART_S: Final = 10.0
"""How long requests go up by themselves after an answer that was not for others, and by client after one that was for
one client only. Varnish's hit-for-miss: 120 s."""
_REMEMBERED: Final = 1024
"""Targets that are remembered for that, and those that were changed lately."""
_BYPASSING: Final = frozenset({b"range", b"if-range", b"if-match", b"if-unmodified-since"})
_STREAMS: Final = (b"text/event-stream", b"application/grpc", b"multipart/x-mixed-replace")


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers to GET that are kept in each worker and given again, and identical requests that go up as one. `coalesce:
    true` alone keeps nothing.
    """

    shorthand: ClassVar[str | None] = "ttl"

    ttl: Literal["from-response"] | Seconds | None = None
    """For how long an answer is fresh: what it says itself (`from-response`, also when unset); or, for answers that say
    nothing, so long. What an answer says always holds."""

    max: Bytes | None = None
    """Bytes of answers in each worker, 64 MiB when unset; one answer has an eighth of it at most. What was not asked
    for the longest time goes first."""

    coalesce: bool | None = None
    """Whether identical requests at the same time go up as one. Unset: they do."""

    ignore: tuple[MatchHeader, ...] = ()
    """Headers of requests that do not matter for the answer, such as a correlation id. Every header that is not a
    standard one that `vary` tells of matters otherwise: requests that differ in it have answers of their own."""

    @property
    def stores(self) -> bool:
        """Whether answers are kept."""
        return self.ttl is not None or self.max is not None or self.coalesce is None

    @property
    def most(self) -> int:
        """Bytes of answers in each worker."""
        return self.max or DEFAULT_MAX

    @property
    def joins(self) -> bool:
        """Whether identical requests go up as one."""
        return self.coalesce is not False

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Nothing to do."""
        if not self.stores and not self.joins:
            yield "coalesce", "is off and nothing is stored: write 'ttl' or 'max', or leave the cache out"


class _State(enum.Enum):
    UNDER_WAY = enum.auto()
    LANDED = enum.auto()
    """There is an answer for all that it suits."""
    LEFT = enum.auto()
    """Who led is gone, and another may lead."""
    RELEASED = enum.auto()
    """Everybody goes up himself."""


Name: TypeAlias = tuple[bytes, bytes]
"""What identical requests have in common: `Key.uri` and `Key.who`."""


class Flight:
    """One request, of `client`, that goes up for several."""

    __slots__ = ("_client", "answer", "is_private", "name", "state", "until", "waiting")

    def __init__(self, name: tuple[bytes, bytes, bytes], client: bytes) -> None:
        self.name = name
        """What it is found by: of requests that are apart by client, with that."""
        self._client = client
        self.is_private = False
        """The answer is for the requests of this client only."""
        self.state = _State.UNDER_WAY
        self.answer: Kept | None = None
        self.until = inf
        """When who waits goes up himself."""
        self.waiting: list[Waiter] = []

    def is_for(self, client: bytes) -> bool:
        """Whether the answer may be given to this client, as far as it is known."""
        return not self.is_private or client == self._client

    def end(self, state: _State, answer: Kept | None = None) -> None:
        """It is over."""
        if self.state is _State.UNDER_WAY:
            self.state, self.answer = state, answer
            self.wake()

    def wake(self) -> None:
        """Have all that wait look again."""
        for waiter in self.waiting:
            waiter.wake()


class _Lately:
    """Names for which something held lately: each for `_APART_S`, and at most `_REMEMBERED` of them."""

    __slots__ = ("_clock", "_until")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: OrderedDict[Name, float] = OrderedDict()

    def __contains__(self, name: Name) -> bool:
        return self._until.get(name, 0.0) > self._clock.now

    def add(self, name: Name) -> None:
        """It holds from now on, for a while."""
        self._until[name] = self._clock.now + _APART_S
        self._until.move_to_end(name)
        if len(self._until) > _REMEMBERED:
            self._until.popitem(last=False)


class Found:
    """An answer that need not go up. `note` is what `cache-status` says of it (RFC 9211)."""

    __slots__ = ("kept", "note")

    def __init__(self, kept: Kept, note: bytes) -> None:
        self.kept = kept
        self.note = note


class Cache:
    """The cache of a route in one worker."""

    __slots__ = (
        "_changed",
        "_changed_before",
        "_ignored",
        "apart",
        "by_client",
        "clock",
        "flights",
        "joins",
        "shelf",
        "stores",
        "ttl_s",
    )

    def __init__(self, config: Config, clock: Clock, shelf: Shelf | None = None) -> None:
        """`shelf`: where answers are kept; None: on one of its own."""
        self.clock = clock
        self.stores = config.stores
        self.joins = config.joins
        self.ttl_s = config.ttl if isinstance(config.ttl, float) else None
        self.shelf = Shelf(config.most) if shelf is None else shelf
        self.flights: dict[tuple[bytes, bytes, bytes], Flight] = {}
        self._ignored = frozenset(name.encode() for name in config.ignore)
        self.apart = _Lately(clock)
        """Requests for these go up by themselves."""
        self.by_client = _Lately(clock)
        """Of those for these only the ones of one client go up as one."""
        self._changed: OrderedDict[bytes, float] = OrderedDict()
        """When targets were changed last: an answer to a request that began before is not kept."""
        self._changed_before = -inf
        """Of those that are forgotten, the last."""

    def visit(self, request: Request, forwarded: Fields) -> Visit | None:
        """What a request has to do with the cache; None: nothing. `forwarded`: `Peer.fields` of it."""
        if request.method not in ("GET", "HEAD") or request.content_length or request.chunked:
            return None
        key = Key(request, forwarded, self._ignored)
        if not key.fields.keys().isdisjoint(_BYPASSING):
            return None
        asked = freshness.cache_control(key.fields.get(b"cache-control"))
        if b"no-store" in asked:
            return None
        if b"pragma" in key.fields and not asked and b"no-cache" in key.fields[b"pragma"]:  # 5.4
            asked = {b"no-cache": None}
        return Visit(self, request, key, asked)

    def last(self, request: Request, forwarded: Fields) -> Kept | None:
        """What there is for a request, fresh or not."""
        return self.shelf.find(Key(request, forwarded, self._ignored)) if self.stores else None

    def forget(self, uris: Collection[bytes]) -> None:
        """These targets were changed (4.4)."""
        gone = frozenset(uris)
        for flying in [flying for flying in self.flights if flying[0] in gone]:
            del self.flights[flying]
        for uri in uris:
            self.shelf.forget(uri)
            self._changed[uri] = self.clock.now
            self._changed.move_to_end(uri)
            if len(self._changed) > _REMEMBERED:
                self._changed_before = self._changed.popitem(last=False)[1]

    def has_changed(self, uri: bytes, since: float) -> bool:
        """Whether a target was, or may have been, changed at that time or later."""
        return max(self._changed.get(uri, -inf), self._changed_before) >= since


class Visit:
    """One request at the cache: `look`, perhaps `wait`; then, if it goes up, `hear` the head of the answer, `take` its
    body; and `end` in any case, or `leave`.
    """

    __slots__ = (
        "_asked",
        "_began",
        "_cache",
        "_client",
        "_flight",
        "_heard",
        "_key",
        "_left",
        "_old",
        "_original",
        "_request",
        "note",
        "result",
    )

    def __init__(self, cache: Cache, request: Request, key: Key, asked: freshness.Directives) -> None:
        self._cache = cache
        self._request = request
        # A name is in the key.
        self._client = b"" if request.client is not None else request.client_ip.encode()
        self._key = key
        self._asked = asked
        self._original = request.passing
        self._old: Kept | None = None
        """What is asked about upstream, whether it still holds."""
        self._flight: Flight | None = None
        """The one that this request leads."""
        self._began = cache.clock.now
        self._left = _FLIGHTS
        self._heard: tuple[ResponseHead, freshness.Said, float, float] | None = None
        """The head of the answer, what it says, when it came and how old it was then."""
        self.note = b"fwd=miss"
        """What `cache-status` says of an answer from upstream (RFC 9211)."""
        self.result = "miss"
        """What it got here, as it is counted: `hit`, `validated`, `coalesced` or `miss`."""

    @property
    def only_if_cached(self) -> bool:
        """It must not go up (5.2.1.7)."""
        return b"only-if-cached" in self._asked

    @property
    def _name(self) -> Name:
        return self._key.uri, self._key.who

    def look(self) -> Found | Flight | None:
        """What there is: an answer, a flight to wait for, or nothing: then it goes up, and leads if it can."""
        cache, now = self._cache, self._cache.clock.now
        self._began = now
        kept = cache.shelf.find(self._key) if cache.stores else None
        if kept is not None:
            left_s = kept.left_s(now)
            if left_s > 0 and freshness.allows(self._asked, age_s=kept.age_s(now), left_s=left_s):
                self.result = "hit"
                return Found(kept, b"hit; ttl=%d" % left_s)
            self.note = b"fwd=stale" if left_s <= 0 else b"fwd=request"
        if self.only_if_cached:
            return None
        if self._may_share() and self._name not in cache.apart:
            name = (*self._name, self._client if self._name in cache.by_client else b"")
            flight = cache.flights.get(name)
            if flight is not None and flight.state is not _State.UNDER_WAY:
                flight = None  # what it brought is from before
            if flight is not None and self._left:
                return flight
            if flight is None:
                self._flight = cache.flights[name] = Flight(name, self._client)
        if kept is not None and self._is_plain():
            self._ask_about(kept)
        return None

    def _is_plain(self) -> bool:
        """It asks for the whole answer, whatever the client has."""
        fields = self._key.fields
        return (
            self._request.method == "GET"
            and b"if-none-match" not in fields
            and b"if-modified-since" not in fields
        )

    def _may_share(self) -> bool:
        return self._cache.joins and self._is_plain() and not self._asked

    def _ask_about(self, kept: Kept) -> None:
        conditions = freshness.conditions(kept.said.fields)
        if conditions:
            self._old = kept
            self._request.passing = [*self._original, *conditions]

    async def wait(self, flight: Flight, waiter: Waiter, until: float = inf) -> Found | None:
        """Wait for somebody else's answer, at most `until`. None: there is none for this request; look again.

        Raises what the waiter's `rest` raises.
        """
        clock = self._cache.clock
        flight.waiting.append(waiter)
        try:
            while flight.state is _State.UNDER_WAY and flight.is_for(self._client):
                rests_until = min(until, flight.until)
                if clock.now >= rests_until:
                    break
                await waiter.rest(rests_until)
        finally:
            flight.waiting.remove(waiter)
        if not flight.is_for(self._client):
            self._left -= 1
            return None
        answer = flight.answer
        if answer is not None and answer.answers(self._key.fields):
            self.result = "coalesced"
            return Found(answer, b"fwd=miss; collapsed")
        self._left = self._left - 1 if flight.state is _State.LEFT else 0
        return None

    # An answer from upstream

    def hear(self, head: ResponseHead, said: freshness.Said, age_s: float) -> Found | None:
        """The head of the answer, which came `age_s` old and has `said` this. What is found instead, if it says that
        what was kept still holds.
        """
        now = self._cache.clock.now
        self._heard = (head, said, now, age_s)
        if self._old is not None:
            self.note += b"; fwd-status=%d" % head.status
            if head.status == 304:
                return self._renew(self._old, head, said, now, age_s)
        flight = self._flight
        if flight is not None:
            if (
                head.status >= 500
                or not said.may_share()
                or b"no-cache" in said.directives
                or head.status not in freshness.STORABLE
                or (head.content_length or 0) > self._cache.shelf.most_each
                or said.fields.get(b"content-type", b"").startswith(_STREAMS)
            ):
                self._release()
            else:
                self._keep_from_others(flight, said)
                flight.until = now + _BODY_S
                flight.wake()
        return None

    def _renew(self, old: Kept, head: ResponseHead, said: freshness.Said, now: float, age_s: float) -> Found:
        kept = old.renewed(head, now=now, age_s=age_s, date=said.date, default_lifetime_s=self._cache.ttl_s)
        may_store = kept.said.may_store(authorized=self._is_authorized)
        if may_store and self._is_current():
            self._cache.shelf.put(kept)
        if self._flight is not None:
            if may_store:
                self._keep_from_others(self._flight, kept.said)
                self._flight.end(_State.LANDED, kept)
            else:
                self._release()
        self.result = "validated"
        return Found(kept, self.note)

    @property
    def _is_authorized(self) -> bool:
        return b"authorization" in self._key.fields

    def _keep_from_others(self, flight: Flight, said: freshness.Said) -> None:
        """Other clients do not get the answer unless it is for all."""
        if said.is_public(authorized=self._is_authorized):
            return
        flight.is_private = True
        self._cache.by_client.add(self._name)
        flights, name = self._cache.flights, (*self._name, self._client)
        if flights.get(flight.name) is flight:  # else nobody may join it any more
            del flights[flight.name]
            flight.name = name
            flights.setdefault(name, flight)

    def _is_current(self) -> bool:
        """The target was not changed since the request went up."""
        return not self._cache.has_changed(self._key.uri, self._began)

    def _release(self) -> None:
        if self._flight is not None and self._flight.state is _State.UNDER_WAY:
            self._cache.apart.add(self._name)
            self._flight.end(_State.RELEASED)

    def wants_body(self) -> bool:
        """Whether `take` should be given the body."""
        assert self._heard is not None
        head, said, _, _ = self._heard
        if self._request.method != "GET" or (head.content_length or 0) > self._cache.shelf.most_each:
            return False
        under_way = self._flight is not None and self._flight.state is _State.UNDER_WAY
        return under_way or self._is_storable(said)

    def _is_storable(self, said: freshness.Said) -> bool:
        return (
            self._cache.stores
            and self._is_current()
            and said.may_store(authorized=self._is_authorized)
            and (said.lifetime_s > 0 or bool(freshness.conditions(said.fields)))
        )

    def take(self, body: bytes | None) -> None:
        """The body of the answer, when it has passed; None: it is too large, or has trailers."""
        if body is None or self._heard is None:
            return self._release()
        head, said, now, age_s = self._heard
        kept = Kept(self._key, head, body, said, now=now, age_s=age_s)
        if self._is_storable(said):
            self._cache.shelf.put(kept)
        if self._flight is not None:
            self._flight.end(_State.LANDED, kept)
        return None

    # The end

    def withdraw(self) -> None:
        """The request goes elsewhere, as it came; what comes of it is nobody else's."""
        self._request.passing = self._original
        self._old = None
        self.end()

    def end(self) -> None:
        """There will be no more of an answer for others. If some wait for it still, it has failed: they go up."""
        self._release()
        self._end(_State.RELEASED)

    def leave(self) -> None:
        """The request is given up by who asked. If others wait for it still, one of them leads."""
        self._end(_State.LEFT)

    def _end(self, state: _State) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.end(state)
            if self._cache.flights.get(flight.name) is flight:
                del self._cache.flights[flight.name]

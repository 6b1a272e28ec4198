"""Outlier ejection: an endpoint that is worse than the others of its upstream gets no requests for a while.

Two things speak against an endpoint, each as one worker sees it: failures in a row, and a share of successes that is
low against that of the others. Failures are attempts without an answer (connect, reset, timeout) and 5xx. It is ejected
for all workers of the replica: the ejections of an upstream are one named value of the replica's store, changed by
compare-and-set, so no two workers together eject more than may be.

What is decided is pure: `Row` (what was seen of one endpoint), `worst` (who is worse than the others), `Ejections` (who
may be ejected, for how long). `Detector` connects them with the store, the clock and the endpoints of one upstream.

Sources: consecutive failures, the time that grows with each ejection and shrinks while nothing happens, the bound on
the ejected share, and that a lone endpoint stays, are Envoy's outlier detection. The rate is compared with that of the
others together, not with a standard deviation, which needs many endpoints to mean anything.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import floor, inf
from typing import TYPE_CHECKING, ClassVar, Final, Protocol
from weakref import ref

import msgspec

from ambassador.proxy.lane import Timer
from ambassador.settings import Count, CountOrNone, Fraction, SecondsRange, Section
from ambassador.state.protocol import Get, Named, Put, decode_named
from ambassador.state.store_time import StoreTime

if TYPE_CHECKING:
    from ambassador.proxy.upstream.endpoint import Outlier
    from ambassador.state.protocol import Answer, Event
    from ambassador.state.scope import Clock, Scope

WINDOW_S: Final = 10
"""Over so many seconds a share of successes is measured. Envoy's interval and Linkerd's window: 10 s."""
_KIND: Final = "outlier"
_REMEMBERED_MS: Final = 24 * 3600 * 1000
"""How long the store keeps what nobody changes; longer than an ejection lasts or is remembered."""


class SuccessRate(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a share of successes is low, over the last 10 s and as one worker sees it."""

    shorthand: ClassVar[str | None] = "below"

    below: Fraction = 0.85
    """An endpoint is ejected whose share of successes is below this part of what the others have together: so nobody
    is where all fail alike. Envoy's failure percentage: 85 %."""

    min_requests: Count = 100
    """Requests to the endpoint, and to the others together, before the shares are compared. Envoy: 100."""


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an endpoint is left out because it is worse than the others. One that is alone never is."""

    shorthand: ClassVar[str | None] = "consecutive"

    consecutive: CountOrNone = 5
    """Failures in a row (`5xx`, `connect`, `reset`, `timeout`) as one worker sees them. 0: they do not matter.
    Envoy: 5."""

    success_rate: SuccessRate | None = SuccessRate()
    """Comparison with the others. `off`: none."""

    eject_for: SecondsRange = (30.0, 300.0)
    """How long: the first value times the number of ejections, up to the second. One is forgotten for each time of the
    first value that goes well. Envoy: 30 s, 300 s."""

    max_ejected: Fraction = 0.5
    """The part of the endpoints that may be ejected at the same time; one always may, all never."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Nothing that would eject anything."""
        if not self.consecutive and self.success_rate is None:
            yield None, "ejects nothing without 'consecutive' and 'success_rate'; leave it out, or say 'off'"


# ----- what was seen --------------------------------------------------------------------------------------------------


class Row:
    """The outcomes of one endpoint: failures in a row, and counts over WINDOW_S in buckets of a second."""

    __slots__ = ("_ring", "failures", "in_row", "older_failures", "older_requests", "requests")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything: what was before an ejection says nothing about what is after it."""
        self._ring: deque[tuple[int, int]] = deque()
        self.in_row = 0
        self.requests = self.failures = 0
        """Of the second that is not over."""
        self.older_requests = self.older_failures = 0
        """Of those before it."""

    def roll(self, seconds: int) -> None:
        """So many seconds, at least one, are over."""
        for _ in range(min(seconds, WINDOW_S)):
            self._ring.append((self.requests, self.failures))
            self.older_requests += self.requests
            self.older_failures += self.failures
            self.requests = self.failures = 0
            if len(self._ring) == WINDOW_S:
                requests, failures = self._ring.popleft()
                self.older_requests -= requests
                self.older_failures -= failures

    @property
    def window(self) -> tuple[int, int]:
        """(requests, failures) of the last WINDOW_S - 1 whole seconds and the present one."""
        return self.older_requests + self.requests, self.older_failures + self.failures


def worst(windows: Sequence[tuple[int, int]], *, below: float, min_requests: int) -> int | None:
    """Which of these (requests, failures) has the lowest share of successes, if that is below `below` of the others'.

    The others are taken together. None: no one stands out, or there are too few requests to say.
    """
    all_requests = sum(requests for requests, _ in windows)
    all_failures = sum(failures for _, failures in windows)
    found, lowest = None, inf
    for index, (requests, failures) in enumerate(windows):
        others = all_requests - requests
        if requests < min_requests or others < min_requests:
            continue
        share = 1 - failures / requests
        theirs = 1 - (all_failures - failures) / others
        if share < below * theirs and share < lowest:
            found, lowest = index, share
    return found


# ----- what is decided ------------------------------------------------------------------------------------------------


class Ejection(msgspec.Struct, frozen=True, array_like=True):
    """One endpoint's. Times are microseconds of the store's clock."""

    until_us: int
    times: int
    """How often, as far as it is remembered."""
    why: str


class Ejections(msgspec.Struct, frozen=True, array_like=True):
    """Those of one upstream, by url; also of endpoints that are in use again and may be ejected once more."""

    by_url: dict[str, Ejection] = {}
    total: int = 0
    """How many there have been."""

    def remembered(self, url: str, now_us: int, least_s: float) -> int:
        """How often `url` was ejected, one less for each `least_s` that it has been in use since."""
        known = self.by_url.get(url)
        if known is None:
            return 0
        well_us = max(0, now_us - known.until_us)
        return max(0, known.times - int(well_us // (least_s * 1e6)))

    def current(self, urls: Iterable[str], now_us: int) -> set[str]:
        """Those of `urls` that are ejected."""
        return {url for url in urls if url in self.by_url and self.by_url[url].until_us > now_us}

    def eject(self, url: str, urls: Sequence[str], now_us: int, config: Config, why: str) -> Ejections | None:
        """With `url`, one of `urls`, ejected from now on; None if it must not be: too many are, or it is already."""
        ejected = self.current(urls, now_us)
        if url in ejected or len(ejected) >= most_ejected(len(urls), config.max_ejected):
            return None
        low, high = config.eject_for
        times = self.remembered(url, now_us, low) + 1
        seconds = min(high, low * times)
        kept = {
            other: known for other, known in self.by_url.items() if self.remembered(other, now_us, low) > 0
        }
        kept[url] = Ejection(now_us + int(seconds * 1e6), times, why)
        return Ejections(kept, self.total + 1)

    def withdraw(self, url: str, ejection: Ejection, before: Ejection | None) -> Ejections | None:
        """Without `ejection` of `url`, which was never in force: `before` was there. None if another one has come."""
        if self.by_url.get(url) != ejection:
            return None
        kept = {other: known for other, known in self.by_url.items() if other != url}
        return Ejections(kept if before is None else {**kept, url: before}, self.total - 1)

    def pardon(self, url: str, now_us: int) -> Ejections | None:
        """With the ejection of `url` over now, though remembered; None if it is not ejected."""
        known = self.by_url.get(url)
        if known is None or known.until_us <= now_us:
            return None
        return Ejections({**self.by_url, url: msgspec.structs.replace(known, until_us=now_us)}, self.total)


def most_ejected(endpoints: int, share: float) -> int:
    """How many of so many may be ejected at the same time: one always, all never."""
    return min(endpoints - 1, max(1, floor(endpoints * share)))


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Ejections).decode


# ----- between these and the world ------------------------------------------------------------------------------------


class Endpoint(Protocol):
    """One server."""

    @property
    def url(self) -> str:
        """Its name."""

    @property
    def healthy(self) -> bool:
        """What active checks say."""

    outlier: Outlier | None
    ejected_until: float
    why: str


class Upstream(Protocol):
    """A service."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """Its servers."""

    def follow(self, told: Callable[[Upstream], None]) -> None:
        """Have `told` called when these are others."""

    def refresh(self) -> None:
        """Work out anew who is picked."""


class Lane(Protocol):
    """What tells the time and calls timers."""

    @property
    def now(self) -> float:
        """The time."""

    def arm(self, timer: Timer) -> None:
        """Have `timer.expire` called at its `deadline`."""


class Watch:
    """What an endpoint tells its outcomes to. It knows nothing of the endpoint but its url."""

    __slots__ = ("_consecutive", "_detector", "row", "url")

    def __init__(self, detector: Detector, url: str, consecutive: float, row: Row) -> None:
        self._detector = detector
        self._consecutive = consecutive
        self.url = url
        self.row = row

    def settled(self, now: float, *, failed: bool) -> None:
        """An attempt came to its end at `now` (the lane's clock)."""
        detector, row = self._detector, self.row
        if now >= detector.turns_at:
            detector.turn(now)
        row.requests += 1
        if not failed:
            row.in_row = 0
            return
        row.failures += 1
        row.in_row += 1
        if row.in_row >= self._consecutive:
            detector.eject(self, f"{row.in_row} failures in a row")

    def recovered(self) -> None:
        """Active checks say that it is well, after they said that it is not."""
        self._detector.pardon(self.url)


class Detector:
    """One upstream's ejections, as a worker knows them. `told` is called with the time of the next one's end."""

    __slots__ = (
        "_asking", "_clock", "_log", "_tells", "_time", "_told", "_upstream", "config", "ejections", "name", "store",
        "turns_at", "version", "watches",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        upstream: Upstream,
        store: Scope,
        *,
        clock: Clock,
        time: StoreTime,
        told: Callable[[float], None],
        log: logging.Logger,
        tells: bool,
    ) -> None:
        self.config = config
        self.name = upstream.name
        self.store = store
        # Its owner: a cycle would keep a table that a reload has replaced.
        self._upstream = ref(upstream)
        self._clock = clock
        self._time = time
        self._told = told
        self._log = log
        self._tells = tells
        self.watches: dict[str, Watch] = {}
        """Those of the upstream's endpoints, by url."""
        self.ejections = Ejections()
        self.version = 0
        """Of the store's value."""
        self._asking = False
        self.turns_at = -inf
        """When the present second is over."""

    # The table

    def begin(self, other: Detector | None) -> None:
        """The table is served from now on. `other`: that of the same upstream in the table before."""
        upstream = self._upstream()
        if upstream is None:
            return
        if other is not None and other.store is self.store:
            self.ejections, self.version, self.turns_at = other.ejections, other.version, other.turns_at
            self.watches = {url: self._watch(url, watch.row) for url, watch in other.watches.items()}
        upstream.follow(self._follow)
        self._follow(upstream)
        self.read()

    def _follow(self, upstream: Upstream) -> None:
        """Hear of every endpoint that the upstream has now."""
        before, self.watches = self.watches, {}
        for endpoint in upstream.endpoints:
            watch = before.get(endpoint.url) or self._watch(endpoint.url, Row())
            self.watches[endpoint.url] = endpoint.outlier = watch
        self._told(self.apply())
        upstream.refresh()

    def _watch(self, url: str, row: Row) -> Watch:
        return Watch(self, url, self.config.consecutive or inf, row)

    def retire(self) -> None:
        """The table is no longer served."""
        self.watches = {}  # each of these and this are a cycle

    # What speaks against an endpoint

    def turn(self, now: float) -> None:
        """A second is over: look who is worse than the others."""
        seconds = WINDOW_S if self.turns_at == -inf else int(now - self.turns_at) + 1
        self.turns_at = now + 1.0 if self.turns_at == -inf else self.turns_at + seconds
        for watch in self.watches.values():
            watch.row.roll(seconds)
        rate = self.config.success_rate
        if rate is None:
            return
        ejected = self.ejections.current(self.watches, self._time.there(now))
        watches = [watch for watch in self.watches.values() if watch.url not in ejected]
        windows = [watch.row.window for watch in watches]
        found = worst(windows, below=rate.below, min_requests=rate.min_requests)
        if found is not None:
            requests, failures = windows.pop(found)
            others = sum(each[0] for each in windows), sum(each[1] for each in windows)
            self.eject(
                watches[found],
                f"{failures} of {requests} requests failed, against {others[1]} of {others[0]} at the others",
            )

    def eject(self, watch: Watch, why: str) -> None:
        """Eject an endpoint for all workers of the replica, if it may be, and if another one is well."""
        upstream, now = self._upstream(), self._clock.now
        if upstream is None or self._asking or (self.store.up and not self._time.known):
            return
        well = (
            each.healthy and each.ejected_until <= now for each in upstream.endpoints if each.url != watch.url
        )
        if not any(well):
            return
        urls = list(self.watches)
        wanted = self.ejections.eject(watch.url, urls, self._time.there(now), self.config, why)
        if wanted is None:
            return
        put = partial(
            self._ejected, watch.url, wanted.by_url[watch.url], self.ejections.by_url.get(watch.url)
        )
        self._put(wanted, put)

    def pardon(self, url: str) -> None:
        """End an ejection for all workers: the endpoint was away as a whole, and has come back."""
        wanted = self.ejections.pardon(url, self._time.there(self._clock.now))
        if wanted is not None and not self._asking:
            self._put(wanted, None)

    def _put(self, wanted: Ejections, done: Callable[[Named | None], None] | None) -> None:
        self._asking = True
        put = Put(self._name, _encode(wanted), _REMEMBERED_MS, expect=self.version, publish=True)
        self.store.ask(put, partial(self._answered, wanted, done, self._clock.now))

    def _answered(
        self,
        wanted: Ejections,
        done: Callable[[Named | None], None] | None,
        asked_at: float,
        answer: Answer | None,
    ) -> None:
        self._asking = False
        if isinstance(answer, Named):
            self._time.heard(answer.now_us, asked_at, self._clock.now)
            self.learn(answer)
            if not answer.done:
                return  # somebody was quicker: what still fails, fails again
        else:
            self._take(wanted)  # the store is away: for this worker alone
        if done is not None:
            done(answer if isinstance(answer, Named) else None)

    def _ejected(self, url: str, ejection: Ejection, before: Ejection | None, answer: Named | None) -> None:
        """`url` is ejected, unless that took so long that the ejection is past: then there was none."""
        now_us = self._time.there(self._clock.now)
        if ejection.until_us <= (now_us if answer is None else answer.now_us):
            self._withdraw(url, ejection, before)
        elif ejection.until_us > now_us:
            self._tell(url, ejection, (ejection.until_us - now_us) / 1e6)

    def _withdraw(self, url: str, ejection: Ejection, before: Ejection | None) -> None:
        wanted = self.ejections.withdraw(url, ejection, before)
        if wanted is not None and not self._asking:
            self._put(wanted, None)

    def _tell(self, url: str, ejection: Ejection, seconds: float) -> None:
        self._log.warning(
            "upstream %s: %s is ejected for %.0f s: %s (time %d)",
            self.name, url, seconds, ejection.why, ejection.times,
        )  # fmt: skip

    # With the others

    @property
    def _name(self) -> str:
        return f"{_KIND}:{self.name}"

    def read(self) -> None:
        """Ask the store for what there is."""
        self.store.ask(Get(self._name), partial(self._read, self._clock.now))

    def _read(self, asked_at: float, answer: Answer | None) -> None:
        if isinstance(answer, Named):
            self._time.heard(answer.now_us, asked_at, self._clock.now)
            self.learn(answer)

    def heard(self, value: Named) -> None:
        """Somebody has changed the ejections."""
        if value.version > self.version or value.version == 1:
            self.learn(value)

    def learn(self, value: Named) -> None:
        """This is what the store has."""
        self.version = value.version
        if value.version:
            self._take(_decode(value.value))

    def _take(self, ejections: Ejections) -> None:
        before, self.ejections = self.ejections, ejections
        for url, watch in self.watches.items():
            if ejections.by_url.get(url) != before.by_url.get(url):
                watch.row.clear()
        self._told(self.apply())

    def apply(self) -> float:
        """Let the endpoints have what is known; returns when that changes by itself."""
        upstream, now = self._upstream(), self._clock.now
        if upstream is None:
            return inf
        changes_at, changed = inf, False
        for endpoint in upstream.endpoints:
            known = self.ejections.by_url.get(endpoint.url)
            until = 0.0 if known is None else self._time.here(known.until_us)
            if until <= now:
                until = 0.0
            else:
                changes_at = min(changes_at, until)
            if endpoint.ejected_until and not until:
                level = logging.INFO if self._tells else logging.DEBUG
                self._log.log(level, "upstream %s: %s is not ejected any more", self.name, endpoint.url)
            changed = changed or abs(until - endpoint.ejected_until) > _SAME_S
            endpoint.ejected_until = until
            if endpoint.healthy:
                endpoint.why = f"ejected: {known.why}" if known is not None and until else ""
        if changed:
            upstream.refresh()
        return changes_at

    def figures(self) -> tuple[int, int]:
        """(endpoints that are ejected, ejections so far)."""
        now_us = self._time.there(self._clock.now)
        return len(self.ejections.current(self.watches, now_us)), self.ejections.total


_SAME_S: Final = 0.001
"""Two times of one ejection differ by less, since the store's clock is known a little better each time."""


class Outliers(Timer):
    """All detectors of a worker: ejections outlive the tables. `tells`: this worker logs what all of them see."""

    __slots__ = ("_detectors", "_lane", "_log", "_tells", "_times")

    def __init__(self, lane: Lane, *, log: logging.Logger | None = None, tells: bool = True) -> None:
        super().__init__()
        self._lane = lane
        self._log = log or logging.getLogger(__name__)
        self._tells = tells
        self._detectors: dict[str, Detector] = {}
        self._times: dict[Scope, StoreTime] = {}

    def get(self, config: Config, upstream: Upstream, store: Scope) -> Detector:
        """The detector of an upstream, for a table that is being made."""
        time = self._times.get(store)
        if time is None:
            time = self._times[store] = StoreTime()
            store.listen("value", partial(self._heard, store))
            store.on_up(partial(self._again, store))
        return Detector(
            config, upstream, store,
            clock=self._lane, time=time, told=self._call_at, log=self._log, tells=self._tells,
        )  # fmt: skip

    def install(self, detectors: Iterable[Detector]) -> None:
        """These are the detectors of the table that is served from now on."""
        before, self._detectors = self._detectors, {each.name: each for each in detectors}
        for name, detector in self._detectors.items():
            detector.begin(before.get(name))
        for detector in before.values():
            detector.retire()

    def figures(self) -> dict[str, tuple[int, int]]:
        """(endpoints that are ejected, ejections so far) of each upstream that has had any."""
        return {
            name: detector.figures() for name, detector in self._detectors.items() if detector.ejections.total
        }

    def _heard(self, store: Scope, event: Event) -> None:
        kind, _, name = event.name.partition(":")
        detector = self._detectors.get(name) if kind == _KIND else None
        if detector is not None and detector.store is store:
            value = decode_named(event.body)
            self._times[store].heard(value.now_us, None, self._lane.now)
            detector.heard(value)

    def _again(self, store: Scope) -> None:
        """The store is back: it may know more than this worker."""
        for detector in self._detectors.values():
            if detector.store is store:
                detector.read()

    def _call_at(self, when: float) -> None:
        if when < self.deadline or self._bucket is None:
            self.deadline = when
            self._lane.arm(self)

    def expire(self) -> None:
        """An ejection is over."""
        self.deadline = min((detector.apply() for detector in self._detectors.values()), default=inf)
        self._lane.arm(self)

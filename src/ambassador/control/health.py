"""Active health checks: the supervisor asks every endpoint, once for all of its workers, and tells them.

An endpoint that several upstreams have with the same check is asked once. Its name's addresses are all asked, at the
same time, and it is well when one answers as it should: a request tries them all as well (RFC 8305).

Endpoints count as healthy until `fall` checks have failed, so that nothing waits for the first. What is known outlives
a reload, for endpoints whose url and check stay.

A check that hangs holds up nothing but itself: each endpoint has a task. At most AT_ONCE calls are under way, and with
more endpoints than can be asked so often the pauses get longer (RATE), since the loop that runs them also serves the
workers' store.

Times are trio's.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import msgspec
import trio

from ambassador import __version__
from ambassador.config.certificates import client_section
from ambassador.config.discover import Discover
from ambassador.config.schema import Upstream
from ambassador.control.http_client import CallFailed, Place, Tls, can_connect, get_status
from ambassador.errors import ConnectFailed
from ambassador.observe.families import HealthFigures
from ambassador.proxy.egress import Egress, is_address
from ambassador.proxy.key_files import ClientConfig
from ambassador.proxy.tls import Keyring, host_of
from ambassador.proxy.upstream.health import HURRY_S, Config, Standing, pause_s
from ambassador.proxy.upstream.passage import Passage
from ambassador.proxy.upstream.via import WANTS_OTHERS
from ambassador.proxy.upstream.via import Config as Via
from ambassador.secret import SecretError, read_secret

AT_ONCE: Final = 128
"""Calls under way, over all endpoints."""
RATE: Final = 200.0
"""Checks a second over all endpoints. One costs about 1 ms of CPU."""

_COALESCE_S: Final = 0.005
_AGENT: Final = f"ambassador/{__version__} (health check)".encode()

Unhealthy: TypeAlias = Mapping[str, Mapping[str, str]]
"""By upstream: the urls of its unhealthy endpoints, each with the reason."""
Push: TypeAlias = Callable[[dict[str, dict[str, str]]], None]


class CheckFailed(Exception):
    """An endpoint is not well; the text says why, in few words."""


class Target(msgspec.Struct, frozen=True):
    """What is asked, and how. `host` is sent as Host; None: the url's. `tls` None: in plain text. `written`: the url is
    in the config. `via`: the egress proxy that is asked to lead there.
    """

    url: str
    check: Config
    host: str | None = None
    tls: ClientConfig | None = None
    written: bool = True
    via: Via | None = None

    @property
    def dialled(self) -> str:
        """The host of which the addresses are dialled: the url's, or an egress proxy's; empty for a unix socket."""
        if self.via is not None:
            return self.via.place[0]
        return "" if self.url.startswith("unix:") else urlsplit(self.url).hostname or ""

    def __hash__(self) -> int:
        return hash(self.url)


Check: TypeAlias = Callable[[Target, Sequence[str]], Awaitable[None]]
"""(target, the addresses that its name has) -> None. Raises `CheckFailed`."""


class Watched(msgspec.Struct, frozen=True):
    """An upstream's check, and the urls of its endpoints. `host`: see `Target`. `tls` is for those whose url is
    `https`. `written`: the urls are in the config.
    """

    check: Config
    urls: tuple[str, ...]
    host: str | None = None
    tls: ClientConfig | None = None
    written: bool = True
    via: Via | None = None

    def target(self, url: str) -> Target:
        """One of them."""
        tls = self.tls if url.startswith("https://") else None
        return Target(url, self.check, self.host, tls, self.written, self.via)


def watched_upstreams(
    upstreams: Mapping[str, Upstream], found: Mapping[Discover, Sequence[str]] = MappingProxyType({})
) -> dict[str, Watched]:
    """Those of a config that have checks. `found`: the urls that their sources have found."""
    watched = {}
    for name, upstream in upstreams.items():
        if upstream.health is not None:
            source = upstream.discover
            urls = (
                map(upstream.found_url, found.get(source, ()))
                if source
                else (endpoint.url for endpoint in upstream.endpoints)
            )
            watched[name] = Watched(
                upstream.health,
                tuple(urls),
                upstream.own_host,
                client_section(upstream),
                source is None,
                upstream.connections.via,
            )
    return watched


class _Kept:
    """A target, and what is known of it."""

    __slots__ = ("hurry", "scope", "standing", "target", "users", "why")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.standing = Standing(rise=target.check.rise, fall=target.check.fall)
        self.why = ""
        self.users: set[str] = set()
        """The upstreams that have it."""
        self.scope = trio.CancelScope()
        self.hurry = trio.Event()


class HealthChecks:
    """One for the supervisor's life. `addresses` are those that names have now, by name.

    `push` gets, for each upstream where something has changed, all of its unhealthy endpoints: what changes together in
    one call. `check` asks one endpoint; `chance` gives numbers in [0, 1).
    """

    def __init__(
        self,
        addresses: Mapping[str, Sequence[str]],
        push: Push,
        *,
        log: logging.Logger | None = None,
        check: Check,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.unhealthy: dict[str, dict[str, str]] = {}
        """See `Unhealthy`; upstreams without any are left out. The same object for ever."""
        self._addresses = addresses
        self._push = push
        self._log = log or logging.getLogger(__name__)
        self._check = check
        self._chance = chance
        self._kept: dict[Target, _Kept] = {}
        self._upstreams: dict[str, list[_Kept]] = {}
        self._bleak: set[str] = set()
        self._counts: dict[str, list[int]] = {}
        self._untold: set[str] = set()
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None

    def watch(self, upstreams: Mapping[str, Watched]) -> None:
        """Check these, and no others any more. What is known of targets that stay is kept."""
        before, self._kept = self._kept, {}
        old = self._upstreams.keys()
        for kept in before.values():
            kept.users.clear()
        self._upstreams = {
            name: [self._keep(watched.target(url), name, before) for url in dict.fromkeys(watched.urls)]
            for name, watched in upstreams.items()
        }
        for target, kept in before.items():
            if target not in self._kept:
                kept.scope.cancel()
        for name in old | self._upstreams.keys():
            self._note(name)

    def _keep(self, target: Target, upstream: str, before: Mapping[Target, _Kept]) -> _Kept:
        kept = self._kept.get(target) or before.get(target)
        if kept is None:
            kept = _Kept(target)
            if self._nursery is not None:
                self._nursery.start_soon(self._attend, kept)
        self._kept[target] = kept
        kept.users.add(upstream)
        return kept

    async def run(self) -> None:
        """Check what is watched, for ever."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._tell)
                for kept in self._kept.values():
                    self._nursery.start_soon(self._attend, kept)
        finally:
            self._nursery = None

    def figures(self) -> Iterator[HealthFigures]:
        """What there is to count, for each upstream that has checks."""
        for name, endpoints in self._upstreams.items():
            unhealthy = sum(not kept.standing.healthy for kept in endpoints)
            passed, failed = self._counts.get(name, (0, 0))
            yield HealthFigures(
                upstream=name,
                healthy=len(endpoints) - unhealthy,
                unhealthy=unhealthy,
                passed=passed,
                failed=failed,
            )

    # One endpoint

    async def _attend(self, kept: _Kept) -> None:
        with kept.scope:
            await trio.sleep(self._chance() * min(HURRY_S, kept.target.check.every))
            while True:
                began = trio.current_time()
                await self._ask(kept)
                kept.hurry = trio.Event()
                with trio.move_on_at(began + self._pause_s(kept)) as pause:
                    await kept.hurry.wait()
                if not pause.cancelled_caught:
                    await trio.sleep(self._pause_s(kept) * self._chance())

    def _pause_s(self, kept: _Kept) -> float:
        return pause_s(
            kept.target.check,
            kept.standing,
            bleak=not self._bleak.isdisjoint(kept.users),
            least_s=len(self._kept) / RATE,
            chance=self._chance(),
        )

    async def _ask(self, kept: _Kept) -> None:
        host = kept.target.dialled
        addresses = (host,) if is_address(host) else self._addresses.get(host, ())
        try:
            await self._check(kept.target, addresses)
        except CheckFailed as error:
            self._took(kept, str(error))
        else:
            self._took(kept, None)

    def _took(self, kept: _Kept, failure: str | None) -> None:
        for name in kept.users:
            self._counts.setdefault(name, [0, 0])[failure is not None] += 1
        if not kept.standing.took(passed=failure is None):
            return
        kept.why = failure or ""
        names = ", ".join(sorted(kept.users))
        if failure is None:
            self._log.info("upstream %s: %s is healthy again", names, kept.target.url)
        else:
            fall = kept.target.check.fall
            self._log.warning(
                "upstream %s: %s is unhealthy: %s (%d checks failed)", names, kept.target.url, failure, fall
            )
        for name in kept.users:
            self._note(name)

    # Upstreams

    def _note(self, name: str) -> None:
        """Something may have changed for an upstream."""
        endpoints = self._upstreams.get(name, [])
        now = {kept.target.url: f"unhealthy: {kept.why}" for kept in endpoints if not kept.standing.healthy}
        if now != self.unhealthy.get(name, {}):
            self._untold.add(name)
            self._news.set()
        if now:
            self.unhealthy[name] = now
        else:
            self.unhealthy.pop(name, None)
        if not endpoints or len(now) < len(endpoints):
            self._bleak.discard(name)
        elif name not in self._bleak:
            self._bleak.add(name)
            self._log.warning("upstream %s: no endpoint is healthy", name)
            for kept in endpoints:
                kept.hurry.set()

    async def _tell(self) -> None:
        while True:
            await self._news.wait()
            await trio.sleep(_COALESCE_S)
            self._news = trio.Event()
            untold, self._untold = self._untold, set()
            self._push({name: self.unhealthy.get(name, {}) for name in sorted(untold)})


class Calls:
    """Makes the checks, at most `at_once` calls at a time; by TLS with what is in the keyring. `egress` gives the rules
    that hold now.
    """

    def __init__(
        self, keyring: Keyring, at_once: int = AT_ONCE, *, egress: Callable[[], Egress] = Egress
    ) -> None:
        self._egress = egress
        self._keyring = keyring
        self._limit = trio.CapacityLimiter(at_once)

    async def check(self, target: Target, addresses: Sequence[str]) -> None:
        """See `Check`. The reason is that of the address that failed last."""
        if target.url.startswith("unix:"):
            place = Place(path=target.url.removeprefix("unix:"))
            return await self._any(target.check, b"localhost", [place], None, None)
        if not addresses:
            raise CheckFailed("the name has no address")
        where = urlsplit(target.url)
        name = where.hostname or ""
        egress = self._egress()
        via = None if target.via is None else target.via.place[0]
        refusal = egress.of_endpoint(name, found_by=target.host, written=target.written, via=via)
        permitted = [address for address in addresses if refusal(address) is None]
        if not permitted:
            raise CheckFailed(f"egress: {refusal(addresses[0])}")
        usual = 80 if target.tls is None else 443
        port = where.port or usual
        host = (target.host or where.netloc).removesuffix(f":{usual}")
        tls = None if target.tls is None else self._tls(target.tls, host)
        through = None if target.via is None else _passage(target.via, target)
        dialled = port if through is None else through.proxy[1]
        places = [Place(address, dialled) for address in permitted]
        await self._any(target.check, host.encode("ascii"), places, tls, through)

    def _tls(self, config: ClientConfig, host: str) -> Tls:
        try:
            context = self._keyring.material(config).context
        except KeyError:
            raise CheckFailed("its certificates are not loaded") from None
        return Tls(context, config.sni or host_of(host))

    async def _any(
        self,
        check: Config,
        authority: bytes,
        places: Iterable[Place],
        tls: Tls | None,
        through: Passage | None,
    ) -> None:
        failures: list[str] = []
        passed = False

        async def ask(place: Place) -> None:
            nonlocal passed
            try:
                async with self._limit:
                    await _call(place, check, authority, tls, through)
            except CheckFailed as error:
                failures.append(str(error))
            else:
                passed = True
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for place in places:
                nursery.start_soon(ask, place)
        if not passed:
            raise CheckFailed(failures[-1])


def _passage(via: Via, target: Target) -> Passage:
    """How the egress proxy leads to one endpoint. Raises `CheckFailed` where its password cannot be read."""
    try:
        password = None if via.password is None else read_secret(via.password)
    except SecretError as error:
        raise CheckFailed(f"the egress proxy's password: {error}") from None
    return Passage(via, password, target.url, tunnel=target.check.tcp)


async def _call(
    place: Place, check: Config, authority: bytes, tls: Tls | None, through: Passage | None
) -> None:
    try:
        greeting = None if through is None else through.greeting()
        if check.tcp:
            return await can_connect(place, timeout_s=check.timeout, tls=tls, greeting=greeting)
        status = await get_status(
            place,
            check.path if through is None else through.target(check.path),
            authority=authority,
            agent=_AGENT,
            timeout_s=check.timeout,
            tls=tls,
            greeting=greeting,
            shown=() if through is None else through.fields(),
        )
    except ConnectFailed as error:
        raise CheckFailed(error.detail) from None
    except CallFailed as error:
        raise CheckFailed(str(error)) from None
    if through is not None and through.is_refusal(status):
        raise CheckFailed(WANTS_OTHERS)
    if status not in check.statuses:
        raise CheckFailed(f"status {status}")

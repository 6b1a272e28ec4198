"""From a checked config to the table that requests meet: every decision that can be made before the first request.

A route becomes a `RoutePlan`: bound functions per phase, only of the policies it uses. Compiling raises ValueError for
what a check should have found; the old table then stays.
"""

from __future__ import annotations

import os
import random
from functools import partial
from typing import TYPE_CHECKING, Protocol

from msgspec import structs

from ambassador.config import schema
from ambassador.config.breakers import breakers_of, contents_by_upstream, scopes_by_upstream
from ambassador.config.credentials import compile_credential
from ambassador.config.endpoints import EndpointMaker
from ambassador.config.identity import credential_headers
from ambassador.config.schema import PathRegex
from ambassador.proxy import limit_keys
from ambassador.proxy.clients.who import Clients, proving
from ambassador.proxy.content import NOTHING, Contents
from ambassador.proxy.egress import Egress
from ambassador.proxy.lasting import Lasting
from ambassador.proxy.plan import RoutePlan, Timeouts
from ambassador.proxy.policies import access, concurrency, fault, headers, limit, retry
from ambassador.proxy.policies.breaker import endpoint_name, route_name
from ambassador.proxy.policies.cache import Cache
from ambassador.proxy.policies.concurrency import LABEL, Bulkhead
from ambassador.proxy.policies.fallback import Fallback, LastGood
from ambassador.proxy.policies.hedge import Hedge
from ambassador.proxy.policies.idempotency import Idempotency
from ambassador.proxy.policies.limit import LimitPolicy, compile_limits, owner_of_upstream
from ambassador.proxy.policies.redirect import redirector
from ambassador.proxy.policies.respond import responder
from ambassador.proxy.policies.retry import RetryPolicy
from ambassador.proxy.policies.rewrite import KEEP, Rewrite, location_rewriter, path_rewriter
from ambassador.proxy.routing import MatchSpec, Router, spec
from ambassador.proxy.service import Table
from ambassador.proxy.upstream import via
from ambassador.proxy.upstream.balance import CHOICES
from ambassador.proxy.upstream.endpoint import Endpoint
from ambassador.proxy.upstream.ring import key_reader
from ambassador.proxy.upstream.upstream import Upstream
from ambassador.state.holding import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Hashable, Mapping, Sequence

    from ambassador.config.discover import Found
    from ambassador.proxy.breakers import Breakers
    from ambassador.proxy.credentials import Means
    from ambassador.proxy.lane import Lane
    from ambassador.proxy.plan import AdmitHook, RouteMetrics, ShapeHook, SpoilHook
    from ambassador.proxy.policies import breaker
    from ambassador.proxy.policies.breaker import Breaker
    from ambassador.proxy.service import Taker
    from ambassador.proxy.shelf import Shelf, Shelves
    from ambassador.proxy.tokens.keeper import TokenCounts
    from ambassador.state.scope import Scopes

_NEVER = float("inf")


class Counters(Protocol):
    """Where routes count."""

    def route(self, route: str, upstream: str) -> RouteMetrics:
        """The counters of a route towards an upstream; `-` for none."""

    def limit(self, owner: str, limit: str) -> limit_keys.Counts:
        """The counters of a limit of a route; for an upstream's, of `owner_of_upstream`."""

    def tokens(self, upstream: str) -> TokenCounts:
        """The counters of the tokens that are fetched for an upstream."""

    def access(self, route: str) -> access.Counts:
        """The counters of those that a route refuses."""

    def client(self, name: str) -> Callable[[], None]:
        """What counts the requests of a client."""

    def egress(self, upstream: str) -> Callable[[], None]:
        """What counts the connections to an upstream that egress refuses."""


def compile_table(
    config: schema.Config,
    lane: Lane,
    counters: Counters,
    addresses: Mapping[str, Sequence[str]],
    scopes: Scopes,
    *,
    found: Sequence[Found] = (),
    lasting: Lasting | None = None,
) -> Table:
    """The table for a worker.

    `addresses`: what the names of upstreams resolve to, as far as it is known; `found`: what the sources of others
    have said; `scopes`: where policies share.
    `lasting`: the worker's, which outlives its tables; None: this table has its own. Nothing of it is changed before
    the table is served (`Table.begin`).
    """
    steps = compile_steps(config, lane, counters, addresses, scopes, found=found, lasting=lasting)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            table: Table = done.value
            return table


def compile_steps(
    config: schema.Config,
    lane: Lane,
    counters: Counters,
    addresses: Mapping[str, Sequence[str]],
    scopes: Scopes,
    *,
    found: Sequence[Found] = (),
    lasting: Lasting | None = None,
) -> Generator[None, None, Table]:
    """The same, a step for each upstream and route: 500 routes take 25 ms, and a worker serves clients meanwhile."""
    lasting = lasting or Lasting(lane)
    limits = _Limits(config.state, lane, scopes, counters, credential_headers(config))
    upstreams: dict[str, Upstream] = {}
    makers: dict[str, EndpointMaker] = {}
    zone = own_zone(config, os.environ)
    egress = Egress(config.egress)
    means = lasting.means
    if means.tokens is not None:
        places = means.tokens.places(
            means.secrets, config.state.secret_key, remote=config.state.url != "local"
        )
        means = structs.replace(means, places=places, token_counts=counters.tokens)
    for name, upstream in config.upstreams.items():
        proxy = _proxy(name, upstream.connections.via, means, addresses)
        makers[name] = maker = EndpointMaker(
            name, upstream, lane, lasting.keyring, egress=egress, refused=counters.egress(name), proxy=proxy
        )
        endpoints = [maker.make(each, addresses) for each in upstream.endpoints]
        upstreams[name] = _upstream(name, upstream, lane, endpoints, limits=limits, zone=zone, means=means)
        yield
    takers = _takers(config, upstreams, makers)
    for each in found:
        for take in takers.get(each.source, ()):
            take(each.servers, each.addresses)
        yield
    gates: dict[str, Breaker] = {}
    for made in breakers_of(config):
        gates[made.name] = lasting.breakers.get(made.name, made.config, scopes)
        yield
    guards = [
        (upstreams[name], _EndpointGuard(by_scope["endpoint"], lasting.breakers, scopes))
        for name, by_scope in scopes_by_upstream(config).items()
        if config.upstreams[name].discover is not None and "endpoint" in by_scope
    ]
    for guarded, guard in guards:
        gates.update((made.name, made) for made in guard.prepare(guarded))
    kept = _KeptAnswers(config, lasting.shelves)
    caches = {
        route.name: Cache(route.cache, lane, kept.shelf(route, "cache", route.cache.most, route.cache.ignore))
        for route in config.routes
        if route.cache is not None
    }
    spoil = lasting.changes.spoiler(tuple(caches.values()))
    named, proofs = contents_by_upstream(config), proving(config.clients)
    plans: list[tuple[MatchSpec, RoutePlan]] = []
    walls: list[tuple[Bulkhead, concurrency.Config, concurrency.Counts]] = []
    for route in config.routes:
        held = route.concurrency
        bulkhead = None if held is None else lasting.bulkheads.get(route.name, held, scopes.replica)
        if bulkhead is not None and held is not None:
            walls.append((bulkhead, held, counters.limit(route.name, LABEL)))
        plan = _plan(
            route,
            config,
            upstreams,
            counters,
            lane,
            limits=limits,
            gates=gates,
            scopes=scopes,
            bulkhead=bulkhead,
            cache=caches.get(route.name),
            spoil=spoil,
            kept=kept,
            named=named,
            proving=proofs,
        )
        plans.append((spec(route.match), plan))
        yield
    for name, cooled in upstreams.items():
        cooling = config.upstreams[name].cooldown
        if cooling is not None:
            cooled.cooldown = lasting.cooldowns.get(cooling, cooled, scopes)
            cooled.follow(cooled.cooldown.follow)
    detectors = [
        lasting.outliers.get(each.outlier, upstreams[name], scopes.replica)
        for name, each in config.upstreams.items()
        if each.outlier is not None
    ]
    clients = None
    if config.clients:
        clients = Clients(config.clients, lasting.means.secrets, lasting.key_sets, count=counters.client)
    return Table(
        Router(plans),
        upstreams,
        unrouted=counters.route("-", "-"),
        limits=limits.made,
        takers=takers,
        debug_headers=config.telemetry.debug_headers,
        clients=clients,
        proxies=[maker.proxy for maker in makers.values() if maker.proxy is not None],
        begins=(
            partial(lasting.key_sets.install, [] if clients is None else clients.key_sets.values()),
            partial(lasting.breakers.install, tuple(gates.values()), max_wait_s=config.state.max_wait),
            partial(_guard_endpoints, tuple(upstreams.values()), gates),
            *(partial(guard.begin, guarded) for guarded, guard in guards),
            partial(
                lasting.cooldowns.install, [each.cooldown for each in upstreams.values() if each.cooldown]
            ),
            partial(lasting.shelves.install, kept.shelves),
            partial(lasting.changes.install, tuple(caches.values()), scopes.replica),
            partial(lasting.outliers.install, detectors),
            partial(lasting.bulkheads.install, walls),
            partial(
                lasting.marks.install,
                [upstreams[name] for name, each in config.upstreams.items() if each.health],
            ),
        ),
    )


def _guard_endpoints(upstreams: Sequence[Upstream], gates: Mapping[str, Breaker]) -> None:
    for upstream in upstreams:
        for endpoint in upstream.endpoints:
            gate = gates.get(endpoint_name(upstream.name, endpoint.url))
            if gate is not None:
                endpoint.gate = gate
                gate.guard(upstream)


class _EndpointGuard:
    """Gives the endpoints that are found for one upstream their own breakers, and takes them when they go."""

    def __init__(self, config: breaker.Config, breakers: Breakers, scopes: Scopes) -> None:
        self._config = config
        self._breakers = breakers
        self._scopes = scopes
        self._names: set[str] = set()

    def prepare(self, upstream: Upstream) -> list[Breaker]:
        """The breakers of those that are known by now, for a table that is being made."""
        names = [endpoint_name(upstream.name, endpoint.url) for endpoint in upstream.endpoints]
        self._names.update(names)
        return [self._breakers.get(name, self._config, self._scopes) for name in names]

    def begin(self, upstream: Upstream) -> None:
        """The table is served from now on."""
        self._guard(upstream)
        upstream.follow(self._guard)

    def _guard(self, upstream: Upstream) -> None:
        names = set()
        for endpoint in upstream.endpoints:
            name = endpoint_name(upstream.name, endpoint.url)
            names.add(name)
            if endpoint.gate is None:
                endpoint.gate = self._breakers.get(name, self._config, self._scopes)
                endpoint.gate.guard(upstream)
                self._breakers.add(endpoint.gate)
        for gone in self._names - names:
            self._breakers.remove(gone)
        self._names = names


class _KeptAnswers:
    """The shelves of one table. What is kept holds as long as the route asks the same upstream in the same way."""

    def __init__(self, config: schema.Config, known: Shelves) -> None:
        self._upstreams = config.upstreams
        self._known = known
        self.shelves: dict[str, tuple[object, Shelf]] = {}

    def shelf(self, route: schema.Route, kind: str, most: int, ignored: tuple[str, ...] = ()) -> Shelf:
        """The shelf of a route."""
        changes = None if route.headers is None else route.headers.request
        upstream = None if route.to is None else self._upstreams[route.to]
        terms = (route.to, upstream, route.match, route.rewrite, changes, ignored)
        name = f"{kind}:{route.name}"
        shelf = self._known.get(name, terms, most)
        self.shelves[name] = (terms, shelf)
        return shelf


class _Limits:
    """Makes the limits of one table, which share how often a worker asks its stores."""

    def __init__(
        self,
        state: schema.State,
        lane: Lane,
        scopes: Scopes,
        counters: Counters,
        credentials: Collection[str],
    ) -> None:
        self._state = state
        self._credentials = credentials
        self._lane = lane
        self._counters = counters
        self._fleet = scopes.fleet
        # Where there is no store beyond the replica's, that is what both ask, and nothing takes over for it.
        self._replica = scopes.fleet if state.url == "local" else scopes.replica
        self._load = Load()
        self.made: list[LimitPolicy] = []

    def of_route(self, route: schema.Route) -> LimitPolicy | None:
        """The limits of a route."""
        return self._make(route.limit, route.name, route.name, upstream=route.to or "-", of_upstream=False)

    def of_upstream(self, name: str, config: schema.Upstream) -> LimitPolicy | None:
        """The quotas of an upstream."""
        return self._make(config.limit, name, owner_of_upstream(name), upstream=name, of_upstream=True)

    def _make(
        self,
        configs: Sequence[limit.Config] | None,
        name: str,
        owner: str,
        *,
        upstream: str,
        of_upstream: bool,
    ) -> LimitPolicy | None:
        policy = compile_limits(
            configs or (),
            route=name,
            upstream=upstream,
            of_upstream=of_upstream,
            clock=self._lane,
            fleet=self._fleet,
            replica=self._replica,
            max_wait_s=self._state.max_wait,
            on_loss=self._state.on_loss,
            random=random.random,
            expected_replicas=self._state.expected_replicas or 1,
            load=self._load,
            counts=partial(self._counters.limit, owner),
            credentials=self._credentials,
        )
        if policy is not None:
            self.made.append(policy)
        return policy


def _proxy(
    upstream: str, config: via.Config | None, means: Means, addresses: Mapping[str, Sequence[str]]
) -> via.Proxy | None:
    """The egress proxy of an upstream."""
    if config is None:
        return None
    password = None if config.password is None else means.secrets.get(config.password)
    proxy = via.Proxy(config, upstream, password)
    proxy.addresses = addresses.get(proxy.host, ())
    return proxy


def _upstream(
    name: str,
    config: schema.Upstream,
    lane: Lane,
    endpoints: Sequence[Endpoint],
    *,
    limits: _Limits,
    zone: str,
    means: Means,
) -> Upstream:
    quota = limits.of_upstream(name, config)
    return Upstream(
        name,
        endpoints,
        random.random,
        lane,
        charge=None if quota is None else quota.hook(),
        credential=None if config.auth is None else compile_credential(config.auth, name, means),
        balance=CHOICES[config.balance](),
        key=None if config.hash is None else key_reader(config.hash),
        zone=zone if config.zone_aware else "",
        slow_start_s=config.slow_start,
        forwards=config.connections.via is not None and not config.connections.via.is_socks,
    )


def _is_of_caller(upstreams: Mapping[str, Upstream], name: str | None) -> bool:
    """Whether an upstream is shown what is made of the caller's own credential."""
    credential = None if name is None else upstreams[name].credential
    return credential is not None and credential.of_caller


def _fallback_to(route: schema.Route) -> str | None:
    return None if route.fallback is None else route.fallback.to


def own_zone(config: schema.Config, environment: Mapping[str, str]) -> str:
    """The zone that this instance is in; empty if it is not known."""
    zone = config.zone or ""
    return environment.get(zone.removeprefix("env:"), "") if zone.startswith("env:") else zone


def _takers(
    config: schema.Config, upstreams: Mapping[str, Upstream], makers: Mapping[str, EndpointMaker]
) -> dict[Hashable, list[Taker]]:
    """By source, what gives its upstreams the endpoints that it has found."""
    takers: dict[Hashable, list[Taker]] = {}
    for name, upstream in upstreams.items():
        source = config.upstreams[name].discover
        if source is not None:
            takers.setdefault(source, []).append(partial(makers[name].give, upstream))
    return takers


def _plan(
    route: schema.Route,
    config: schema.Config,
    upstreams: Mapping[str, Upstream],
    counters: Counters,
    lane: Lane,
    *,
    limits: _Limits,
    gates: Mapping[str, Breaker],
    scopes: Scopes,
    bulkhead: Bulkhead | None,
    cache: Cache | None,
    spoil: SpoilHook | None,
    kept: _KeptAnswers,
    named: Mapping[str, frozenset[str]],
    proving: frozenset[bytes],
) -> RoutePlan:
    admit: list[AdmitHook] = []
    limited = limits.of_route(route)
    if limited is not None:
        admit.append(limited.hook())
    if route.fault is not None:
        admit.append(fault.injector(route.fault, lane, random.random))
    if bulkhead is not None and route.concurrency is not None:
        admit.append(bulkhead.hook(adaptive=route.concurrency.adaptive))
    if route.idempotency is not None:
        replica = scopes.fleet if config.state.url == "local" else scopes.replica
        once = Idempotency(
            route.idempotency,
            route=route.name,
            clock=lane,
            fleet=scopes.fleet,
            replica=replica,
            max_wait_s=config.state.max_wait,
            of_caller=any(_is_of_caller(upstreams, name) for name in (route.to, _fallback_to(route))),
        )
        admit.append(once.hook)
    changes = route.headers
    if route.redirect is not None:
        admit.append(headers.on_replies(redirector(route.redirect), changes.response if changes else None))
    if route.respond is not None:
        admit.append(headers.on_replies(responder(route.respond), changes.response if changes else None))
    pattern = None if isinstance(route.match.path, PathRegex) else route.match.path
    rewrite = route.rewrite
    rewrite_host = rewrite.host if rewrite is not None else None
    own_gate = gates.get(route_name(route.name))
    allowed = None
    if route.access is not None:
        allowed = access.Access(
            route.access, challenges_of(route.access, config), counters.access(route.name)
        )

    def towards(
        name: str | None,
        guards: tuple[Breaker | None, ...],
        *,
        retry: RetryPolicy | None = None,
        admit: Sequence[AdmitHook] = (),
        fallback: Fallback | None = None,
        hedge: Hedge | None = None,
        cache: Cache | None = None,
        elsewhere: RoutePlan | None = None,
    ) -> RoutePlan:
        return RoutePlan(
            route.name,
            upstream=upstreams[name] if name is not None else None,
            timeouts=_timeouts(route.timeout),
            retry=retry,
            metrics=counters.route(route.name, name or "-"),
            admit=tuple(admit),
            limit=limited,
            rewrite=path_rewriter(rewrite, pattern),
            host=rewrite_host.encode("ascii") if rewrite_host is not None and rewrite_host != KEEP else None,
            keep_host=rewrite_host == KEEP,
            shape_request=_hooks(headers.shaper(changes.request) if changes is not None else None),
            shape_response=_hooks(headers.shaper(changes.response) if changes is not None else None),
            map_location=None if name is None else _map_location(rewrite, pattern, config, upstreams[name]),
            gates=tuple(gate for gate in guards if gate is not None),
            fallback=fallback,
            hedge=hedge,
            cache=cache,
            spoil=spoil,
            elsewhere=elsewhere,
            access=allowed,
            barred_up=proving if changes is None else proving | headers.settled(changes.request),
            barred_down=headers.settled(changes.response) if changes is not None else frozenset(),
            content=_content(
                None if retry is None else route.retry,
                own_gate if own_gate in guards else None,
                named.get(name or "", NOTHING),
            ),
        )

    retried = _retry(route.retry, scopes, f"retry:{route.name}")
    written = route.fallback
    fallback = elsewhere = None
    if written is not None and written.to is not None:
        elsewhere = towards(written.to, (gates.get(written.to),))
    if written is not None:
        fallback = Fallback(
            respond=None if written.respond is None else responder(written.respond),
            last_good=None
            if written.stale is None
            else LastGood(written.stale, kept.shelf(route, "stale", written.max)),
            all_methods=written.methods == "all",
            retried=frozenset() if retried is None else retried.statuses,
        )
    return towards(
        route.to,
        (own_gate, gates.get(route.to) if route.to is not None else None),
        retry=retried,
        admit=admit,
        fallback=fallback,
        hedge=None if route.hedge is None else Hedge(route.hedge),
        cache=cache,
        elsewhere=elsewhere,
    )


def challenges_of(allowed: Sequence[str], config: schema.Config) -> list[bytes]:
    """Values of `WWW-Authenticate` for those who may call, in the order of the file."""
    ways: list[str] = []
    for name, client in config.clients.items():
        if name in allowed or access.EVERYBODY in allowed:
            ways += ["jwt"] if client.jwt is not None else []
            ways += ["basic"] if client.basic is not None else []
            ways += [f"api_key:{client.api_key.header}"] if client.api_key is not None else []
            ways += ["mtls"] if client.mtls is not None else []
    return access.challenges(ways, realm=config.name or "ambassador")


def _map_location(
    rewrite: Rewrite | None, pattern: str | None, config: schema.Config, upstream: Upstream
) -> ShapeHook | None:
    settings = config.upstreams[upstream.name]
    if settings.discover is None:
        return location_rewriter(rewrite, pattern, [endpoint.url for endpoint in settings.endpoints])
    host = settings.own_host
    own = [] if host is None else [settings.found_url(f"http://{host}")]
    return location_rewriter(rewrite, pattern, own, lambda: upstream.endpoints)


def _content(retried: retry.Config | None, own: Breaker | None, named: frozenset[str]) -> Contents | None:
    """What answers are looked at for: what the retry, the route's own breaker, and those of the upstream name."""
    if retried is not None:
        named |= retried.contents
    if own is not None:
        named |= own.config.contents
    return Contents(named) if named else None


def _hooks(*hooks: Callable[..., None] | None) -> tuple[ShapeHook, ...]:
    return tuple(hook for hook in hooks if hook is not None)


def _timeouts(config: schema.Timeout) -> Timeouts:
    return Timeouts(
        **{name: _NEVER if value is None else value for name, value in structs.asdict(config).items()}
    )


def _retry(config: retry.Config | None, scopes: Scopes, key: str) -> RetryPolicy | None:
    return None if config is None or config.attempts == 0 else RetryPolicy(config, scopes.fleet, key)

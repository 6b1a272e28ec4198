"""The lines of an explanation: what each policy of a route would do to one request, in words.

Pure. What a policy can judge by itself is asked of the policy (`access`, `redirect`, `rewrite`, the ring), never judged
here again. `_TOLD` has the order in which they are told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Concatenate, Final, NamedTuple, ParamSpec, TypeVar

from msgspec import Struct

from ambassador.config import credentials
from ambassador.config.breakers import upstream_breakers
from ambassador.config.certificates import client_section
from ambassador.config.discover import source_name
from ambassador.config.identity import UNREAD
from ambassador.config.schema import ON_THE_WAY, Config, Endpoint, Fallback, Route, Timeout, Upstream
from ambassador.config.secrecy import may_be_secret
from ambassador.config.tls_words import Names, certificate_text, verification_text
from ambassador.config.units import (
    format_duration,
    format_duration_range,
    format_hedge_after,
    format_percent,
    format_rate,
    format_size,
)
from ambassador.config.veil import MASK
from ambassador.errors import ProxyError
from ambassador.messages import Request
from ambassador.proxy import egress, overload
from ambassador.proxy.forwarding import caller_deadline_s
from ambassador.proxy.key_files import ClientConfig
from ambassador.proxy.methods import IDEMPOTENT
from ambassador.proxy.policies import (
    breaker,
    cache,
    concurrency,
    cooldown,
    fault,
    hedge,
    idempotency,
    limit,
    redirect,
    respond,
    retry,
    rewrite,
)
from ambassador.proxy.policies import headers as headers_policy
from ambassador.proxy.policies.access import EVERYBODY, Access
from ambassador.proxy.upstream import endpoint as upstream_endpoint
from ambassador.proxy.upstream import health, outlier, via
from ambassador.proxy.upstream import upstream as upstream_policy
from ambassador.proxy.upstream.balance import RingHash
from ambassador.proxy.upstream.ring import key_reader

__all__ = [
    "DEADLINES", "Asked", "EndpointNow", "Line", "certificate_lines", "refusal", "ring_choice", "ring_lines",
    "route_lines",
]  # fmt: skip

DEADLINES = (b"x-request-deadline", b"x-envoy-upstream-rq-timeout-ms", b"grpc-timeout")
"""Headers by which callers say until when they wait."""


class Line(Struct, frozen=True, kw_only=True):
    """One thing that would be done: `what` names it (`rewrite`, `retry`), `text` tells it, `key` is the setting's."""

    what: str
    text: str
    key: str | None = None


class EndpointNow(Struct, frozen=True, kw_only=True):
    """An endpoint as a running service has it. `state` tells it to people; `is_well`: it gets requests."""

    url: str
    state: str = ""
    is_well: bool = True
    weight: int = 1
    zone: str = ""
    priority: int = 0


class _Uncounted:
    """Counts nothing."""

    def refused(self, reason: str) -> None:
        """Nothing."""


class Asked(NamedTuple):
    """What a route's lines are made of."""

    config: Config
    route: Route
    request: Request

    @property
    def upstream(self) -> Upstream:
        """Of a route that has one."""
        assert self.route.to is not None
        return self.config.upstreams[self.route.to]


C = TypeVar("C")
P = ParamSpec("P")


def _some(
    config: C | None, tell: Callable[Concatenate[C, P], Line], *more: P.args, **named: P.kwargs
) -> Iterable[Line]:
    """The line of a policy, if the route has it."""
    if config is not None:
        yield tell(config, *more, **named)


def _overload_lines(config: overload.Config | None) -> Iterable[Line]:
    when = []
    if config is not None and config.loop_lag is not None:
        when.append(f"it takes longer than {format_duration(config.loop_lag)} to come round to a client")
    if config is not None and config.memory is not None:
        when.append(f"over {format_percent(config.memory)} of the memory is in use")
    if config is not None and config.descriptors is not None:
        when.append(f"over {format_percent(config.descriptors)} of its descriptors are")
    if when:
        text = f"a worker refuses a part of the requests, 503 overloaded, while {', or '.join(when)}"
        yield Line(what="overload", text=text, key="overload")


def _upstream_lines(asked: Asked) -> Iterable[Line]:
    """What is written at the upstream; its breakers come with those of the route."""
    name, upstream = asked.route.to, asked.upstream
    assert name is not None
    yield _upstream_line(name, upstream, asked.config.zone)
    yield from ring_lines(asked, _written_endpoints(upstream))
    yield from _some(upstream.connections.via, _via_line, name, upstream)
    yield from _egress_lines(asked.config.egress, upstream)
    yield from _some(client_section(upstream), _tls_line, name, upstream)
    yield from _some(upstream.auth, _credential_line, name, asked.request)
    yield from _limit_lines(upstream.limit, f"upstreams.{name}.limit")
    yield from _some(upstream.cooldown, _cooldown_line, name)
    yield from _some(upstream.health, _health_line, name)
    yield from _some(upstream.outlier, _outlier_line, name)


def _via_line(config: via.Config, upstream: str, written: Upstream) -> Line:
    """The egress proxy, and how it is asked."""
    ways = {endpoint.url.partition(":")[0] for endpoint in written.endpoints} or {"http", "https"}
    how = "a tunnel by SOCKS5"
    if not config.is_socks:
        how = " and ".join(
            text
            for scheme, text in (("https", "a tunnel by CONNECT"), ("http", "requests with the whole URL"))
            if scheme in ways
        )
        if len(ways) > 1:
            how += ", as the endpoint is https or http"
    shown = "" if config.user is None else f", as user {config.user}"
    text = f"{config.url}: {how}{shown}"
    return Line(what="via", text=text, key=f"upstreams.{upstream}.connections.via")


def _egress_lines(config: egress.Config | None, upstream: Upstream) -> Iterable[Line]:
    """Where names may lead, if that is written; and what is not connected to in any case."""
    rules = egress.Egress(config)
    if config is not None:
        opened = f", {', '.join(config.allow)}" if config.allow else ""
        closed = f", not {', '.join(config.deny)}" if config.deny else ""
        yield Line(what="egress", text=f"names may lead to public addresses{opened}{closed}", key="egress")
    for endpoint in upstream.endpoints:
        why = rules.of_written(endpoint.url)
        if why is not None:
            yield Line(what="egress", text=f"{endpoint.url} is not connected to: {why}", key="egress.deny")
    proxy = upstream.connections.via
    why = None if proxy is None else rules.of_proxy(proxy.place[0])
    if proxy is not None and why is not None:
        yield Line(what="egress", text=f"{proxy.url} is not connected to: {why}", key="egress.deny")


def _written_endpoints(upstream: Upstream) -> list[EndpointNow]:
    return [
        EndpointNow(url=each.url, weight=each.weight, zone=each.zone or "", priority=each.priority)
        for each in upstream.endpoints
    ]


def ring_lines(asked: Asked, endpoints: Sequence[EndpointNow]) -> Iterable[Line]:
    """Which endpoint the ring gives for this very request."""
    upstream, zone = asked.upstream, asked.config.zone or ""
    if upstream.hash is None or sum(each.weight > 0 for each in endpoints) < 2:
        return
    unknown = "the client's address" if upstream.hash == "client_ip" else ""
    if upstream.zone_aware and zone.startswith("env:"):
        unknown = "the service's zone"
    key = key_reader(upstream.hash)(asked.request, "")
    if unknown:
        text = f"which of them depends on {unknown}, which is not known here"
    elif key is None:
        text = f"the request has no {upstream.hash}, so it goes as with p2c"
    else:
        chosen = ring_choice(endpoints, key, zone if upstream.zone_aware else "")
        text = f"{chosen} for this {upstream.hash}, while it is well and not overloaded"
    yield Line(what="hash", text=text, key=f"upstreams.{asked.route.to}.hash")


def ring_choice(endpoints: Sequence[EndpointNow], key: int, zone: str) -> str:
    """The endpoint's URL that `balance: ring_hash` gives for the key, with nothing in flight. `zone`: one's own, or
    empty where zones do not matter.
    """
    made = []
    for each in endpoints:
        endpoint = upstream_endpoint.Endpoint(
            each.url, host="127.0.0.1", port=0, weight=each.weight, zone=each.zone, priority=each.priority
        )
        endpoint.healthy = each.is_well
        made.append(endpoint)
    found = upstream_policy.Upstream("-", made, lambda: 0.0, balance=RingHash(), zone=zone)
    return found.pick((), key).url


_TOLD: Final[Mapping[str, Callable[[Asked], Iterable[Line]]]] = {
    "access": lambda asked: _some(asked.route.access, _access_line, asked.request),
    "limit": lambda asked: _limit_lines(asked.route.limit, "limit"),
    "fault": lambda asked: _some(asked.route.fault, _fault_line),
    "concurrency": lambda asked: _some(asked.route.concurrency, _concurrency_line),
    "redirect": lambda asked: _some(asked.route.redirect, _redirect_line, asked.request),
    "respond": lambda asked: _some(asked.route.respond, _respond_line, asked.request),
    "headers": lambda asked: _header_lines(asked.route.headers, forwarded=asked.route.to is not None),
    "rewrite": lambda asked: _rewrite_lines(asked.route, asked.request, asked.upstream),
    "idempotency": lambda asked: _some(asked.route.idempotency, _idempotency_line, asked.request),
    "cache": lambda asked: _some(asked.route.cache, _cache_line, asked.request),
    "to": _upstream_lines,
    "timeout": lambda asked: _some(asked.route.timeout, _timeout_line, asked.request),
    "retry": lambda asked: [_retry_line(asked.route.retry, asked.request)],
    "hedge": lambda asked: _some(asked.route.hedge, _hedge_line, asked.request),
    "breaker": lambda asked: _breaker_lines(asked.config, asked.route),
    "fallback": lambda asked: _fallback_lines(asked.config, asked.route.fallback, asked.request),
}
"""What becomes of the request and every policy of `schema.POLICIES`, in the order in which they are told."""


def certificate_lines(config: Config, host: str, names: Names) -> Iterable[Line]:
    """Which certificate a client gets that asks for `host`, of each listener with TLS; `names` as in `tls_words`."""
    for at, listener in enumerate(config.listeners):
        if listener.tls is not None:
            text = f"{listener.address}: {certificate_text(listener.tls, host, names)}"
            yield Line(what="certificate", text=text, key=f"listeners[{at}].tls")


def route_lines(config: Config, route: Route, request: Request) -> Iterable[Line]:
    """What would be done to a request that the route takes, `Request.route` and `params` set."""
    yield from _overload_lines(config.overload)
    asked = Asked(config, route, request)
    for key, tell in _TOLD.items():
        if route.to is not None or key not in ("to", *ON_THE_WAY):
            yield from tell(asked)


def refusal(allowed: Sequence[str] | None, request: Request) -> ProxyError | None:
    """What a route's `access` answers to who asks; None: it lets the request pass, or that is not known here."""
    return (
        None
        if allowed is None or request.doubt == UNREAD
        else Access(allowed, (), _Uncounted()).check(request)
    )


def _access_line(allowed: Sequence[str], request: Request) -> Line:
    who = "every known client" if EVERYBODY in allowed else ", ".join(allowed)
    if request.doubt == UNREAD:
        return Line(
            what="access", text=f"for {who}; whether that is who asks is not known here", key="access"
        )
    refused = refusal(allowed, request)
    if refused is None:
        return Line(what="access", text=f"{request.client} may call, of {who}", key="access")
    return Line(
        what="access", text=f"{refused.status} {refused.code}: {refused.detail}; for {who}", key="access"
    )


def _limit_lines(limits: Sequence[limit.Config] | None, key: str) -> Iterable[Line]:
    of_upstream = key.startswith("upstreams.")
    for each in limits or ():
        if each.quota is not None:
            text = f"{each.label}: {format_rate(each.quota)} by the calendar"
        else:
            text = f"{each.label}: {format_rate(each.written)}, burst {each.whole}"
        text += f", per {each.per or ('upstream' if of_upstream else 'route')}"
        if each.cost != "1":
            text += f", cost {each.cost}"
        if each.mode != "strict":
            text += f", {each.mode}"
        if each.wait:
            text += f", waits up to {format_duration(each.wait)}"
        if of_upstream:
            text += "; each attempt is charged"
        yield Line(what="quota" if of_upstream else "limit", text=text, key=key)


def _fault_line(config: fault.Config) -> Line:
    parts = []
    if config.delay is not None:
        parts.append(f"{format_percent(config.delay.percent)} wait {format_duration(config.delay.for_)}")
    if config.abort is not None:
        parts.append(f"{format_percent(config.abort.percent)} are answered {config.abort.status}")
    return Line(what="fault", text=f"on purpose, {', '.join(parts)}", key="fault")


def _concurrency_line(config: concurrency.Config) -> Line:
    text = f"{config.most} requests at once on each replica"
    if config.adaptive:
        text = f"{config.least} to {config.most} requests at once on each replica, by how long answers take"
    if config.places and config.wait:
        text += f", {config.places} more wait up to {format_duration(config.wait)}"
    return Line(what="concurrency", text=text, key="concurrency")


def _redirect_line(config: redirect.Redirect, request: Request) -> Line:
    reply = redirect.redirector(config)(request)
    return Line(what="redirect", text=f"{reply.status} to {_text(reply.headers[0][1])}", key="redirect")


def _respond_line(config: respond.Respond, request: Request) -> Line:
    reply = respond.responder(config)(request)
    kind = next((_text(value) for name, value in reply.headers if name.lower() == b"content-type"), None)
    body = f"{len(reply.body)} bytes of {kind}" if reply.body else "no body"
    return Line(what="respond", text=f"{reply.status}, {body}; nothing is sent upstream", key="respond")


def _header_lines(config: headers_policy.Config | None, *, forwarded: bool) -> Iterable[Line]:
    if config is None:
        return
    for side, changes in (("request", config.request if forwarded else None), ("response", config.response)):
        if changes is not None:
            done = [f"remove {name}" for name in changes.remove]
            for verb, values in (("set", changes.set), ("add", changes.add)):
                done += [
                    f"{verb} {name}: {MASK if may_be_secret(name, value) else value}"
                    for name, value in values.items()
                ]
            yield Line(what="headers", text=f"{side}: " + ", ".join(done), key=f"headers.{side}")


def _rewrite_lines(route: Route, request: Request, upstream: Upstream) -> Iterable[Line]:
    pattern = route.match.path if isinstance(route.match.path, str) else None
    path_of = rewrite.path_rewriter(route.rewrite, pattern)
    if path_of is not None:
        yield Line(
            what="rewrite",
            text=f"path {_text(request.path)} is sent as {_text(path_of(request))}",
            key="rewrite",
        )
    host = None if route.rewrite is None else route.rewrite.host
    if host == rewrite.KEEP:
        yield Line(
            what="host", text=f"{_text(request.authority) or 'none'} (the client's)", key="rewrite.host"
        )
    elif host is not None:
        yield Line(what="host", text=host, key="rewrite.host")
    else:
        yield Line(what="host", text=_authority(upstream))


def _authority(upstream: Upstream) -> str:
    if upstream.discover is not None:
        return upstream.own_host or "the endpoint's own"
    url = upstream.endpoints[0].url if len(upstream.endpoints) == 1 else ""
    return url.partition("://")[2] or "the endpoint's own"


_BALANCE = {
    "p2c": "of two at random the one with less in flight times latency",
    "round_robin": "one after the other",
    "least_request": "the one with the fewest requests in flight",
    "ring_hash": "always the same one for the same {hash}, unless it is overloaded",
}


def _upstream_line(name: str, upstream: Upstream, zone: str | None) -> Line:
    endpoints = ", ".join(_endpoint_text(endpoint, upstream) for endpoint in upstream.endpoints)
    if upstream.discover is not None:
        endpoints = f"those found by {source_name(upstream.discover)}"
    if len(upstream.endpoints) == 1:
        return Line(what="upstream", text=f"{name}: {endpoints}", key=f"upstreams.{name}")
    text = f"{_BALANCE[upstream.balance].format(hash=upstream.hash)}, of {endpoints}"
    if any(endpoint.priority for endpoint in upstream.endpoints):
        text += "; a higher priority only as the lower ones fall short"
    if upstream.zone_aware:
        text += f"; those in zone {zone} first" if zone else "; no zone first, since 'zone' is not set"
    if upstream.slow_start:
        text += f"; new ones start slowly for {format_duration(upstream.slow_start)}"
    return Line(what="upstream", text=f"{name}: {text}", key=f"upstreams.{name}")


def _endpoint_text(endpoint: Endpoint, upstream: Upstream) -> str:
    notes = []
    if endpoint.weight != 1:
        notes.append(f"weight {endpoint.weight}" if endpoint.weight else "drained by weight 0")
    if any(each.priority for each in upstream.endpoints):
        notes.append(f"priority {endpoint.priority}")
    if upstream.zone_aware and endpoint.zone:
        notes.append(f"zone {endpoint.zone}")
    return f"{endpoint.url} ({', '.join(notes)})" if notes else endpoint.url


def _credential_line(auth: credentials.Auth, upstream: str, request: Request) -> Line:
    told = credentials.describe(auth)
    if request.method == "TRACE":
        told = f"none in TRACE, whose answer shows the request (else {told})"
    text = f"{told}; what the client sends under the same name is dropped"
    return Line(what="credential", text=text, key=f"upstreams.{upstream}.auth")


def _timeout_line(timeout: Timeout, request: Request) -> Line:
    values = [
        ("connect", timeout.connect),
        ("first byte", timeout.first_byte),
        ("per try", timeout.per_try),
        ("total", timeout.total),
        ("total body", timeout.total_body),
        ("idle", timeout.idle),
    ]
    text = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in values if seconds is not None)
    given = [name for name in DEADLINES if name in request.special]
    shortened = [_text(name) for name in given if _says_something(name, request.special[name])]
    if shortened:
        text += f"; shortened by {', '.join(shortened)}"
    ignored = [_text(name) for name in given if _text(name) not in shortened]
    if ignored:
        text += f"; not by {', '.join(ignored)}, which cannot be read or sets none"
    return Line(what="timeouts", text=text, key="timeout")


def _says_something(name: bytes, value: bytes) -> bool:
    """Whether a header with the caller's deadline can be read."""
    alone = Request("GET", b"/", [], 1)
    alone.special = {name: value}
    return caller_deadline_s(alone, 0.0) is not None


def _retry_line(config: retry.Config | None, request: Request) -> Line:
    if config is None or config.attempts == 0:
        return Line(what="retries", text="none", key="retry")
    when = [condition for condition in config.when if _retried(config, condition, request)]
    skipped = [condition for condition in config.when if condition not in when]
    if not when:
        text = f"none: {request.method} is not retried on {', '.join(skipped)}"
    else:
        budget = f"{format_percent(config.budget.percent)} of requests"
        if config.budget.shared:
            budget += ", shared by all workers and replicas"
        text = (
            f"up to {config.attempts} more on {', '.join(when)}; after {format_duration_range(config.backoff)}; "
            f"budget {budget}; bodies up to {format_size(config.buffer)}"
        )
        if skipped:
            text += f"; not on {', '.join(skipped)}, since {request.method} is not idempotent"
    return Line(what="retries", text=text, key="retry")


def _hedge_line(config: hedge.Config, request: Request) -> Line:
    if not _is_idempotent(request):
        return Line(what="hedge", text=f"none: {request.method} is not idempotent", key="hedge")
    text = (
        f"a second attempt after {format_hedge_after(config.after)}; "
        f"at most {format_percent(config.max)} of requests"
    )
    return Line(what="hedge", text=text, key="hedge")


def _is_idempotent(request: Request) -> bool:
    return request.method in IDEMPOTENT or _is_keyed(request)


def _is_keyed(request: Request) -> bool:
    return any(name.lower() == b"idempotency-key" for name, _ in request.headers)


def _breaker_lines(config: Config, route: Route) -> Iterable[Line]:
    """Outermost first, as an attempt meets them."""
    assert route.to is not None
    if route.breaker is not None and route.breaker.scope == "route":
        yield _breaker_line(breaker.route_name(route.name), route.breaker, "breaker")
    scopes = upstream_breakers(config, route.to)
    own = config.upstreams[route.to].breaker
    if "upstream" in scopes:
        yield _breaker_line(route.to, scopes["upstream"], _key(route.to, own, "upstream"))
    if "endpoint" in scopes:
        endpoints = config.upstreams[route.to].endpoints
        one = breaker.endpoint_name(route.to, endpoints[0].url) if len(endpoints) == 1 else None
        each = one or f"{route.to}/ENDPOINT"
        yield _breaker_line(each, scopes["endpoint"], _key(route.to, own, "endpoint"))


def _key(upstream: str, own: breaker.Config | None, scope: str) -> str:
    """Where it is written: at the upstream, or at a route to it."""
    return f"upstreams.{upstream}.breaker" if own is not None and own.scope == scope else "breaker"


def _breaker_line(name: str, config: breaker.Config, key: str) -> Line:
    of = f"of at least {config.min_requests} requests in {format_duration(config.window)}"
    when = []
    if config.errors is not None:
        when.append(f"{format_percent(config.errors)} failures ({', '.join(config.failures)}) {of}")
    if config.slow is not None:
        slow = f"{format_percent(config.slow.percent)} slower than {format_duration(config.slow.over)}"
        when.append(slow if config.errors is not None else f"{slow} {of}")
    if config.consecutive:
        when.append(f"{config.consecutive} in a row without an answer")
    text = (
        f"{name}: opens at {' or '.join(when)}; for {format_duration_range(config.open_for)}; "
        f"then {config.probes} probe{'s' if config.probes > 1 else ''} and a ramp"
    )
    return Line(what="breaker", text=text, key=key)


def _tls_line(config: ClientConfig, upstream: str, written: Upstream) -> Line:
    text = verification_text(config, written)
    if written.tls is None and not written.has_https:  # what a file has is not known before it is read
        text = f"where an endpoint is https, {text}"
    return Line(what="tls", text=text, key=f"upstreams.{upstream}.tls")


def _cooldown_line(config: cooldown.Config, upstream: str) -> Line:
    text = (
        f"a 429 or 503 with Retry-After pauses the {config.scope}, for {format_duration(config.max)} at most"
    )
    return Line(what="cooldown", text=text, key=f"upstreams.{upstream}.cooldown")


def _health_line(config: health.Config, upstream: str) -> Line:
    asked = "a connection" if config.tcp else f"GET {config.path} ({', '.join(config.expect)})"
    text = (
        f"{asked} within {format_duration(config.timeout)}, every {format_duration(config.every)}; unhealthy after "
        f"{config.fall} that fail, healthy again after {config.rise}"
    )
    return Line(what="health", text=text, key=f"upstreams.{upstream}.health")


def _outlier_line(config: outlier.Config, upstream: str) -> Line:
    when = []
    if config.consecutive:
        when.append(f"{config.consecutive} failures in a row")
    if config.success_rate is not None:
        rate = config.success_rate
        when.append(
            f"successes below {format_percent(rate.below)} of the others' in 10s ({rate.min_requests} requests)"
        )
    text = (
        f"an endpoint is left out at {' or '.join(when)}; for {format_duration_range(config.eject_for)}, at most "
        f"{format_percent(config.max_ejected)} of them"
    )
    return Line(what="outlier", text=text, key=f"upstreams.{upstream}.outlier")


def _cache_line(config: cache.Config, request: Request) -> Line:
    if request.method not in ("GET", "HEAD"):
        return Line(
            what="cache", text=f"not for {request.method}; it ends what is kept of its target", key="cache"
        )
    parts = []
    if config.stores:
        fresh = "answers are kept as long as they say that they are fresh"
        if isinstance(config.ttl, float):
            fresh += f", {format_duration(config.ttl)} if they say nothing"
        parts.append(f"{fresh}, up to {format_size(config.max or cache.DEFAULT_MAX)} in each worker")
    if config.joins:
        parts.append("identical requests at the same time go up as one")
    return Line(what="cache", text="; ".join(parts), key="cache")


def _idempotency_line(config: idempotency.Config, request: Request) -> Line:
    keyed = any(_text(name).lower() == config.header for name, _ in request.headers)
    if request.method not in idempotency.METHODS or not keyed:
        text = f"none: a POST, PUT or PATCH with {config.header} is carried out once"
    else:
        text = (
            f"carried out once; a repeat with the same {config.header} gets the same answer for "
            f"{format_duration(config.ttl)}, bodies up to {format_size(config.max)}; "
        )
        refused = config.on_loss == "refuse"
        text += "503 while the store is lost" if refused else "by this replica while the store is lost"
    return Line(what="repeats", text=text, key="idempotency")


def _fallback_lines(config: Config, fallback: Fallback | None, request: Request) -> Iterable[Line]:
    """In the order in which they are tried."""
    if fallback is None:
        return
    if fallback.to is not None:
        always = fallback.methods == "all" or _is_idempotent(request)
        text = (
            f"one attempt at {_upstream_line(fallback.to, config.upstreams[fallback.to], config.zone).text}"
        )
        if not always:
            text += f"; if {request.method} cannot have reached the first, since it is not idempotent"
        yield Line(what="fallback", text=text, key="fallback.to")
        yield from _some(config.upstreams[fallback.to].auth, _credential_line, fallback.to, request)
    if fallback.stale is not None:
        text = (
            f"the last good answer to the same request, if it came within {format_duration(fallback.stale)}"
        )
        if request.method not in ("GET", "HEAD"):
            text = f"no earlier answer, since {request.method} has none that can be given again"
        yield Line(what="fallback", text=text, key="fallback.stale")
    if fallback.respond is not None:
        reply = respond.responder(fallback.respond)(request)
        yield Line(what="fallback", text=f"the fixed answer, {reply.status}", key="fallback.respond")


def _retried(config: retry.Config, condition: str, request: Request) -> bool:
    """`connect` and `refused_stream` apply to every method; the rest only where sending twice does no harm."""
    if condition in ("connect", "refused_stream") or config.methods == "all":
        return True
    if _is_keyed(request):
        return True
    methods = IDEMPOTENT if config.methods == "idempotent" else config.methods
    return request.method in methods


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")

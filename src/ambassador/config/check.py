"""Warnings: what a config may hold and hardly means, and files and variables that are not here. May block.

Looks at what has no errors of a config.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Sequence
from math import ceil

from ambassador.config.addresses import telling_names
from ambassador.config.breakers import contents_by_upstream
from ambassador.config.credentials import fetches
from ambassador.config.discover import Discover
from ambassador.config.identity import secret_values
from ambassador.config.part import Items, Part
from ambassador.config.schema import Client, Config, Match, Route, Upstream
from ambassador.config.secrecy import may_be_secret, secret_keys
from ambassador.config.units import format_duration, format_rate
from ambassador.files import UnfitFile, read_regular
from ambassador.proxy import jose, template
from ambassador.proxy.content import CONTENT
from ambassador.proxy.egress import Egress
from ambassador.proxy.loopback import is_this_host
from ambassador.proxy.methods import IDEMPOTENT
from ambassador.proxy.policies import breaker, limit
from ambassador.proxy.upstream.via import Config as Via

_FULL_USE_S = 0.05
"""A smaller burst is gone before a worker is asked again (`state.holding`: the pace when tokens are scarce)."""

_LONG_WAIT_S = 60.0

_NO_SECRETS = frozenset({"idempotency-key", "surrogate-key", "cache-key", "sec-websocket-key"})
"""Headers that have the name of a secret and hold none."""


def warn(
    config: Config,
    routes: Sequence[Part],
    upstreams: dict[str, Part],
    document: Part | None,
    *,
    matches: Sequence[tuple[Part, Match]],
    whole: bool,
) -> None:
    """Reports the warnings at their places. `routes` are the parts of `config.routes`, in the same order.

    `matches`: what each route of the files takes, in their order, those too that have errors elsewhere.

    `whole`: nothing of the config was left out because of errors, so that what is missing is missing.
    """
    named = contents_by_upstream(config)
    for route, part in zip(config.routes, routes, strict=True):
        _warn_of_retry(route, part)
        _warn_of_content(named, route, part)
        _warn_of_timeout(route, part)
        _warn_of_hedge(route, part)
        _warn_of_fallback(route, part)
        _warn_of_limits(config, route.limit, part)
        _warn_of_breaker(route.breaker, part)
        _warn_of_host(config, route, part)
        _warn_of_headers(config, route, part)
    for name, part in upstreams.items():
        upstream = config.upstreams[name]
        _warn_of_limits(config, upstream.limit, part)
        _warn_of_breaker(upstream.breaker, part)
        _warn_of_checks(upstream, part)
        _warn_of_zone(config, upstream, part)
        _warn_of_weights(upstream, part)
        _warn_of_tokens(config, upstream, part)
        _warn_of_egress(config, upstream, part)
        _warn_of_source(upstream.discover, part)
    _warn_of_clients(config, routes, document)
    _warn_of_shadows(matches)
    for holder in (document, *upstreams.values()):
        if holder is not None:
            _warn_of_secrets(holder)
    if not whole:
        return
    _warn_of_unused(config, upstreams)
    if not config.routes and document is not None:
        document.node.report("", "has no routes, so every request is answered 404", level="warning")


def _tell(part: Part, key: str, message: str, hint: str | None = None) -> None:
    """Warn of what stands at `key`, or at `KEY.INNER` where a section is written there."""
    node, path = part.place_within(key)
    node.report(path, message, hint, level="warning")


def _warn_of_host(config: Config, route: Route, part: Part) -> None:
    """A Host that an egress proxy replaces."""
    if route.to is None or route.rewrite is None or route.rewrite.host is None:
        return
    upstream = config.upstreams[route.to]
    via = upstream.connections.via
    bare = any(endpoint.url.startswith("http://") for endpoint in upstream.endpoints)
    if via is not None and not via.is_socks and bare:
        _tell(
            part,
            "rewrite",
            "'host' has no effect on http endpoints behind an HTTP proxy, which has to put the endpoint's own there",
        )


def _warn_of_egress(config: Config, upstream: Upstream, part: Part) -> None:
    """Endpoints that are never connected to."""
    rules = Egress(config.egress)
    written = part.values.get("endpoints")
    for at, endpoint in enumerate(upstream.endpoints):
        why = rules.of_written(endpoint.url)
        if why is not None:
            node, path = part.place("endpoints")
            if isinstance(written, Items) and at < len(written.nodes):
                node, path = written.nodes[at], f"{path}[{at}]" if written.is_list else path
            node.report(path, f"is never connected to: {why}", level="warning")
    _warn_of_proxy(config, upstream.connections.via, part, "connections")


def _warn_of_proxy(config: Config, via: Via | None, part: Part, key: str) -> None:
    """An egress proxy whose password is seen on the way, or that is never connected to."""
    if via is None:
        return
    if via.password is not None and not _is_near(via.place[0]):
        _tell(
            part, key, "the password of 'via' goes to the proxy in plaintext: whoever is on the way sees it"
        )
    closed = Egress(config.egress).of_proxy(via.place[0])
    if closed is not None:
        _tell(part, key, f"'via' is never connected to: {closed}")


def _is_near(host: str) -> bool:
    """Whether it is this host, or one of a private network, as far as is written. A name may lead anywhere."""
    if is_this_host(host):
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _warn_of_retry(route: Route, part: Part) -> None:
    retry = route.retry
    if retry is None or route.to is None or retry.methods == "idempotent":
        return
    seen = frozenset(("POST", "PATCH")) if retry.methods == "all" else frozenset(retry.methods) - IDEMPOTENT
    risky = sorted(seen & frozenset(route.match.methods) if route.match.methods else seen)
    if risky and (retry.kinds - {"connect", "refused_stream"} or retry.statuses):
        _tell(
            part,
            "retry",
            f"{', '.join(risky)} is not idempotent, and is tried again after the upstream may have acted on it",
            "send an 'idempotency-key', or keep to 'methods: idempotent'",
        )


def _warn_of_content(named: dict[str, frozenset[str]], route: Route, part: Part) -> None:
    if route.to is None or route.retry is None or CONTENT not in route.retry.when or route.retry.contents:
        return
    if not (route.breaker is not None and route.breaker.contents) and not named.get(route.to):
        _tell(
            part,
            "retry",
            "'content' is what the 'failures' of breakers name, and none of this route names any",
            "write it here: 'when: [{json: status=error}]'",
        )


def _warn_of_timeout(route: Route, part: Part) -> None:
    written = part.values.get("timeout")
    timeout = route.timeout
    if isinstance(written, Part) and "connect" in written.keys and timeout.connect > timeout.total:
        node, path = written.place("connect")
        total = format_duration(timeout.total)
        node.report(path, f"is longer than 'total' ({total}), which ends the request first", level="warning")


def _warn_of_fallback(route: Route, part: Part) -> None:
    """An upstream that does not answer would take all of the time."""
    timeout, fallback = route.timeout, route.fallback
    if fallback is None or fallback.to is None:
        return
    if min(timeout.per_try or timeout.total, timeout.first_byte or timeout.total) >= timeout.total:
        _tell(
            part,
            "fallback.to",
            f"has no time left after a timeout: one attempt may take all of 'timeout' ({format_duration(timeout.total)})",
            "say 'per_try' in 'timeout'",
        )


def _warn_of_limits(config: Config, limits: Sequence[limit.Config] | None, part: Part) -> None:
    node, path = part.place("limit")
    for each in limits or ():
        amount, period_s = each.written
        within = amount / period_s * _FULL_USE_S
        if each.quota is None and each.whole < within:
            node.report(
                path,
                f"the burst of limit '{each.label}' is {each.whole}; the rate can only be used in full"
                f" with at least {ceil(within)}, what comes in {format_duration(_FULL_USE_S)}",
                level="warning",
            )
        if each.quota is not None and period_s <= 1:
            node.report(
                path,
                f"the quota of limit '{each.label}' begins anew each second: twice as much can go within an instant",
                f"'rate: {format_rate(each.quota)}' lets through as much, evenly",
                level="warning",
            )
        if each.wait > _LONG_WAIT_S:
            node.report(
                path,
                f"limit '{each.label}' keeps requests waiting for {format_duration(each.wait)}: few clients wait for"
                f" more than {format_duration(_LONG_WAIT_S)}, and each holds a place in the queue",
                level="warning",
            )
        replicas = config.state.expected_replicas or 1
        if config.state.url == "local" and replicas > 1 and each.mode != "local":
            node.report(
                path,
                f"limit '{each.label}' is not shared: with 'state: local' each of the {replicas} replicas allows"
                " all of it",
                "share the state in Redis, or say 'mode: local'",
                level="warning",
            )


def _warn_of_breaker(written: breaker.Config | None, part: Part) -> None:
    if written is not None and not written.quorum:
        _tell(
            part,
            "breaker.quorum",
            "0% does not let one replica (or worker) open all: where two live, at least two must see it",
        )


def _warn_of_checks(upstream: Upstream, part: Part) -> None:
    if upstream.outlier is not None and len(upstream.endpoints) == 1:
        _tell(
            part,
            "outlier",
            "ejects nothing here: an endpoint that is alone is never left out",
            "a 'breaker' stops sending to a service that fails",
        )
    check, written = upstream.health, part.values.get("health")
    if check is not None and check.timeout > check.every:
        every = format_duration(check.every)
        longer = f"is longer than 'every' ({every}): a check that hangs delays the next"
        if not isinstance(written, Part) or "timeout" not in written.values:
            longer = f"'timeout' ({format_duration(check.timeout)} where it is not set) {longer}"
        _tell(part, "health.timeout", longer)


def _warn_of_weights(upstream: Upstream, part: Part) -> None:
    """Endpoints that are all drained."""
    if upstream.endpoints and not any(endpoint.weight for endpoint in upstream.endpoints):
        _tell(part, "endpoints", "are all drained by weight 0, so every request is answered 503")


def _warn_of_hedge(route: Route, part: Part) -> None:
    """A second attempt that is never made."""
    if route.hedge is not None and not route.hedge.max:
        _tell(part, "hedge", "makes no second attempt with a 'max' of 0%", "leave it out")


def _warn_of_zone(config: Config, upstream: Upstream, part: Part) -> None:
    if not upstream.zone_aware:
        return
    node, path = part.place("zone_aware")
    if config.zone is None:
        node.report(
            path,
            "prefers no zone: 'zone', at the top, does not say where this instance is",
            "write 'zone: NAME' or 'zone: env:NAME'",
            level="warning",
        )
    elif upstream.discover is None and not any(endpoint.zone for endpoint in upstream.endpoints):
        node.report(path, "prefers no zone: no endpoint has a 'zone'", level="warning")


def _warn_of_tokens(config: Config, upstream: Upstream, part: Part) -> None:
    if upstream.auth is None or not fetches(upstream.auth):
        return
    auth = part.values.get("auth")
    service = auth.values.get(upstream.auth.kind) if isinstance(auth, Part) else None
    if isinstance(service, Part):
        asked = getattr(upstream.auth, upstream.auth.kind)
        _warn_of_query(asked.token_url, service, "token_url")
        _warn_of_proxy(config, asked.via, service, "via")
    if config.state.url != "local" and config.state.secret_key is None:
        _tell(
            part,
            "auth",
            "each replica fetches tokens of its own: without 'state.secret_key' none is put into Redis",
            "set it to 'file:/path' of 32 random bytes, the same for all replicas",
        )


def _warn_of_query(url: str, part: Part, key: str) -> None:
    """A secret that stands in the config, where everybody reads it."""
    names = telling_names(url)
    if names:
        node, path = part.place(key)
        node.source.mask(node.line, url.partition("?")[2])
        node.report(
            path,
            f"'{names[0]}' in the query looks like a secret, and a URL is no place for one",
            "a 'client_secret' is read from 'env:NAME' or 'file:/path'" if key == "token_url" else None,
            level="warning",
        )


def _warn_of_source(source: Discover | None, part: Part) -> None:
    """What a source needs on the machine where it is used may be missing where it is checked."""
    within = part.values.get("discover")
    if source is None or not isinstance(within, Part):
        return
    if source.file is not None and not os.access(source.file, os.R_OK):
        _tell(within, "file", f"'{source.file}' cannot be read here")


def _warn_of_unused(config: Config, upstreams: dict[str, Part]) -> None:
    used = {route.to for route in config.routes}
    used |= {route.fallback.to for route in config.routes if route.fallback is not None}
    for name, part in upstreams.items():
        if name not in used:
            part.node.report(
                f"upstreams.{name}", f"the upstream '{name}' is used by no route", level="warning"
            )


def _warn_of_secrets(part: Part) -> None:
    """Of all in it, and in what is inside it."""
    secrets = frozenset[str]() if part.section is None else secret_keys(part.section)
    for key, value in part.values.items():
        if isinstance(value, Part):
            _warn_of_secrets(value)
        elif isinstance(value, Items):
            for inner in value.values:
                if isinstance(inner, Part):
                    _warn_of_secrets(inner)
                elif key in secrets and isinstance(inner, str):
                    _warn_of_secret(inner, part, key)
        elif key in secrets and isinstance(value, str):
            _warn_of_secret(value, part, key)


def _warn_of_secret(secret: str, part: Part, key: str) -> None:
    node, path = part.place(key)
    kind, _, where = secret.partition(":")
    if kind == "file" and not os.access(where, os.R_OK):
        node.report(path, f"'{where}' cannot be read here", level="warning")
    if kind == "env" and not os.environ.get(where):
        node.report(path, f"the variable '{where}' is not set here", level="warning")


def _warn_of_clients(config: Config, routes: Sequence[Part], document: Part | None) -> None:
    clients = None if document is None else document.values.get("clients")
    if not config.clients or not isinstance(clients, Part):
        return
    for name, client in config.clients.items():
        part = clients.values.get(name)
        if isinstance(part, Part):
            _warn_of_client(config, client, part)
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for name, header, reference, value in secret_values(config):
        first, first_reference = seen.setdefault((header, value), (name, reference))
        part = clients.values.get(name)
        if first != name and reference != first_reference and isinstance(part, Part):  # else it is an error
            _tell(part, "api_key", f"{reference} holds the same key as client '{first}' has, who it is then")
    if any(route.access is not None for route in config.routes):
        for route, part in zip(config.routes, routes, strict=True):
            if route.to is not None and not route.match.client and "access" not in part.keys:
                part.node.report(
                    part.path,
                    f"the route '{route.name}' takes anybody, known or not",
                    "write 'access: [NAME, …]', or 'access: off' if that is meant",
                    level="warning",
                )


def _warn_of_client(config: Config, client: Client, part: Part) -> None:
    tokens = part.values.get("jwt")
    if client.jwt is not None and isinstance(tokens, Part):
        if client.jwt.audience is None:
            tokens.node.report(
                tokens.path,
                "takes every token of the issuer, also those that were made for other services",
                "write 'audience: NAME'",
                level="warning",
            )
        _warn_of_query(client.jwt.jwks, tokens, "jwks")
        _warn_of_proxy(config, client.jwt.via, tokens, "via")
        file = client.jwt.jwks.removeprefix("file:")
        problem = None if file == client.jwt.jwks else _problem_of_keys(file)
        if problem is not None:
            _tell(tokens, "jwks", f"'{file}' {problem}")
    if client.mtls is not None and all(
        listener.tls is None or listener.tls.client_ca is None for listener in config.listeners
    ):
        _tell(part, "mtls", "proves nothing: no listener verifies clients' certificates ('tls.client_ca')")


def _problem_of_keys(file: str) -> str | None:
    if not os.access(file, os.R_OK):
        return "cannot be read here"
    try:
        keys = jose.read_keys(read_regular(file, jose.MOST_SET_BYTES))
    except (UnfitFile, jose.BadKey) as error:
        return str(error)
    return None if keys else f"{jose.NO_KEYS}: no token is taken"


def _warn_of_headers(config: Config, route: Route, part: Part) -> None:
    """What a route sets and the upstream's credential replaces, or should be in its place."""
    changes = None if route.headers is None else route.headers.request
    if changes is None:
        return
    upstream = None if route.to is None else config.upstreams.get(route.to)  # left out if it has errors
    auth = None if upstream is None else upstream.auth
    replaced = None
    if auth is not None:
        replaced = "authorization" if auth.header is None else auth.header.name.lower()
    for verb, values in (("set", changes.set), ("add", changes.add)):
        for name, value in values.items():
            if name.lower() == replaced:
                _tell(
                    part,
                    "headers",
                    f"'{name}' of the request is replaced by the credential of upstream '{route.to}' ('auth')",
                )
            elif may_be_secret(name, value) and name.lower() not in _NO_SECRETS and _is_literal(value):
                node, path = part.place_within(f"headers.request.{verb}.{name}")
                node.source.mask(node.line, value)
                node.report(
                    path,
                    "looks like a secret, and everybody who reads the config reads it",
                    "let 'auth' of the upstream put it on, from 'env:NAME' or 'file:/path'",
                    level="warning",
                )


def _is_literal(value: str) -> bool:
    """Whether a header's value is the same for all requests, and there is one."""
    return bool(value) and isinstance(template.compile(value), bytes)


def _warn_of_shadows(matches: Sequence[tuple[Part, Match]]) -> None:
    index = _Shadows()
    for number, (part, match) in enumerate(matches):
        earlier = index.shadowing(match)
        if earlier is None:
            index.add(number, match)
            continue
        other, _ = matches[earlier]
        line, file = other.node.line, other.node.source.name
        where = f"line {line}" if file == part.node.source.name else f"{file}:{line}"
        name = other.values.get("name")
        who = f"route '{name}'" if isinstance(name, str) else "the route there"
        _tell(part, "match", f"is never reached: {who} ({where}) takes all of its requests")


class _Level:
    """A place in the tree of path patterns: what may follow, and the routes that end here."""

    __slots__ = ("ends", "next", "rest")

    def __init__(self) -> None:
        self.next: dict[str, _Level] = {}
        self.ends: list[tuple[int, Match]] = []
        self.rest: list[tuple[int, Match]] = []
        """Routes whose pattern ends in `/**` here."""


class _Shadows:
    """Earlier routes, by host and by path, so that five hundred routes are not compared each with each."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Level] = {}
        self._regexes: dict[tuple[str, str], list[tuple[int, Match]]] = {}

    def add(self, number: int, match: Match) -> None:
        """Adds a route."""
        for host in match.host:
            if match.path is not None and not isinstance(match.path, str):
                self._regexes.setdefault((host, match.path.regex), []).append((number, match))
                continue
            level = self._hosts.setdefault(host, _Level())
            segments = _segments(match.path)
            for segment in segments:
                if segment == "**":
                    level.rest.append((number, match))
                    break
                level = level.next.setdefault(segment, _Level())
            else:
                level.ends.append((number, match))

    def shadowing(self, match: Match) -> int | None:
        """The first earlier route that takes every request of this one; None if there is none."""
        found = [
            number
            for host in _wider_hosts(match.host[0])
            for number, other in self._candidates(host, match)
            if _covers(other, match)
        ]
        return min(found, default=None)

    def _candidates(self, host: str, match: Match) -> Iterator[tuple[int, Match]]:
        root = self._hosts.get(host)
        if match.path is not None and not isinstance(match.path, str):
            yield from self._regexes.get((host, match.path.regex), ())
            if root is not None:
                yield from root.rest
        elif root is not None:
            yield from _covering(root, _segments(match.path))


def _segments(path: str | None) -> list[str]:
    """The segments of a pattern, with every parameter as `{}`. No pattern takes everything."""
    if path is None:
        return ["**"]
    return ["{}" if segment.startswith("{") else segment for segment in path.split("/")[1:]]


def _covering(level: _Level, segments: list[str]) -> Iterator[tuple[int, Match]]:
    """The routes whose patterns take every path of the pattern with these segments."""
    levels = [level]
    for segment in segments:
        for reached in levels:
            yield from reached.rest
        if segment == "**":
            return
        steps = (segment,) if segment in ("{}", "") else (segment, "{}")
        levels = [reached.next[step] for reached in levels for step in steps if step in reached.next]
    for reached in levels:
        yield from reached.ends
        yield from reached.rest


def _wider_hosts(host: str) -> Iterator[str]:
    """The host patterns that take all of a pattern's hosts: itself, the suffixes above it, and `*`."""
    yield host
    labels = host.removeprefix("*.").split(".")
    first = 0 if host.startswith("*.") else 1
    for at in range(first, len(labels)):
        wider = "*." + ".".join(labels[at:])
        if wider != host:
            yield wider
    if host != "*":
        yield "*"


def _is_narrower(wide: tuple[str, ...], narrow: tuple[str, ...]) -> bool:
    """Whether clients are among others."""
    return bool(narrow) and ("*" in wide or set(narrow) <= set(wide))


def _covers(wide: Match, narrow: Match) -> bool:
    """Whether `wide` takes every request of `narrow`, given that its path does."""
    hosts = frozenset(wide.host)
    return (
        (not wide.methods or (bool(narrow.methods) and frozenset(narrow.methods) <= frozenset(wide.methods)))
        and all(narrow.headers.get(name) == value for name, value in wide.headers.items())
        and all(narrow.query.get(name) == value for name, value in wide.query.items())
        and (not wide.client or _is_narrower(wide.client, narrow.client))
        and all(not hosts.isdisjoint(_wider_hosts(host)) for host in narrow.host)
    )

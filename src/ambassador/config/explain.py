"""What would happen to a request, and why: pure, from a config and a request that is never sent.

The same code as the service's does the splitting, normalising, matching and rewriting (`proxy.path`, `proxy.routing`,
the policies, of which `explain_lines.py` tells); only the reasons why a route was passed over come from
`routing.why_not`, which the tests hold against the table. What depends on the moment (which of the endpoints, how many
tokens are left) is told as what could be; only a hash ring gives the same endpoint whenever it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias
from urllib.parse import quote

from msgspec import Struct, structs

from ambassador.config.explain_lines import (
    DEADLINES,
    Asked,
    EndpointNow,
    Line,
    certificate_lines,
    refusal,
    ring_lines,
    route_lines,
)
from ambassador.config.identity import credential_headers
from ambassador.config.schema import Config, Match, PathRegex, Route, Timeout, ValueMatch
from ambassador.config.secrecy import may_be_secret, without_secrets
from ambassador.config.tls_words import Names
from ambassador.config.veil import MASK
from ambassador.errors import BadRequest, DeadlineExceeded, NoRoute
from ambassador.messages import Fields, Request
from ambassador.printable import printable
from ambassador.proxy.forwarding import caller_deadline_s
from ambassador.proxy.path import authority_host, normalise, split_target
from ambassador.proxy.policies.breaker import route_name
from ambassador.proxy.routing import Router, spec, why_not

__all__ = [
    "BadUrl", "Considered", "Explanation", "explain", "render", "with_breakers", "with_endpoints", "with_token",
]  # fmt: skip

Identify: TypeAlias = Callable[[Request], str]
"""Sets who asks in a request, and says what was found, in a few words."""

_PLACEHOLDER_ID = b"REQUEST-ID"
_LABEL_WIDTH = 10
_SHOWN = 10  # routes that were passed over, in the text; JSON has all of them


class BadUrl(ValueError):
    """What was asked about is neither an http URL nor a path."""


class Considered(Struct, frozen=True, kw_only=True):
    """A route that comes before the one taken, and the first reason why it does not take the request."""

    route: str
    place: str
    why_not: str


class Explanation(Struct, frozen=True, kw_only=True):
    """The whole answer; times in seconds. Without a route, `code` and `status` are those of the answer that the caller
    would get (no code: it is no error), and `problem` says why; with one they are None unless its `access` refuses or
    the caller's deadline has passed.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    listeners: tuple[str, ...]
    path: str | None = None
    route: str | None = None
    place: str | None = None
    matched: str | None = None
    parameters: dict[str, str] = {}
    considered: tuple[Considered, ...] = ()
    lines: tuple[Line, ...] = ()
    upstream: str | None = None
    endpoints: tuple[str, ...] = ()
    timeouts: Timeout | None = None
    code: str | None = None
    status: int | None = None
    problem: str | None = None


def explain(
    config: Config,
    method: str,
    url: str,
    headers: Sequence[tuple[str, str]] = (),
    *,
    names: Names = MappingProxyType({}),
    identify: Identify | None = None,
    wall_s: float = 0.0,
) -> Explanation:
    """What `config` does with `method url` and `headers`. `names`: those in the files of certificates, as far as known.
    `identify`: what finds out who asks; None: nobody is known. `wall_s`: the time of day in unix seconds, for what the
    caller says of its deadline.

    `url` is an http URL, or a path (with `Host` among the headers, if any). A `Host` header wins over the URL's host,
    as with curl.

    Raises BadUrl. What the service would refuse is no error but an Explanation with a `code`.
    """
    asked = Explanation(
        method=method,
        url=url,
        headers=tuple(_masked(config, headers)),
        listeners=tuple(listener.address for listener in config.listeners),
    )
    try:
        request = _request(method, url, headers)
        known = () if identify is None else (Line(what="client", text=identify(request), key="clients"),)
        explained = _explain(config, request, _but(asked, lines=known), names)
        left_s = caller_deadline_s(request, wall_s)
        return explained if left_s is None or left_s > 0 else _too_late(explained)
    except BadRequest as error:
        return _but(asked, code=error.code, status=error.status, problem=error.detail)


def _too_late(explained: Explanation) -> Explanation:
    """The same for a caller whose deadline has passed: that is looked at before there is a route."""
    code, status, problem = DeadlineExceeded.code, DeadlineExceeded.status, "the caller's deadline has passed"
    line = Line(what="answer", text=f"{status} {code}: {problem}; nothing is sent upstream", key="timeout")
    lines = explained.lines if explained.route is None else (line, *explained.lines)
    return _but(explained, code=code, status=status, problem=problem, lines=lines)


def _masked(config: Config, headers: Sequence[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """The headers without the credentials in them."""
    secret = credential_headers(config)
    for name, value in headers:
        yield name, MASK if name.lower() in secret or may_be_secret(name, value) else value


def with_endpoints(explanation: Explanation, config: Config, endpoints: Sequence[EndpointNow]) -> Explanation:
    """The same with the endpoints that a running service has, each with its state: behind what says of the upstream.

    `config`: what was explained. The ring is asked again, of those that are there.
    """
    route = next(route for route in config.routes if route.name == explanation.route)
    request = _request(explanation.method, explanation.url, explanation.headers)
    lines: list[Line] = []
    discover = config.upstreams[explanation.upstream].discover if explanation.upstream is not None else None
    # Of a file, the endpoints say themselves whether they are https.
    by_file = discover is not None and discover.file is not None
    no_tls = by_file and not any(each.url.startswith("https:") for each in endpoints)
    for line in explanation.lines:
        if line.what != "hash" and not (line.what == "tls" and no_tls):
            lines.append(line)
        if line.what == "upstream":
            lines += [Line(what="endpoint", text=f"{each.url}   {each.state}") for each in endpoints]
            lines += ring_lines(Asked(config, route, request), endpoints)
            if not endpoints:
                lines.append(Line(what="endpoint", text="none now: the answer is 503 no_endpoint"))
    urls = tuple(each.url for each in endpoints)
    return _but(explanation, lines=tuple(lines), endpoints=urls)


def with_token(explanation: Explanation, standing: str | None) -> Explanation:
    """The same with how the token stands that a running service has fetched: behind what says of the credential."""
    lines: list[Line] = []
    for line in explanation.lines:
        lines.append(line)
        if line.what == "credential" and standing is not None:
            lines.append(Line(what="token", text=standing))
    return _but(explanation, lines=tuple(lines))


def with_breakers(explanation: Explanation, standing: Mapping[str, str]) -> Explanation:
    """The same with how those breakers stand in a running service that are not simply closed, by name: behind what says
    when they open.
    """
    route, upstream = explanation.route, explanation.upstream
    if route is None or upstream is None:
        return explanation
    lines = [
        Line(what="breaker", text=f"{name} now: {words}")
        for name, words in standing.items()
        if name in (upstream, route_name(route)) or name.startswith(f"{upstream}/")
    ]
    at = max((at + 1 for at, line in enumerate(explanation.lines) if line.what == "breaker"), default=0)
    if not at:
        return explanation
    return _but(explanation, lines=(*explanation.lines[:at], *lines, *explanation.lines[at:]))


def _but(explanation: Explanation, **changes: object) -> Explanation:
    fields = {name: getattr(explanation, name) for name in explanation.__struct_fields__}
    return Explanation(**{**fields, **changes})


def _request(method: str, url: str, headers: Sequence[tuple[str, str]]) -> Request:
    target, _, _ = url.partition("#")  # clients keep the fragment to themselves
    scheme = target.partition("://")[0].lower() if "://" in target else ""
    if scheme not in ("", "http", "https") or (not scheme and not target.startswith("/") and target != "*"):
        raise BadUrl(f"{url!r} is neither an http URL nor a path")
    raw = quote(target, safe="/%:@!$&'()*+,;=~?[]\\\"<>^`{|} ").encode("ascii")
    fields: Fields = [(name.encode(), value.encode()) for name, value in headers]
    request = Request(method, raw, fields, 1)
    authority, path, request.query = split_target(raw)
    given = [value for name, value in fields if name.lower() == b"host"]
    if len(given) > 1:
        raise BadRequest("more than one Host header")
    request.authority = given[0] if given else authority or b""
    if request.authority:
        request.host, request.port = authority_host(request.authority)
    # `OPTIONS *` is matched as the service does it: by routes that take every path.
    request.path = b"/*" if path == b"*" and method == "OPTIONS" else normalise(path)
    request.scheme = "http"
    for name, value in fields:
        if (lower := name.lower()) in DEADLINES:
            before = request.special.get(lower)
            request.special[lower] = value if before is None else before + b", " + value
    request.request_id = _PLACEHOLDER_ID
    return request


def _explain(config: Config, request: Request, asked: Explanation, names: Names) -> Explanation:
    path = request.path.decode("ascii")
    asked = _but(asked, path=path)
    specs = [spec(route.match) for route in config.routes]
    found = Router(list(zip(specs, range(len(specs)), strict=True))).match(
        request.host, path, request.method, request
    )
    taken = len(specs) if found is None else found[0]
    considered = tuple(
        Considered(route=route.name, place=_place(route), why_not=reason)
        for route, match in zip(config.routes[:taken], specs, strict=False)
        if (reason := why_not(match, request.host, path, request.method, request)) is not None
    )
    asked = _but(asked, lines=(*asked.lines, *_hidden_lines(config.routes[:taken], request)))
    if found is None and request.target == b"*":
        return _but(asked, considered=considered, status=204, problem="with Allow; no route takes it")
    if found is None:
        return _but(
            asked,
            considered=considered,
            code=NoRoute.code,
            status=NoRoute.status,
            problem="no route takes this request",
        )
    route = config.routes[found[0]]
    refused = refusal(route.access, request)
    if refused is not None:
        asked = _but(asked, code=refused.code, status=refused.status, problem=refused.detail)
    request.route = route.name
    request.params = found[1]
    if route.to is not None:
        endpoints = tuple(endpoint.url for endpoint in config.upstreams[route.to].endpoints)
        asked = _but(asked, upstream=route.to, endpoints=endpoints, timeouts=route.timeout)
    return _but(
        asked,
        route=route.name,
        place=_place(route),
        matched=_match_text(route.match, request.host),
        parameters=found[1] or {},
        considered=considered,
        lines=(
            *asked.lines,
            *certificate_lines(config, request.host, names),
            *route_lines(config, route, request),
        ),
    )


def _hidden_lines(routes: Sequence[Route], request: Request) -> Iterable[Line]:
    """Of routes that pass the request by for a value which a running service does not tell: that this is not known."""
    path = request.path.decode("ascii")
    for route in routes:
        match = route.match
        told = structs.replace(
            match, headers=dict(_told(match.headers.items())), query=dict(_told(match.query.items()))
        )
        if told != match and why_not(spec(told), request.host, path, request.method, request) is None:
            names = dict.fromkeys(name for each in (match.headers, match.query) for name in each)
            hidden = [name for name in names if name not in told.headers and name not in told.query]
            text = f"whether {route.name} takes it is not known here: the service does not tell the value of {', '.join(hidden)}"
            yield Line(what="unsure", text=text, key="match")


def _told(values: Iterable[tuple[str, ValueMatch]]) -> Iterable[tuple[str, ValueMatch]]:
    return [(name, value) for name, value in values if value.exact != (MASK,)]


def _place(route: Route) -> str:
    return f"{route.file}:{route.line}" if route.line else "command line"


def _match_text(match: Match, host: str) -> str:
    parts = [f"host {'*' if match.host == ('*',) else host}"]
    if match.path is not None:
        parts.append(f"path {match.path.regex if isinstance(match.path, PathRegex) else match.path}")
    if match.methods:
        parts.append("methods " + ", ".join(match.methods))
    shown = without_secrets(match)
    parts += [f"header {name} {_value_text(value)}" for name, value in shown.headers.items()]
    parts += [f"query {name} {_value_text(value)}" for name, value in shown.query.items()]
    if match.client:
        parts.append("client " + " or ".join(match.client))
    return ", ".join(parts)


def _value_text(value: ValueMatch) -> str:
    if value.exact is not None:
        return "= " + " or ".join(value.exact)
    return (
        f"matches {value.regex}" if value.regex is not None else "is there" if value.present else "is missing"
    )


def render(explanation: Explanation) -> str:
    """The text for people: one block, a label in front of each line, ending in a newline."""
    asked = "   ".join(
        [
            f"{explanation.method} {explanation.url}",
            *(f"{name}: {value}" for name, value in explanation.headers),
        ]
    )
    rows = [("listener", ", ".join(explanation.listeners))]
    if explanation.path is not None and explanation.path != _path_of(explanation.url):
        rows.append(("path", f"{explanation.path} after normalising"))
    if explanation.route is None:
        code = "" if explanation.code is None else f" {explanation.code}"
        rows.append(("answer", f"{explanation.status}{code}: {explanation.problem}"))
    else:
        rows.append(("route", f"{explanation.route}   {explanation.place}   matched {explanation.matched}"))
    rows += [("", text) for text in _considered_texts(explanation.considered)]
    rows += [("param", f"{name} = {value}") for name, value in explanation.parameters.items()]
    rows += [(line.what, line.text) for line in explanation.lines]
    width = max(_LABEL_WIDTH, *(len(label) + 2 for label, _ in rows))
    return (
        "\n".join([printable(asked), *(f"  {label:<{width}}{printable(text)}" for label, text in rows)])
        + "\n"
    )


def _considered_texts(considered: Sequence[Considered]) -> list[str]:
    """The routes that came nearest first: those of another host are the least telling."""
    nearest = sorted(considered, key=lambda passed: passed.why_not.startswith("host "))
    texts = [f"{passed.route}   {passed.place}   no: {passed.why_not}" for passed in nearest[:_SHOWN]]
    if len(nearest) > _SHOWN:
        texts.append(f"and {len(nearest) - _SHOWN} more")
    return texts


def _path_of(url: str) -> str:
    rest = url.partition("#")[0].partition("?")[0]
    if "://" in rest:
        rest = "/" + rest.partition("://")[2].partition("/")[2]
    return rest

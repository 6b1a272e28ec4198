"""What explain says: the route, the reasons, and what would be sent."""

from __future__ import annotations

import msgspec
import pytest

from ambassador.config import explain as explain_module
from ambassador.config.explain import (
    BadUrl,
    EndpointNow,
    Explanation,
    explain,
    render,
    ring_choice,
    with_endpoints,
)
from ambassador.config.load import load_text
from ambassador.config.schema import (
    POLICIES,
    TARGETS,
    Config,
    Endpoint,
    Listener,
    Match,
    PathRegex,
    Redirect,
    Respond,
    Rewrite,
    Route,
    Timeout,
    Upstream,
    ValueMatch,
)
from ambassador.proxy.policies import headers, retry
from ambassador.proxy.upstream.ring import hash_of


def a_route(name: str, line: int, match: Match, **settings: object) -> Route:
    return msgspec.convert(
        {"name": name, "line": line, "file": "a.yaml", "match": match, **settings},
        Route,
        from_attributes=True,
    )


ROUTES = (
    a_route("soap", 10, Match(host=("billing.internal",), path="/soap/**"), to="billing"),
    a_route(
        "beta",
        15,
        Match(headers={"x-beta": ValueMatch(exact=("1",))}, query={"b": ValueMatch(present=True)}),
        to="one",
    ),
    a_route(
        "accounts",
        20,
        Match(host=("billing.internal",), path="/v1/accounts/{id}", methods=("GET", "POST")),
        to="billing",
        rewrite=Rewrite(prefix="/acc"),
        timeout=Timeout(total=2.0, per_try=0.5),
        retry=retry.Config(attempts=3),
        headers=headers.Config(
            request=headers.Changes(remove=("b",), set={"x-id": "{param.id}"}),
            response=headers.Changes(add={"c": "d"}),
        ),
    ),
    a_route("old", 40, Match(host=("old",)), redirect=Redirect(location="https://new/")),
    a_route(
        "gone",
        44,
        Match(host=("gone",), path=PathRegex(regex="/[a-z]*")),
        respond=Respond(status=410, body="gone"),
    ),
    a_route("kept", 48, Match(host=("kept",)), to="one", rewrite=Rewrite(host="keep"), retry=None),
)
CONFIG = Config(
    listeners=(Listener(address="127.0.0.1:8080"),),
    upstreams={
        "billing": Upstream(endpoints=(Endpoint(url="http://a:80"), Endpoint(url="http://b:80", weight=3))),
        "one": Upstream(endpoints=(Endpoint(url="http://one:81"),)),
    },
    routes=ROUTES,
)


def lines(explanation: Explanation) -> dict[str, str]:
    return {line.what: line.text for line in explanation.lines}


def test_route_with_the_reasons_for_those_passed_over() -> None:
    explanation = explain(
        CONFIG, "GET", "http://billing.internal/v1/./accounts/42?x=1#y", [("x-tenant", "acme")]
    )
    assert (explanation.route, explanation.place, explanation.path) == (
        "accounts",
        "a.yaml:20",
        "/v1/accounts/42",
    )
    assert explanation.matched == "host billing.internal, path /v1/accounts/{id}, methods GET, POST"
    assert explanation.parameters == {"id": "42"}
    assert [(passed.route, passed.why_not) for passed in explanation.considered] == [
        ("soap", "path /soap/**"),
        ("beta", "header x-beta is not 1"),
    ]
    assert (explanation.upstream, explanation.endpoints) == ("billing", ("http://a:80", "http://b:80"))
    assert explanation.timeouts == Timeout(total=2.0, per_try=0.5)


@pytest.mark.parametrize(
    ("upstream", "zone", "expected"),
    [
        (
            Upstream(endpoints=(Endpoint(url="http://a:80"), Endpoint(url="http://b:80"))),
            None,
            "u: of two at random the one with less in flight times latency, of http://a:80, http://b:80",
        ),
        (
            Upstream(
                endpoints=(Endpoint(url="http://a:80", zone="x"), Endpoint(url="http://b:80", priority=1)),
                balance="ring_hash",
                hash="header:x-id",
                zone_aware=True,
                slow_start=30.0,
            ),
            "x",
            (
                "u: always the same one for the same header:x-id, unless it is overloaded, "
                "of http://a:80 (priority 0, zone x), http://b:80 (priority 1); "
                "a higher priority only as the lower ones fall short; those in zone x first; "
                "new ones start slowly for 30s"
            ),
        ),
        (
            Upstream(
                endpoints=(Endpoint(url="http://a:80"), Endpoint(url="http://b:80", weight=2)),
                balance="round_robin",
                zone_aware=True,
            ),
            None,
            "u: one after the other, of http://a:80, http://b:80 (weight 2); no zone first, since 'zone' is not set",
        ),
    ],
)
def test_upstream_line_tells_how_an_endpoint_is_chosen(
    upstream: Upstream, zone: str | None, expected: str
) -> None:
    config = Config(
        listeners=(Listener(address="127.0.0.1:8080"),),
        zone=zone,
        upstreams={"u": upstream},
        routes=(a_route("r", 1, Match(host=("h",)), to="u"),),
    )
    assert lines(explain(config, "GET", "http://h/"))["upstream"] == expected


def test_lines_tell_what_would_be_done() -> None:
    explanation = explain(CONFIG, "GET", "http://billing.internal/v1/accounts/42")
    told = lines(explanation)
    assert told["rewrite"] == "path /v1/accounts/42 is sent as /acc/42"
    assert told["timeouts"] == "connect 1s, per try 500ms, total 2s, idle 5m"
    assert told["retries"].startswith(
        "up to 3 more on connect, refused_stream, reset, 502-504; after 25ms..250ms"
    )
    assert "http://b:80 (weight 3)" in told["upstream"]
    texts = [line.text for line in explanation.lines if line.what == "headers"]
    assert texts == ["request: remove b, set x-id: {param.id}", "response: add c: d"]


def test_credential_is_told_of_and_never_shown() -> None:
    config = load_text(
        "version: 1\nlisten: 127.0.0.1:80\n"
        "upstreams: {u: {endpoints: [http://127.0.0.1:1], auth: {bearer: env:HOME}}}\nroutes: [{name: r, to: u}]"
    )
    lines = {line.what: line for line in explain(config, "GET", "/").lines}
    assert lines["credential"].key == "upstreams.u.auth"
    assert lines["credential"].text.startswith("a bearer token; ")
    assert "HOME" not in lines["credential"].text


def test_credential_is_not_told_of_where_it_is_not_sent() -> None:
    config = load_text(
        "version: 1\nlisten: 127.0.0.1:80\n"
        "upstreams: {u: {endpoints: [http://127.0.0.1:1], auth: {bearer: env:HOME}}}\nroutes: [{name: r, to: u}]"
    )
    (told,) = (line for line in explain(config, "TRACE", "/").lines if line.what == "credential")
    assert told.text.startswith("none in TRACE")


def test_credential_of_a_fallback_is_told_of() -> None:
    config = load_text(
        "version: 1\nlisten: 127.0.0.1:80\n"
        "upstreams: {w: {endpoints: [http://127.0.0.1:1], auth: {bearer: env:HOME}}}\n"
        "routes: [{name: r, to: 'http://a', fallback: {to: w}}]"
    )
    (told,) = (line for line in explain(config, "GET", "/").lines if line.what == "credential")
    assert (told.key, told.text.startswith("a bearer token; ")) == ("upstreams.w.auth", True)


def test_budget_of_retries_that_is_shared_is_said_to_be() -> None:
    config = load_text(
        "version: 1\nlisten: 127.0.0.1:80\n"
        "routes: [{name: r, to: 'http://a', retry: {budget: {percent: 20%, shared: true}}}]"
    )
    assert (
        "budget 20% of requests, shared by all workers and replicas;"
        in lines(explain(config, "GET", "http://a/"))["retries"]
    )
    assert "shared" not in lines(explain(CONFIG, "GET", "http://billing.internal/v1/accounts/42"))["retries"]


def test_retries_of_a_method_that_is_not_idempotent() -> None:
    url = "http://billing.internal/v1/accounts/42"
    assert (
        "not on reset, 502-504, since POST is not idempotent"
        in lines(explain(CONFIG, "POST", url))["retries"]
    )
    assert "not on" not in lines(explain(CONFIG, "POST", url, [("Idempotency-Key", "k")]))["retries"]
    assert lines(explain(CONFIG, "GET", "http://kept/"))["retries"] == "none"


def test_deadline_of_the_caller_is_told() -> None:
    told = lines(explain(CONFIG, "GET", "http://billing.internal/v1/accounts/1", [("grpc-timeout", "1S")]))
    assert told["timeouts"].endswith("; shortened by grpc-timeout")


def test_deadline_that_says_nothing_shortens_nothing() -> None:
    given = [("x-request-deadline", "soon"), ("x-envoy-upstream-rq-timeout-ms", "0"), ("grpc-timeout", "1S")]
    told = explain(CONFIG, "GET", "http://billing.internal/v1/accounts/1", given, wall_s=1e9)
    assert told.code is None
    assert lines(told)["timeouts"].endswith(
        "; shortened by grpc-timeout; not by x-request-deadline, x-envoy-upstream-rq-timeout-ms, which cannot be read "
        "or sets none"
    )


@pytest.mark.parametrize(
    ("name", "value", "late"),
    [
        ("X-Request-Deadline", "1000000000", True),
        ("x-request-deadline", "999999999.5", True),
        ("x-request-deadline", "1000000000.5", False),
        ("grpc-timeout", "0S", True),
    ],
)
def test_deadline_that_has_passed_is_refused(name: str, value: str, late: bool) -> None:
    url = "http://billing.internal/v1/accounts/1"
    told = explain(CONFIG, "GET", url, [(name, value)], wall_s=1e9)
    assert told.route == "accounts"
    assert (told.code, told.status) == (("deadline_exceeded", 504) if late else (None, None))
    answer = "504 deadline_exceeded: the caller's deadline has passed"
    assert (answer in render(told)) is late
    nowhere = explain(CONFIG, "GET", "http://nowhere/", [(name, value)], wall_s=1e9)
    assert nowhere.code == ("deadline_exceeded" if late else "no_route")
    assert (answer in render(nowhere)) is late


def test_host_header_wins_over_the_url() -> None:
    explanation = explain(CONFIG, "GET", "http://127.0.0.1:8080/", [("Host", "kept")])
    assert explanation.route == "kept"
    assert lines(explanation)["host"] == "kept (the client's)"
    assert explain(CONFIG, "GET", "/", [("host", "kept")]).route == "kept"


def test_headers_and_query_are_matched() -> None:
    explanation = explain(CONFIG, "GET", "/?b", [("X-Beta", "1")])
    assert explanation.route == "beta"
    assert explanation.matched == "host *, header x-beta = 1, query b is there"
    assert lines(explanation)["host"] == "one:81"


def test_answers_made_here() -> None:
    assert lines(explain(CONFIG, "GET", "http://old/x")) == {"redirect": "308 to https://new/"}
    told = lines(explain(CONFIG, "GET", "http://gone/x"))
    assert told == {"respond": "410, 4 bytes of text/plain; charset=utf-8; nothing is sent upstream"}


def test_no_route_is_told_with_every_reason() -> None:
    explanation = explain(CONFIG, "GET", "http://nowhere/")
    assert (explanation.code, explanation.status, explanation.route) == ("no_route", 404, None)
    assert len(explanation.considered) == len(ROUTES)


def test_options_of_the_whole_server_is_answered_where_no_route_takes_it() -> None:
    explanation = explain(CONFIG, "OPTIONS", "*", [("Host", "nowhere")])
    assert (explanation.code, explanation.status, explanation.route) == (None, 204, None)
    assert "  answer    204: with Allow; no route takes it\n" in render(explanation)


@pytest.mark.parametrize(
    "url",
    [
        "http://gone/../x",
        "http://u@gone/",
        "http://gone/a%zz",
        "http://gone/a b",
        "http://gone:0/",
        "http://a b/",
    ],
)
def test_request_that_would_be_refused(url: str) -> None:
    explanation = explain(CONFIG, "GET", url)
    assert (explanation.code, explanation.status) == ("bad_request", 400)
    assert explanation.problem


def test_two_hosts_would_be_refused() -> None:
    assert explain(CONFIG, "GET", "/", [("host", "gone"), ("Host", "old")]).code == "bad_request"


@pytest.mark.parametrize("url", ["ftp://h/", "h/x", "", "h:80"])
def test_what_is_no_url_is_an_error(url: str) -> None:
    with pytest.raises(BadUrl):
        explain(CONFIG, "GET", url)


def test_letters_beyond_ascii_are_escaped_as_clients_do() -> None:
    assert explain(CONFIG, "GET", "http://kept/café?x=é").path == "/caf%C3%A9"


def test_render_is_a_block_with_labels() -> None:
    text = render(explain(CONFIG, "GET", "http://billing.internal/v1/accounts/42", [("x", "y")]))
    assert text.splitlines()[:4] == [
        "GET http://billing.internal/v1/accounts/42   x: y",
        "  listener  127.0.0.1:8080",
        "  route     accounts   a.yaml:20   matched host billing.internal, path /v1/accounts/{id}, methods GET, POST",
        "            soap   a.yaml:10   no: path /soap/**",
    ]
    assert text.endswith("\n")


def test_render_tells_a_changed_path_and_a_refusal() -> None:
    assert "  path      /x after normalising\n" in render(explain(CONFIG, "GET", "http://kept/a/../x"))
    assert "after normalising" not in render(explain(CONFIG, "GET", "http://kept"))
    assert "  answer    404 no_route: no route takes this request\n" in render(
        explain(CONFIG, "GET", "http://nowhere/")
    )


def test_render_shows_the_nearest_of_many() -> None:
    far = tuple(a_route(f"r{n}", n, Match(host=(f"h{n}",)), to="one") for n in range(30))
    near = a_route("near", 99, Match(path="/x"), to="one")
    text = render(explain(msgspec.structs.replace(CONFIG, routes=(*far, near)), "GET", "http://nowhere/"))
    assert "            near   a.yaml:99   no: path /x\n" in text
    assert "            and 21 more\n" in text


def test_render_prints_no_control_characters() -> None:
    text = render(explain(CONFIG, "GET", "http://kept/", [("x", "\x1b[2J\n")]))
    assert "\\x1b[2J\\x0a" in text.splitlines()[0]


def test_explanation_is_json() -> None:
    explanation = explain(CONFIG, "GET", "http://billing.internal/v1/accounts/42")
    assert msgspec.json.decode(msgspec.json.encode(explanation), type=Explanation) == explanation


def test_options_of_the_whole_server() -> None:
    assert explain(CONFIG, "OPTIONS", "*", [("host", "kept")]).route == "kept"
    assert explain(CONFIG, "GET", "*", [("host", "kept")]).code == "bad_request"


def test_limits_are_told_with_their_owners() -> None:
    config = load_text(
        "version: 1\nlisten: 127.0.0.1:80\n"
        "upstreams: {u: {endpoints: ['http://e:1'], limit: {quota: 1e6/d}}}\n"
        "routes: [{name: r, to: u, limit: [100/s, {name: day, rate: 5000/m, burst: 50, per: client_ip,"
        " cost: 'header:x-cost', mode: bounded, wait: 2s}]}]"
    )
    lines = [line for line in explain(config, "GET", "http://a/").lines if line.what in ("limit", "quota")]
    assert [(line.what, line.key, line.text) for line in lines] == [
        ("limit", "limit", "limit: 100/s, burst 100, per route"),
        (
            "limit",
            "limit",
            "day: 5000/m, burst 50, per client_ip, cost header:x-cost, bounded, waits up to 2s",
        ),
        (
            "quota",
            "upstreams.u.limit",
            "limit: 1000000/d by the calendar, per upstream; each attempt is charged",
        ),
    ]


def test_faults_are_told() -> None:
    config = load_text(
        "version: 1\nlisten: 127.0.0.1:80\n"
        "routes: [{name: r, to: http://a, fault: {delay: {percent: 10%, for: 3s}, abort: {status: 418}}}]"
    )
    (line,) = [line for line in explain(config, "GET", "/").lines if line.what == "fault"]
    assert (line.key, line.text) == ("fault", "on purpose, 10% wait 3s, 100% are answered 418")


def test_fallbacks_are_told_in_their_order() -> None:
    config = load_text(
        "version: 1\nlisten: 127.0.0.1:80\n"
        "routes: [{name: r, to: http://a, fallback: {to: http://b, stale: 10m, respond: {status: 203}}}]"
    )
    found = [line for line in explain(config, "POST", "/").lines if line.what == "fallback"]
    assert [(line.key, line.text) for line in found] == [
        ("fallback.to", "one attempt at r.fallback: http://b:80; if POST cannot have reached the first, since it is not idempotent"),
        ("fallback.stale", "no earlier answer, since POST has none that can be given again"),
        ("fallback.respond", "the fixed answer, 203"),
    ]  # fmt: skip
    first, second, _ = [line for line in explain(config, "GET", "/").lines if line.what == "fallback"]
    assert first.text == "one attempt at r.fallback: http://b:80"
    assert second.text == "the last good answer to the same request, if it came within 10m"


@pytest.mark.parametrize(
    ("cache", "method", "text"),
    [
        ("{coalesce: true}", "GET", "identical requests at the same time go up as one"),
        ("{ttl: 30s, coalesce: false}", "HEAD",
         "answers are kept as long as they say that they are fresh, 30s if they say nothing, up to 64MiB in each worker"),
        ("{}", "GET",
         ("answers are kept as long as they say that they are fresh, up to 64MiB in each worker; "
         "identical requests at the same time go up as one")),
        ("{}", "POST", "not for POST; it ends what is kept of its target"),
    ],
)  # fmt: skip
def test_cache_is_told(cache: str, method: str, text: str) -> None:
    config = load_text(
        f"version: 1\nlisten: 127.0.0.1:80\nroutes: [{{name: r, to: http://a, cache: {cache}}}]"
    )
    (line,) = [line for line in explain(config, method, "/").lines if line.what == "cache"]
    assert (line.key, line.text) == ("cache", text)


def test_breakers_are_told_outermost_first_with_their_names() -> None:
    config = load_text(
        "version: 1\nlisten: 127.0.0.1:80\n"
        "upstreams: {u: {endpoints: ['http://a:1'], breaker: {slow: 1s, errors: off}, cooldown: endpoint}}\n"
        "routes: [{name: r, to: u, breaker: {scope: route, open_for: 5s, probes: 1, consecutive: 0}}]"
    )
    outer, inner = [line for line in explain(config, "GET", "/").lines if line.what == "breaker"]
    assert (outer.key, inner.key) == ("breaker", "upstreams.u.breaker")
    assert outer.text == (
        "route:r: opens at 50% failures (5xx, timeout, connect, reset) of at least 20 requests in 10s; for 5s; "
        "then 1 probe and a ramp"
    )
    assert inner.text == (
        "u: opens at 80% slower than 1s of at least 20 requests in 10s or 5 in a row without an answer; "
        "for 5s..1m; then 3 probes and a ramp"
    )
    (cooling,) = [line for line in explain(config, "GET", "/").lines if line.what == "cooldown"]
    assert cooling.text == "a 429 or 503 with Retry-After pauses the endpoint, for 5m at most"


def test_upstream_whose_endpoints_are_found_says_where() -> None:
    text = """\
version: 1
listen: 127.0.0.1:1
upstreams:
  d: {discover: {dns: "api.test:8080"}}
  f: {discover: {file: /etc/a.yaml}}
routes:
  - {name: d, match: {path: /d}, to: d}
  - {name: f, match: {path: /f}, to: f}
"""
    named, from_file = (explain(load_text(text), "GET", path) for path in ("/d", "/f"))
    assert (
        lines(named)["upstream"]
        == "d: of two at random the one with less in flight times latency, of those found by dns api.test:8080"
    )
    assert lines(named)["host"] == "api.test:8080"
    assert lines(from_file)["upstream"].endswith("of those found by file /etc/a.yaml")
    assert lines(from_file)["host"] == "the endpoint's own"
    assert named.endpoints == ()


def test_checks_and_ejection_are_told() -> None:
    config = load_text(
        "version: 1\nlisten: 127.0.0.1:80\n"
        "upstreams: {u: {endpoints: ['http://a:1', 'http://b:1'], health: /up, outlier: {}}, "
        "t: {endpoints: ['http://a:1', 'http://b:1'], health: {tcp: true}, outlier: {success_rate: off}}}\n"
        "routes: [{name: r, match: {path: /u}, to: u}, {name: s, to: t}]"
    )
    told = [
        (line.key, line.text)
        for path in ("/u", "/t")
        for line in explain(config, "GET", path).lines
        if line.what in {"health", "outlier"}
    ]
    assert told == [
        (
            "upstreams.u.health",
            "GET /up (200-399) within 1s, every 5s; unhealthy after 3 that fail, healthy again after 2",
        ),
        (
            "upstreams.u.outlier",
            (
                "an endpoint is left out at 5 failures in a row or successes below 85% of the others' in 10s "
                "(100 requests); for 30s..5m, at most 50% of them"
            ),
        ),
        (
            "upstreams.t.health",
            "a connection within 1s, every 5s; unhealthy after 3 that fail, healthy again after 2",
        ),
        (
            "upstreams.t.outlier",
            "an endpoint is left out at 5 failures in a row; for 30s..5m, at most 50% of them",
        ),
    ]


@pytest.mark.parametrize(
    ("settings", "method", "headers", "text"),
    [
        ("{}", "POST", [], "none: a POST, PUT or PATCH with idempotency-key is carried out once"),
        ("{}", "GET", [("Idempotency-Key", "k")], "none: a POST, PUT or PATCH with idempotency-key is carried out once"),
        (
            "{header: X-Once, ttl: 1h, on_loss: local}", "PUT", [("x-once", "k")],
            ("carried out once; a repeat with the same x-once gets the same answer for 1h, bodies up to 64KiB; by this"
            " replica while the store is lost"),
        ),
    ],
)  # fmt: skip
def test_repeats_are_told(settings: str, method: str, headers: list[tuple[str, str]], text: str) -> None:
    config = load_text(
        f"version: 1\nlisten: 127.0.0.1:80\nroutes: [{{name: r, to: http://a, idempotency: {settings}}}]"
    )
    (line,) = [line for line in explain(config, method, "/", headers).lines if line.what == "repeats"]
    assert (line.key, line.text) == ("idempotency", text)


def test_every_policy_is_told() -> None:
    assert sorted(explain_module._TOLD) == sorted({*POLICIES, *TARGETS})


HASHED = """version: 1
listen: 127.0.0.1:80
zone: %s
upstreams:
  u:
    endpoints: [{url: http://a, zone: x}, {url: http://b, zone: y}, http://c, {url: http://d, priority: 1}]
    balance: ring_hash
    hash: %s
    zone_aware: %s
routes: [{name: r, to: u}]
"""


def hash_text(config: Config, *headers: tuple[str, str]) -> str:
    (line,) = [line for line in explain(config, "GET", "/", headers).lines if line.what == "hash"]
    assert line.key == "upstreams.u.hash"
    return line.text


def test_endpoint_that_the_ring_gives_is_told_for_the_request_asked_about() -> None:
    config = load_text(HASHED % ("x", "header:x-tenant", "false"))
    chosen = {name: hash_text(config, ("X-Tenant", name)).partition(" ")[0] for name in map(str, range(50))}
    assert set(chosen.values()) == {"http://a:80", "http://b:80", "http://c:80"}
    assert hash_text(config, ("x-tenant", "7")) == (
        f"{chosen['7']} for this header:x-tenant, while it is well and not overloaded"
    )
    assert hash_text(config) == "the request has no header:x-tenant, so it goes as with p2c"


def test_endpoint_of_the_ring_is_in_the_own_zone() -> None:
    config = load_text(HASHED % ("y", "cookie:id", "true"))
    for name in "abcdef":
        assert hash_text(config, ("cookie", f"id={name}")).startswith("http://b:80 ")


@pytest.mark.parametrize(
    ("zone", "source", "unknown"),
    [("x", "client_ip", "the client's address"), ("env:Z", "header:x-tenant", "the service's zone")],
)
def test_ring_of_what_is_not_known_here_is_no_guess(zone: str, source: str, unknown: str) -> None:
    config = load_text(HASHED % (zone, source, "true"))
    assert (
        hash_text(config, ("x-tenant", "7")) == f"which of them depends on {unknown}, which is not known here"
    )


def test_ring_of_a_running_service_has_the_endpoints_that_it_has_now() -> None:
    config = load_text(HASHED % ("x", "header:x-tenant", "false"))
    told = explain(config, "GET", "/", [("x-tenant", "7")])
    key = hash_of(b"7")
    first = ring_choice([EndpointNow(url=f"http://{name}:80") for name in "abc"], key, "")
    now = [EndpointNow(url=f"http://{name}:80", state="up", is_well=name not in first) for name in "abc"]
    lines = with_endpoints(told, config, now).lines
    (line,) = [line.text.partition(" ")[0] for line in lines if line.what == "hash"]
    assert line == ring_choice(now, key, "") != first
    assert [
        line.what for line in with_endpoints(told, config, []).lines if line.what in ("hash", "endpoint")
    ] == ["endpoint"]


def test_overload_is_told_where_it_could_refuse() -> None:
    head = "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, respond: 200}]\n"

    def lines(text: str) -> list[str]:
        return [
            line.text for line in explain(load_text(head + text), "GET", "/").lines if line.key == "overload"
        ]

    assert lines("") == []
    assert lines("overload: {loop_lag: off, memory: off, descriptors: off}") == []
    assert lines("overload: {loop_lag: off}") == [
        (
            "a worker refuses a part of the requests, 503 overloaded, while over 90% of the memory is in use, or over "
            "95% of its descriptors are"
        )
    ]
    assert "longer than 100ms to come round to a client, or over 90%" in lines("overload: {}")[0]


def test_labels_never_touch_their_texts() -> None:
    text = "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, to: http://a, concurrency: 2}]"
    rendered = render(explain(load_text(text), "GET", "/"))
    assert "  concurrency  2 requests at once on each replica" in rendered
    assert "  route        r  " in rendered


def test_egress_is_told() -> None:
    head = "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, to: ['http://10.0.0.1', 'http://a']}]\n"

    def lines(text: str) -> list[str]:
        return [
            line.text for line in explain(load_text(head + text), "GET", "/").lines if line.what == "egress"
        ]

    assert lines("") == []
    assert lines("egress: {}") == ["names may lead to public addresses"]
    assert lines("egress: {allow: [a, 10.1.0.0/16], deny: [10.0.0.1]}") == [
        "names may lead to public addresses, a, 10.1.0.0/16, not 10.0.0.1/32",
        "http://10.0.0.1:80 is not connected to: egress.deny closes 10.0.0.1",
    ]


def test_egress_proxy_is_told() -> None:
    def lines(endpoints: str, via: str) -> list[str]:
        text = (
            "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, to: u}]\n"
            f"upstreams: {{u: {{endpoints: [{endpoints}], connections: {{via: {via}}}}}}}"
        )
        return [line.text for line in explain(load_text(text), "GET", "/").lines if line.what == "via"]

    http = "http://p:3128"
    assert lines("https://a", http) == ["http://p:3128: a tunnel by CONNECT"]
    assert lines("http://a", http) == ["http://p:3128: requests with the whole URL"]
    assert lines("http://a, https://a", http) == [
        (
            "http://p:3128: a tunnel by CONNECT and requests with the whole URL, as the endpoint is https or http"
        )
    ]
    with_user = "{url: 'socks5://p:1080', user: me, password: 'env:PASSWORD'}"
    assert lines("http://a", with_user) == ["socks5://p:1080: a tunnel by SOCKS5, as user me"]

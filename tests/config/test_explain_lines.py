"""What is told of each policy."""

from __future__ import annotations

import pytest

from ambassador.config import explain_lines
from ambassador.config.explain import explain, with_endpoints
from ambassador.config.explain_lines import EndpointNow, ring_choice
from ambassador.config.load import load_text
from ambassador.config.schema import POLICIES, TARGETS, Config
from ambassador.proxy.upstream.ring import hash_of


def test_credential_is_told_of_and_never_shown() -> None:
    config = load_text(
        "version: 1\nlisten: 127.0.0.1:80\n"
        "upstreams: {u: {endpoints: [http://127.0.0.1:1], auth: {bearer: env:HOME}}}\nroutes: [{name: r, to: u}]"
    )
    lines = {line.what: line for line in explain(config, "GET", "/").lines}
    assert lines["credential"].key == "upstreams.u.auth"
    assert lines["credential"].text.startswith("a bearer token; ")
    assert "HOME" not in lines["credential"].text


@pytest.mark.parametrize("kind", ["oauth2", "exchange"])
def test_proxy_of_a_token_service_is_told_of(kind: str) -> None:
    config = load_text(
        "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, to: u}]\n"
        f"upstreams: {{u: {{endpoints: [http://127.0.0.1:1], auth: {{{kind}: {{token_url: 'https://id.test/t?a=1',"
        " client_id: c, client_secret: env:HOME, via: {url: 'http://proxy.test:3128', user: me, password: env:HOME}}}}}"
    )
    (told,) = (line for line in explain(config, "GET", "/").lines if line.what == "credential")
    assert " from https://id.test/t via http://proxy.test:3128" in told.text
    assert "HOME" not in told.text


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
    assert sorted(explain_lines._TOLD) == sorted({*POLICIES, *TARGETS})


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

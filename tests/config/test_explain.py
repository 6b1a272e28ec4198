"""What explain says: the route, the reasons, and what would be sent."""

from __future__ import annotations

import msgspec
import pytest

from ambassador.config.explain import BadUrl, Explanation, explain, render
from ambassador.config.load import load_text
from ambassador.config.schema import (
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
from ambassador.config.secrecy import without_secrets
from ambassador.proxy.policies import headers, retry


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


def test_labels_never_touch_their_texts() -> None:
    text = "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, to: http://a, concurrency: 2}]"
    rendered = render(explain(load_text(text), "GET", "/"))
    assert "  concurrency  2 requests at once on each replica" in rendered
    assert "  route        r  " in rendered


KEYED = """\
version: 1
listen: 127.0.0.1:80
routes:
- {name: a, match: {path: /a, headers: {x-api-key: SECRET}}, to: http://b, headers: {request: {set: {x-vault-token: SECRET}}}}
- {name: b, respond: 200}
"""


def test_what_has_the_name_of_a_secret_is_not_shown() -> None:
    text = render(explain(load_text(KEYED), "GET", "http://h/a", [("x-api-key", "SECRET")]))
    assert "matched host *, path /a, header x-api-key = ***" in text
    assert "set x-vault-token: ***" in text
    assert "SECRET" not in text


def test_what_depends_on_a_value_that_is_not_told_is_unsure() -> None:
    told = without_secrets(load_text(KEYED))
    unsure = [lines(explain(told, "GET", f"http://h{path}")).get("unsure") for path in ("/a", "/b")]
    assert unsure == [
        "whether a takes it is not known here: the service does not tell the value of x-api-key",
        None,
    ]

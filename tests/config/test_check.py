"""Warnings, each with its place."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from ambassador.config.load import load_string

HEAD = "version: 1\nlisten: 127.0.0.1:8080\n"


def warnings(text: str) -> list[str]:
    result = load_string(HEAD + textwrap.dedent(text))
    assert not result.errors, [str(problem) for problem in result.errors]
    return [str(problem).removeprefix("-:") for problem in result.warnings]


def shadowed(first: str, second: str) -> bool:
    text = f"routes:\n- {{name: a, match: {first}, respond: 200}}\n- {{name: b, match: {second}, respond: 200}}\n"
    found = warnings(text)
    assert all(
        "5:20: warning: routes[1].match: is never reached: route 'a' (line 4)" in warning for warning in found
    )
    return bool(found)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{}", "{host: a.b}"),
        ("{host: '*'}", "{}"),
        ("{host: '*.b'}", "{host: a.b}"),
        ("{host: '*.b'}", "{host: '*.a.b'}"),
        ("{host: [a, b]}", "{host: [b, a], path: /x}"),
        ("{path: /a/**}", "{path: /a}"),
        ("{path: /a/**}", "{path: '/a/{id}/**'}"),
        ("{path: '/a/{id}'}", "{path: /a/b}"),
        ("{path: '/a/{id}'}", "{path: '/a/{other}'}"),
        ("{path: /a, methods: [GET, POST]}", "{path: /a, methods: [GET]}"),
        ("{path: {regex: a}}", "{path: {regex: a}}"),
        ("{path: /**}", "{path: {regex: a}}"),
        ("{headers: {x: a}}", "{headers: {x: a, y: b}}"),
    ],
)
def test_shadowed_route_is_told(first: str, second: str) -> None:
    assert shadowed(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{host: a.b}", "{}"),
        ("{host: '*.b'}", "{host: b}"),
        ("{host: '*.a.b'}", "{host: '*.b'}"),
        ("{host: a}", "{host: [b, a]}"),
        ("{path: /a}", "{path: /a/**}"),
        ("{path: /a/b}", "{path: '/a/{id}'}"),
        ("{path: /a/**}", "{path: /ab}"),
        ("{path: /a, methods: [GET]}", "{path: /a}"),
        ("{headers: {x: a}}", "{}"),
        ("{query: {x: a}}", "{query: {x: b}}"),
        ("{path: /a/**}", "{path: {regex: /a/b}}"),
    ],
)
def test_reachable_route_is_not_told(first: str, second: str) -> None:
    assert not shadowed(first, second)


@pytest.mark.parametrize(
    ("first", "is_told"),
    [
        ("{name: a, match: {path: /**}, respond: 999}", True),
        ("{name: a, respond: 999}", True),
        ("{match: {path: /**}, respond: 200}", True),
        ("{name: a, match: {path: /**, hosts: b}, respond: 200}", False),
        ("{name: a, match: {path: x}, respond: 200}", False),
        ("{name: a, macth: {path: /a}, respond: 200}", False),
        ("{name: a, respond: 200, zzzzz: {path: /a}}", False),
    ],
)
def test_a_route_with_an_error_shadows_others_too(first: str, is_told: bool) -> None:
    result = load_string(f"{HEAD}routes:\n- {first}\n- {{name: b, match: {{path: /b}}, respond: 200}}\n")
    assert result.errors
    assert any("is never reached: " in str(warning) for warning in result.warnings) is is_told


def test_retry_of_other_methods_is_told() -> None:
    found = warnings("routes:\n- {name: a, to: 'http://a', retry: {methods: [GET, POST], when: reset}}\n")
    assert len(found) == 1
    assert found[0].startswith("4:36: warning: routes[0].retry: POST is not idempotent")
    assert not warnings("routes:\n- {name: a, to: 'http://a', retry: {methods: all, when: connect}}\n")


def test_unused_upstream_is_told() -> None:
    found = warnings("upstreams:\n  u: {endpoints: ['http://u']}\nroutes: [{name: a, respond: 200}]\n")
    assert found == ["4:6: warning: upstreams.u: the upstream 'u' is used by no route"]


def test_no_routes_is_told() -> None:
    assert warnings("") == ["1:1: warning: has no routes, so every request is answered 404"]


def test_connect_over_total_is_told() -> None:
    found = warnings("routes:\n- {name: a, to: 'http://a', timeout: {connect: 3s, total: 2s}}\n")
    assert found == [
        "4:48: warning: routes[0].timeout.connect: is longer than 'total' (2s), which ends the request first"
    ]


def test_fallback_without_any_time_is_told() -> None:
    route = "routes: [{name: a, to: http://a, timeout: %s, fallback: {to: http://b}}]"
    (found,) = warnings(route % "2s")
    assert found.startswith(
        "3:62: warning: routes[0].fallback.to: has no time left after a timeout: one attempt may take"
    )
    assert not warnings(route % "{per_try: 1s, total: 2s}")
    assert not warnings(route % "{first_byte: 1s, total: 2s}")


def test_secret_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMBASSADOR_TEST_TOKEN", raising=False)
    text = "admin: {address: 127.0.0.1:1, token: 'env:AMBASSADOR_TEST_TOKEN'}\nroutes: [{name: a, respond: 200}]\n"
    assert warnings(text) == [
        "3:38: warning: admin.token: the variable 'AMBASSADOR_TEST_TOKEN' is not set here"
    ]
    state = (
        "state: {url: redis://h, password: 'env:AMBASSADOR_TEST_TOKEN', secret_key: 'file:/none'}\n"
        "routes: [{name: a, respond: 200}]\n"
    )
    assert warnings(state) == [
        "3:35: warning: state.password: the variable 'AMBASSADOR_TEST_TOKEN' is not set here",
        "3:76: warning: state.secret_key: '/none' cannot be read here",
    ]
    monkeypatch.setenv("AMBASSADOR_TEST_TOKEN", "x")
    assert not warnings(text)


def test_burst_that_is_gone_too_soon() -> None:
    (warning,) = warnings("routes: [{name: a, respond: 200, limit: {rate: 1000/s, burst: 20}}]")
    assert warning == (
        "3:41: warning: routes[0].limit: the burst of limit 'limit' is 20; the rate can only be used in full"
        " with at least 50, what comes in 50ms"
    )
    assert warnings("routes: [{name: a, respond: 200, limit: {rate: 1000/s, burst: 50}}]") == []


def test_quota_of_a_second() -> None:
    (warning,) = warnings("routes: [{name: a, respond: 200, limit: {quota: 10/s}}]")
    assert warning == (
        "3:41: warning: routes[0].limit: the quota of limit 'limit' begins anew each second: twice as much can go within"
        " an instant; 'rate: 10/s' lets through as much, evenly"
    )
    assert warnings("routes: [{name: a, respond: 200, limit: {quota: 10/m}}]") == []


def test_quorum_of_nobody() -> None:
    (warning,) = warnings("routes: [{name: a, to: 'http://a', breaker: {quorum: 0%}}]")
    assert warning == (
        "3:54: warning: routes[0].breaker.quorum: 0% does not let one replica (or worker) open all: where two live, at"
        " least two must see it"
    )
    (warning,) = warnings(
        "upstreams: {u: {endpoints: ['http://a'], breaker: {quorum: 0%}}}\nroutes: [{name: a, to: u}]"
    )
    assert "upstreams.u.breaker.quorum: 0% does not" in warning
    assert warnings("routes: [{name: a, to: 'http://a', breaker: {quorum: 1%}}]") == []


def test_long_wait_of_a_limit_is_told() -> None:
    (warning,) = warnings("routes: [{name: a, respond: 200, limit: {rate: 10/s, wait: 61s}}]")
    assert "limit 'limit' keeps requests waiting for 61s" in warning
    assert warnings("routes: [{name: a, respond: 200, limit: {rate: 10/s, wait: 60s}}]") == []


def test_limit_that_is_not_shared() -> None:
    head = "state: {url: local, expected_replicas: 3}\n"
    text = head + "routes: [{name: a, respond: 200, limit: {rate: 10/s%s}}]"
    (warning,) = warnings(text % "")
    assert warning == (
        "4:41: warning: routes[0].limit: limit 'limit' is not shared: with 'state: local' each of the 3 replicas"
        " allows all of it; share the state in Redis, or say 'mode: local'"
    )
    assert warnings(text % ", mode: local") == []


def test_limit_of_an_upstream_is_looked_at_too() -> None:
    text = "upstreams: {u: {endpoints: ['http://e'], limit: {rate: 1000/s, burst: 20}}}\nroutes: [{name: a, to: u}]"
    (warning,) = warnings(text)
    assert "upstreams.u.limit" in warning


def test_endpoints_that_are_all_drained_are_told() -> None:
    text = "upstreams: {{u: {{endpoints: [{{url: 'http://h:1', weight: 0}}, {{url: 'http://h:2', weight: {}}}]}}}}\n"
    text += "routes: [{{name: a, to: u}}]\n"
    assert warnings(text.format(1)) == []
    (told,) = warnings(text.format(0))
    assert "are all drained by weight 0" in told


def test_hedge_that_makes_no_attempt_is_told() -> None:
    text = "routes: [{{name: a, to: 'http://h:1', hedge: {{max: {}}}}}]\n"
    assert warnings(text.format("1%")) == []
    (told,) = warnings(text.format("0%"))
    assert "routes[0].hedge" in told


def test_zone_that_cannot_be_preferred_is_told() -> None:
    text = """\
        upstreams:
          u: {endpoints: [{url: 'http://a', zone: x}, 'http://b'], zone_aware: true}
        routes:
        - {name: a, to: u}
        """
    (warning,) = warnings(text)
    assert "upstreams.u.zone_aware: prefers no zone: 'zone', at the top, does not say" in warning
    assert warnings("zone: x\n" + textwrap.dedent(text)) == []
    (warning,) = warnings("zone: x\n" + textwrap.dedent(text).replace(", zone: x", ""))
    assert "upstreams.u.zone_aware: prefers no zone: no endpoint has a 'zone'" in warning


def test_ejection_of_a_lone_endpoint_and_slow_checks_are_told() -> None:
    text = """\
        upstreams:
          one: {endpoints: ['http://a'], outlier: {}, health: {every: 1s, timeout: 2s}}
          two: {endpoints: ['http://a', 'http://b'], outlier: {}, health: /up}
        routes:
        - {name: a, match: {path: /a}, to: one}
        - {name: b, to: two}
        """
    alone, slow = warnings(text)
    assert alone.startswith(
        "4:43: warning: upstreams.one.outlier: ejects nothing here: an endpoint that is alone"
    )
    assert slow.startswith("4:76: warning: upstreams.one.health.timeout: is longer than 'every' (1s)")


@pytest.mark.parametrize("health", ["{every: 500ms}", "{path: /up, every: 500ms}"])
def test_default_that_makes_a_check_slow_is_named(health: str) -> None:
    text = f"""\
        upstreams:
          one: {{endpoints: ['http://a'], health: {health}}}
        routes: [{{name: r, to: one}}]
        """
    (slow,) = warnings(text)
    assert (
        "upstreams.one.health: 'timeout' (1s where it is not set) is longer than 'every' (500ms): a" in slow
    )


def test_source_that_needs_what_is_not_here_is_told(tmp_path: Path) -> None:
    missing, present = tmp_path / "missing.yaml", tmp_path / "present.yaml"
    present.write_text("[]")
    where = "{service: s, namespace: n, server: 'https://a', token: 'file:/missing/token'}"
    text = f"""\
        upstreams:
          one: {{discover: {{file: {missing}}}}}
          two: {{discover: {{file: {present}}}}}
          pods: {{discover: {{kubernetes: {where}}}}}
        routes:
        - {{name: a, match: {{path: /a}}, to: one}}
        - {{name: b, match: {{path: /b}}, to: two}}
        - {{name: c, to: pods}}
        """
    file, token = warnings(text)
    assert file == f"4:26: warning: upstreams.one.discover.file: '{missing}' cannot be read here"
    assert "discover.kubernetes.token: '/missing/token' cannot be read here" in token


def test_content_that_nobody_names_is_told() -> None:
    route = (
        "routes: [{name: r, to: u, retry: {when: [content]}}]\nupstreams: {u: {endpoints: ['http://a']%s}}"
    )
    (told,) = warnings(route % "")
    assert "none of this route names any" in told
    assert warnings(route % ", breaker: {failures: [{json: a=b}]}") == []
    assert warnings("routes: [{name: r, to: 'http://a', retry: {when: [content, {json: a=b}]}}]") == []


def test_secret_of_an_upstream_that_is_not_here_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMBASSADOR_TEST_TOKEN", raising=False)
    loaded = load_string(
        "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, to: u}]\nupstreams:\n"
        "  u: {endpoints: [http://127.0.0.1:1], auth: {basic: {user: a, password: env:AMBASSADOR_TEST_TOKEN}}}"
    )
    assert [warning.path for warning in loaded.warnings] == ["upstreams.u.auth.basic.password"]


def test_header_that_a_credential_replaces_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMBASSADOR_TEST_TOKEN", "x")
    text = (
        "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, to: u, headers: {request: {set: {NAME: '{request_id}'}}}}]\n"
        "upstreams: {u: {endpoints: [http://127.0.0.1:1], auth: AUTH}}"
    )
    bearer, header = (
        "{bearer: env:AMBASSADOR_TEST_TOKEN}",
        "{header: {name: X-Key, value: env:AMBASSADOR_TEST_TOKEN}}",
    )
    for name, auth, warned in (
        ("Authorization", bearer, True), ("x-key", bearer, False), ("x-key", header, True),
        ("authorization", header, False),
    ):  # fmt: skip
        warnings = load_string(text.replace("NAME", name).replace("AUTH", auth)).warnings
        assert [warning.path for warning in warnings] == ["routes[0].headers"] * warned


def test_tokens_that_replicas_cannot_share_are_told() -> None:
    text = """\
        state: {state}
        upstreams: {{u: {{endpoints: ['http://127.0.0.1:1'], auth: {auth}}}}}
        routes: [{{name: r, to: u}}]
        """
    redis = "{url: redis://127.0.0.1:1, secret_key: 'file:/dev/null'}"
    oauth2 = "{oauth2: {token_url: 'https://i/t', client_id: a, client_secret: 'env:HOME'}}"
    (found,) = warnings(text.format(state="redis://127.0.0.1:1", auth=oauth2))
    assert "upstreams.u.auth: each replica fetches tokens of its own" in found
    assert not warnings(text.format(state="local", auth=oauth2))
    assert not [each for each in warnings(text.format(state=redis, auth=oauth2)) if "tokens" in each]
    assert not warnings(text.format(state="redis://127.0.0.1:1", auth="{bearer: 'env:HOME'}"))


def test_endpoint_that_egress_closes_is_warned_of() -> None:
    text = """
        egress: {deny: ['10.0.0.0/8', a.internal]}
        routes: [{name: r, to: ['http://b.internal', 'http://10.0.0.1', 'http://a.internal', 'unix:/s']}, {name: s, to: u}]
        upstreams: {u: {endpoints: 'http://10.0.0.2'}}
        """
    told = [each for each in warnings(text) if "connected to" in each]
    assert [each.split(": ", 2)[2] for each in told] == [
        "routes[0].to.endpoints[1]: is never connected to: egress.deny closes 10.0.0.1",
        "routes[0].to.endpoints[2]: is never connected to: egress.deny closes a.internal",
        "upstreams.u.endpoints: is never connected to: egress.deny closes 10.0.0.2",
    ]


def test_proxy_that_egress_closes_is_warned_of() -> None:
    text = """
        egress: {deny: [proxy.test]}
        upstreams: {u: {endpoints: 'https://a', connections: {via: 'http://proxy.test:3128'}}}
        routes: [{name: r, to: u}]
        """
    (told,) = (each for each in warnings(text) if "connected to" in each)
    assert told.endswith(
        "upstreams.u.connections: 'via' is never connected to: egress.deny closes proxy.test"
    )


def test_proxy_of_own_calls_is_warned_of_at_its_place() -> None:
    text = """
        egress: {deny: [proxy.test]}
        clients: {c: {jwt: {issuer: i, audience: a, jwks: 'https://id.test/k', via: 'http://proxy.test:3128'}}}
        upstreams:
          u:
            endpoints: 'https://a'
            auth:
              oauth2:
                token_url: https://id.test/t
                client_id: c
                client_secret: env:HOME
                via: {url: 'http://8.8.8.8:3128', user: u, password: 'env:HOME'}
          v:
            endpoints: 'https://a'
            auth: {exchange: {token_url: 'https://id.test/t', via: 'http://proxy.test:3128'}}
        routes: [{name: r, to: u, access: [c]}, {name: s, to: v, access: [c]}]
        """
    told = sorted(each.split(": ", 2)[2] for each in warnings(text) if "'via'" in each)
    closed = "'via' is never connected to: egress.deny closes proxy.test"
    seen = "the password of 'via' goes to the proxy in plaintext: whoever is on the way sees it"
    assert told == [
        f"clients.c.jwt.via: {closed}",
        f"upstreams.u.auth.oauth2.via: {seen}",
        f"upstreams.v.auth.exchange.via: {closed}",
    ]


@pytest.mark.parametrize(
    ("proxy", "warned"),
    [
        ("http://127.0.0.1:3128", False),
        ("http://localhost:3128", False),
        ("socks5://10.0.0.1:1080", False),
        ("http://[fd00::1]:3128", False),
        ("http://8.8.8.8:3128", True),
        ("socks5://proxy.test:1080", True),
    ],
)
def test_password_that_goes_far_in_plaintext_is_warned_of(proxy: str, *, warned: bool) -> None:
    text = """
        upstreams: {u: {endpoints: 'https://a', connections: {via: VIA}}}
        routes: [{name: r, to: u}]
        """
    shown = f"{{url: '{proxy}', user: me, password: 'env:HOME'}}"
    for via, expected in [(shown, warned), (f"'{proxy}'", False)]:
        told = warnings(text.replace("VIA", via))
        assert any("plaintext" in each for each in told) == expected


@pytest.mark.parametrize(
    ("query", "warned"),
    [
        ("?client_secret=CANARY", True),
        ("?a=b&apikey=CANARY", True),
        ("?X-Api-Key=CANARY", True),
        ("?code=CANARY", True),
        ("?tenant=CANARY", False),
        ("?p=keyboard", False),
        ("", False),
    ],
)
def test_secret_in_a_url_is_warned_of(query: str, *, warned: bool) -> None:
    text = f"""
        upstreams:
          u:
            endpoints: 'https://a'
            auth: {{oauth2: {{token_url: 'https://id.test/t{query}', client_id: c, client_secret: 'env:HOME'}}}}
        clients: {{c: {{jwt: {{issuer: i, audience: a, jwks: 'https://id.test/k{query}'}}}}}}
        routes: [{{name: r, to: u, access: [c]}}]
        """
    told = [each for each in warnings(text) if "looks like a secret" in each]
    assert len(told) == 2 * warned
    assert not any("CANARY" in each for each in told)


def test_host_that_an_egress_proxy_replaces_is_warned_of() -> None:
    text = """
        upstreams: {u: {endpoints: 'URL', connections: {via: 'VIA'}}}
        routes: [{name: r, to: u, rewrite: {host: keep}}]
        """
    for url, via, warned in [
        ("http://a", "http://p:3128", True),
        ("https://a", "http://p:3128", False),
        ("http://a", "socks5://p:1080", False),
    ]:
        told = warnings(text.replace("URL", url).replace("VIA", via))
        assert ["no effect on http endpoints" in each for each in told] == [True] * warned


def test_secret_that_a_route_writes_into_a_header_is_warned_of_and_not_shown() -> None:
    text = "routes: [{{name: r, to: http://127.0.0.1:9, headers: {{request: {{set: {{{0}}}}}, response: {{set: {{set-cookie: s=1}}}}}}}}]\n"
    result = load_string(HEAD + text.format("x-vault-token: HUNTER2"))
    (warning,) = result.warnings
    assert warning.path == "routes[0].headers.request.set.x-vault-token"
    assert warning.message == "looks like a secret, and everybody who reads the config reads it"
    assert "HUNTER2" not in warning.text()
    for harmless in ("idempotency-key: a", "x-api-key: '{client}'", "x-key-id: b"):
        assert warnings(text.format(harmless)) == []

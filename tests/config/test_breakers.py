"""Which breakers a config makes."""

from __future__ import annotations

import textwrap

import pytest

from ambassador.config.breakers import breakers_of, upstream_breakers
from ambassador.config.load import Loaded, load_string, load_text
from ambassador.proxy.policies import cooldown
from ambassador.proxy.policies.breaker import Config, Slow

HEAD = "version: 1\nlisten: 127.0.0.1:8080\n"
TWO = "upstreams: {u: {endpoints: ['http://a:1', 'http://b:2']}}\n"


def names(text: str) -> list[str]:
    return [made.name for made in breakers_of(load_text(HEAD + textwrap.dedent(text)))]


def errors(text: str) -> list[str]:
    result: Loaded = load_string(HEAD + textwrap.dedent(text))
    assert result.config is None
    return [str(problem).removeprefix("-:") for problem in result.errors]


def a_breaker(written: str) -> Config | None:
    config = load_text(f"{HEAD}routes: [{{name: r, to: 'http://a', breaker: {written}}}]")
    return config.routes[0].breaker


def test_short_forms() -> None:
    assert a_breaker("{}") == Config()
    assert a_breaker("40%") == Config(errors=0.4)
    assert a_breaker("{slow: 2s}") == Config(slow=Slow(over=2.0))
    assert a_breaker("{open_for: 5s}") == Config(open_for=(5.0, 5.0))
    assert a_breaker("off") is None


def test_everything_of_the_reference_is_read() -> None:
    written = (
        "{errors: 50%, slow: {over: 1s, percent: 80%}, min_requests: 20, window: 10s, consecutive: 5, "
        "open_for: 5s..60s, probes: 3, failures: [5xx, timeout, connect, reset, 429, 404-410], scope: endpoint, "
        "shared: true, quorum: 30%}"
    )
    config = a_breaker(written)
    assert config is not None
    assert config.scope == "endpoint"
    assert config.statuses >= {429, 404, 410, 500, 599}


def test_what_answers_say_is_read_beside_statuses() -> None:
    config = a_breaker("{failures: [5xx, {header: X-A=b}, {json: 'a[0].b=c'}, {body: '<Fault>'}]}")
    assert config is not None
    assert config.contents == {"header:x-a=b", "json:a[0].b=c", "body:<Fault>"}
    assert config.statuses == set(range(500, 600))


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("{errors: 0%}", "0% would open the breaker"),
        ("{errors: off, consecutive: 0}", "would never open"),
        ("{open_for: 60s..5s}", "open_for"),
        ("{probes: 0}", "must be 1 to 100"),
        ("{failures: [{header: x}]}", "failures[0].header: 'x' is not of the form NAME=VALUE"),
        ("{failures: [{json: a..b=c}]}", "'a..b' is not a path"),
        ("{failures: [{body: '('}]}", "'('"),
        ("{failures: [{body: [a]}]}", "a list is not a text"),
        ("{failures: [{bodi: x}]}", "'bodi' is not one of header, json, body"),
        ("{failures: [{json: a=b, body: x}]}", "needs exactly one of header, json, body"),
        ("{failures: [content]}", "'content' is not one of"),
        ("{failures: [tiemout]}", "did you mean 'timeout'?"),
        ("{failures: [200]}", "is not a range of errors"),
        ("{scope: global}", "must be one of endpoint, route, upstream"),
        ("{window: 10ms}", "from 1s to 1h"),
    ],
)
def test_impossible_values_are_errors(written: str, problem: str) -> None:
    (error,) = errors(f"routes: [{{name: r, to: 'http://a', breaker: {written}}}]")
    assert problem in error


def test_names_are_those_of_the_reference() -> None:
    assert names("routes: [{name: r, to: 'http://a:1', breaker: {}}]") == ["r"]
    assert names("routes: [{name: r, to: 'http://a:1', breaker: {scope: route}}]") == ["route:r"]
    assert names(TWO + "routes: [{name: r, to: u, breaker: {}}]") == ["u"]
    assert names(TWO + "routes: [{name: r, to: u, breaker: {scope: endpoint}}]") == ["u/a:1", "u/b:2"]
    assert names("routes: [{name: r, to: 'unix:/s', breaker: {scope: endpoint}}]") == ["r/unix:/s"]


def test_scopes_of_one_upstream_go_together() -> None:
    text = """\
        upstreams: {u: {endpoints: ['http://a:1'], breaker: {scope: endpoint}}}
        routes:
        - {name: one, to: u, breaker: {errors: 10%}}
        - {name: two, to: u, breaker: {scope: route}}
        """
    assert names(text) == ["u", "u/a:1", "route:two"]
    config = load_text(HEAD + textwrap.dedent(text))
    assert upstream_breakers(config, "u").keys() == {"upstream", "endpoint"}


def test_two_of_one_name_are_refused_with_the_place_of_the_second() -> None:
    text = """\
        upstreams:
          u: {endpoints: ['http://a:1']}
        routes:
        - {name: one, to: u, breaker: {errors: 10%}}
        - {name: two, to: u, breaker: {errors: 10%}}
        """
    (error,) = errors(text)
    assert error == (
        "7:31: error: routes[1].breaker: the breaker 'u' is there already (route 'one'); write it once, at "
        "'upstreams.u.breaker', or give this one 'scope: route'"
    )


def test_route_and_upstream_cannot_both_have_it() -> None:
    text = """\
        upstreams: {u: {endpoints: ['http://a:1'], breaker: {}}}
        routes: [{name: one, to: u, breaker: {}}]
        """
    (error,) = errors(text)
    assert "the breaker 'u' is there already (upstreams.u.breaker)" in error


def test_defaults_make_one_breaker_for_all_routes_to_an_upstream() -> None:
    text = """\
        defaults: {breaker: {errors: 20%}}
        upstreams: {u: {endpoints: ['http://a:1']}}
        routes:
        - {name: one, to: u}
        - {name: two, to: u}
        - {name: three, to: 'http://c:1', breaker: off}
        - {name: four, respond: {status: 200}}
        """
    assert names(text) == ["u"]


def test_defaults_and_a_route_that_says_otherwise_cannot_share_an_upstream() -> None:
    text = """\
        defaults: {breaker: {errors: 20%}}
        upstreams: {u: {endpoints: ['http://a:1']}}
        routes:
        - {name: one, to: u}
        - {name: two, to: u, breaker: {errors: 30%}}
        """
    assert len(errors(text)) == 1


def test_endpoints_that_are_the_same_cannot_each_have_one() -> None:
    (error,) = errors(
        "upstreams: {u: {endpoints: ['http://a:1', 'http://a:1'], breaker: {scope: endpoint}}}\nroutes: [{name: r, to: u}]"
    )
    assert "two endpoints of 'u' are the same" in error


def test_upstream_has_no_breaker_of_scope_route() -> None:
    (error,) = errors(
        "upstreams: {u: {endpoints: ['http://a:1'], breaker: {scope: route}}}\nroutes: [{name: r, to: u}]"
    )
    assert "upstreams.u.breaker: 'scope: route' belongs to the breaker of a route" in error


def test_breaker_of_a_route_without_upstream_has_no_effect() -> None:
    (error,) = errors("routes: [{name: r, respond: {status: 200}, breaker: {}}]")
    assert "'breaker' has no effect with 'respond'" in error


def test_cooldown_is_read() -> None:
    for written, expected in (
        ("{}", cooldown.Config()),
        ("endpoint", cooldown.Config(scope="endpoint")),
        ("{scope: upstream, max: 60s}", cooldown.Config(scope="upstream", max=60.0)),
    ):
        text = f"{HEAD}upstreams: {{u: {{endpoints: ['http://a:1'], cooldown: {written}}}}}\nroutes: [{{name: r, to: u}}]"
        assert load_text(text).upstreams["u"].cooldown == expected

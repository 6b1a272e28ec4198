"""Defaults: what a route has that it does not say itself."""

from __future__ import annotations

import textwrap

from ambassador.config.defaults import merge
from ambassador.config.load import load_string, load_text
from ambassador.config.part import build
from ambassador.config.schema import Timeout
from ambassador.proxy.policies import headers, retry
from tests.config.test_load import HEAD
from tests.config.test_read import part


def test_merge_keeps_what_is_not_overridden() -> None:
    merged = merge(part("{connect: 2s, total: 4s}"), part("{total: 8s}"))
    assert build(merged) == Timeout(connect=2.0, total=8.0)
    assert merge(part("4s"), None) is None


def test_defaults_are_merged_key_by_key() -> None:
    config = load_text(
        HEAD
        + textwrap.dedent("""\
        defaults:
          timeout: {connect: 2s, total: 9s}
          retry: {attempts: 3, when: reset}
          headers: {request: {set: {X-A: a, x-b: b, x-c: c}, remove: [x-r]}}
        routes:
          - {name: a, match: {path: /a}, to: http://a}
          - name: b
            to: http://b
            timeout: {total: 4s}
            retry: {attempts: 1}
            headers: {request: {set: {x-a: mine}, remove: [x-b]}}
        """)
    )
    a, b = config.routes
    assert (a.timeout.connect, a.timeout.total, b.timeout.connect, b.timeout.total) == (2.0, 9.0, 2.0, 4.0)
    assert b.retry == retry.Config(attempts=1, when=("reset",))
    assert b.headers == headers.Config(
        request=headers.Changes(set={"x-c": "c", "x-a": "mine"}, remove=("x-b", "x-r"))
    )
    assert a.headers == headers.Config(
        request=headers.Changes(set={"X-A": "a", "x-b": "b", "x-c": "c"}, remove=("x-r",))
    )


def test_default_limit_fills_in_what_a_route_does_not_say() -> None:
    config = load_string(
        "version: 1\nlisten: 127.0.0.1:8080\n"
        "defaults: {limit: {rate: 10/s, burst: 30, per: client_ip, wait: 1s}}\n"
        "routes:\n"
        "- {name: a, to: http://a}\n"
        "- {name: b, to: http://b, limit: {rate: 5/s}}\n"
        "- {name: c, to: http://c, limit: {status: 503}}\n"
        "- {name: d, to: http://d, limit: {quota: 9/d}}\n"
        "- {name: e, to: http://e, limit: [{rate: 5/s}]}\n"
        "- {name: f, respond: 200, limit: off}\n"
    ).require()
    found = [
        [(each.written, each.whole, each.per, each.wait, each.status) for each in route.limit or ()]
        for route in config.routes
    ]
    assert found == [
        [((10.0, 1), 30, "client_ip", 1.0, 429)],
        [((5.0, 1), 5, "client_ip", 1.0, 429)],
        [((10.0, 1), 30, "client_ip", 1.0, 503)],
        [((9.0, 86400), 9, "client_ip", 1.0, 429)],
        [((5.0, 1), 5, None, 0.0, 429)],
        [],
    ]


def test_what_a_route_switches_off_has_no_default() -> None:
    route = load_text(
        HEAD + "defaults: {limit: 10/s, timeout: 3s}\nroutes: [{name: a, to: 'http://a', limit: off}]"
    ).routes[0]
    assert (route.limit, route.timeout.total) == (None, 3.0)


def test_route_that_sends_nothing_has_no_default_of_the_way() -> None:
    loaded = load_string(HEAD + "defaults: {timeout: 3s, limit: 10/s}\nroutes: [{name: a, respond: 204}]")
    (route,) = loaded.require().routes
    assert route.timeout.total == Timeout().total
    assert len(route.limit or ()) == 1

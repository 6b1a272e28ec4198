"""Loading: every mistake with its place, and what a good file becomes."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ambassador.config.load import Loaded, load, load_endpoints, load_file, load_string, load_text
from ambassador.config.problem import ConfigError
from ambassador.config.schema import Config, Endpoint, PathRegex, Redirect, Respond, State, ValueMatch
from ambassador.proxy.policies import retry

HEAD = "version: 1\nlisten: 127.0.0.1:8080\n"


def loaded(text: str) -> Loaded:
    return load_string(textwrap.dedent(text))


def routes(text: str) -> Loaded:
    """Loads routes; the first of their lines is line 4."""
    start = "routes: " if text.startswith("{") else "routes:\n"
    return load_string(HEAD + start + textwrap.dedent(text))


def places(result: Loaded) -> list[tuple[int, int, str]]:
    assert result.config is None
    return [(problem.line, problem.column, problem.path) for problem in result.errors]


def only(result: Loaded) -> str:
    """The only error, as it is printed after the file's name."""
    assert result.config is None
    assert len(result.errors) == 1, [str(problem) for problem in result.errors]
    return str(result.errors[0]).removeprefix("-:")


CONTRACT = """\
version: 1
listen: 127.0.0.1:8080            # short for listeners: [{address: …}]
admin: 127.0.0.1:9901             # or {address, token: file:…}; unix:/path too
workers: auto                     # CPUs this process may use (affinity and cgroup quota)
state: local
routes:
  - name: billing
    match: {host: billing.internal}
    to: http://127.0.0.1:9000     # one URL, a list of URLs, or the name of an upstream
    timeout: 2s
    retry: {attempts: 2, when: [connect, 5xx]}
"""


def test_sample_of_the_reference_loads() -> None:
    config = load_text(CONTRACT)
    (route,) = config.routes
    assert (route.name, route.to, route.line, route.match.host) == (
        "billing",
        "billing",
        7,
        ("billing.internal",),
    )
    assert route.timeout.total == 2.0
    assert route.retry == retry.Config(attempts=2, when=("connect", "5xx"))
    assert config.upstreams["billing"].endpoints == (Endpoint(url="http://127.0.0.1:9000"),)
    assert config.admin is not None
    assert (config.listeners[0].address, config.admin.address, config.workers) == (
        "127.0.0.1:8080",
        "127.0.0.1:9901",
        None,
    )


def test_config_survives_msgpack() -> None:
    config = load_text(CONTRACT)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=Config) == config


def test_defaults_of_the_reference() -> None:
    config = load_text(HEAD + "routes: [{name: a, to: 'http://a'}]")
    (route,) = config.routes
    timeout, limits = route.timeout, config.listeners[0].limits
    assert (timeout.connect, timeout.first_byte, timeout.per_try, timeout.total) == (1.0, None, None, 15.0)
    assert (timeout.total_body, timeout.idle) == (None, 300.0)
    assert route.retry == retry.UNSET
    assert route.retry is not None
    assert (route.retry.attempts, route.retry.kinds, route.retry.statuses) == (
        1,
        frozenset({"connect", "refused_stream"}),
        frozenset(),
    )
    assert (limits.connections, limits.header_bytes, limits.headers, limits.uri, limits.body) == (
        10000,
        65536,
        100,
        8192,
        None,
    )
    assert (limits.idle, limits.header_timeout, limits.body_timeout, limits.min_rate) == (
        75.0,
        10.0,
        30.0,
        256.0,
    )
    assert (config.drain.delay, config.drain.timeout) == (5.0, 20.0)


@pytest.mark.parametrize("written", ["off", "false", "0", "{attempts: 0}"])
def test_no_retries(written: str) -> None:
    assert (
        load_text(HEAD + f"routes: [{{name: a, to: 'http://a', retry: {written}}}]").routes[0].retry is None
    )


def test_written_retry_has_the_wider_conditions() -> None:
    config = load_text(HEAD + "routes: [{name: a, to: 'http://a', retry: {methods: all, on: [429]}}, "
                       "{name: b, to: 'http://b', match: {path: /b}, retry: 3}]")  # fmt: skip
    first, second = (route.retry for route in config.routes)
    assert first == retry.Config(attempts=2, methods="all", when=("429",))
    assert second is not None
    assert (second.attempts, second.statuses) == (3, frozenset({502, 503, 504}))


@pytest.mark.parametrize("key", ["on", "true", "when"])
def test_on_is_when(key: str) -> None:
    route = load_text(HEAD + f"routes: [{{name: a, to: 'http://a', retry: {{{key}: reset}}}}]").routes[0]
    assert route.retry == retry.Config(when=("reset",))


def test_balancing_is_taken_as_it_is_written() -> None:
    config = load_text(
        "version: 1\n"
        + textwrap.dedent("""\
        listen: a:1
        zone: env:ZONE
        upstreams:
          u:
            endpoints: [{url: http://a, zone: x, priority: 1, weight: 5}, http://b]
            balance: ring_hash
            hash: header:X-Tenant
            zone_aware: true
            slow_start: 30s
        """)
    )
    upstream = config.upstreams["u"]
    assert (config.zone, upstream.balance, upstream.hash) == ("env:ZONE", "ring_hash", "header:x-tenant")
    assert (upstream.zone_aware, upstream.slow_start) == (True, 30.0)
    first, second = upstream.endpoints
    assert (first.zone, first.priority, first.weight) == ("x", 1, 5)
    assert (second.zone, second.priority, second.weight) == (None, 0, 1)


def test_short_forms() -> None:
    config = load_text(
        HEAD
        + textwrap.dedent("""\
        upstreams:
          u:
            endpoints: [unix:/run/u.sock, {url: "http://[::1]:81", weight: 3}]
            balance: p2c
        routes:
          - {name: r, match: {path: /r}, redirect: https://x/}
          - {name: s, match: {path: /s, methods: GET}, respond: 403}
          - name: t
            match:
              host: [A.example, "*.b.example"]
              path: {regex: "/t/(?P<id>[0-9]+)"}
              headers: {X-Flag: off, x-any: "*", x-two: [a, b], x-none: {present: false}}
            to: u
            rewrite: {host: keep}
        """)
    )
    r, s, t = config.routes
    assert r.redirect == Redirect(location="https://x/")
    assert (s.respond, s.match.methods) == (Respond(status=403), ("GET",))
    assert t.match.host == ("a.example", "*.b.example")
    assert t.match.path == PathRegex(regex="/t/(?P<id>[0-9]+)")
    assert t.match.headers == {
        "x-flag": ValueMatch(exact=("off",)),
        "x-any": ValueMatch(present=True),
        "x-two": ValueMatch(exact=("a", "b")),
        "x-none": ValueMatch(present=False),
    }
    assert config.upstreams["u"].endpoints == (
        Endpoint(url="unix:/run/u.sock"),
        Endpoint(url="http://[::1]:81", weight=3),
    )


def test_five_mistakes_are_five_errors() -> None:
    result = loaded("""\
        version: 1
        listen: 127.0.0.1:8080
        routes:
          - name: a
            to: http://a
            timeout: {total: 5}
          - name: a
            to: nowhere
            retry: {attempts: 12, when: [conect]}
            headres: {}
        """)
    assert places(result) == [
        (6, 22, "routes[0].timeout.total"),
        (7, 11, "routes[1].name"),
        (8, 9, "routes[1].to"),
        (9, 23, "routes[1].retry.attempts"),
        (9, 34, "routes[1].retry.when[0]"),
        (10, 5, "routes[1]"),
    ]
    assert result.errors[-1].hint == "did you mean 'headers'?"
    assert result.errors[0].source == "    timeout: {total: 5}"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("- {name: a, upsteam: x}", "4:13: error: routes[0]: unknown key 'upsteam'; did you mean 'to'?"),
        ("- {name: a, too: http://a}", "4:13: error: routes[0]: unknown key 'too'; did you mean 'to'?"),
        ("- {nane: a, to: http://a}", "4:4: error: routes[0]: unknown key 'nane'; did you mean 'name'?"),
        ("- {to: http://a}", "4:3: error: routes[0]: missing required key 'name'"),
        ("- {name: a, to: http://a, host: b}", "4:27: error: routes[0]: unknown key 'host'; did you mean 'match.host'?"),
        ("- {name: a, to: http://a, to: http://b}", "4:27: error: routes[0].to: duplicate key 'to' (first on line 4)"),
        ("- {name: a}", "4:3: error: routes[0]: missing one of 'to', 'redirect' and 'respond'"),
        ("- {name: a, to: http://a, respond: 200}",
         "4:36: error: routes[0].respond: a route has one of 'to', 'redirect' and 'respond', and this has 'to' already"),
        ("- {name: a, respond: 200, timeout: 1s}", "4:36: error: routes[0].timeout: 'timeout' has no effect with 'respond'"),
        ("- {name: a, respond: 200, hedge: {}}", "4:34: error: routes[0].hedge: 'hedge' has no effect with 'respond'"),
        ("- {name: a, to: b}", "4:17: error: routes[0].to: there is no upstream 'b'; a URL begins with 'http://'"),
        ("- {name: a, to: 'a:80'}", "4:17: error: routes[0].to: 'a:80' is neither a URL nor a name; did you mean 'http://a:80'?"),
        ("- {name: a, to: http://a/b}",
         "4:17: error: routes[0].to: 'http://a/b': an endpoint has no path or query; use 'rewrite' to change the path"),
        ("- {name: a, to: http://a, timeout: {per_try: 3s, total: 2s}}",
         "4:46: error: routes[0].timeout.per_try: is longer than 'total' (2s), so it would never end anything"),
        ("- {name: a, to: http://a, timeout: off}",
         "4:36: error: routes[0].timeout: 'off' is not a duration; this cannot be switched off"),
        ("- {name: a, to: http://a, timeout: 0}", "4:36: error: routes[0].timeout: must be more than 0, got 0"),
        ("- {name: a, to: http://a, timeout: }",
         "4:36: error: routes[0].timeout: has no value; leave the key out, or say what it is"),
        ("- {name: a, to: http://a, timeout: [1s]}", "4:36: error: routes[0].timeout: must be a mapping, not a list; leave out the '- '"),
        ("- {name: a, to: http://a, match: {path: '/a/{id}b'}}",
         "4:41: error: routes[0].match.path: '/a/{id}b': a parameter is a whole segment; as in '/v1/accounts/{id}'"),
        ("- {name: a, to: http://a, match: {methods: [get]}}",
         "4:45: error: routes[0].match.methods[0]: 'get' is not a method; methods are upper case; did you mean 'GET'?"),
        ("- {name: a, to: http://a, headers: {request: {set: {x: {client}}}}}",
         '4:56: error: routes[0].headers.request.set.x: must be a text, not a mapping; quote this: "{client}"'),
        ("- {name: a, to: http://a, headers: {response: {set: {X-A: 1, x-a: 2}}}}",
         "4:62: error: routes[0].headers.response.set.x-a: duplicate key 'x-a' (first on line 4)"),
        ("- {name: a, to: http://a, rewrite: {prefix: /x, regex: [a, b]}}",
         "4:56: error: routes[0].rewrite.regex: 'prefix' and 'regex' exclude each other"),
        ("- {name: a, redirect: {}}", "4:23: error: routes[0].redirect: needs 'location', or one of 'scheme', 'host', 'port' and 'path'"),
        ("- {name: a, redirect: {host: b, status: 200}}",
         "4:41: error: routes[0].redirect.status: must be one of 301, 302, 303, 307, 308; got '200'"),
        ("- {name: a, respond: 99}", "4:22: error: routes[0].respond: must be 200 to 599, got 99"),
        ("- {name: a, to: http://a, mirror: {to: b}}", "4:27: error: routes[0].mirror: 'mirror' is not supported by this version"),
        ("- {name: a, to: http://a, limit: 100}",
         "4:34: error: routes[0].limit: '100' is not a rate; a rate needs a period: '100/s' or '100/m'"),
        ("- {name: a, to: http://a, limit: {rate: 5/second}}",
         "4:41: error: routes[0].limit.rate: '5/second' is not a rate; did you mean '5/s'?"),
        ("- {name: a, to: http://a, limit: {}}", "4:34: error: routes[0].limit: needs exactly one of 'rate' and 'quota'"),
        ("- {name: a, to: http://a, limit: []}", "4:34: error: routes[0].limit: must not be empty"),
        ("- {name: a, to: http://a, limit: {rate: 1/s, per: ip}}",
         "4:51: error: routes[0].limit.per: 'ip' is not one of client, route, client_ip, upstream, header:NAME"),
        ("- {name: a, to: http://a, limit: {rate: 1/s, cost: 0}}",
         "4:52: error: routes[0].limit.cost: '0' is neither a whole number above 0 nor 'header:NAME'"),
        ("- {name: a, to: http://a, limit: {rate: 10/s, cost: 9}}",
         "4:53: error: routes[0].limit.cost: is more than can ever be there at once: 8, 80 % of the burst of 10"),
        ("- {name: a, to: http://a, limit: [{rate: 1/s}, {rate: 9/m}]}",
         "4:34: error: routes[0].limit: has two limits with the name 'limit'; give each a 'name'"),
        ("- {name: a, to: http://a, retry: {budget: 120%}}", "4:43: error: routes[0].retry.budget: must be 0% to 100%, got 120%"),
        ("- {name: a, to: http://a, retry: {buffer: 64}}",
         "4:43: error: routes[0].retry.buffer: '64' is not a size; a size needs a unit: '64B' or '64KiB'"),
        ("- {name: a, to: http://a, retry: {methods: idempotnet}}",
         "4:44: error: routes[0].retry.methods: 'idempotnet' is not known; did you mean 'idempotent'?"),
        ("- {name: a, to: !x http://a}", "4:17: error: the tag '!x' is not supported"),
        ("{name: a, to: http://a}", "3:9: error: routes: must be a list, not a mapping; begin each item with '- '"),
    ],
)  # fmt: skip
def test_mistake_in_a_route_has_its_place(text: str, error: str) -> None:
    assert only(routes(text)) == error


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("version: 2\nlisten: a:1", "1:10: error: version: must be 1; got '2'"),
        ("version: 1", "1:1: error: missing required key 'listen'; as in 'listen: 127.0.0.1:8080'"),
        ("lisen: a:1", "1:1: error: unknown key 'lisen'; did you mean 'listen'?"),
        ("listen: [a:1, a:1]", "1:15: error: listen[1].address: 'a:1' is listened on already (line 1)"),
        ("listen: 127.0.0.1:1\nadmin: 127.0.0.1:1", "2:8: error: admin.address: '127.0.0.1:1' is listened on already (line 1)"),
        ("listen: a:1\nlisteners: [a:2]", "1:1: error: listen: is short for 'listeners', and both are there"),
        ("listen: []", "1:9: error: listeners: must not be empty"),
        ("listen: {address: a:1, protocol: tcp}",
         "1:24: error: listen.protocol: 'protocol' is not supported by this version; only 'http' is"),
        ("listen: {address: a:1, mode: [reverse, forward]}",
         "1:24: error: listen.mode: 'mode' is not supported by this version; only 'reverse' is"),
        ("listen: a:1\nstate: redist://a",
         "2:8: error: state: must be 'local' or the address of a Redis: the scheme must be redis, rediss, unix, redis+sentinel or redis+cluster; as in 'redis://host:6379/0'"),
        ("listen: a:1\nstate: {password: env:X}", "2:19: error: state.password: needs the 'url' of a Redis"),
        ("listen: a:1\nstate: {url: redis://h, sentinel_password: env:X}",
         "2:44: error: state.sentinel_password: needs a 'url' with Sentinels, 'redis+sentinel://…'"),
        ("listen: a:1\nstate: {max_wait: 1s}",
         "2:19: error: state.max_wait: is longer than 250ms, after which the store counts as lost"),
        ("listen: a:1\nstate: {on_loss: shared}", "2:18: error: state.on_loss: must be one of closed, open, share; got 'shared'; did you mean 'share'?"),
        ("listen: a:1\nadmin: {address: a:2, tokn: hunter2, metrics: open}",
         "2:23: error: admin: unknown key 'tokn'; did you mean 'token'?"),
        ("listen: a:1\nworkers: many", "2:10: error: workers: must be a whole number, not 'many'"),
        ("listen: a:1\ntimeout: 2s", "2:1: error: unknown key 'timeout'; did you mean 'defaults.timeout'?"),
        ("listen: a:1\nupstreams: {u: {endpoints: []}}", "2:28: error: upstreams.u.endpoints: must not be empty"),
        ("listen: a:1\nupstreams: {u: {endpoints: [http://a], balance: ring_hash}}",
         "2:49: error: upstreams.u.balance: 'ring_hash' needs 'hash': header:NAME, cookie:NAME or client_ip"),
        ("listen: a:1\nupstreams: {u: {endpoints: [http://a], hash: client_ip}}",
         "2:46: error: upstreams.u.hash: belongs to 'balance: ring_hash', not to 'p2c'"),
        ("listen: a:1\nupstreams: {u: {endpoints: [http://a], balance: ring_hash, hash: client}}",
         "2:66: error: upstreams.u.hash: 'client' is not one of header:NAME, cookie:NAME, client_ip; did you mean 'client_ip'?"),
        ("listen: a:1\nupstreams: {u: {endpoints: [{url: http://a, priority: 128}]}}",
         "2:55: error: upstreams.u.endpoints[0].priority: must be 0 to 127, got 128"),
        ("listen: a:1\nzone: env:1", "2:7: error: zone: '1' is no name of an environment variable"),
        ("listen: a:1\nupstreams: {u: {endpoints: [http://a], tls: {ca: /x}}}",
         "2:45: error: upstreams.u.tls: has no effect: no endpoint is 'https://…'"),
        ("listen: a:1\nupstreams: {u: {endpoints: [http://a], health: {grpc: true}}}",
         "2:49: error: upstreams.u.health.grpc: 'grpc' is not supported by this version"),
        ("listen: a:1\nupstreams: {u: {endpoints: [http://a], health: {expect: 399-200}}}",
         "2:57: error: upstreams.u.health.expect: '399-200' ends before it begins; did you mean '200-399'?"),
        ("listen: a:1\nupstreams: {u: {endpoints: [http://a], health: {expect: ok}}}",
         "2:57: error: upstreams.u.health.expect: 'ok' is not a status (204), a range (200-399) or a class (2xx)"),
        ("listen: a:1\nupstreams: {u: {endpoints: [http://a], health: {expect: 1xx}}}",
         "2:57: error: upstreams.u.health.expect: '1xx' is not a range of final statuses, 200 to 599"),
        ("listen: a:1\nupstreams: {u: {endpoints: [http://a], outlier: {consecutive: 0, success_rate: off}}}",
         "2:49: error: upstreams.u.outlier: ejects nothing without 'consecutive' and 'success_rate'; leave it out, or say 'off'"),
        ("listen: a:1\nupstreams: {u: {endpoints: [http://a], health: {tcp: true, path: /up}}}",
         "2:66: error: upstreams.u.health.path: says nothing with 'tcp: true', which only connects"),
        ("listen: a:1\nupstreams: {u: {endpoints: [{url: http://a, weight: -1}]}}",
         "2:53: error: upstreams.u.endpoints[0].weight: must be 0 to 1000, got -1"),
        ("a: 1\n---\nb: 1", "2:1: error: a second document; a file holds one"),
        ("a: *b", "1:4: error: the alias '*b' names nothing"),
        ("a: &b [*b]", "1:8: error: the alias '*b' is inside of what it names"),
        ("listen: \x07", "1:9: error: holds the character '\\x07'"),
        ("[" * 70, "1:65: error: nested deeper than 64 levels"),
        ("just text", "1:1: error: must be a mapping, not 'just text'"),
    ],
)  # fmt: skip
def test_mistake_has_its_place(text: str, error: str) -> None:
    result = load_string(text)
    if "tokn" in text:
        assert not any("hunter2" in problem.source for problem in result.problems)
        assert str(result.errors[0]).removeprefix("-:") == error
        return
    assert only(result) == error


def test_secret_in_the_file_is_not_shown() -> None:
    result = load_string(HEAD + "admin: {address: 1.2.3, token: hunter2, metrics: opn}")
    assert len(result.errors) == 3
    for problem in result.errors:
        assert "hunter2" not in problem.text()


def test_password_of_the_store_in_the_file_is_not_shown() -> None:
    (problem,) = load_string(
        HEAD + "state: redis://me:hunter2@host/0\nroutes: [{name: a, respond: 200}]"
    ).errors
    assert "hunter2" not in problem.text()
    assert "password: env:NAME" in problem.text()


def test_state_has_its_defaults_and_what_is_written() -> None:
    state = load_text(HEAD + "state: redis://me@host/3").state
    assert state == State(url="redis://me@host/3")
    assert (state.prefix, state.on_loss, state.max_wait) == ("amb", "share", 0.02)
    assert (state.password, state.secret_key, state.expected_replicas) == (None, None, None)
    state = load_text(
        HEAD + "state: {url: 'redis+sentinel://h/m', password: env:P, sentinel_password: file:/s, prefix: x, "
        "secret_key: file:/k, on_loss: closed, max_wait: 0s, expected_replicas: 4}"
    ).state
    assert (state.password, state.sentinel_password, state.secret_key) == ("env:P", "file:/s", "file:/k")
    assert (state.prefix, state.on_loss, state.max_wait, state.expected_replicas) == ("x", "closed", 0.0, 4)


def test_admin_beyond_loopback_needs_a_token() -> None:
    assert only(load_string(HEAD + "admin: 0.0.0.0:9901")).startswith(
        "3:8: error: admin: '0.0.0.0:9901' is beyond loopback, so a token is needed"
    )


def test_include_merges_files(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    main = tmp_path / "main.yaml"
    main.write_text(HEAD + "include: [conf.d/*.yaml]\nroutes: [{name: a, match: {path: /a}, to: u}]")
    (tmp_path / "conf.d" / "1.yaml").write_text("upstreams: {u: {endpoints: ['http://u']}}")
    (tmp_path / "conf.d" / "2.yaml").write_text("routes:\n  - {name: b, to: u}")
    result = load(main)
    config = result.require()
    assert [(route.name, route.line, Path(route.file).name) for route in config.routes] == [
        ("a", 4, "main.yaml"),
        ("b", 2, "2.yaml"),
    ]
    assert [Path(file).name for file in result.files] == ["main.yaml", "1.yaml", "2.yaml"]


def test_include_reports_names_taken_in_other_files(tmp_path: Path) -> None:
    main, other = tmp_path / "main.yaml", tmp_path / "other.yaml"
    main.write_text(
        HEAD + "include: [other.yaml]\nupstreams: {u: {endpoints: ['http://u']}}\nroutes: [{name: a, to: u}]"
    )
    other.write_text("listen: a:1\nupstreams: {u: {endpoints: ['http://v']}}\nroutes: [{name: a, to: u}]")
    result = load(main)
    assert [(Path(problem.file).name, problem.line, problem.path) for problem in result.errors] == [
        ("other.yaml", 1, "listen"),
        ("other.yaml", 2, "upstreams.u"),
        ("other.yaml", 3, "routes[0].name"),
    ]


def test_inline_upstream_may_not_take_a_name() -> None:
    error = only(
        load_string(HEAD + "upstreams: {a: {endpoints: ['http://u']}}\nroutes:\n- {name: a, to: 'http://a'}")
    )
    assert error.startswith("5:17: error: routes[0].to: the upstream 'a' is there already (line 3)")


def test_missing_file_and_odd_bytes_are_problems(tmp_path: Path) -> None:
    assert str(load(tmp_path / "none.yaml").errors[0]).endswith(
        "none.yaml: error: cannot be read: No such file or directory"
    )
    odd = tmp_path / "odd.yaml"
    odd.write_bytes(b"version: 1\nname: \xff")
    assert str(load(odd).errors[0]).endswith("odd.yaml:2:7: error: is not UTF-8: byte 0xff")
    with pytest.raises(ConfigError):
        load_file(odd)


SCALARS = st.one_of(
    st.sampled_from(["off", "on", "true", "null", "~", "1", "-1", "0", "2s", "64KiB", "20%", "*", "**", "/a/{id}", "{client}", "http://a", "unix:/x", "a.b:80", "<<", "[::1]:80"]),
    st.text(max_size=8), st.integers(), st.booleans(), st.none(), st.floats(),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(
        ["version", "listen", "listeners", "admin", "routes", "upstreams", "defaults", "name", "match", "to", "timeout", "retry", "headers", "request", "set", "host", "path", "regex", "endpoints", "url", "weight", "when", "include", "respond", "redirect", "rewrite", "status", "total", "token", "address", "telemetry", "drain"]
    ),
    st.text(max_size=4),
)  # fmt: skip
TREES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=5)), max_leaves=20
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(TREES)
def test_any_tree_gives_a_config_or_problems(tree: object) -> None:
    text = msgspec.json.encode(tree).decode()
    result = load_string(text)
    assert (result.config is None) == bool(result.errors)


@settings(max_examples=150)
@given(st.text(alphabet=st.sampled_from(list("abc:{}[]*&!|>-?,#'\"\n \t%@`~<10")), max_size=40))
def test_any_text_gives_a_config_or_problems(text: str) -> None:
    result = load_string(text)
    assert (result.config is None) == bool(result.errors)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_change_of_a_good_file_gives_a_config_or_problems(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(CONTRACT)))
    length = data.draw(st.integers(0, 10))
    inserted = data.draw(
        st.one_of(st.text(max_size=5), st.sampled_from(["{", "}", "[", "*a", "&a", "\n", ": ", "off"]))
    )
    result = load_string(CONTRACT[:at] + inserted + CONTRACT[at + length :])
    assert (result.config is None) == bool(result.errors)
    for problem in result.problems:
        problem.text()


# Limits


def limits_of(text: str) -> list[tuple[object, ...]]:
    config = routes(text).require()
    return [
        (route.name, *((each.label, each.written, each.whole, each.per) for each in route.limit or ()))
        for route in config.routes
    ]


def test_limit_is_one_or_a_list_or_a_bare_rate() -> None:
    text = (
        "- {name: a, to: http://a, limit: 100/s}\n"
        "- {name: b, to: http://b, limit: {rate: 5000/m, burst: 50, per: 'header:X-Tenant'}}\n"
        "- {name: c, to: http://c, limit: [2/s, {name: day, quota: 1e6/d, per: client_ip}]}\n"
        "- {name: d, to: http://d, limit: off}"
    )
    assert limits_of(text) == [
        ("a", ("limit", (100.0, 1), 100, None)),
        ("b", ("limit", (5000.0, 60), 50, "header:x-tenant")),
        ("c", ("limit", (2.0, 1), 2, None), ("day", (1e6, 86400), 1_000_000, "client_ip")),
        ("d",),
    ]


def test_upstreams_have_limits_too() -> None:
    config = load_string(
        "version: 1\nlisten: 127.0.0.1:8080\nroutes: [{name: a, to: u}]\n"
        "upstreams: {u: {endpoints: ['http://u:1'], limit: {quota: 1000/h}}}"
    ).require()
    (each,) = config.upstreams["u"].limit or ()
    assert each.written == (1000.0, 3600)


def test_a_duplicate_key_hides_neither_errors_nor_warnings() -> None:
    result = loaded(
        """\
        version: 1
        listen: 127.0.0.1:8080
        listen: nonsense
        routes:
          - {name: a, respond: 404}
          - {name: b, respond: 404}
          - {name: c, name: d, respond: 404, headers: {}, headers: {request: {set: {"é": c}}}}
          - {name: e, match: {path: x}, respond: 404}
        upstreams:
          one: {endpoints: ["http://127.0.0.1:1"], connections: {max: 1}, connections: {max: -1}}
        """
    )
    assert [(problem.line, problem.column, problem.level) for problem in result.problems] == [
        (3, 1, "error"), (3, 9, "error"), (6, 5, "warning"), (7, 5, "warning"), (7, 15, "error"), (7, 51, "error"),
        (7, 77, "error"), (8, 29, "error"), (10, 67, "error"), (10, 86, "error"),
    ]  # fmt: skip


def test_what_is_left_out_because_of_an_error_is_not_called_missing() -> None:
    result = loaded(
        """\
        version: 1
        listen: 127.0.0.1:8080
        routes: [{name: a, to: one, timeout: 1x}]
        upstreams: {one: {endpoints: ["http://127.0.0.1:1"]}}
        """
    )
    assert [problem.level for problem in result.problems] == ["error"]


def test_every_bad_value_of_a_breaker_is_told_in_one_run() -> None:
    loaded = load_string("""
        version: 1
        listen: 127.0.0.1:80
        routes:
          - name: a
            to: http://h
            breaker: {quorum: 300%, window: 0.5s, probes: 0, errors: 0%, open_for: 10s..5s, slow: {percent: 0%}}
    """)
    told = [problem.path.removeprefix("routes[0].breaker.") for problem in loaded.errors]
    assert sorted(told) == ["errors", "open_for", "probes", "quorum", "slow", "slow.percent", "window"]


def test_two_breakers_of_one_name_are_told_beside_other_errors() -> None:
    result = loaded(
        """\
        version: 1
        listen: 127.0.0.1:8080
        workers: none
        routes:
          - {name: a, match: {path: /a}, to: one, breaker: {errors: 10%}}
          - {name: b, match: {path: /b}, to: one, breaker: {errors: 20%}}
        upstreams: {one: {endpoints: ["http://127.0.0.1:1"]}}
        """
    )
    assert [problem.line for problem in result.errors] == [3, 6]


def test_endpoints_of_a_file_are_a_list_as_in_a_config(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("- http://A.test\n- {url: 'http://b.test:1', weight: 2, zone: z, priority: 1}\n")
    first, second = load_endpoints(str(path))
    assert first == Endpoint(url="http://a.test:80")
    assert second == Endpoint(url="http://b.test:1", weight=2, zone="z", priority=1)
    path.write_text("[]")
    assert load_endpoints(str(path)) == ()


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["1:1: error: is empty; a list of endpoints belongs here; '[]' is an empty one"]),
        ("endpoints: []", ["1:1: error: must be a list of endpoints; '[]' is an empty one"]),
        ("[http://a", [""]),
        (
            "- http://a\n- {url: http://a}\n- {weight: 1001}\n",
            [
                "2:3: error: [1]: 'http://a:80' is there already (line 1)",
                "3:3: error: [2]: missing required key 'url'",
                "3:12: error: [2].weight: must be 0 to 1000, got 1001",
            ],
        ),
    ],
)
def test_endpoints_of_a_file_with_mistakes_are_all_told(
    tmp_path: Path, text: str, problems: list[str]
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_endpoints(str(path))
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == len(problems)
    for one, part in zip(told, problems, strict=True):
        assert one.startswith(f"{path}:")
        assert part in one


def test_endpoints_of_what_is_no_file_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is not a file"):
        load_endpoints(str(tmp_path / "pipe"))


def test_places_of_settings_that_may_prove_unusable_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "version: 1\nlisteners:\n- {address: 127.0.0.1:1}\n- 127.0.0.1:2\nadmin: {address: 127.0.0.1:3, token: 'env:A'}\n"
        "control: unix:/c\ntelemetry: {access_log: /l}\nroutes: []\n"
    )
    assert load(file).places == {
        "listeners[0]": f"{file}:3:13: error: listeners[0].address",
        "listeners[1]": f"{file}:4:3: error: listeners[1]",
        "admin.address": f"{file}:5:18: error: admin.address",
        "admin.token": f"{file}:5:38: error: admin.token",
        "control": f"{file}:6:10: error: control",
        "telemetry.access_log": f"{file}:7:25: error: telemetry.access_log",
    }
    assert load_string("version: 1\nlisten: 127.0.0.1:1\nadmin: 127.0.0.1:2\nroutes: []\n").places == {
        "listeners[0]": "-:2:9: error: listen",
        "admin.address": "-:3:8: error: admin",
    }


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("{max: 65KiB}", "routes[0].idempotency.max: must be at most 64KiB"),
        ("{ttl: 1s}", "routes[0].idempotency.ttl: must be at least 15s"),
        ("{header: 'a b'}", "routes[0].idempotency.header"),
        ("{on_loss: open}", "must be one of"),
    ],
)
def test_impossible_idempotency_is_an_error(settings: str, problem: str) -> None:
    text = f"version: 1\nlisten: 127.0.0.1:80\nroutes: [{{name: r, to: 'http://a', idempotency: {settings}}}]"
    (error,) = load_string(text).errors
    assert problem in str(error)


def test_each_header_that_is_the_proxys_own_is_told_at_its_place() -> None:
    result = routes(
        """\
        - {name: a, respond: {headers: {x: y, TE: z}}}
        - name: b
          to: http://b
          headers:
            request:
              set: {x: y, Host: a, connection: close}
              remove: [a, te]
            response: {add: {Content-Length: 1}}
        """
    )
    assert places(result) == [
        (4, 39, "routes[0].respond.headers.TE"),
        (9, 19, "routes[1].headers.request.set.Host"),
        (9, 28, "routes[1].headers.request.set.connection"),
        (10, 19, "routes[1].headers.request.remove[1]"),
        (11, 22, "routes[1].headers.response.add.Content-Length"),
    ]

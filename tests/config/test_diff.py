from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.config import diff as diff_module
from ambassador.config.diff import Change, KeyChange, diff, render
from ambassador.config.load import load_text
from ambassador.config.schema import ON_THE_WAY, POLICIES, Config
from ambassador.config.secrecy import without_secrets

HEAD = "version: 1\nlisten: [127.0.0.1:8080]\n"


def config(text: str = "", *, head: str = HEAD) -> Config:
    return load_text(head + text)


def only(before: Config, after: Config) -> Change:
    (change,) = diff(before, after)
    return change


def test_the_same_in_other_words_is_no_change() -> None:
    before = config("routes: [{name: a, to: 'http://A', timeout: 2s}]")
    after = config(
        "# a comment\nroutes:\n  - name: a\n    to: [http://a:80]\n    timeout: {total: 2000ms}\n",
        head="version: 1\nlisteners: [{address: 127.0.0.1:8080}]\n",
    )
    assert diff(before, after) == []
    assert render([]) == "no difference\n"


def test_changed_keys_of_a_route_are_told_as_people_write_them() -> None:
    before = config("routes: [{name: a, match: {path: /a}, to: 'http://a', timeout: 2s}]")
    after = config("routes: [{name: a, match: {path: /b}, to: 'http://a', timeout: {total: 2s, idle: 1m}}]")
    change = only(before, after)
    assert (change.what, change.kind, change.place) == ("route a", "changed", "-:3")
    assert change.keys == (
        KeyChange(key="match.path", before="/a", after="/b"),
        KeyChange(key="timeout.idle", before="5m", after="1m"),
    )


@pytest.mark.parametrize(
    ("before", "after", "what", "kind"),
    [
        ("workers: 2", "workers: 4", "workers", "changed"),
        ("admin: 127.0.0.1:1", "", "admin", "changed"),
        ("drain: {delay: 1s}", "drain: {delay: 2s}", "drain", "changed"),
        ("telemetry: {sample: 10%}", "", "telemetry", "changed"),
        ("", "overload: {memory: 80%}", "overload", "changed"),
        ("upstreams: {u: {endpoints: ['http://a']}}", "", "upstream u", "removed"),
        ("", "upstreams: {u: {endpoints: ['http://a']}}", "upstream u", "added"),
        ("routes: [{name: a, respond: 200}]", "", "route a", "removed"),
        ("", "routes: [{name: a, respond: 200}]", "route a", "added"),
    ],
)
def test_each_part_has_its_change(before: str, after: str, what: str, kind: str) -> None:
    change = only(config(before), config(after))
    assert (change.what, change.kind) == (what, kind)
    assert change.effect


@pytest.mark.parametrize(
    ("before", "after", "effect"),
    [
        ("{errors: 50%}", "{errors: 40%}", "; breaker state of a is kept"),
        ("{scope: route}", "{scope: route, window: 5s}", "; breaker state of route:a is kept"),
        ("{scope: route}", "{scope: upstream}", ""),
        ("off", "{}", ""),
    ],
)
def test_breaker_whose_settings_change_keeps_its_state(before: str, after: str, effect: str) -> None:
    change = only(
        *(config(f"routes: [{{name: a, to: 'http://b', breaker: {each}}}]") for each in (before, after))
    )
    assert change.effect == f"holds for requests that begin after the reload; its counters go on{effect}"


def test_listeners_are_known_by_their_addresses() -> None:
    one = config(head="version: 1\nlisten: [127.0.0.1:1, 127.0.0.1:0, 127.0.0.1:0]\n")
    other = config(head="version: 1\nlisten: [127.0.0.1:0, {address: 127.0.0.1:1, half_close: cancel}]\n")
    assert [(change.what, change.kind) for change in diff(one, other)] == [
        ("listener 127.0.0.1:0 (2)", "removed"),
        ("listener 127.0.0.1:1", "changed"),
    ]


def test_secrets_are_not_shown() -> None:
    before = config("admin: {address: 127.0.0.1:1, token: env:ONE}")
    after = config("admin: {address: 127.0.0.1:2, token: env:TWO}")
    assert "ONE" not in render(diff(before, after))


def test_other_secret_is_a_difference_that_shows_neither() -> None:
    auth = (
        "upstreams: {{u: {{endpoints: [http://127.0.0.1:1], auth: {{basic: {{user: a, password: {0}}}}}}}}}"
    )
    one, two = config(auth.format("env:ONE")), config(auth.format("env:TWO"))
    change = only(one, two)
    assert [(key.key, key.before, key.after) for key in change.keys] == [
        ("auth.basic.password", "***", "***")
    ]
    assert diff(one, config(auth.format("env:ONE"))) == []
    other = config("upstreams: {u: {endpoints: [http://127.0.0.1:1], auth: {bearer: env:ONE}}}")
    assert "ONE" not in render(diff(one, other)) + repr(diff(one, other))
    assert "#" not in render(diff(one, other))
    packed = msgspec.msgpack.encode(config(auth.format("env:X")))
    of_service = msgspec.msgpack.decode(packed.replace(b"\xa5env:X", b"\xa3***"), type=Config)
    assert diff(of_service, two) == []  # which it has is not told


def routes(names: list[str]) -> Config:
    return config(f"routes: [{', '.join(f'{{name: {name}, respond: 200}}' for name in names)}]")


def test_one_route_that_moves_is_one_change() -> None:
    change = only(routes(list("abcd")), routes(list("bcda")))
    assert (change.what, change.kind) == ("route a", "moved")
    assert change.effect.endswith("it is now after route d")
    assert only(routes(list("abcd")), routes(list("dabc"))).effect.endswith("it is now the first")


@given(st.permutations(list("abcdef")))
def test_as_few_routes_move_as_can(order: list[str]) -> None:
    moved = {change.what.removeprefix("route ") for change in diff(routes(list("abcdef")), routes(order))}
    staying = [name for name in order if name not in moved]
    assert staying == sorted(staying)
    more = itertools.combinations(order, len(staying) + 1)
    assert not any(list(each) == sorted(each) for each in more)


def test_it_is_told_in_lines() -> None:
    before = config("workers: 2\nroutes: [{name: a, to: 'http://a'}, {name: gone, respond: 200}]")
    after = config("workers: auto\nroutes: [{name: a, to: 'http://a', rewrite: {prefix: /x}}]")
    text = render(diff(before, after)).splitlines()
    assert text[0] == "~ workers"
    assert text[1] == "    2 -> unset"
    assert "- route gone   -:4" in text
    assert '    rewrite: unset -> {"prefix": "/x"}' in text


def test_every_key_of_a_config_is_compared() -> None:
    elsewhere = {"version", "listeners", "routes", "upstreams"}
    assert {*diff_module._SETTINGS, *elsewhere} == set(Config.__struct_fields__)


def test_every_policy_of_a_route_is_compared() -> None:
    written = {
        "limit": "5/s", "fault": "{abort: {percent: 1%, status: 500}}", "concurrency": "3", "idempotency": "{}",
        "cache": "{}", "fallback": "{stale: 1m}", "timeout": "2s", "retry": "off", "hedge": "{}", "breaker": "{}",
        "rewrite": "{prefix: /x}", "headers": "{request: {remove: [a]}}", "access": "['*']",
    }  # fmt: skip
    assert sorted(written) == sorted(POLICIES)
    for key, value in written.items():
        before, after = (
            config(f"routes: [{{name: a, to: 'http://b'{more}}}]\nclients: {{c: {{network: 10.0.0.0/8}}}}")
            for more in ("", f", {key}: {value}")
        )
        assert {each.key.partition(".")[0] for each in only(before, after).keys} == {key}
        assert key in ON_THE_WAY or only(after, before).kind == "changed"


LITERAL = """\
upstreams: {u: {endpoints: [http://127.0.0.1:1], auth: {oauth2: {token_url: 'http://127.0.0.1:2/t?p=1&api_key=SECRET', client_id: a,
  client_secret: env:X}}}}
routes:
- {name: a, match: {headers: {x-api-key: SECRET, x-b: {regex: b+}}, query: {token: {regex: SECRET+}}}, to: u, headers: {request: {set:
    {X-Vault-Token: SECRET, x-b: c}, add: {cookie: s=SECRET}}, response: {set: {set-cookie: s=SECRET}}}}
"""


def test_what_has_the_name_of_a_secret_is_compared_and_not_shown() -> None:
    before, after = config(LITERAL), config(LITERAL.replace("SECRET", "OTHER"))
    changes = diff(before, after)
    assert {key.key: key.after for change in changes for key in change.keys} == {
        "auth.oauth2.token_url": "http://127.0.0.1:2/t?p=1&api_key=***",
        "match.headers.x-api-key.exact": ["***"],
        "match.query.token.exact": ["***"],
        "headers.request.set.X-Vault-Token": "***",
        "headers.request.add.cookie": "***",
        "headers.response.set.set-cookie": "***",
    }
    assert "SECRET" not in render(changes) + repr(changes)
    assert "OTHER" not in render(changes) + repr(changes)


def test_config_does_not_differ_from_what_a_service_tells_of_it() -> None:
    for part in (LITERAL, LITERAL.replace("x-api-key: SECRET, ", ""), LITERAL.replace("&api_key=SECRET", "")):
        mine = config(part)
        told = msgspec.convert(msgspec.to_builtins(without_secrets(mine)), Config)
        assert "SECRET" not in repr(told)
        assert diff(told, mine) == []

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambassador.config.load import load_string
from ambassador.config.veil import Veil, users, without_users

CANARY = "UNIQ7canary"
HEAD = "version: 1\nlisten: 127.0.0.1:80\n"
SHAPES = [
    "routes: [{name: r, to: 'https://user:%s@h'}]",
    "routes: [{name: r, to: 'https://%s@h/path'}]",
    "routes: [{name: r, to: user:%s@h}]",
    "routes: [{name: r, to: ['http://a', 'http://u:%s@b']}]",
    "routes: [{name: r, to: u, redirect: 'https://user:%s@h/x'}]",
    "routes: [{name: r, redirect: {to: 'https://user:%s@h/x', stats: 1}}]",
    "upstreams: {u: {endpoints: ['https://user:%s@h', {url: 'http://a:%s@b:80', wait: 1}]}}",
    "upstreams: {u: {endpoints: [http://a], connections: {via: 'http://user:%s@proxy'}}}",
    "upstreams: {u: {endpoints: [http://a], connections: {via: 'ftp://user:%s@proxy:1'}}}",
    "upstreams: {u: {endpoints: [http://a], auth: {oauth2: {token_url: 'https://user:%s@id', client_id: i, client_secret: '%s'}}}}",
    "upstreams: {u: {endpoints: [http://a], auth: '%s'}}",
    "upstreams: {u: {endpoints: [http://a], auth: [%s]}}",
    "upstreams: {u: {endpoints: [http://a], auth: {bearer: '%s'}}}",
    "upstreams: {u: {endpoints: [http://a], auth: {bearer: {token: '%s'}}}}",
    "upstreams: {u: {endpoints: [http://a], auth: {bearer: {tokn: '%s'}}}}",
    "upstreams: {u: {endpoints: [http://a], auth: {basic: 'u:%s'}}}",
    "upstreams: {u: {endpoints: [http://a], auth: {basic: {alice: '%s'}}}}",
    "upstreams: {u: {endpoints: [http://a], auth: {basic: {user: a, password: [%s]}}}}",
    "upstreams: {u: {endpoints: [http://a], auth: {header: {name: a, value: '%s'}}}}",
    "upstreams: {u: {endpoints: [http://a], auth: {header: {name: a, value: [%s]}}}}",
    "upstreams: {u: {endpoints: [http://a], auth: {hmac: {key: {%s: 1}}}}}",
    "upstreams: {u: {endpoints: [http://a], auth: {jwt: {key: '%s', claims: {}}}}}",
    "upstreams:\n  u:\n    endpoints: [http://a]\n    auth:\n      header:\n        name: x\n        value: %s",
    "upstreams:\n  u:\n    endpoints: [http://a]\n    auth:\n      basic: |\n        u:%s\n      bogus: 1",
    "upstreams:\n  u:\n    endpoints: [http://a]\n    auth:\n      bearer:\n      - %s\n      bogus: 1",
    "upstreams:\n  u:\n    auth:\n      bearer:\n        token:\n          - %s\n          - x: {",
    "upstreams: {u: {endpoints: [http://a], auth: {header: '%s'}}}",
    "upstreams: {u: {endpoints: [http://a], auth: {header: 'x-api-key: %s'}}}",
    "upstreams:\n  u:\n    endpoints: [http://a]\n    auth:\n      header: %s\n",
    "upstreams: {u: {endpoints: [http://a], auth: {basic: {user: 'u:%s', password: env:A}}}}",
    "upstreams: {u: {endpoints: [http://a], auth: {oauth2: {token_url: 'ftp://h/t?a=b&client_secret=%s'}}}}",
    "clients: {a: {basic: {user: 'u:%s', password: env:A}}}",
    "clients: {a: {jwt: {issuer: i, jwks: 'http://h/j?key=%s'}}}",
    "clients:\n  a:\n    api_key: &%s\n    api_key: &%s y\n",
    "routes: [{name: r, to: 'http://h/?token=%s'}]",
    "clients: {a: {api_key: '%s'}}",
    "clients: {a: {api_key: {keys: ['%s', {a: %s}]}}}",
    "clients: {a: {basic: 'u:%s'}}",
    "clients: {a: {jwt: {issuer: i, jwks: 'https://u:%s@id/keys'}}}",
    "clients: {a: {jwt: {issuer: i, jwks: 'ftp://u:%s@id/keys'}}}",
    "admin: {address: '127.0.0.1:9', token: [%s]}",
    "admin: {address: '127.0.0.1:9', token: {%s: 1}}",
    "admin: {address: '127.0.0.1:9', token: '%s'}",
    "admin: {token: %s, address: [}",
    "admin:\n  token: %s: x\n",
    "admin:\n  token: @%s\n",
    "admin:\n  token: '%s\n",
    "admin:\n  token: a{%s}\n  x: [",
    'admin: {"token":"%s"}\nx: [',
    "state: {url: 'redis://:%s@h:6379', password: '%s'}",
    "state: 'redis://u:%s@h:6379/x'",
    "telemetry: {otlp: 'http://u:%s@h:4318', bogus: 1}",
    "routes: [{name: r, to: u, headers: {request: {set: {authorization: 'Bearer %s', bad name: 1}}}}]",
    "routes: [{name: r, to: u, headers: {request: {set: {Authorization: [%s]}}}}]",
]  # fmt: skip


def told(text: str) -> str:
    """All that is ever shown of the problems of a config."""
    problems = load_string(HEAD + text).problems
    assert problems
    return "\n".join(f"{each}\n{each.text()}\n{each.github()}\n{each.source}" for each in problems)


@pytest.mark.parametrize("shape", SHAPES)
def test_credential_in_a_config_is_in_no_problem(shape: str) -> None:
    assert CANARY not in told(shape.replace("%s", CANARY))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.text("abcXYZ019-_.~!$=+", min_size=0, max_size=70),
    st.sampled_from(["", "unknown: 1", "routes: [{nam: r}]", "x: [", "\t- bad"]),
)
def test_credential_of_any_text_is_in_no_problem(shape: str, more: str, after: str) -> None:
    assert CANARY not in told(f"{shape.replace('%s', CANARY + more)}\n{after}")


def test_what_is_no_secret_is_shown() -> None:
    text = told("admin: {address: '127.0.0.1:9', token: env:ADMIN_TOKEN, bogus: 1}")
    assert "admin: {address: '127.0.0.1:9', token: env:ADMIN_TOKEN, bogus: 1}" in text
    assert "unknown key 'bogus'" in text
    text = told("upstreams: {u: {endpoints: ['http://a/x'], auth: {bearer: {token: file:/t, pasword: 1}}}}")
    assert "endpoints: ['http://a/x'], auth: {bearer: {token: file:/t, pasword: 1}}" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to: https://user:pw@h/x", "to: https://***@h/x"),
        ("to: https://user:p@w@h", "to: https://***@h"),
        ("to: ['u:pw@h']", "to: ['***@h']"),
        ("san: [a@example.com]", "san: [a@example.com]"),
        ("to: http://h:80/x", "to: http://h:80/x"),
    ],
)
def test_user_of_a_url_is_masked(text: str, shown: str) -> None:
    assert without_users(text) == shown


def test_users_are_told_whole_and_in_parts() -> None:
    assert list(users("https://user:pw@h")) == ["user:pw", "user", "pw"]
    assert list(users("https://h/path")) == []
    assert list(users("a@example.com")) == []


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (["token: env:A  # where", "x: 1"], ["token: env:A  # where", "x: 1"]),
        (["token: hunter2", "x: 1"], ["token: ***", "x: 1"]),
        (["token:", "  - hunter2", "x: 1"], ["token:", "  - ***", "x: 1"]),
        (["auth: |", "  hunter2", "x: 1"], ["auth: |", "  ***", "x: 1"]),
        (["auth:", "  bearer: env:A", "  basic: a:b"], ["auth:", "  bearer: env:A", "  basic: ***"]),
        (["key: &hunter2", "  env:A"], ["key: &***", "  env:A"]),
        (["auth: {header: hunter2, x: 1}"], ["auth: {header: ***"]),
        (["auth: {header: {name: a, value: env:A}}"], ["auth: {header: {name: a, value: env:A}}"]),
        (["api_key: {header: x-token}", "user: shop"], ["api_key: {header: x-token}", "user: shop"]),
        (["basic: {user: shop:hunter2}"], ["basic: {user: shop:***"]),
        (["to: http://h/?sort=a&token=hunter2"], ["to: http://h/?sort=a&token=***"]),
        (["key: /etc/key.pem", "header: x-api-key"], ["key: /etc/key.pem", "header: x-api-key"]),
    ],
)
def test_lines_show_no_secret(lines: list[str], shown: list[str]) -> None:
    assert Veil().lines(lines) == shown

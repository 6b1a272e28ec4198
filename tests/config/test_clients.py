from __future__ import annotations

import pytest

from ambassador.config.load import load_string, load_text
from ambassador.extras import Extra
from ambassador.proxy.clients import api_key, basic, jwt, mtls
from ambassador.proxy.clients.who import Client

HEAD = "version: 1\nlisten: 127.0.0.1:80\n"
ROUTE = "routes: [{name: r, to: 'http://a', %s}]\n"
TWO = "clients: {billing: {api_key: 'env:A'}, shop: {api_key: 'env:B'}}\n"


def errors(text: str) -> list[str]:
    loaded = load_string(HEAD + text)
    return [str(problem).removeprefix("-:") for problem in loaded.errors]


def test_everything_of_the_reference_is_read() -> None:
    config = load_text(
        HEAD
        + ROUTE % "match: {client: [a, b]}, access: [a, '*'], limit: {rate: 1/s, per: client}"
        + """
clients:
  a:
    api_key: [env:A, 'file:/k']
    jwt: {issuer: i, audience: aud, jwks: 'https://id.test/jwks', algorithms: [RS256, ES256], claims: {sub: s, roles: [x, y]}, skew: 30s}
    mtls: {san: ['spiffe://t/ns/*']}
    basic: {user: u, password: env:P}
    network: [10.0.0.0/8, 127.0.0.1]
    forward: true
  b: {api_key: {header: X-Key, keys: env:B}}
"""
    )
    a, b = config.clients["a"], config.clients["b"]
    assert a.api_key == api_key.Config(keys=("env:A", "file:/k"))
    assert a.jwt == jwt.Config(
        issuer="i",
        audience=("aud",),
        jwks="https://id.test:443/jwks",
        algorithms=("RS256", "ES256"),
        claims={"sub": ("s",), "roles": ("x", "y")},
        skew=30.0,
    )
    assert a.mtls == mtls.Config(san=("spiffe://t/ns/*",))
    assert a.basic == basic.Config(user="u", password="env:P")
    assert a.network == ("10.0.0.0/8", "127.0.0.1/32")
    assert a.forward
    assert b.api_key == api_key.Config(keys=("env:B",), header="x-key")
    assert config.routes[0].access == ("a", "*")
    assert config.routes[0].match.client == ("a", "b")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (ROUTE % "access: [biling]" + TWO, "3:45: error: routes[0].access[0]: there is no client 'biling'; did you mean 'billing'?"),
        (ROUTE % "access: shp" + TWO, "3:44: error: routes[0].access: there is no client 'shp'; did you mean 'shop'?"),
        (ROUTE % "match: {client: nobody}" + TWO, "3:52: error: routes[0].match.client: there is no client 'nobody'"),
        (ROUTE % "access: ['*']", "3:45: error: routes[0].access[0]: 'access' needs 'clients'; write 'clients: {NAME: {api_key: env:…}}'"),
        (ROUTE % "limit: {rate: 1/s, per: client}", "3:60: error: routes[0].limit.per: 'client' needs 'clients'; use 'client_ip' or 'header:NAME'"),
        (ROUTE % "access: []" + TWO, "3:44: error: routes[0].access: must not be empty"),
        (ROUTE % "" + "clients: {a: {}}", "4:14: error: clients.a: needs one of 'api_key', 'jwt', 'mtls', 'basic' and 'network'"),
        (ROUTE % "" + "clients: {a: {api_key: s3cret}}", "4:24: error: clients.a.api_key: must be 'env:NAME' or 'file:/path', never the secret itself"),
        (ROUTE % "" + "clients: {a: {api_key: 'env:A'}, b: {api_key: ['env:B', 'env:A']}}", "4:57: error: clients.b.api_key.keys: the same key in 'x-api-key' is client 'a's already (line 4)"),
        (ROUTE % "" + "clients: {a: {network: 10.0.0.0/8}, b: {network: 10.0.0.0/8}}", "4:50: error: clients.b.network: the same network is client 'a's already (line 4)"),
        (ROUTE % "" + "clients: {a: {basic: {user: 'a:b', password: 'env:P'}}}", "4:29: error: clients.a.basic.user: must not hold a colon"),
        (ROUTE % "" + "clients: {a: {jwt: {issuer: i, jwks: 'http://id.example.com/jwks'}}}", "4:38: error: clients.a.jwt.jwks: 'http://id.example.com/jwks': who stands between could put keys of their own there; use https, or a file"),
        (ROUTE % "" + "clients: {a: {jwt: {issuer: i, jwks: /j, algorithms: [HS256]}}}", "4:55: error: clients.a.jwt.algorithms[0]: must be one of ES256, ES384, ES512, Ed25519, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512; got 'HS256'; did you mean 'RS256'?"),
        (ROUTE % "" + "clients: {a: {jwt: {issuer: i, jwks: /j, algorithms: [none]}}}", "4:55: error: clients.a.jwt.algorithms[0]: must be one of ES256, ES384, ES512, Ed25519, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512; got 'none'"),
    ],
)  # fmt: skip
def test_mistakes_have_their_places(text: str, error: str) -> None:
    assert errors(text) == [error]


def test_a_client_with_mistakes_of_its_own_is_known_all_the_same() -> None:
    found = errors(ROUTE % "access: [a]" + "clients: {a: {api_kee: 'env:A'}}")
    assert len(found) == 1
    assert "api_kee" in found[0]


def test_the_same_key_in_other_headers_is_another() -> None:
    assert (
        errors(ROUTE % "" + "clients: {a: {api_key: 'env:A'}, b: {api_key: {header: x-b, keys: 'env:A'}}}")
        == []
    )


def test_tokens_need_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "extras", {"jwt": Extra("auth", ("no_such_module",))})
    text = ROUTE % "" + "clients: {a: {jwt: {issuer: i, jwks: /j}}, b: {api_key: 'env:A'}}"
    (error,) = errors(text)
    assert error.startswith("4:15: error: clients.a.jwt: ")
    assert error.endswith("; pip install 'ambassador-proxy[auth]'")


def test_access_may_be_off() -> None:
    assert load_text(HEAD + ROUTE % "access: off" + TWO).routes[0].access is None

from __future__ import annotations

import pytest

from ambassador.config.credentials import Auth, compile_credential, describe, goes_bare, needs_guard
from ambassador.config.load import load_string
from ambassador.extras import Extra
from ambassador.proxy.credentials import (
    aws_sigv4,
    basic,
    bearer,
    header,
    message_signature,
    oauth2,
    signed_token,
)
from ambassador.settings import Section
from tests.proxy.credentials.shown import means, put

MISSING = Extra("auth", ("no_such_module",))
BEARER = Auth(bearer=bearer.Config(token="env:T"))


def problems(auth: str, endpoint: str = "http://127.0.0.1:1") -> list[str]:
    text = (
        "version: 1\nlisten: 127.0.0.1:80\n"
        f"upstreams: {{u: {{endpoints: [{endpoint}], auth: {auth}}}}}\nroutes: [{{name: r, to: u}}]"
    )
    return [f"{each.path}: {each.message}" for each in load_string(text).errors]


@pytest.mark.parametrize(
    ("auth", "told"),
    [
        (BEARER, "a bearer token"),
        (Auth(basic=basic.Config(user="u", password="env:T")), "basic, user u"),
        (Auth(header=header.Config(name="x-key", value="env:T")), "the header x-key"),
        (
            Auth(
                aws_sigv4=aws_sigv4.Config(service="s3", region="r", access_key="env:T", secret_key="env:T")
            ),
            "an AWS signature",
        ),
        (Auth(hmac=message_signature.Config(key="env:T")), "an HTTP message signature"),
        (Auth(jwt=signed_token.Config(key="env:T", algorithm="HS256")), "a token that is signed here"),
    ],
)
def test_each_kind_is_made_and_told_of(auth: Auth, told: str) -> None:
    assert describe(auth).startswith(told)
    assert put(compile_credential(auth, "u", means(T="t" * 32)))


def test_components_of_a_signature_are_those_there_are() -> None:
    assert problems("{hmac: {key: env:T, headers: ['@method', Date]}}") == []
    (problem,) = problems("{hmac: {key: env:T, headers: ['@methode']}}")
    assert "'@methode' is not known" in problem


def test_auth_needs_exactly_one_kind() -> None:
    assert "needs one of 'bearer'" in problems("{}")[0]
    assert problems("{bearer: env:A, basic: {user: u, password: env:B}}") == [
        "upstreams.u.auth.basic: is a second credential beside 'bearer', and an upstream has one"
    ]


def test_secret_itself_is_refused_and_not_repeated() -> None:
    (problem,) = problems("{bearer: s3cr3t}")
    assert "never the secret itself" in problem
    assert "s3cr3t" not in problem


@pytest.mark.parametrize(
    ("endpoint", "bare"),
    [
        ("http://127.0.0.1:1", False),
        ("http://127.9.9.9:1", False),
        ("'http://[::1]:1'", False),
        ("'http://[::ffff:127.0.0.1]:1'", False),
        ("http://localhost:1", False),
        ("http://a.localhost:1", False),
        ("unix:/run/x.sock", False),
        ("http://10.0.0.1:1", True),
        ("'http://[fe80::1]:1'", True),
        ("http://billing.internal:1", True),
        ("http://localhost.example:1", True),
        ("http://0.0.0.0:1", True),
    ],
)
def test_credential_in_plaintext_to_another_host_is_refused(endpoint: str, bare: bool) -> None:
    found = problems("{bearer: env:T}", endpoint)
    assert bool(found) is bare
    if bare:
        assert found[0].startswith("upstreams.u.endpoints[0]: is plaintext HTTP to another host")
    assert problems("{bearer: env:T, allow_plaintext: true}", endpoint) == []


@pytest.mark.parametrize(
    ("via", "told"),
    [
        ("{url: 'http://p:1', user: u}", "via.user: needs its 'password'"),
        ("{url: 'http://p:1', user: u, password: CANARY}", "via.password: "),
        ("'http://u:CANARY@p:1'", "via: credentials do not belong into a URL"),
        ("'https://p:1'", "via: TLS to the egress proxy is not supported"),
        ("{urls: 'http://p:1'}", "via: unknown key 'urls'"),
        ("{}", "via: "),
    ],
)
@pytest.mark.parametrize("kind", ["oauth2", "exchange"])
def test_proxy_of_a_token_service_is_read_at_its_place(kind: str, via: str, told: str) -> None:
    auth = f"{{{kind}: {{token_url: 'https://id/t', client_id: a, client_secret: env:S, via: {via}}}}}"
    (problem,) = problems(auth)
    assert problem.startswith(f"upstreams.u.auth.{kind}.{told}")
    assert "CANARY" not in problem


def test_plaintext_through_an_egress_proxy_is_refused() -> None:
    auth = "{oauth2: {token_url: 'http://127.0.0.1:2/t', client_id: a, client_secret: env:S, via: 'http://127.0.0.1:3'}}"
    (problem,) = problems(auth)
    assert problem.startswith("upstreams.u.auth.oauth2.token_url: is plaintext HTTP to the egress proxy; ")
    assert problems(auth.replace("via:", "allow_plaintext: true, via:")) == []


def test_only_plaintext_needs_a_guard() -> None:
    assert needs_guard(BEARER, "http://localhost:80")
    assert not needs_guard(BEARER, "https://example.org:443")
    assert not needs_guard(BEARER, "unix:/x")
    assert not needs_guard(None, "http://example.org:80")
    assert not needs_guard(Auth(bearer=BEARER.bearer, allow_plaintext=True), "http://example.org:80")
    assert not goes_bare(None, "http://example.org:80")


@pytest.mark.parametrize(
    ("section", "auth", "key"),
    [
        (Auth, "{jwt: {key: env:K}}", "jwt"),
        (
            oauth2.Config,
            "{oauth2: {token_url: 'http://127.0.0.1:2', client_id: a, private_key: env:K}}",
            "oauth2.private_key",
        ),
    ],
)
def test_what_signs_needs_the_extra_for_it(
    monkeypatch: pytest.MonkeyPatch, section: type[Section], auth: str, key: str
) -> None:
    assert problems(auth) == []
    monkeypatch.setattr(section, "extras", dict.fromkeys(section.extras, MISSING))
    (problem,) = problems(auth)
    assert problem.startswith(f"upstreams.u.auth.{key}: '{key.rpartition('.')[2]}' needs the extra 'auth'")

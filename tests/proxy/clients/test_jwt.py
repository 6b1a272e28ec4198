from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc.errors import JoseError
from joserfc.jwt import JWTClaimsRegistry

from ambassador.proxy import jose
from ambassador.proxy.clients.jwt import Config, Rules
from ambassador.proxy.upstream.via import Config as Via
from tests.proxy.clients import tokens

NOW = 1_800_000_000.0


def rules(**settings: Any) -> Rules:
    defaults = {"issuer": tokens.ISSUER, "jwks": "file:/jwks"}
    return Rules(Config(**{**defaults, **settings}))


def token(headers: dict[str, Any] | None = None, **changes: Any) -> jose.Token:
    return jose.read_token(tokens.sign(NOW, headers=headers, **changes))


def against(settings: dict[str, Any] | None = None, **changes: Any) -> str | None:
    return rules(**(settings or {})).against(token(**changes), NOW)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": NOW - 59}, None), ({"exp": NOW - 60}, "expired"), ({"exp": NOW + 0.5}, None),
        ({"nbf": NOW + 60}, None), ({"nbf": NOW + 61}, "early"), ({"iat": NOW + 60}, None),
        ({"iat": NOW + 61}, "early"), ({"nbf": None, "iat": None}, None), ({"nbf": "1"}, "malformed"),
        ({"exp": False}, "malformed"), ({"iat": [1]}, "malformed"),
    ],
)  # fmt: skip
def test_dates_hold_within_the_skew(changes: dict[str, Any], reason: str | None) -> None:
    assert against(**changes) == reason


def test_dates_hold_exactly_without_skew() -> None:
    assert against({"skew": 0.0}, exp=NOW) == "expired"
    assert against({"skew": 0.0}, exp=NOW + 1, nbf=NOW, iat=NOW) is None
    assert against({"skew": 0.0}, nbf=NOW + 1) == "early"


def test_a_token_that_never_ends_is_taken_only_where_the_config_says_so() -> None:
    assert against(exp=None) == "expired"
    assert against({"require_exp": False}, exp=None) is None
    assert rules(require_exp=False).ends_at(token(exp=None)) > NOW + 10**9
    assert rules(skew=5.0).ends_at(token(exp=NOW + 300)) == NOW + 305


@pytest.mark.parametrize(
    ("aud", "reason"),
    [
        ("one", None), ("two", None), (["x", "two"], None), ("three", "audience"), ([], "audience"),
        (None, "audience"), (1, "audience"), (["one", None], "audience"),
    ],
)  # fmt: skip
def test_one_audience_must_be_there(aud: Any, reason: str | None) -> None:
    assert against({"audience": ("one", "two")}, aud=aud) == reason


def test_any_audience_will_do_where_none_is_asked_for() -> None:
    assert against(aud="whatever") is None
    assert against(aud=None) is None


@pytest.mark.parametrize(
    ("wanted", "claims", "reason"),
    [
        ({"sub": ("svc-a",)}, {}, None),
        ({"sub": ("svc-b",)}, {}, "claims"),
        ({"sub": ("svc-b", "svc-a")}, {}, None),
        ({"sub": ("svc-a",), "azp": ("other",)}, {}, "claims"),
        ({"scope": ("read",)}, {}, None),
        ({"scope": ("read write",)}, {}, "claims"),
        ({"scope": ("rea",)}, {}, "claims"),
        ({"scp": ("a",)}, {"scp": ["a", "b"]}, None),
        ({"sub": ("svc",)}, {"sub": "svc other"}, "claims"),
        ({"realm_access.roles": ("caller",)}, {}, None),
        ({"realm_access.roles": ("admin",)}, {}, "claims"),
        ({"realm_access.roles.caller": ("1",)}, {}, "claims"),
        ({"https://example.com/roles": ("r",)}, {"https://example.com/roles": ["r"]}, None),
        ({"a.b": ("exact",)}, {"a.b": "exact", "a": {"b": "path"}}, None),
        ({"email_verified": ("true",)}, {"email_verified": True}, None),
        ({"email_verified": ("true",)}, {"email_verified": "True"}, "claims"),
        ({"level": ("3",)}, {"level": 3}, None),
        ({"level": ("3",)}, {"level": 3.0}, "claims"),
        ({"gone": ("x",)}, {}, "claims"),
        ({"gone": ("None",)}, {"gone": [None]}, "claims"),
        ({"map": ("x",)}, {"map": {"x": 1}}, "claims"),
    ],
)
def test_claims_must_say_what_is_wanted(
    wanted: dict[str, tuple[str, ...]], claims: dict[str, Any], reason: str | None
) -> None:
    assert against({"claims": wanted}, **claims) == reason


@pytest.mark.parametrize(
    ("settings", "headers", "reason"),
    [
        ({}, {}, None), ({}, {"typ": "jwt"}, None), ({}, {"typ": "AT+JWT"}, None),
        ({}, {"typ": "application/at+jwt"}, None), ({}, {"typ": None}, None), ({}, {"typ": "dpop+jwt"}, "type"),
        ({"types": ("dpop+jwt",)}, {"typ": "dpop+JWT"}, None), ({"types": ("dpop+jwt",)}, {"typ": "JWT"}, "type"),
        ({"algorithms": ("ES256",)}, {}, "algorithm"), ({"issuer": "other"}, {}, "issuer"),
    ],
)  # fmt: skip
def test_unfit_tokens_need_not_be_verified(
    settings: dict[str, Any], headers: dict[str, Any], reason: str | None
) -> None:
    assert rules(**settings).unfit(token(headers)) == reason


@pytest.mark.parametrize("jwks", ["file:/jwks", "http://127.0.0.1:80/jwks"])
def test_authorities_and_egress_proxies_are_for_https_only(jwks: str) -> None:
    proxy = Via(url="http://proxy.test:3128")
    wrong = Config(issuer="i", jwks=jwks, ca="/ca.pem", via=proxy)
    assert [key for key, _ in wrong.conflicts()] == ["ca", "via"]
    right = Config(issuer="i", jwks="https://id.test:443/jwks", ca="/ca.pem", via=proxy)
    assert not list(right.conflicts())


DATES = st.one_of(st.none(), st.integers(-500, 500).filter(lambda seconds: abs(seconds) not in (0, 60)))


@given(
    exp=DATES,
    nbf=DATES,
    iat=DATES,
    aud=st.one_of(
        st.none(),
        st.sampled_from(["one", "two", ""]),
        st.lists(st.sampled_from(["one", "two", "x"]), max_size=3),
    ),
    iss=st.sampled_from([tokens.ISSUER, "other", None]),
)
@settings(max_examples=300)
def test_another_library_takes_the_same_claims(
    exp: int | None, nbf: int | None, iat: int | None, aud: Any, iss: str | None
) -> None:
    dates = {"exp": exp, "nbf": nbf, "iat": iat}
    claims: dict[str, Any] = {name: int(NOW) + date for name, date in dates.items() if date is not None}
    claims |= {name: value for name, value in (("aud", aud), ("iss", iss)) if value is not None}
    registry = JWTClaimsRegistry(
        now=int(NOW),
        leeway=60,
        exp={"essential": True},
        iss={"essential": True, "value": tokens.ISSUER},
        aud={"essential": True, "value": "one"},
    )
    try:
        registry.validate(claims)
        theirs = True
    except JoseError:
        theirs = False
    token = jose.Token("RS256", None, None, claims, b"", b"")
    held = rules(audience=("one",))
    assert (held.unfit(token) is None and held.against(token, NOW) is None) is theirs

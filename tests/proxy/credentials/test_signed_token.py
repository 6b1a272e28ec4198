"""Tokens signed here: what they say, read by another library, and when there is a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from ambassador.errors import CredentialUnavailable
from ambassador.messages import Request
from ambassador.proxy.credentials import Means
from ambassador.proxy.credentials.signed_token import Config, SignedToken, credential, describe
from ambassador.secret import Secrets
from tests.proxy.credentials.shown import WALL_S, means, put

SECRET = "s" * 64


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def claims_of(made: SignedToken, key: Any, algorithm: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, of a token whose signature is good."""
    ((name, value),) = put(made, (b"Authorization", b"Bearer theirs"))
    assert name == b"authorization"
    token = jwt.decode(value.removeprefix(b"Bearer ").decode(), key, algorithms=[algorithm])
    return dict(token.header), dict(token.claims)


def test_token_says_what_the_config_does() -> None:
    config = Config(
        key="env:KEY",
        algorithm="HS256",
        key_id="k1",
        claims={"iss": "me", "sub": "1"},
        audience=("https://a",),
        ttl=60.0,
    )
    made = credential(config, "u", means(WALL_S, KEY=SECRET))
    header, claims = claims_of(made, OctKey.import_key(SECRET), "HS256")
    assert header == {"alg": "HS256", "typ": "JWT", "kid": "k1"}
    now = int(WALL_S)
    assert claims == {"iss": "me", "sub": "1", "aud": "https://a", "iat": now, "exp": now + 60}


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256"])
def test_token_is_good_with_the_public_key(algorithm: Any) -> None:
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    if algorithm == "ES256":
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        key = rsa.generate_private_key(65537, 2048)
    config = Config(key="env:KEY", algorithm=algorithm, audience=("a", "b"))
    made = credential(config, "u", means(WALL_S, KEY=pem(key)))
    reader = (ECKey if algorithm == "ES256" else RSAKey).import_key(pem(key))
    assert claims_of(made, reader, algorithm)[1]["aud"] == ["a", "b"]


class Clock:
    now = WALL_S

    def __call__(self) -> float:
        return self.now


def test_token_is_used_until_80_percent_of_its_life(tmp_path: Path) -> None:
    (tmp_path / "k").write_text(SECRET)
    clock, secrets = Clock(), Secrets()
    made = credential(
        Config(key=f"file:{tmp_path}/k", algorithm="HS256", ttl=100.0), "u", Means(secrets, clock)
    )
    assert made.line() is None  # nobody has asked for one yet
    (first,) = put(made)
    assert made.line() == b"\r\nauthorization: " + first[1]
    clock.now += 79
    assert put(made) == [first]
    clock.now += 2
    assert made.line() is None
    (second,) = put(made)
    assert second != first
    clock.now -= 500  # somebody has set the clock
    assert made.line() is None
    (third,) = put(made)
    assert third not in (first, second)
    (tmp_path / "k").write_text("t" * 64)
    secrets.refresh()
    assert made.line() is None
    assert put(made) != [third]


@pytest.mark.parametrize(
    ("values", "algorithm"),
    [({}, "HS256"), ({"KEY": "too short"}, "HS256"), ({"KEY": "no key at all"}, "RS256")],
)
def test_key_that_cannot_sign_is_an_error_without_it(values: dict[str, str], algorithm: Any) -> None:
    made = credential(Config(key="env:KEY", algorithm=algorithm), "u", means(WALL_S, **values))
    for _ in range(2):
        with pytest.raises(CredentialUnavailable) as raised:
            made.in_hand(Request("GET", b"/", [], 1))
        assert not any(value in raised.value.detail for value in values.values())
    assert made.line() is None
    assert made.problem()


def test_claims_that_others_settings_make_are_refused() -> None:
    assert "'ttl'" in (Config.refusal("claims", {"exp": "1"}) or "")
    assert "'audience'" in (Config.refusal("claims", {"aud": "1"}) or "")
    assert Config.refusal("claims", {"iss": "1"}) is None
    assert Config.refusal("key_id", "exp") is None
    assert Config.refusal("ttl", 9.0)


def test_token_is_told_of_without_its_key() -> None:
    assert (
        describe(Config(key="env:K", audience=("a", "b"))) == "a token that is signed here (RS256) for a, b"
    )

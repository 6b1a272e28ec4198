"""What token services are asked, and by what they know who asks."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from ambassador.proxy.tokens.request import Asker, Question, Unaskable
from ambassador.proxy.upstream.via import Config as Via
from ambassador.secret import Secret, Secrets

URL = "https://id.test/token?tenant=1"
FORM = [("grant_type", "client_credentials"), ("scope", "a b")]


def secret(path: Path, text: str) -> Secret:
    path.write_text(text)
    return Secrets().get(f"file:{path}")


def ask(asker: Asker) -> tuple[Question, dict[str, str]]:
    question = asker.question(FORM, wall_s=1_700_000_000.5, nonce="once")
    return question, dict(parse_qsl(question.body.decode(), strict_parsing=True))


def test_question_shows_client_and_secret_form_encoded_in_basic(tmp_path: Path) -> None:
    asker = Asker(url=URL, client_id="me:and/you", secret=secret(tmp_path / "s", "p%w:d ü"))
    question, form = ask(asker)
    (basic,) = [value for name, value in question.headers if name == b"authorization"]
    assert b64decode(basic.removeprefix(b"Basic ")) == b"me%3Aand%2Fyou:p%25w%3Ad+%C3%BC"
    assert form == dict(FORM)


def test_question_shows_them_in_the_form_where_that_is_wanted(tmp_path: Path) -> None:
    question, form = ask(Asker(url=URL, client_id="me", secret=secret(tmp_path / "s", "p&w"), style="body"))
    assert form == {**dict(FORM), "client_id": "me", "client_secret": "p&w"}
    assert not [name for name, _ in question.headers if name == b"authorization"]


def test_question_of_a_public_client_has_its_name_alone() -> None:
    _, form = ask(Asker(url=URL, client_id="me"))
    assert form == {**dict(FORM), "client_id": "me"}
    _, form = ask(Asker(url=URL))
    assert form == dict(FORM)


def key_for(algorithm: str) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    if algorithm.startswith("Ed"):
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, 2048)


def their_key(algorithm: str, public: bytes) -> Any:
    kind: Any = {"Ed": OKPKey, "ES": ECKey, "RS": RSAKey, "PS": RSAKey}[algorithm[:2]]
    return kind.import_key(public)


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated via RFC 9864")
@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA", "Ed25519"])
def test_question_is_signed_with_a_private_key(tmp_path: Path, algorithm: str) -> None:
    key = key_for(algorithm)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    asker = Asker(
        url=URL, client_id="me", key=secret(tmp_path / "k", pem.decode()), algorithm=algorithm, key_id="k1"
    )
    _, form = ask(asker)
    assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    seen = joserfc_jwt.decode(form["client_assertion"], their_key(algorithm, public), algorithms=[algorithm])
    assert seen.claims == {
        "iss": "me",
        "sub": "me",
        "aud": URL,
        "jti": "once",
        "iat": 1_700_000_000,
        "exp": 1_700_000_060,
    }
    assert seen.header == {"alg": algorithm, "kid": "k1", "typ": "JWT"}


def test_signed_question_is_for_whom_the_settings_say(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    asker = Asker(
        url=URL, client_id="me", key=secret(tmp_path / "k", pem.decode()), audience="https://id.test"
    )
    claims = jwt.decode(ask(asker)[1]["client_assertion"], options={"verify_signature": False})
    assert claims["aud"] == "https://id.test"


def test_question_cannot_be_made_without_the_secret(tmp_path: Path) -> None:
    asker = Asker(url=URL, client_id="me", secret=Secrets().get(f"file:{tmp_path}/nothing"))
    with pytest.raises(Unaskable, match="cannot be read"):
        ask(asker)


def test_question_cannot_be_made_with_what_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(Unaskable, match="private_key") as caught:
        ask(Asker(url=URL, client_id="me", key=secret(tmp_path / "k", "my own words")))
    assert "my own words" not in str(caught.value)


def test_question_goes_through_an_egress_proxy_with_its_password_as_it_is_now(tmp_path: Path) -> None:
    via = Via(url="http://proxy.test:3128", user="me", password=f"file:{tmp_path}/p")
    secrets = Secrets()
    (tmp_path / "p").write_text("old")
    asker = Asker(url="http://id.test/t", via=via, via_password=secrets.get(f"file:{tmp_path}/p"))
    shown = []
    for password in ("old", "new"):
        (tmp_path / "p").write_text(password)
        secrets.refresh()
        through = ask(asker)[0].through
        assert through is not None
        assert through.proxy == ("proxy.test", 3128)
        shown += [b64decode(value.removeprefix(b"Basic ")) for _, value in through.fields()]
    assert shown == [b"me:old", b"me:new"]
    assert ask(Asker(url=URL))[0].through is None
    missing = Asker(url=URL, via=via, via_password=Secrets().get(f"file:{tmp_path}/nothing"))
    with pytest.raises(Unaskable, match="cannot be read"):
        ask(missing)


def test_question_has_the_secret_as_it_is_now(tmp_path: Path) -> None:
    secrets = Secrets()
    (tmp_path / "s").write_text("old")
    asker = Asker(url=URL, client_id="me", secret=secrets.get(f"file:{tmp_path}/s"), style="body")
    assert ask(asker)[1]["client_secret"] == "old"
    (tmp_path / "s").write_text("new")
    secrets.refresh()
    assert ask(asker)[1]["client_secret"] == "new"


def test_question_shows_nothing_secret_when_it_is_printed(tmp_path: Path) -> None:
    question, _ = ask(Asker(url=URL, client_id="me", secret=secret(tmp_path / "s", "p4ssw0rd"), style="body"))
    assert "p4ssw0rd" not in repr(question)


def test_identity_is_decided_by_everything_but_the_secret(tmp_path: Path) -> None:
    one = Asker(url=URL, client_id="me", secret=secret(tmp_path / "s", "p"))
    same = Asker(url=URL, client_id="me", secret=secret(tmp_path / "t", "q"), style="body")
    others = [
        Asker(url=URL + "2", client_id="me").identity(FORM),
        Asker(url=URL, client_id="you").identity(FORM),
        one.identity([*FORM, ("audience", "x")]),
        one.identity([("grant_type", "client_credentials"), ("scope", "a")]),
        one.identity([("grant_type", "client_credentialsscope"), ("", "a b")]),
    ]
    assert one.identity(FORM) == same.identity(FORM)
    assert len({one.identity(FORM), *others}) == len(others) + 1


def test_question_shows_no_query() -> None:
    question = Asker(url="https://id.test/t?key=CANARY").question([], wall_s=0.0, nonce="n")
    assert repr(question) == "<Question for https://id.test/t>"

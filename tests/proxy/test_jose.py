from __future__ import annotations

import base64
import functools
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import ECKey, KeySet, OctKey, OKPKey, RSAKey

from ambassador.proxy import jose

pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated via RFC 9864")

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVES: dict[str, Any] = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
}
ED = ed25519.Ed25519PrivateKey.generate()
PRIVATE: dict[str, Any] = {
    name: CURVES.get(name, ED if name.startswith("Ed") else RSA) for name in jose.ALGORITHMS
}


def pem(key: Any) -> str:
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    text: bytes = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    return text.decode()


def their_key(algorithm: str) -> Any:
    kind: Any = {"Ed": OKPKey, "ES": ECKey, "RS": RSAKey, "PS": RSAKey}[algorithm[:2]]
    return kind.import_key(pem(PRIVATE[algorithm]))


@functools.cache
def public_members(algorithm: str) -> dict[str, Any]:
    """Made once: for an RSA key it takes 70 ms, most of it to look whether its numbers are primes."""
    found: dict[str, Any] = their_key(algorithm).as_dict(private=False)
    return found


def jwk(algorithm: str, **members: Any) -> dict[str, Any]:
    return {**public_members(algorithm), **members}


def key_set(*keys: Any) -> tuple[jose.PublicKey, ...]:
    return jose.read_keys(json.dumps({"keys": keys}).encode())


def b64(value: Any) -> bytes:
    if not isinstance(value, bytes):
        value = json.dumps(value).encode()
    return base64.urlsafe_b64encode(value).rstrip(b"=")


def token(header: Any, claims: Any = None, signature: bytes = b"x" * 64) -> bytes:
    return b".".join((b64(header), b64({} if claims is None else claims), b64(signature)))


def reason_of(text: bytes) -> str:
    with pytest.raises(jose.BadToken) as raised:
        jose.read_token(text)
    return raised.value.reason


@pytest.mark.parametrize("algorithm", jose.ALGORITHMS)
def test_sign_makes_what_another_library_verifies(algorithm: str) -> None:
    text = jose.sign({"sub": "a"}, pem(PRIVATE[algorithm]), algorithm=algorithm, headers={"kid": "k1"})
    seen = joserfc_jwt.decode(text, their_key(algorithm), algorithms=[algorithm])
    assert seen.claims == {"sub": "a"}
    assert seen.header == {"alg": algorithm, "typ": "JWT", "kid": "k1"}


def test_sign_by_a_secret_makes_what_another_library_verifies() -> None:
    text = jose.sign({"sub": "a"}, "s" * 32, algorithm="HS256", headers=None)
    assert joserfc_jwt.decode(text, OctKey.import_key("s" * 32), algorithms=["HS256"]).claims == {"sub": "a"}


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        ("not even a key", "RS256"),
        (pem(CURVES["ES256"]), "RS256"),
        (pem(RSA), "ES256"),
        (pem(RSA), "none"),
        (pem(RSA), "Ed25519"),
        (pem(ed448.Ed448PrivateKey.generate()), "Ed25519"),
        ("s" * 31, "HS256"),
        (pem(RSA), "HS256"),
        (
            RSA.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode(),
            "RS256",
        ),
        (pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "RS256"),
    ],
)
def test_sign_refuses_a_key_that_does_not_fit_without_telling_it(key: str, algorithm: str) -> None:
    with pytest.raises(jose.BadKey) as raised:
        jose.sign({}, key, algorithm=algorithm, headers=None)
    assert key not in str(raised.value)
    assert raised.value.__cause__ is None


def test_sign_takes_the_algorithm_from_its_caller_only() -> None:
    text = jose.sign({}, pem(RSA), algorithm="RS256", headers={"alg": "none", "typ": "at+jwt"})
    read = jose.read_token(text.encode())
    assert (read.algorithm, read.kind) == ("RS256", "at+jwt")


@pytest.mark.parametrize("algorithm", jose.ALGORITHMS)
def test_a_key_of_a_set_verifies_what_another_library_signed(algorithm: str) -> None:
    text = joserfc_jwt.encode(
        {"alg": algorithm, "kid": "1"}, {"sub": "é"}, their_key(algorithm), algorithms=[algorithm]
    )
    read = jose.read_token(text.encode())
    (key,) = key_set(jwk(algorithm, kid="1"))
    assert key.has_signed(read)
    assert read.claims == {"sub": "é"}
    spoilt = jose.read_token(text.encode()[:-8] + b"AAAAAAAA")
    assert not key.has_signed(spoilt)


@given(st.sampled_from(jose.ALGORITHMS), st.sampled_from(jose.ALGORITHMS))
@settings(max_examples=100, deadline=None)
def test_a_key_verifies_only_by_algorithms_of_its_type_as_the_other_library_has_it(
    signed_by: str, claimed: str
) -> None:
    text = jose.sign({"sub": "a"}, pem(PRIVATE[signed_by]), algorithm=signed_by, headers={"kid": "1"})
    _, claims, signature = text.encode().split(b".")
    altered = b".".join((b64({"alg": claimed, "kid": "1"}), claims, signature))
    (key,) = key_set(jwk(signed_by, kid="1"))
    ours = key.has_signed(jose.read_token(altered))
    try:
        joserfc_jwt.decode(altered.decode(), KeySet([their_key(signed_by)]), algorithms=[claimed])
        theirs = True
    except Exception:  # noqa: BLE001 - it refuses in many ways
        theirs = False
    assert ours is theirs is False  # the header is signed too


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512"])
def test_a_signature_of_zeros_is_none(algorithm: str) -> None:
    size = {"ES256": 64, "ES384": 96, "ES512": 132}[algorithm]
    (key,) = key_set(jwk(algorithm))
    for signature in (b"\0" * size, b"\0" * (size // 2 - 1) + b"\1" + b"\0" * (size // 2), b"\0"):
        assert not key.has_signed(jose.read_token(token({"alg": algorithm}, signature=signature)))


@pytest.mark.parametrize(
    "algorithm",
    ["none", "None", "nOnE", "NONE", "", "HS256", "HS512", "rs256", "A128GCM", None, 1, ["RS256"], {}],
)
def test_read_token_knows_only_public_key_algorithms(algorithm: Any) -> None:
    assert reason_of(token({"alg": algorithm})) == "algorithm"


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"]}, {"crit": []}, {"crit": ["b64"], "b64": False}, {"b64": False}, {"b64": True},
    ],
)  # fmt: skip
def test_read_token_understands_no_extension(header: dict[str, Any]) -> None:
    assert reason_of(token({"alg": "RS256", **header})) == "crit"


@pytest.mark.parametrize(
    "text",
    [
        b"", b".", b"..", b"a.b", b"a.b.c.d", b"a.b.c.d.e",
        token({"alg": "RS256"}, signature=b""),
        token({"alg": "RS256"}) + b"=",
        b" " + token({"alg": "RS256"}),
        token({"alg": "RS256"}) + b"\n",
        token({"alg": "RS256"})[:-1] + b"B",  # the last character's bits beyond the last byte
        token(b'{"alg":"RS256","alg":"none"}'),
        token(b'{"alg":"RS256"}', b'{"sub":"a","sub":"b"}'),
        token(b'{"alg":"RS256"}', b'{"sub":"a","x":[{"y":1,"y":2}]}'),
        token(b'{"alg":"RS256"}', b'{"exp":NaN}'),
        token(b'{"alg":"RS256"}', b'{"exp":Infinity}'),
        token(b'{"alg":"RS256"}', b'{"sub":"\\ud800"}'),
        token(b'{"alg":"RS256"}', b'{"sub":"\xff"}'),
        token(b'{"alg":"RS256"}', b'{"sub":"a"} x'),
        token(b'{"alg":"RS256"}', b'["a"]'),
        token(b'{"alg":"RS256"}', b'"a"'),
        token(b'{"alg":"RS256"}', b"\xef\xbb\xbf{}"),
        token(b'{"alg":"RS256"}', b'{"exp":' + b"9" * 5000 + b"}"),
        token(b'["RS256"]'),
        token({"alg": "RS256", "kid": 1}),
        token({"alg": "RS256", "kid": "k" * 257}),
        token({"alg": "RS256", "typ": ["JWT"]}),
        token(b'{"alg":"RS256"}', b'{"a":' + b"[" * 16 + b"]" * 16 + b"}"),
        token(b'{"alg":"RS256","a":' + b"[" * 2000 + b"]" * 2000 + b"}"),
    ],
)  # fmt: skip
def test_read_token_refuses_what_two_readers_may_see_differently(text: bytes) -> None:
    assert reason_of(text) == "malformed"


def test_read_token_refuses_what_is_too_long_unread() -> None:
    assert reason_of(b"x" * (jose.MOST_BYTES + 1)) == "size"


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_read_token_raises_nothing_else(text: bytes) -> None:
    for given_text in (text, token(text), token({"alg": "RS256"}, text)):
        try:
            jose.read_token(given_text)
        except jose.BadToken:
            pass


def test_read_token_takes_what_is_as_deep_as_may_be() -> None:
    deep = b'{"a":' + b"[" * (jose.MOST_DEPTH - 2) + b"]" * (jose.MOST_DEPTH - 2) + b"}"
    assert jose.read_token(token(b'{"alg":"RS256"}', deep)).algorithm == "RS256"


def test_read_keys_leaves_out_what_verifies_no_signature() -> None:
    rsa_key = jwk("RS256")
    left = jwk("ES256")
    (key,) = key_set(
        left,
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
        {**rsa_key, "use": "enc"},
        {**rsa_key, "key_ops": ["sign"]},
        {**rsa_key, "alg": "RSA-OAEP"},
        {**rsa_key, "alg": "HS256"},
        {**rsa_key, "alg": "ES256"},
        {**rsa_key, "alg": ["RS256"]},
        {**rsa_key, "kid": 7},
        {**rsa_key, "n": "AQAB"},
        {**rsa_key, "n": 5},
        {**rsa_key, "e": "AA"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "x": b64(b"\1" * 32).decode(), "y": b64(b"\2" * 32).decode()},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
        {"kty": "OKP", "crv": ["Ed25519"], "x": "AA"},
        {"kty": "AKP"}, {}, "RSA", None,
    )  # fmt: skip
    assert key.algorithms == {"ES256"}
    assert key_set({"kty": "oct", "k": "c2VjcmV0"}, {**rsa_key, "use": "enc"}, {**rsa_key, "n": "AQAB"}) == ()
    assert key_set() == ()


def test_read_keys_narrows_a_key_to_the_algorithm_that_it_is_published_for() -> None:
    every, one = key_set(
        jwk("RS256", kid="a"), jwk("RS256", kid="b", alg="PS384", use="sig", key_ops=["verify"])
    )
    assert every.algorithms == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    assert one.algorithms == {"PS384"}


def test_read_keys_takes_only_the_public_part_of_a_key() -> None:
    (key,) = key_set({**their_key("RS256").as_dict(private=True), "kid": "1"})
    text = jose.sign({}, pem(RSA), algorithm="RS256", headers={"kid": "1"})
    assert key.has_signed(jose.read_token(text.encode()))
    assert not hasattr(key._key, "sign")


@pytest.mark.parametrize(
    "document",
    [
        b"", b"[]", b"{}", b'{"keys":{}}', b"x" * (jose.MOST_SET_BYTES + 1), b'{"keys":[],"keys":[]}',
        b'{"keys":[1]}', b'{"keys":[{}]}', b'{"keys":[{"kty":7}]}', b'{"keys":[{"kty":"RSA","n":"AQAB"}]}',
        json.dumps({"keys": [{}] * (jose.MOST_KEYS + 1)}).encode(),
    ],
)  # fmt: skip
def test_read_keys_refuses_what_is_no_set(document: bytes) -> None:
    with pytest.raises(jose.BadKey):
        jose.read_keys(document)


def test_candidates_are_those_of_the_key_id_and_the_algorithm() -> None:
    keys = key_set(jwk("RS256", kid="a"), jwk("RS256", kid="b"), jwk("ES256", kid="a"), jwk("EdDSA"))

    def of(**header: Any) -> list[int]:
        return [keys.index(key) for key in jose.candidates(keys, jose.read_token(token(header)))]

    assert of(alg="RS256", kid="a") == [0]
    assert of(alg="ES256", kid="a") == [2]
    assert of(alg="RS256") == [0, 1]
    assert of(alg="EdDSA", kid="anything") == [3]
    assert of(alg="RS256", kid="../../etc/passwd") == []


def test_header_members_that_name_a_key_are_not_looked_at() -> None:
    thief = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    theirs = RSAKey.import_key(pem(thief)).as_dict(private=False)
    for member in (
        {"jwk": theirs},
        {"jku": "https://thief.test/keys"},
        {"x5u": "https://thief.test/c"},
        {"x5c": ["AA"]},
    ):
        text = jose.sign({}, pem(thief), algorithm="RS256", headers={"kid": "1", **member})
        read = jose.read_token(text.encode())
        assert not any(key.has_signed(read) for key in key_set(jwk("RS256", kid="1")))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_WORDS = st.sampled_from(
    ["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "sig", "verify", "ES256", "AQAB", "A" * 43]
)
_ODD_KEYS = st.dictionaries(
    st.sampled_from(["kty", "kid", "use", "key_ops", "alg", "n", "e", "crv", "x", "y", "d"]),
    _WORDS | st.lists(_WORDS, max_size=2) | _JSON,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_ODD_KEYS | _JSON, max_size=4))
def test_read_keys_survives_any_set(keys: list[Any]) -> None:
    try:
        found = jose.read_keys(json.dumps({"keys": keys}).encode())
    except jose.BadKey:
        return
    assert all(isinstance(key, jose.PublicKey) for key in found)


@pytest.mark.parametrize("kind", [["RSA"], {"RSA": 1}, None, 1, True])
def test_read_keys_leaves_out_a_key_whose_type_is_no_word(kind: Any) -> None:
    assert len(key_set(jwk("ES256", kty=kind), jwk("ES256"))) == 1

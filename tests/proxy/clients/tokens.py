"""An identity server's keys and tokens, and everything that is tried against those who verify tokens.

`ATTACKS` is a table: a name, what makes the request's fields, and the word that says why the token is not believed.
Each is tried on the rules themselves, through a worker's data plane, and through a whole service.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from joserfc.jwk import ECKey, OKPKey, RSAKey

from ambassador.proxy import jose

ISSUER = "https://id.test/realms/main"
AUDIENCE = "ambassador"


@functools.cache
def private_key(name: str) -> str:
    """A private key as PEM, made once: `rsa`, `ec`, `ed`, and `thief`, which nobody publishes."""
    key: Any
    if name in ("rsa", "thief"):
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    elif name == "ec":
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        key = ed25519.Ed25519PrivateKey.generate()
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    text: bytes = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    return text.decode()


def public_pem(name: str) -> bytes:
    key = serialization.load_pem_private_key(private_key(name).encode(), None).public_key()
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@functools.cache
def public_members(name: str) -> dict[str, Any]:
    """Made once: for an RSA key it takes 70 ms."""
    kind: Any = {"ec": ECKey, "ed": OKPKey}.get(name, RSAKey)
    found: dict[str, Any] = kind.import_key(private_key(name)).as_dict(private=False)
    return found


def jwk(name: str, **members: Any) -> dict[str, Any]:
    return {**public_members(name), "kid": f"{name}-1", **members}


def jwks(*names: str) -> bytes:
    """What the identity server publishes; as Keycloak does, an encryption key too."""
    keys = [jwk(name, use="sig") for name in names or ("rsa", "ec", "ed")]
    return json.dumps({"keys": [*keys, jwk("rsa", kid="enc-1", use="enc", alg="RSA-OAEP")]}).encode()


def claims(now: float, **changes: Any) -> dict[str, Any]:
    """Those of a good token; a change to None leaves a claim out."""
    good = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "svc-a", "azp": "svc-a", "scope": "read write",
        "iat": int(now) - 10, "nbf": int(now) - 10, "exp": int(now) + 300,
        "realm_access": {"roles": ["caller", "offline_access"]},
    }  # fmt: skip
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def sign(
    now: float,
    *,
    key: str = "rsa",
    algorithm: str = "RS256",
    headers: Mapping[str, Any] | None = None,
    **changes: Any,
) -> bytes:
    """A token, good but for the changes."""
    fields = {"kid": f"{key}-1", **(headers or {})}
    text = jose.sign(claims(now, **changes), private_key(key), algorithm=algorithm, headers=fields)
    return text.encode()


def b64(value: Any) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def unsigned(now: float, header: Mapping[str, Any] | bytes, signature: bytes = b"", **changes: Any) -> bytes:
    return b".".join((b64(header), b64(claims(now, **changes)), b64(signature)))


def by_hmac(now: float, secret: bytes, algorithm: str = "HS256") -> bytes:
    """Signed with a public key taken for a secret."""
    signed = b".".join((b64({"alg": algorithm, "typ": "JWT", "kid": "rsa-1"}), b64(claims(now))))
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[algorithm]
    return b"%b.%b" % (signed, b64(hmac.new(secret, signed, digest).digest()))


def resigned(now: float, header: bytes, payload: bytes) -> bytes:
    """Any bytes as header and claims, with a signature of the real key: two readers may see two tokens."""
    signed = b"%b.%b" % (b64(header), b64(payload))
    key: Any = serialization.load_pem_private_key(private_key("rsa").encode(), None)
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - here only
    from cryptography.hazmat.primitives.asymmetric import padding  # noqa: PLC0415

    return b"%b.%b" % (signed, b64(key.sign(signed, padding.PKCS1v15(), hashes.SHA256())))


def _spoilt(token: bytes) -> bytes:
    head, payload, signature = token.split(b".")
    other = bytes([signature[0] ^ 1 if signature[0] ^ 1 in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ" else ord("A")])
    return b".".join((head, payload, (other if other != signature[:1] else b"Q") + signature[1:]))


def _says(algorithm: str, token: bytes) -> bytes:
    """The same token with another algorithm in its header."""
    _, payload, signature = token.split(b".")
    return b".".join((b64({"alg": algorithm, "kid": "rsa-1"}), payload, signature))


def _other_claims(now: float) -> bytes:
    head, _, signature = sign(now).split(b".")
    return b".".join((head, b64(claims(now, sub="admin")), signature))


RSA_HEADER = b'{"alg":"RS256","kid":"rsa-1"}'
ATTACKS: list[tuple[str, Callable[[float], bytes], str]] = [
    *(
        (f"alg {word}", functools.partial(lambda word, now: unsigned(now, {"alg": word, "kid": "rsa-1"}, b"x"), word), "algorithm")
        for word in ("none", "None", "nOnE", "NONE", "")
    ),
    ("alg none without a signature", lambda now: unsigned(now, {"alg": "none"}), "algorithm"),
    ("no alg", lambda now: unsigned(now, {"kid": "rsa-1"}, b"x"), "algorithm"),
    ("alg is a list", lambda now: unsigned(now, {"alg": ["RS256", "none"]}, b"x"), "algorithm"),
    ("signature cut off", lambda now: sign(now).rpartition(b".")[0] + b".", "malformed"),
    ("signature left out", lambda now: sign(now).rpartition(b".")[0], "malformed"),
    ("signature altered", lambda now: _spoilt(sign(now)), "signature"),
    ("claims altered", _other_claims, "signature"),
    *(
        (f"public key as secret, {algorithm}", functools.partial(lambda word, now: by_hmac(now, public_pem("rsa"), word), algorithm), "algorithm")
        for algorithm in ("HS256", "HS384", "HS512")
    ),
    ("public key without its last line end as secret", lambda now: by_hmac(now, public_pem("rsa").strip()), "algorithm"),
    ("modulus as secret", lambda now: by_hmac(now, jwk("rsa")["n"].encode()), "algorithm"),
    ("empty secret", lambda now: by_hmac(now, b""), "algorithm"),
    ("embedded jwk", lambda now: sign(now, key="thief", headers={"kid": "rsa-1", "jwk": jwk("thief")}), "signature"),
    ("jku", lambda now: sign(now, key="thief", headers={"jku": "https://thief.test/jwks"}), "key"),
    ("jku with a kid of ours", lambda now: sign(now, key="thief", headers={"kid": "rsa-1", "jku": "https://thief.test"}), "signature"),
    ("x5u", lambda now: sign(now, key="thief", headers={"kid": "rsa-1", "x5u": "https://thief.test/c.pem"}), "signature"),
    ("x5c", lambda now: sign(now, key="thief", headers={"kid": "rsa-1", "x5c": ["AAAA"]}), "signature"),
    ("no kid, other key", lambda now: sign(now, key="thief", headers={"kid": None}), "signature"),
    *(
        (f"kid {kid!r}", functools.partial(lambda kid, now: sign(now, key="thief", headers={"kid": kid}), kid), "key")
        for kid in (
            "../../../../dev/null", "/etc/passwd", "file:///dev/null", "https://thief.test/key", "' UNION SELECT 'x",
            "rsa-1\0", "RSA-1", "", "$(id)", "enc-1",
        )
    ),
    ("kid is a number", lambda now: sign(now, headers={"kid": 1}), "malformed"),
    ("kid is an object", lambda now: sign(now, headers={"kid": {"rsa-1": 1}}), "malformed"),
    ("kid of another type's key", lambda now: sign(now, headers={"kid": "ec-1"}), "key"),
    ("crit", lambda now: sign(now, headers={"crit": ["exp"]}), "crit"),
    ("crit of something unknown", lambda now: sign(now, headers={"crit": ["x"], "x": 1}), "crit"),
    ("crit empty", lambda now: sign(now, headers={"crit": []}), "crit"),
    ("b64 false", lambda now: sign(now, headers={"b64": False, "crit": ["b64"]}), "crit"),
    ("b64 false without crit", lambda now: sign(now, headers={"b64": False}), "crit"),
    ("zero signature", lambda now: unsigned(now, {"alg": "ES256", "kid": "ec-1"}, b"\0" * 64), "signature"),
    ("zero s", lambda now: unsigned(now, {"alg": "ES256", "kid": "ec-1"}, b"\0" * 31 + b"\1" + b"\0" * 32), "signature"),
    ("zero signature in DER", lambda now: unsigned(now, {"alg": "ES256", "kid": "ec-1"}, bytes.fromhex("3006020100020100")), "signature"),
    ("curve order as r and s", lambda now: unsigned(now, {"alg": "ES256", "kid": "ec-1"}, bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551") * 2), "signature"),
    ("zero signature of an Edwards curve", lambda now: unsigned(now, {"alg": "EdDSA", "kid": "ed-1"}, b"\0" * 64), "signature"),
    *(
        (f"signed by RS256, says {word}", functools.partial(lambda word, now: _says(word, sign(now)), word), "signature")
        for word in ("RS384", "PS256")
    ),
    ("signed by RS256, says ES256", lambda now: _says("ES256", sign(now)), "key"),
    ("expired", lambda now: sign(now, exp=int(now) - 61), "expired"),
    ("no exp", lambda now: sign(now, exp=None), "expired"),
    ("exp is a text", lambda now: sign(now, exp=str(int(now) + 300)), "malformed"),
    ("exp is true", lambda now: sign(now, exp=True), "malformed"),
    ("exp is null", lambda now: resigned(now, RSA_HEADER, json.dumps({**claims(now), "exp": None}).encode()), "malformed"),
    ("exp beyond all time", lambda now: sign(now, exp=10**400), "malformed"),
    ("exp is negative", lambda now: sign(now, exp=-1), "malformed"),
    ("exp is infinite", lambda now: resigned(now, RSA_HEADER, b'{"iss":"%b","aud":"%b","exp":1e999}' % (ISSUER.encode(), AUDIENCE.encode())), "malformed"),
    ("nbf ahead", lambda now: sign(now, nbf=int(now) + 120), "early"),
    ("iat ahead", lambda now: sign(now, iat=int(now) + 120), "early"),
    ("other audience", lambda now: sign(now, aud="another"), "audience"),
    ("audience list without ours", lambda now: sign(now, aud=["a", "b"]), "audience"),
    ("audience by its beginning", lambda now: sign(now, aud="ambassador.thief.test"), "audience"),
    ("audience is an object", lambda now: sign(now, aud={AUDIENCE: 1}), "audience"),
    ("audience list with what is no text", lambda now: sign(now, aud=[AUDIENCE, 1]), "audience"),
    ("no audience", lambda now: sign(now, aud=None), "audience"),
    ("other issuer", lambda now: sign(now, iss="https://thief.test"), "issuer"),
    ("issuer with a slash more", lambda now: sign(now, iss=ISSUER + "/"), "issuer"),
    ("issuer in capitals", lambda now: sign(now, iss=ISSUER.upper()), "issuer"),
    ("issuer list", lambda now: sign(now, iss=[ISSUER]), "issuer"),
    ("no issuer", lambda now: sign(now, iss=None), "issuer"),
    ("other subject", lambda now: sign(now, sub="svc-b"), "claims"),
    ("subject list", lambda now: sign(now, sub={"svc-a": 1}), "claims"),
    ("no subject", lambda now: sign(now, sub=None), "claims"),
    ("typ of a logout token", lambda now: sign(now, headers={"typ": "logout+jwt"}), "type"),
    ("typ of a proof of possession", lambda now: sign(now, headers={"typ": "dpop+jwt"}), "type"),
    ("typ is a list", lambda now: sign(now, headers={"typ": ["JWT"]}), "malformed"),
    ("claim twice, the good one last", lambda now: resigned(now, RSA_HEADER, b'{"sub":"svc-b",' + json.dumps(claims(now)).encode()[1:]), "malformed"),
    ("claim twice by an escape", lambda now: resigned(now, RSA_HEADER, b'{"\\u0073ub":"svc-b",' + json.dumps(claims(now)).encode()[1:]), "malformed"),
    ("header member twice", lambda now: resigned(now, b'{"alg":"RS256","kid":"rsa-1","alg":"none"}', json.dumps(claims(now)).encode()), "malformed"),
    ("nested claim twice", lambda now: resigned(now, RSA_HEADER, b'{"x":{"a":1,"a":2},' + json.dumps(claims(now)).encode()[1:]), "malformed"),
    ("too long", lambda now: sign(now, filler="x" * 9000), "size"),
    ("deep header", lambda now: resigned(now, b'{"alg":"RS256","a":' + b"[" * 100 + b"]" * 100 + b"}", json.dumps(claims(now)).encode()), "malformed"),
    ("deep claims", lambda now: sign(now, x=json.loads("[" * 40 + "]" * 40)), "malformed"),
    ("encrypted token", lambda now: b".".join([sign(now), b"AAAA", b"AAAA"]), "malformed"),
    ("JSON serialisation", lambda now: b64({"payload": "", "signatures": []}), "malformed"),
    ("padding", lambda now: sign(now) + b"=", "malformed"),
    ("standard alphabet", lambda now: sign(now)[:-4] + b"++//", "malformed"),
    ("a dot more", lambda now: sign(now) + b".", "malformed"),
    ("white space inside", lambda now: sign(now).replace(b".", b" .", 1), "malformed"),
    ("a comma and a second token", lambda now: sign(now) + b"," + sign(now), "malformed"),
    ("nothing", lambda now: b"", "malformed"),
]  # fmt: skip

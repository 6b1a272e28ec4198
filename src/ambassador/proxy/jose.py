"""Signed tokens (JWS and JWT, RFC 7515 and 7519) and sets of public keys (JWK, RFC 7517): the one door to PyJWT.

PyJWT, with `cryptography` under it, does the arithmetic of keys and signatures. What a token *is* is decided here, and
more narrowly than the library does, by the rules of RFC 8725:
- The algorithm must fit the key's type, and be one that the caller allows; a token only names it. `none` is no
  algorithm, and a secret is never a key of a set: a public key cannot be taken for a secret (RS256 to HS256).
- A key comes from the set in hand. `jku`, `x5u`, `x5c` and an embedded `jwk` are not looked at; `kid` is compared, and
  is never a path, a URL or a query.
- `crit` names extensions that must be understood, and none is: it is refused, and so is `b64` (RFC 7797).
- The three parts are base64url without padding, in its one canonical form, and JSON objects in which no name stands
  twice, at no depth: two readers must not see two tokens.
- Size and depth are bounded before anything is parsed, or walked.

No I/O, no clock. The library is imported when it is first needed: it takes 60 ms, and is an extra (`auth`).
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

from msgspec import Struct

MOST_BYTES: Final = 8 * 1024
"""A longer token is refused: it would not pass most servers' limits for a header either."""
MOST_DEPTH: Final = 16
"""Objects and lists inside one another."""
MOST_KEYS: Final = 100
"""Of one set."""
MOST_SET_BYTES: Final = 256 * 1024
NO_KEYS: Final = "has no key that verifies signatures"
"""What is wrong with such a set, for people."""
_LONGEST_NAME: Final = 256
_RSA_BITS: Final = range(2048, 8193)
"""Shorter keys are broken or will be (RFC 7518 3.3); longer ones take milliseconds for each token."""

Algorithm: TypeAlias = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"
]
ALGORITHMS: Final[tuple[Algorithm, ...]] = get_args(Algorithm)
"""Those that a token can be verified by: a public key, and never a secret. `Ed25519` is what RFC 9864 calls `EdDSA`."""
SIGNING: Final = (*ALGORITHMS, "HS256", "HS384", "HS512")
"""Those that a token can be signed by."""
_SECRET_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518 3.2

_RSA: Final[frozenset[str]] = frozenset(ALGORITHMS[:6])
_CURVES: Final = {
    ("EC", "P-256"): frozenset(("ES256",)),
    ("EC", "P-384"): frozenset(("ES384",)),
    ("EC", "P-521"): frozenset(("ES512",)),
    ("OKP", "Ed25519"): frozenset(("EdDSA", "Ed25519")),
}
_ED25519_BYTES: Final = 32  # of a public key; one of Ed448, which the library takes for the same kind, has 57
_PUBLIC_MEMBERS: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
"""What is taken of a key: of one that somebody published with its private part, only the public one."""

Members: TypeAlias = "dict[str, Any]"


class BadToken(Exception):
    """A token is none, or is not to be believed. `reason` is one word, for metrics; the text never holds the token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BadKey(Exception):
    """A key, or a set of them, cannot be used. The text never holds it."""


@functools.cache
def _library() -> Mapping[str, Any]:
    """The library's algorithms by name."""
    from jwt import algorithms  # noqa: PLC0415 - an extra, and slow to import

    known = algorithms.get_default_algorithms()
    return {name: known["EdDSA" if name == "Ed25519" else name] for name in SIGNING}


# ----- signing --------------------------------------------------------------------------------------------------------


def sign(claims: Mapping[str, Any], key: str, *, algorithm: str, headers: Mapping[str, Any] | None) -> str:
    """A token with these claims, compact (RFC 7515 3.1).

    `key` is a private key as PEM, or the secret of an `HS…` algorithm; `algorithm` one of SIGNING. `headers` are added
    to `alg` and `typ: JWT`, or replace `typ`. Raises `BadKey` if the key does not fit the algorithm, or is too short.
    """
    prepared = _signing_key(algorithm, key)
    header = {"alg": algorithm, "typ": "JWT", **(headers or {})}
    header["alg"] = algorithm
    signed = b"%b.%b" % (_encode(_json(header)), _encode(_json(claims)))
    signature: bytes = _library()[algorithm].sign(signed, prepared)
    return (signed + b"." + _encode(signature)).decode("ascii")


@functools.lru_cache(maxsize=16)  # to read a PEM takes 100 µs, and there are few
def _signing_key(algorithm: str, key: str) -> Any:
    if algorithm not in SIGNING:
        raise BadKey(f"'{algorithm}' is no algorithm to sign with")
    if len(key.encode()) < _SECRET_BYTES.get(algorithm, 0):
        raise BadKey(f"{algorithm} needs a secret of at least {_SECRET_BYTES[algorithm]} bytes")
    try:
        prepared = _library()[algorithm].prepare_key(key)
    except Exception:  # noqa: BLE001 - the libraries raise of every kind, and some texts quote the key
        raise BadKey(f"is no key for {algorithm}") from None
    if algorithm not in _SECRET_BYTES:
        if not hasattr(prepared, "sign"):
            raise BadKey("is a public key, and a private one is needed")
        if algorithm in _RSA and prepared.key_size not in _RSA_BITS:
            raise BadKey(f"an RSA key needs {_RSA_BITS[0]} to {_RSA_BITS[-1]} bits")
        if algorithm == "Ed25519" and len(prepared.public_key().public_bytes_raw()) != _ED25519_BYTES:
            raise BadKey(f"is no key for {algorithm}")
    return prepared


# ----- tokens ---------------------------------------------------------------------------------------------------------


class Token(Struct, frozen=True, gc=False):
    """What a token says. Nothing of it is to be believed before `verify`."""

    algorithm: str
    key_id: str | None
    kind: str | None
    """`typ`, lower case and without `application/`; None where it has none."""
    claims: Members
    signed: bytes
    """What the signature is of."""
    signature: bytes


def read_token(text: bytes) -> Token:
    """Parse a compact token. Raises `BadToken`: `size`, `malformed`, `algorithm`, `crit`."""
    if len(text) > MOST_BYTES:
        raise BadToken("size")
    parts = text.split(b".")
    if len(parts) != 3:  # five would be an encrypted one
        raise BadToken("malformed")
    header, claims = _members(_decode(parts[0])), _members(_decode(parts[1]))
    if "crit" in header or "b64" in header:
        raise BadToken("crit")
    algorithm = header.get("alg")
    if algorithm not in ALGORITHMS:
        raise BadToken("algorithm")
    return Token(
        algorithm,
        _word(header, "kid"),
        _kind(_word(header, "typ")),
        claims,
        b"%b.%b" % (parts[0], parts[1]),
        _decode(parts[2]),
    )


def _word(header: Members, name: str) -> str | None:
    value = header.get(name)
    if value is not None and not (isinstance(value, str) and len(value) <= _LONGEST_NAME):
        raise BadToken("malformed")
    return value


def _kind(written: str | None) -> str | None:
    return None if written is None else written.lower().removeprefix("application/")


def _decode(part: bytes) -> bytes:
    """Base64url as RFC 7515 writes it: no padding, no other characters, no bits that say nothing."""
    try:
        value = base64.b64decode(part + b"=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadToken("malformed") from None
    if not value or _encode(value) != part:
        raise BadToken("malformed")
    return value


def _encode(value: bytes) -> bytes:
    return base64.urlsafe_b64encode(value).rstrip(b"=")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _members(text: bytes) -> Members:
    """A JSON object in which no name stands twice. Raises `BadToken`."""
    try:
        value = one_meaning(text.decode())
    except (ValueError, RecursionError):  # UnicodeError and JSONDecodeError are ValueErrors
        raise BadToken("malformed") from None
    if not isinstance(value, dict) or not _is_sound(value):
        raise BadToken("malformed")
    return value


def one_meaning(text: str | bytes) -> Any:
    """What a JSON text says that two readers cannot read in two ways: no name stands twice, and NaN is no number.

    Raises ValueError, and RecursionError for one that is too deep.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> Members:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name stands twice")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _is_sound(value: Any) -> bool:
    """Whether it is no deeper than MOST_DEPTH, and every text is one: no half of a surrogate pair."""
    level = [value]
    for _ in range(MOST_DEPTH):
        following: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                following += each
                following += each.values()
            elif isinstance(each, list):
                following += each
            elif isinstance(each, str) and not each.isascii() and not each.isprintable():
                try:
                    each.encode()
                except UnicodeEncodeError:
                    return False
        if not following:
            return True
        level = following
    return False


# ----- keys -----------------------------------------------------------------------------------------------------------


class PublicKey:
    """A key that signatures are verified with."""

    __slots__ = ("_key", "algorithms", "key_id")

    def __init__(self, key_id: str | None, algorithms: frozenset[str], key: Any) -> None:
        self.key_id = key_id
        self.algorithms = algorithms
        """Those that fit its type, and that it is published for."""
        self._key = key

    def has_signed(self, token: Token) -> bool:
        """Whether the token's signature is this key's, by an algorithm that fits it."""
        if token.algorithm not in self.algorithms:
            return False
        try:
            return bool(_library()[token.algorithm].verify(token.signed, self._key, token.signature))
        except (ValueError, TypeError):  # a signature that is none
            return False


def read_keys(document: bytes) -> tuple[PublicKey, ...]:
    """The public keys of a JWK set (RFC 7517 5) that signatures can be verified with.

    Left out: keys of other types, secrets (`oct`), keys for encryption, RSA keys that are too short or too long. None
    may be left: somebody has withdrawn them all. Raises `BadKey` if it is no set, or too large, or if no key is left
    and some of them are none.
    """
    if len(document) > MOST_SET_BYTES:
        raise BadKey(f"is larger than {MOST_SET_BYTES // 1024}KiB")
    try:
        members = _members(document)
    except BadToken:
        raise BadKey("is no JSON object") from None
    keys = members.get("keys")
    if not isinstance(keys, list):
        raise BadKey("has no list 'keys'")
    if len(keys) > MOST_KEYS:
        raise BadKey(f"has more than {MOST_KEYS} keys")
    try:
        found = [_public_key(each) for each in keys if isinstance(each, dict)]
    except Exception:  # noqa: BLE001 - somebody else's document: nothing in it may end the worker that reads it
        raise BadKey("holds what cannot be understood") from None
    usable = tuple(key for key in found if key is not None)
    if not usable and not all(map(_is_key, keys)):
        raise BadKey("holds no key that can be understood")
    return usable


def _is_key(jwk: object) -> bool:
    """Whether it is a key of any type, as far as RFC 7517 4.1 and 7518 6 say of the known ones."""
    kind = jwk.get("kty") if isinstance(jwk, dict) else None
    if not isinstance(jwk, dict) or not isinstance(kind, str):
        return False
    return all(isinstance(jwk.get(name), str) for name in _PUBLIC_MEMBERS.get(kind, ()))


def _public_key(jwk: Members) -> PublicKey | None:
    kind, key_id, uses = jwk.get("kty"), jwk.get("kid"), jwk.get("key_ops")
    if (
        not isinstance(kind, str)
        or kind not in _PUBLIC_MEMBERS
        or jwk.get("use", "sig") != "sig"
        or not (uses is None or (isinstance(uses, list) and "verify" in uses))
        or not (key_id is None or (isinstance(key_id, str) and len(key_id) <= _LONGEST_NAME))
    ):
        return None
    public = {name: jwk.get(name) for name in _PUBLIC_MEMBERS[kind]}
    if not all(isinstance(value, str) for value in public.values()):
        return None
    if kind == "RSA":
        algorithms = _RSA
    else:
        algorithms = _CURVES.get((kind, str(public["crv"])), frozenset())
    if "alg" in jwk:
        algorithms &= {jwk["alg"]} if isinstance(jwk["alg"], str) else frozenset()
    if not algorithms:
        return None
    try:
        key = _library()[next(iter(algorithms))].from_jwk({"kty": kind, **public})
    except Exception:  # noqa: BLE001 - whatever the libraries find wrong: it is no key that can be used
        return None
    if kind == "RSA" and key.key_size not in _RSA_BITS:
        return None
    return PublicKey(key_id, algorithms, key)


def candidates(keys: tuple[PublicKey, ...], token: Token) -> tuple[PublicKey, ...]:
    """The keys of a set that a token may have been signed with: those with its `kid`, where it names one; else all
    that fit its algorithm.

    A key without `kid` stands for every one: a set of a single key often has none.
    """
    return tuple(
        key
        for key in keys
        if token.algorithm in key.algorithms and (token.key_id is None or key.key_id in (None, token.key_id))
    )

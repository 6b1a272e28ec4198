"""JSON Web Tokens as a proof of who asks: the rules of RFC 7519 and 8725 for what a token must say.

`proxy.jose` says what a token is and whether a key has signed it; here is whether a client's settings take it. All of
it is plain arithmetic: keys and the time of day are given. What a token says of itself is only used to find whose
settings to hold against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from ambassador.proxy.fields import proves_nothing
from ambassador.proxy.jose import ALGORITHMS, Algorithm, Token
from ambassador.proxy.upstream import via
from ambassador.settings import FilePath, JwksSource, MatchHeader, SecondsOrNone, Section

_SCOPES: Final = ("scope", "scp")
"""Claims whose text is a list of words (RFC 8693 4.2)."""
_DATES: Final = ("exp", "nbf", "iat")
_LATEST: Final = 2.0**53
"""Unix seconds beyond which a date is none."""


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens of an identity server. The algorithms are those of public keys: a secret that both sides know cannot be
    given, and a token that says `none`, or names a key of its own, is not believed.
    """

    issuer: Annotated[str, Meta(min_length=1)]
    """What `iss` must be, letter by letter."""

    audience: tuple[str, ...] | None = None
    """Of these, one must be in `aud`, which may be a text or a list. Unset: any token of the issuer will do, also one
    that was made for another service."""

    jwks: JwksSource
    """Where the issuer's public keys are: an `https` URL (`http` only to loopback), or a file, both a JWK set. A URL is
    asked every 8 minutes, and for a key id that is not known, at most every 30 s; while it does not answer, the keys at
    hand are used for 24 h. A file is read again when it changes."""

    ca: FilePath | None = None
    """A file with the authorities that the URL's server is verified with. Unset: the system's."""

    via: via.Config | None = None
    """An egress proxy through which the URL is asked, as `connections.via` of upstreams has it. Unset: it is asked
    directly."""

    algorithms: Annotated[tuple[Algorithm, ...], Meta(min_length=1)] = ALGORITHMS
    """Those that a token may be signed by, if they fit the key."""

    claims: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """What else a token must say: a claim, by name or by a path with dots (`realm_access.roles`), and its value, or a
    list of which one will do. Of a claim that is a list, one item must fit; of `scope`, one word."""

    skew: SecondsOrNone = 60.0
    """How far the clocks of issuer and service may be apart. Envoy: 60 s."""

    require_exp: bool = True
    """Whether a token without `exp`, one that never ends, is refused."""

    types: Annotated[tuple[str, ...], Meta(min_length=1)] = ("JWT", "at+jwt")
    """What `typ` may be, in any case; a token without it passes. Tokens for other uses (`logout+jwt`, `dpop+jwt`) say
    so there."""

    header: MatchHeader = "authorization"
    """The header with the token: in `authorization` after the word `Bearer`, in others alone."""

    @classmethod
    def refusal(cls, field: str, value: Any) -> str | None:
        """A header that says something else."""
        return f"'{value}' is no place for tokens" if field == "header" and proves_nothing(value) else None

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Authorities for what is no URL, and a proxy in front of what is on this host."""
        if self.jwks.startswith("https:"):
            return
        if self.ca is not None:
            yield "ca", "verifies the server of an https URL, and 'jwks' is none"
        if self.via is not None:
            yield "via", "leads to the server of an https URL, and 'jwks' is none"


class Rules:
    """One client's settings, compiled."""

    __slots__ = (
        "_algorithms", "_audience", "_claims", "_issuer", "_require_exp", "_skew_s", "_types",
    )  # fmt: skip

    def __init__(self, config: Config) -> None:
        self._issuer = config.issuer
        self._audience = None if config.audience is None else frozenset(config.audience)
        self._algorithms = frozenset(config.algorithms)
        self._claims = tuple((name, frozenset(values)) for name, values in config.claims.items())
        self._skew_s = config.skew
        self._require_exp = config.require_exp
        self._types = frozenset(each.lower().removeprefix("application/") for each in config.types)

    def unfit(self, token: Token) -> str | None:
        """Why a token need not even be verified, a word of `who.DOUBTS`; None: it must be."""
        if token.claims.get("iss") != self._issuer:
            return "issuer"
        if token.algorithm not in self._algorithms:
            return "algorithm"
        return "type" if token.kind is not None and token.kind not in self._types else None

    def against(self, token: Token, now: float) -> str | None:
        """Why a token whose signature holds is not taken at `now` (unix seconds), a word of `who.DOUBTS`; None: it is.

        Not to be asked before: what is wanted would be told to whoever tries.
        """
        claims = token.claims
        reason = self._timely(claims, now)
        if reason is not None:
            return reason
        if self._audience is not None and self._audience.isdisjoint(_texts(claims.get("aud"))):
            return "audience"
        for name, wanted in self._claims:
            if wanted.isdisjoint(_words(name, _claim(claims, name))):
                return "claims"
        return None

    def ends_at(self, token: Token) -> float:
        """Until when (unix seconds) a token that is taken now goes on being taken."""
        expires = token.claims.get("exp")
        return _LATEST if expires is None else float(expires) + self._skew_s

    def _timely(self, claims: dict[str, Any], now: float) -> str | None:
        if not all(_is_date(claims[name]) for name in _DATES if name in claims):
            return "malformed"
        if "exp" not in claims:
            if self._require_exp:
                return "expired"
        elif now >= claims["exp"] + self._skew_s:
            return "expired"
        if any(name in claims and now < claims[name] - self._skew_s for name in ("nbf", "iat")):
            return "early"
        return None


def _is_date(value: Any) -> bool:
    """A NumericDate (RFC 7519 2): true and false are no numbers, and there is a last second."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LATEST


def _texts(value: Any) -> list[str]:
    """A text, or those of a list of nothing else."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    return []


def _claim(claims: dict[str, Any], name: str) -> Any:
    """A claim by its name, which may hold dots itself (`https://example.com/roles`), or by the path to it."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _words(name: str, value: Any) -> list[str]:
    """What a claim says, as texts: true is `true`, and 42 is `42`."""
    values = value if isinstance(value, list) else [value]
    if name in _SCOPES and isinstance(value, str):
        values = value.split(" ")
    return [text for text in map(_text, values) if text is not None]


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else None

"""Verdicts on tokens: which client one is of, by the issuers that the config has for one header.

A verdict is remembered until the token ends, as long as no set of keys has changed; a refusal is not, since time or new
keys may heal it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from ambassador.proxy import jose
from ambassador.proxy.clients import jwt

if TYPE_CHECKING:
    from collections.abc import Callable

    from ambassador.proxy.clients.key_sets import KeySet

    WallClock = Callable[[], float]

_SEEN_TOKENS: Final = 4096
"""Verdicts on tokens that are remembered, twice: 0.5 KiB each."""


class Doubtful(Exception):
    """Why a credential proves nothing, a word of `who.DOUBTS`, and the set of keys that may tell more."""

    def __init__(self, doubt: str, wanted: KeySet | None = None) -> None:
        super().__init__(doubt)
        self.doubt = doubt
        self.wanted = wanted


class _Issued:
    """The settings of one client for tokens."""

    __slots__ = ("client", "keys", "rules")

    def __init__(self, client: int, config: jwt.Config, keys: KeySet) -> None:
        self.client = client
        self.rules = jwt.Rules(config)
        self.keys = keys


class Tokens:
    """Tokens of one header: who they are of. Verdicts are remembered while the keys stay the same."""

    def __init__(self) -> None:
        self._by_issuer: dict[str, list[_Issued]] = {}
        self._seen: dict[bytes, tuple[int, float]] = {}
        self._older: dict[bytes, tuple[int, float]] = {}
        self._versions: tuple[int, ...] = ()
        self._key_sets: tuple[KeySet, ...] = ()

    def add(self, client: int, config: jwt.Config, keys: KeySet) -> None:
        """Take the tokens of a client (its place in the file), in the order of the file."""
        self._by_issuer.setdefault(config.issuer, []).append(_Issued(client, config, keys))
        if keys not in self._key_sets:
            self._key_sets = (*self._key_sets, keys)

    def find(self, text: bytes, wall_s: WallClock) -> int:
        """Whose token it is. Raises `Doubtful`."""
        versions = tuple([key_set.version for key_set in self._key_sets])
        if versions != self._versions:
            self._versions, self._seen, self._older = versions, {}, {}
        digest = hashlib.sha256(text).digest()
        known = self._seen.get(digest) or self._older.get(digest)
        if known is not None:
            if wall_s() < known[1]:
                return known[0]
            raise Doubtful("expired")
        client, ends_at = self._verified(text, wall_s())
        if len(self._seen) >= _SEEN_TOKENS:
            self._older, self._seen = self._seen, {}
        self._seen[digest] = (client, ends_at)
        return client

    def claimed(self, text: bytes, now: float) -> int | None:
        """Whose token it would be if its signature held."""
        try:
            token = jose.read_token(text)
        except jose.BadToken:
            return None
        for issued in self._by_issuer.get(str(token.claims.get("iss")), ()):
            if issued.rules.unfit(token) is None and issued.rules.against(token, now) is None:
                return issued.client
        return None

    def _verified(self, text: bytes, now: float) -> tuple[int, float]:
        try:
            token = jose.read_token(text)
        except jose.BadToken as error:
            raise Doubtful(error.reason) from None
        issuer = token.claims.get("iss")
        issued_by = self._by_issuer.get(issuer) if isinstance(issuer, str) else None
        if issued_by is None:
            raise Doubtful("issuer")
        doubt = "claims"
        wanted: KeySet | None = None
        signed: dict[int, str | None] = {}
        for issued in issued_by:
            key_set = issued.keys
            reason = issued.rules.unfit(token)
            if reason is None:
                if id(key_set) not in signed:
                    signed[id(key_set)] = _unsigned(token, key_set)
                reason = signed[id(key_set)]
                if reason is not None and (reason != "signature" or _is_anonymous(token, key_set)):
                    wanted = key_set
            if reason is None:
                reason = issued.rules.against(token, now)
            if reason is None:
                return issued.client, issued.rules.ends_at(token)
            doubt = reason
        raise Doubtful(doubt, wanted)


def _unsigned(token: jose.Token, key_set: KeySet) -> str | None:
    """Why it is not to be believed that a key of the set has signed a token; None: one has."""
    keys = jose.candidates(key_set.keys, token)
    if any(key.has_signed(token) for key in keys):
        return None
    return "signature" if keys else "key" if key_set.keys or key_set.is_empty else "keys_away"


def _is_anonymous(token: jose.Token, key_set: KeySet) -> bool:
    """Whether it cannot be told by name that the key which has signed it is at hand: it may have been replaced."""
    return token.key_id is None or any(key.key_id is None for key in jose.candidates(key_set.keys, token))

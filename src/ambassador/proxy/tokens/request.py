"""What a token service is asked, and how the ambassador proves to it who asks.

A form, POSTed (RFC 6749 3.2, RFC 8693 2.1), with one of
- `client_secret_basic`: the client and its secret in `Authorization: Basic`, both form-encoded first (RFC 6749 2.3.1);
- `client_secret_post`: both in the form, for services that know nothing else;
- `private_key_jwt`: a token that the client signs for this one question (RFC 7523 2.2);
- nothing but `client_id`: a public client.

No I/O, no clock. `Secret`s are looked at when a question is made, so one that was replaced counts from then on.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from urllib.parse import quote_plus, urlencode

import msgspec

from ambassador.proxy import jose
from ambassador.proxy.upstream.passage import Passage
from ambassador.secret import SecretError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ambassador.proxy.upstream.via import Config as Via
    from ambassador.secret import Secret

AuthStyle: TypeAlias = Literal["basic", "body"]

_ASSERTION_S: Final = 60
"""How long a signed question holds: it is sent at once, and clocks differ."""
_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ID_CHARACTERS: Final = 32
"""Of `identity`: 128 bits."""


class Question(msgspec.Struct, frozen=True):
    """One POST. `ca` is the file of the authorities that are trusted, None: the system's. `only_loopback`: it is for
    this host alone, since it goes in plain text.
    """

    url: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    ca: str | None
    timeout_s: float
    only_loopback: bool = False
    through: Passage | None = None
    """The way through an egress proxy; None: it is asked directly."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self.url.partition('?')[0]}>"


class Unaskable(Exception):
    """A question cannot be made, for want of a secret or a key; the text holds neither."""


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, where."""

    url: str
    client_id: str | None = None
    secret: Secret | None = None
    style: AuthStyle = "basic"
    key: Secret | None = None
    """A private key as PEM, in place of a secret."""
    algorithm: str = "RS256"
    key_id: str | None = None
    audience: str | None = None
    """Whom a signed question is for; None: the URL."""
    ca: str | None = None
    timeout_s: float = 10.0
    only_loopback: bool = False
    """No address beyond loopback is asked: that would be in plain text."""
    via: Via | None = None
    """An egress proxy that leads there, with its password."""
    via_password: Secret | None = None

    def question(self, form: Sequence[tuple[str, str]], *, wall_s: float, nonce: str) -> Question:
        """The question that `form` is. `nonce` is random and not used again, `wall_s` the time of day.

        Raises `Unaskable`.
        """
        fields = list(form)
        headers = [
            (b"content-type", b"application/x-www-form-urlencoded"),
            (b"accept", b"application/json"),
            (b"cache-control", b"no-store"),
        ]
        try:
            through = self._through()
            if self.key is not None:
                fields += [
                    ("client_id", self.client_id or ""),
                    ("client_assertion_type", _ASSERTION_TYPE),
                    ("client_assertion", self._assertion(self.key.value, wall_s, nonce)),
                ]
            elif self.secret is None:
                fields += [("client_id", self.client_id)] if self.client_id is not None else []
            elif self.style == "body":
                fields += [("client_id", self.client_id or ""), ("client_secret", self.secret.value)]
            else:
                pair = f"{quote_plus(self.client_id or '')}:{quote_plus(self.secret.value)}"
                headers.append((b"authorization", b"Basic " + b64encode(pair.encode())))
        except SecretError as error:
            raise Unaskable(str(error)) from None
        except jose.BadKey as error:
            raise Unaskable(f"private_key {error}") from None
        return Question(
            self.url,
            tuple(headers),
            urlencode(fields).encode(),
            self.ca,
            self.timeout_s,
            self.only_loopback,
            through,
        )

    def _through(self) -> Passage | None:
        """Raises `SecretError`."""
        if self.via is None:
            return None
        password = None if self.via_password is None else self.via_password.value
        return Passage(self.via, password, self.url)

    def _assertion(self, key: str, wall_s: float, nonce: str) -> str:
        claims = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": self.audience or self.url,
            "jti": nonce,
            "iat": int(wall_s),
            "exp": int(wall_s) + _ASSERTION_S,
        }
        headers = None if self.key_id is None else {"kid": self.key_id}
        return jose.sign(claims, key, algorithm=self.algorithm, headers=headers)

    def identity(self, form: Sequence[tuple[str, str]]) -> str:
        """What tells the tokens that it gets for `form` from all others: a digest of all that decides them, but for
        the secret, which may change without need of another token.
        """
        digest = sha256()
        for part in (self.url, self.client_id or "", *(each for field in form for each in field)):
            digest.update(b"%d:%b" % (len(part.encode()), part.encode()))
        return digest.hexdigest()[:ID_CHARACTERS]

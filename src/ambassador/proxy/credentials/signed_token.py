"""Tokens that the ambassador signs itself: a JWT (RFC 7519) in `Authorization: Bearer`.

One token is used for all requests until `RENEW_AT` of its life is over, or its key has changed. To sign with RSA takes
a worker about a millisecond, each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import field

from ambassador.proxy import jose
from ambassador.proxy.credentials import AUTHORIZATION, Credential, Means
from ambassador.secret import SecretError
from ambassador.settings import HeaderValue, Seconds, Section
from ambassador.settings import Secret as SecretReference

if TYPE_CHECKING:
    from ambassador.messages import Field, Request, RequestHead
    from ambassador.proxy.upstream.endpoint import Endpoint

RENEW_AT: Final = 0.8
"""Of its life: a token that is on its way when it ends would be refused."""
_SHORTEST_S: Final = 10.0  # clocks differ by seconds, and times in tokens are whole ones
_TIMES: Final = frozenset({"iat", "exp", "nbf"})


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token that the ambassador signs itself (JWT), in `Authorization: Bearer`."""

    key: SecretReference
    """The private key in PEM form, or the secret of an `HS…` algorithm: `env:NAME` or `file:/path`."""

    algorithm: Literal[jose.Algorithm, "HS256", "HS384", "HS512"] = "RS256"
    """How it is signed: `RS256`, `ES256`, `EdDSA`, `HS256` and their kin."""

    key_id: HeaderValue | None = None
    """What tells the other side which key it is (`kid`)."""

    claims: dict[str, str] = field(default_factory=dict)
    """What the token says, as `iss` and `sub`: names and texts."""

    audience: tuple[str, ...] = ()
    """Whom it is for (`aud`): one, or a list."""

    ttl: Seconds = 300.0
    """How long a token is good for. At 80 % of that there is a new one."""

    @classmethod
    def refusal(cls, field: str, value: Any) -> str | None:
        """Claims that others of the settings say; a life that is over before the token has arrived."""
        if field == "ttl" and value < _SHORTEST_S:
            return f"must be at least {_SHORTEST_S:.0f}s"
        if field != "claims":
            return None
        for name in value:
            if name in _TIMES:
                return f"must not have '{name}', which is made for each token; 'ttl' says how long it is good for"
            if name == "aud":
                return "must not have 'aud', which 'audience' is"
        return None


def describe(config: Config) -> str:
    """What it is, for people."""
    audience = f" for {', '.join(config.audience)}" if config.audience else ""
    return f"a token that is signed here ({config.algorithm}){audience}"


def credential(config: Config, upstream: str, means: Means) -> SignedToken:
    """The credential that `config` says for the upstream of this name."""
    return SignedToken(config, upstream, means)


class SignedToken(Credential):
    """The token for one upstream, as it is now."""

    __slots__ = ("_config", "_field", "_from_s", "_key", "_line", "_means", "_until_s", "_version")

    varies = False

    def __init__(self, config: Config, upstream: str, means: Means) -> None:
        super().__init__(upstream, [AUTHORIZATION])
        self._config = config
        self._means = means
        self._key = means.secrets.get(config.key)
        self._version = 0
        self._field: Field = (b"", b"")
        self._line = b""
        self._from_s = self._until_s = 0.0

    def check(self) -> None:
        """As `Credential.check`."""
        self._current()

    def put(self, request: Request, head: RequestHead, endpoint: Endpoint) -> None:  # noqa: ARG002
        """As `Credential.put`."""
        self._current()
        self.replace(head, self._field)

    def line(self) -> bytes | None:
        """As `Credential.line`. None as well when a new one must be signed, which the request then does."""
        wall_s = self._means.wall_s()
        return self._line if self._is_good(wall_s) else None

    def _is_good(self, wall_s: float) -> bool:
        """A token of the future is none: the clock was put back."""
        return self._from_s <= wall_s < self._until_s and self._version == self._key.version

    def _current(self) -> None:
        wall_s = self._means.wall_s()
        if not self._is_good(wall_s):
            self._sign(wall_s)

    def _sign(self, wall_s: float) -> None:
        config, version, issued = self._config, self._key.version, int(wall_s)
        claims: dict[str, Any] = {**config.claims, "iat": issued, "exp": issued + int(config.ttl)}
        if config.audience:
            claims["aud"] = config.audience[0] if len(config.audience) == 1 else list(config.audience)
        headers = None if config.key_id is None else {"kid": config.key_id}
        try:
            token = jose.sign(claims, self._key.value, algorithm=config.algorithm, headers=headers)
        except SecretError:
            raise self.unavailable() from None
        except jose.BadKey as error:
            self._key.unusable(f"{error} (upstream {self.upstream})")
            raise self.unavailable(f"cannot be signed: {error}") from None
        self._version, self._from_s, self._until_s = version, issued, issued + int(config.ttl) * RENEW_AT
        self._field = (AUTHORIZATION.encode(), b"Bearer " + token.encode())
        self._line = b"\r\n%b: %b" % self._field

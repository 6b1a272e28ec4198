"""Who may call a route (`access`). Asked before every other policy: who may not, is charged to nobody's limit.

A request of nobody known is answered 401, with a challenge for each of the ways in which those who may call can prove
who they are; one of a known client that is not among them is answered 403.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from ambassador.errors import Forbidden, ProxyError, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ambassador.messages import Request

EVERYBODY: Final = "*"
"""Every client that is known."""
FORBIDDEN: Final = "forbidden"

_SAID: Final = {
    "missing": "the request says nothing of who asks",
    "unknown": "the credential is nobody's",
    "malformed": "the credential is malformed",
    "algorithm": "the token's algorithm is not allowed",
    "crit": "the token needs an extension that is not known",
    "size": "the token is too long",
    "type": "the token is of another type",
    "issuer": "the token is of another issuer",
    "key": "the token's key is not known",
    "signature": "the token's signature does not hold",
    "expired": "the token has expired",
    "early": "the token is not valid yet",
    "audience": "the token is for another audience",
    "claims": "the token's claims are nobody's",
    "ambiguous": "the request's credentials are of different clients",
    "keys_away": "the token cannot be verified now",
}
_NO_TOKEN: Final = frozenset(("missing", "unknown", "ambiguous"))
"""What says nothing about a token (RFC 6750 3.1)."""
REASONS: Final = (*_SAID, FORBIDDEN)
"""Why a request is refused, as the metrics have it."""


class Counts(Protocol):
    """Where refusals are counted."""

    def refused(self, reason: str) -> None:
        """A request was refused; one of REASONS."""


class Access:
    """The policy of one route."""

    __slots__ = ("_allowed", "_challenges", "_counts", "_token_challenges")

    def __init__(self, allowed: Sequence[str], challenges: Sequence[bytes], counts: Counts) -> None:
        """`allowed`: names of clients, or EVERYBODY. `challenges`: values of `WWW-Authenticate`, one for each way."""
        self._allowed = None if EVERYBODY in allowed else frozenset(allowed)
        self._challenges = tuple((b"www-authenticate", each) for each in challenges)
        self._token_challenges = tuple(
            (name, b'%b, error="invalid_token"' % each if each.startswith(b"Bearer") else each)
            for name, each in self._challenges
        )
        self._counts = counts

    def takes(self, client: str | None) -> bool:
        """Whether this client may call; None is nobody known."""
        return client is not None and (self._allowed is None or client in self._allowed)

    def check(self, request: Request) -> ProxyError | None:
        """What the request is refused with; None: it may go on."""
        client = request.client
        if self.takes(client):
            return None
        if client is None:
            reason = request.doubt or "missing"
            self._counts.refused(reason)
            unknown = Unauthenticated(_SAID[reason])
            unknown.fields = self._challenges if reason in _NO_TOKEN else self._token_challenges
            return unknown
        self._counts.refused(FORBIDDEN)
        return Forbidden(f"client '{client}' may not call this route")


def challenges(ways: Sequence[str], *, realm: str) -> list[bytes]:
    """Values of `WWW-Authenticate` for ways: `jwt`, `basic`, `api_key:HEADER`, `mtls`, `network`.

    There must be one (RFC 9110 15.5.2), and for some ways no scheme is registered: what is said for those names them.
    """
    quoted = realm.encode()
    made = [b for way in dict.fromkeys(ways) if (b := _CHALLENGES[way.partition(":")[0]](way, quoted))]
    return made or [b'Network realm="%b"' % quoted]


_CHALLENGES: Final[dict[str, Callable[[str, bytes], bytes | None]]] = {
    "jwt": lambda _, realm: b'Bearer realm="%b"' % realm,
    "basic": lambda _, realm: b'Basic realm="%b", charset="UTF-8"' % realm,
    "api_key": lambda way, realm: b'ApiKey realm="%b", header="%b"' % (realm, way.partition(":")[2].encode()),
    "mtls": lambda _, realm: b'Certificate realm="%b"' % realm,
    "network": lambda *_: None,
}

"""What an upstream is shown: `upstreams.X.auth`, of which each kind is a file of `proxy/credentials/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ambassador.extras import AUTH, Extra
from ambassador.proxy.credentials import (
    aws_sigv4,
    basic,
    bearer,
    exchange,
    header,
    message_signature,
    oauth2,
    signed_token,
)
from ambassador.proxy.loopback import is_this_host
from ambassador.settings import Section

if TYPE_CHECKING:
    from ambassador.proxy.credentials import Credential, Means

_KINDS: Final[Mapping[str, Any]] = {
    "bearer": bearer,
    "basic": basic,
    "header": header,
    "aws_sigv4": aws_sigv4,
    "hmac": message_signature,
    "jwt": signed_token,
    "oauth2": oauth2,
    "exchange": exchange,
}
"""The module of each kind: its `credential` makes one, `describe` tells of it."""
_FETCHED: Final = frozenset({"oauth2", "exchange"})


class Auth(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What requests to this upstream are given to prove who sends them. Exactly one kind is set.

    It takes the place of what clients send under the same name, and goes to no other upstream.
    """

    extras: ClassVar[Mapping[str, Extra]] = {"jwt": AUTH}

    bearer: bearer.Config | None = None
    """A token in `Authorization: Bearer`: `bearer: file:/run/secrets/token`."""

    basic: basic.Config | None = None
    """A user and a password in `Authorization: Basic`."""

    header: header.Config | None = None
    """A secret in a header of any name."""

    aws_sigv4: aws_sigv4.Config | None = None
    """A signature of AWS."""

    hmac: message_signature.Config | None = None
    """An HTTP message signature with a shared secret."""

    jwt: signed_token.Config | None = None
    """A token that is signed here."""

    oauth2: oauth2.Config | None = None
    """A token that is fetched for the ambassador itself (client credentials), and fetched again before it ends."""

    exchange: exchange.Config | None = None
    """The caller's own token, exchanged for one that the upstream takes (RFC 8693)."""

    allow_plaintext: bool = False
    """Whether it may be sent over plaintext HTTP to other hosts. Else it only goes to loopback addresses, unix sockets
    and over TLS."""

    @property
    def kind(self) -> str:
        """Which of the kinds is set."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """No kind, or several."""
        kinds = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if not kinds:
            yield None, f"needs one of {', '.join(repr(kind) for kind in _KINDS)}"
        for other in kinds[1:]:
            yield other, f"is a second credential beside '{kinds[0]}', and an upstream has one"


def compile_credential(auth: Auth, upstream: str, means: Means) -> Credential:
    """The credential of the upstream with this name."""
    kind = auth.kind
    make: Callable[[Any, str, Means], Credential] = _KINDS[kind].credential
    return make(getattr(auth, kind), upstream, means)


def describe(auth: Auth) -> str:
    """What it is, for people; never the secret."""
    told: str = _KINDS[auth.kind].describe(getattr(auth, auth.kind))
    return told


def fetches(auth: Auth) -> bool:
    """Whether it is a token that is fetched from a token service."""
    return auth.kind in _FETCHED


def needs_guard(auth: Auth | None, url: str) -> bool:
    """Whether the endpoint of this URL may only be reached at loopback addresses."""
    return auth is not None and not auth.allow_plaintext and url.startswith("http://")


def goes_bare(auth: Auth | None, url: str) -> bool:
    """Whether the credential would travel to this endpoint for everybody on the way to see. Where a name
    leads is seen when it is dialled.
    """
    return needs_guard(auth, url) and not is_this_host(url.removeprefix("http://").rpartition(":")[0])

"""Exchange: the caller's token for one that the upstream takes (RFC 8693), so that it knows for whom it acts.

There is a token for each caller's token, kept until one of both ends, and shared like any that is fetched: under the
digest of the caller's token, which itself is stored nowhere. A worker keeps those of the last callers (MOST_CALLERS).
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from hashlib import sha256
from ipaddress import IPv6Network
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Final

from ambassador.errors import Unauthenticated
from ambassador.proxy.credentials import AUTHORIZATION, Credential, Means
from ambassador.proxy.tokens.answer import REFUSED
from ambassador.proxy.tokens.keeper import Wanted
from ambassador.proxy.tokens.outage import Outage
from ambassador.proxy.tokens.request import ID_CHARACTERS
from ambassador.proxy.tokens.service import Text, TokenService
from ambassador.proxy.tokens.subject import expires_at, subject_of

if TYPE_CHECKING:
    from ambassador.messages import Fields, Request, RequestHead
    from ambassador.proxy.tokens.answer import Failure
    from ambassador.proxy.tokens.keeper import Keeper, Standing
    from ambassador.proxy.upstream.endpoint import Endpoint

MOST_CALLERS: Final = 10_000
"""Of one upstream, in each worker: some 4 KiB each. Who comes again after so many others is looked up in the store."""
_GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
_ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - the name of a kind
_CALLERS_FAULT: Final = frozenset({"invalid_request", "invalid_grant", "invalid_token"})
"""RFC 8693 2.2.2 has `invalid_request` for a subject token that is not accepted; services differ."""
_LOOKED_AT: Final = 16


class Config(TokenService, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The caller's token is exchanged for one of the upstream's, at a token service (RFC 8693).

    The caller's is the one in `Authorization: Bearer`; a request without it is answered 401 `unauthenticated`, and so
    is one whose token the service does not accept.
    """

    resource: Text | None = None
    """The URI of the upstream that the token is for, where the token service wants that rather than an `audience`."""

    subject_token_type: Text = _ACCESS_TOKEN
    """What callers' tokens are, as RFC 8693 names it."""

    requested_token_type: Text | None = None
    """What is wanted for them. Unset: what the token service gives, as a rule an access token."""


class Exchanged(Credential):
    """For each caller's token another one, of what `wanted` says."""

    __slots__ = ("_base", "_keepers", "_means", "_outage", "_wanted")

    of_caller = True
    renewable = True

    def __init__(self, wanted: Wanted, means: Means) -> None:
        super().__init__(wanted.upstream, [AUTHORIZATION])
        self._wanted = wanted
        self._means = means
        self._base = wanted.asker.identity(wanted.form)
        self._outage = Outage()
        self._keepers: OrderedDict[str, Keeper] = OrderedDict()
        """By the digest of the caller's token, the last one used last."""

    def in_hand(self, request: Request) -> bool:
        """As `Credential.in_hand`; raises `Unauthenticated` too."""
        return self._keeper(request).in_hand()

    async def fetched(self, request: Request) -> None:
        """As `Credential.fetched`: 5 s at most. Raises `Unauthenticated` too."""
        await self._keeper(request).fetched(request)

    def put(self, request: Request, head: RequestHead, endpoint: Endpoint) -> None:  # noqa: ARG002
        """As `Credential.put`."""
        held = self._keeper(request).held()
        if held is None:
            raise self.unavailable("has ended meanwhile")
        self.replace(head, held.field)

    def refused(self, request: Request, began: float) -> bool:
        """As `Credential.refused`."""
        keeper = self._known(request)
        return keeper is not None and keeper.refused(began)

    def accepted(self, request: Request) -> None:
        """As `Credential.accepted`."""
        keeper = self._known(request)
        if keeper is not None:
            keeper.accepted()

    def told_apart(self, request: Request) -> Fields:
        """As `Credential.told_apart`: it is another one for each caller's token."""
        token = subject_of(request.headers)
        return [] if token is None else [(b"authorization", token)]

    def standing(self) -> Standing | None:
        """As `Credential.standing`, of the last caller's token."""
        return next(reversed(self._keepers.values())).standing() if self._keepers else None

    def _known(self, request: Request) -> Keeper | None:
        """Whoever keeps the token for this caller, if anybody does."""
        token = subject_of(request.headers)
        return None if token is None else self._keepers.get(_digest(token))

    def _keeper(self, request: Request) -> Keeper:
        """Whoever keeps the token for this caller. Raises `Unauthenticated`."""
        token = subject_of(request.headers)
        if token is None:
            raise unauthenticated("the upstream is called with the token of the caller, and there is none")
        digest = _digest(token)
        now = self._means.kept_tokens.around.clock.now
        keeper = self._keepers.get(digest)
        if keeper is None or now >= keeper.until:
            until = expires_at(token)
            left_s = inf if until is None else until - self._means.wall_s()
            if left_s <= 0:
                self._keepers.pop(digest, None)
                raise unauthenticated("the caller's token has expired", "invalid_token")
            keeper = self._keepers[digest] = self._make(token, digest, now + left_s, _caller(request))
            self._shrink()
        self._keepers.move_to_end(digest)
        return keeper

    def _make(self, token: bytes, digest: str, until: float, caller: str) -> Keeper:
        wanted = self._wanted
        form = (*wanted.form, ("subject_token", token.decode("ascii")))
        means = self._means
        return means.kept_tokens.make(
            wanted._replace(form=form),
            f"{self._base}.{digest}",
            means.counts_of(self.upstream),
            until=until,
            blame=blame,
            outage=self._outage,
            caller=caller,
        )

    def _shrink(self) -> None:
        """Let go of whoever has not called for longest, and does not wait."""
        if len(self._keepers) <= MOST_CALLERS:
            return
        for digest, keeper in islice(self._keepers.items(), _LOOKED_AT):
            if keeper.idle:
                del self._keepers[digest]
                return


def _caller(request: Request) -> str:
    """Who asks, by what nobody can change as often as a token: of IPv6 the network, of which each host has one."""
    address = request.client_ip
    if ":" in address:
        with contextlib.suppress(ValueError):
            address = str(IPv6Network((address.partition("%")[0], 64), strict=False))
    return f"{request.client or ''} {address}"


def _digest(token: bytes) -> str:
    return sha256(token).hexdigest()[:ID_CHARACTERS]


def unauthenticated(why: str, error: str = "") -> Unauthenticated:
    """The answer for a caller without a token that can be exchanged."""
    told = Unauthenticated(why)
    challenge = f'Bearer error="{error}"' if error else "Bearer"
    told.fields = ((b"www-authenticate", challenge.encode()),)
    return told


def blame(failure: Failure) -> Unauthenticated | None:
    """The answer if it is the caller's token that the token service did not accept."""
    if failure.result == REFUSED and failure.code in _CALLERS_FAULT:
        return unauthenticated(
            f"the token service does not accept the caller's token ({failure.code})", "invalid_token"
        )
    return None


def credential(config: Config, upstream: str, means: Means) -> Exchanged:
    """The credential that `config` says for the upstream of this name."""
    form = [("grant_type", _GRANT), ("subject_token_type", config.subject_token_type), *config.common()]
    if config.resource is not None:
        form.append(("resource", config.resource))
    if config.requested_token_type is not None:
        form.append(("requested_token_type", config.requested_token_type))
    return Exchanged(Wanted(upstream, config.asker(means.secrets), tuple(form), means.places), means)


def describe(config: Config) -> str:
    """What it is, for people."""
    return f"exchange, a token from {config.place} for the caller's (RFC 8693)"

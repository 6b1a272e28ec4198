"""OAuth2: a token that the ambassador gets for itself, by the client credentials grant (RFC 6749 4.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ambassador.proxy.credentials import AUTHORIZATION, Credential, Means
from ambassador.proxy.tokens.keeper import Wanted
from ambassador.proxy.tokens.service import TokenService

if TYPE_CHECKING:
    from ambassador.messages import Request, RequestHead
    from ambassador.proxy.tokens.keeper import Keeper, Standing
    from ambassador.proxy.upstream.endpoint import Endpoint


class Config(TokenService, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token in `Authorization: Bearer` that is fetched from a token service with the client credentials grant.

    It is fetched once for all workers and replicas that share the state, used until shortly before it ends, and
    replaced when the upstream answers 401.
    """

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Nothing to ask with; and what is wrong with any."""
        yield from super().conflicts()
        if self.client_id is None:
            yield None, "needs 'client_id'"
        elif self.client_secret is None and self.private_key is None:
            yield None, "needs 'client_secret' or 'private_key'"


class Fetched(Credential):
    """The token that `keeper` keeps, the same for all requests."""

    __slots__ = ("keeper",)

    renewable = True
    varies = False

    def __init__(self, upstream: str, keeper: Keeper) -> None:
        super().__init__(upstream, [AUTHORIZATION])
        self.keeper = keeper

    def in_hand(self, request: Request) -> bool:  # noqa: ARG002
        """As `Credential.in_hand`."""
        return self.keeper.in_hand()

    async def fetched(self, request: Request) -> None:
        """As `Credential.fetched`: 5 s at most."""
        await self.keeper.fetched(request)

    def put(self, request: Request, head: RequestHead, endpoint: Endpoint) -> None:  # noqa: ARG002
        """As `Credential.put`."""
        held = self.keeper.held()
        if held is None:
            raise self.unavailable("has ended meanwhile")
        self.replace(head, held.field)

    def refused(self, request: Request, began: float) -> bool:  # noqa: ARG002
        """As `Credential.refused`."""
        return self.keeper.refused(began)

    def accepted(self, request: Request) -> None:  # noqa: ARG002
        """As `Credential.accepted`."""
        self.keeper.accepted()

    def standing(self) -> Standing:
        """As `Credential.standing`."""
        return self.keeper.standing()

    def line(self) -> bytes | None:
        """As `Credential.line`."""
        return self.keeper.line()


def credential(config: Config, upstream: str, means: Means) -> Fetched:
    """The credential that `config` says for the upstream of this name."""
    form = (("grant_type", "client_credentials"), *config.common())
    wanted = Wanted(upstream, config.asker(means.secrets), form, means.places)
    return Fetched(upstream, means.kept_tokens.get(wanted, means.counts_of(upstream)))


def describe(config: Config) -> str:
    """What it is, for people."""
    return f"oauth2, a token for client {config.client_id} from {config.place}"

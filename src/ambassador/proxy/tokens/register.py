"""The register of a worker's tokens: who keeps which, and who is told when somebody has stored one.

`Tokens` outlives the worker's tables: a keeper that a reload makes again is the same one as before, as long as somebody
has it.
"""

from __future__ import annotations

import contextlib
from math import inf
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary, ref

import msgspec

from ambassador.proxy.tokens.keeper import Keeper, Place
from ambassador.proxy.tokens.seal import Sealer
from ambassador.secret import SecretError
from ambassador.state.protocol import decode_tokened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ambassador.proxy.tokens.keeper import Blame, Surroundings, TokenCounts, Wanted
    from ambassador.proxy.tokens.outage import Outage
    from ambassador.secret import Secrets
    from ambassador.state.protocol import Event
    from ambassador.state.scope import Scopes


class _Namesakes:
    """The keepers of one credential, as long as somebody has them. A `WeakSet` would take 1 KB for each caller's token,
    where this takes 0.2.
    """

    __slots__ = ("__weakref__", "_keepers")

    def __init__(self) -> None:
        self._keepers: tuple[ref[Keeper], ...] = ()

    def add(self, keeper: Keeper) -> None:
        self._keepers = (*(each for each in self._keepers if each() is not None), ref(keeper))

    def __iter__(self) -> Iterator[Keeper]:
        return iter([keeper for each in self._keepers if (keeper := each()) is not None])


class Tokens:
    """All keepers of a worker; `scopes` are the stores that tokens can be shared by."""

    def __init__(self, around: Surroundings, scopes: Scopes) -> None:
        self.around = around
        self._by_wanted: WeakValueDictionary[Wanted, Keeper] = WeakValueDictionary()
        self._scopes = scopes
        self._sealers: WeakValueDictionary[str, Sealer] = WeakValueDictionary()
        self._by_credential: WeakValueDictionary[str, _Namesakes] = WeakValueDictionary()
        """Several upstreams may have the same, and a table its own beside that of the one before. Keepers hold their
        entry, so that it goes with the last of them."""
        scopes.fleet.listen("token", self._heard)
        if scopes.replica is not scopes.fleet:
            scopes.replica.listen("token", self._heard)

    def places(self, kept: Secrets, secret_key: str | None, *, remote: bool) -> tuple[Place, ...]:
        """Where tokens are shared. `remote`: the fleet's store is not the replica's; without a `secret_key`, which is
        the reference of a secret, none is put there.
        """
        scopes = self._scopes
        if not remote:
            return (Place(scopes.fleet),)
        if secret_key is None:
            return (Place(scopes.replica),)
        sealer = self._sealers.get(secret_key)
        if sealer is None:
            sealer = self._sealers[secret_key] = Sealer(kept.get(secret_key))
            with contextlib.suppress(SecretError):
                _ = sealer.key_id  # the library is imported now, not when the first request waits
        return (Place(scopes.fleet, sealer), Place(scopes.replica))

    def get(self, wanted: Wanted, counts: TokenCounts) -> Keeper:
        """The keeper of a token that is refreshed as long as it is used; the same one as long as somebody has it."""
        keeper = self._by_wanted.get(wanted)
        if keeper is None:
            credential = wanted.asker.identity(wanted.form)
            keeper = Keeper(self.around, wanted, credential, counts, proactive=True)
            self._by_wanted[wanted] = keeper
            self._join(keeper)
        return keeper

    def make(
        self,
        wanted: Wanted,
        credential: str,
        counts: TokenCounts,
        *,
        until: float = inf,
        blame: Blame | None = None,
        outage: Outage | None = None,
        caller: str = "",
    ) -> Keeper:
        """Another keeper, of a token that is not used beyond `until` (the lane's clock), under this name.

        `blame` says which failures are not the ambassador's to tell as its own; `outage` is what all have who ask the
        same token service, for which `caller` is who this token is for.
        """
        keeper = Keeper(
            self.around, wanted, credential, counts, until=until, blame=blame, outage=outage, caller=caller
        )
        self._join(keeper)
        return keeper

    def _join(self, keeper: Keeper) -> None:
        """Have the keeper hear of what is stored under its credential."""
        namesakes = self._by_credential.get(keeper.credential)
        if namesakes is None:
            namesakes = self._by_credential[keeper.credential] = _Namesakes()
        namesakes.add(keeper)
        keeper.namesakes = namesakes

    def _heard(self, event: Event) -> None:
        """Somebody stored a token."""
        try:
            version = decode_tokened(event.body).version
        except msgspec.MsgspecError:
            return
        _, _, rest = event.name.partition(":")
        for keeper in self._by_credential.get(rest.partition(":")[0], ()):
            keeper.heard(event.name, version)

"""API keys: a secret that a client sends in a header.

A key is looked up by its SHA-256, and the digests are then compared in constant time: neither how far a guess is right
nor which of many keys it is like can be told by the time that the answer takes. Nothing here keeps a key itself.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from ambassador.proxy.fields import proves_nothing
from ambassador.secret import SecretError
from ambassador.settings import MatchHeader, Secret, Section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ambassador.secret import Secret as HeldSecret

_BEARER = b"bearer "


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys that a client may send. Several let one be replaced: add the new one, change the client, remove the old."""

    shorthand: ClassVar[str | None] = "keys"

    keys: Annotated[tuple[Secret, ...], Meta(min_length=1)]
    """Where the keys are kept: `env:NAME`, `file:/path`, or a list of them; files are read again when they change."""

    header: MatchHeader = "x-api-key"
    """The header that holds the key; none that has a meaning of its own, as `host`. In `authorization` it may follow
    the word `Bearer`."""

    @classmethod
    def refusal(cls, field: str, value: Any) -> str | None:
        """A header that says something else."""
        return f"'{value}' is no place for keys" if field == "header" and proves_nothing(value) else None


class Digests:
    """Secrets that are presented, by their SHA-256, each with whose it is (its place in the file)."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: dict[bytes, tuple[bytes, int]] = {}

    def add(self, secret: bytes, client: int) -> None:
        """Of two clients with the same secret the first has it."""
        digest = hashlib.sha256(secret).digest()
        self._entries.setdefault(digest, (digest, client))

    def find(self, presented: bytes) -> int | None:
        """Whose secret it is; None: nobody's."""
        digest = hashlib.sha256(presented).digest()
        entry = self._entries.get(digest)
        if entry is None or not hmac.compare_digest(entry[0], digest):
            return None
        return entry[1]


def read_keys(secrets: Iterable[HeldSecret]) -> list[bytes]:
    """The keys that can be read. One that cannot be is nobody's; its `Secrets` have told so."""
    keys = []
    for secret in secrets:
        try:
            keys.append(secret.value.encode())
        except SecretError:
            continue
    return keys


def find(digests: Digests, value: bytes, header: bytes) -> int | None:
    """Whose key the value of a header is."""
    found = digests.find(value)
    if found is None and header == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
        found = digests.find(value[len(_BEARER) :].strip())
    return found

"""What is told of the sets of public keys that clients' tokens are verified with: whether they can be read.

Each worker reads them for itself, and says with its beats which it cannot. What one cannot read counts as one that
cannot be read: requests come to all workers alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from ambassador.control.orders import KeySetTrouble

if TYPE_CHECKING:
    from ambassador.config.schema import Config
    from ambassador.proxy.clients import jwt


class KeySetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The set of one client. `source` is its URL without the query, in which there may be a secret, or its file."""

    client: str
    source: str
    up: bool = True
    since: float | None = None
    """Since when it cannot be read, in unix seconds."""
    problem: str | None = None
    """Why it cannot be read."""
    has_keys: bool = True
    """Every worker has keys of it, if only older ones; else tokens are refused."""


def key_set_statuses(config: Config, told: Iterable[Mapping[str, KeySetTrouble]]) -> Iterator[KeySetStatus]:
    """Of each client of the config that may show tokens, in its order. `told`: by worker, what `orders.Beat` has."""
    troubles = _merged(told)
    first: dict[tuple[object, ...], str] = {}
    for name, client in config.clients.items():
        if client.jwt is None:
            continue
        trouble = troubles.get(first.setdefault(_set_of(client.jwt), name))
        source = client.jwt.jwks.partition("?")[0]
        if trouble is None:
            yield KeySetStatus(client=name, source=source)
        else:
            yield KeySetStatus(
                client=name,
                source=source,
                up=False,
                since=trouble.since,
                problem=trouble.problem,
                has_keys=trouble.has_keys,
            )


def _set_of(config: jwt.Config) -> tuple[object, ...]:
    return config.jwks, config.ca, config.via


def _merged(told: Iterable[Mapping[str, KeySetTrouble]]) -> dict[str, KeySetTrouble]:
    """By client, the trouble that has lasted longest; `has_keys` only where all have."""
    merged: dict[str, KeySetTrouble] = {}
    for troubles in told:
        for name, trouble in troubles.items():
            other = merged.get(name, trouble)
            longest = min(trouble, other, key=lambda each: each.since)
            merged[name] = KeySetTrouble(longest.since, longest.problem, trouble.has_keys and other.has_keys)
    return merged

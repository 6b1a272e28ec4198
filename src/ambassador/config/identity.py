"""Who would be known to ask, for `explain` and `check`: the service's own judgement, with what is at hand here.

Secrets and key files are read where the command runs, which may not be where the service does; a token service is never
asked. What could not be known is said, and no secret is ever part of what is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from ambassador.config.schema import Config
from ambassador.files import UnfitFile, read_regular
from ambassador.messages import Request
from ambassador.proxy import jose
from ambassador.proxy.clients.key_sets import KeySets
from ambassador.proxy.clients.mtls import Names
from ambassador.proxy.clients.who import Clients, Found, let_know
from ambassador.secret import SecretError, Secrets, quiet

__all__ = ["UNREAD", "credential_headers", "identifier", "secret_values"]

UNREAD: Final = "unread"
"""Why it is not known who asks: what was shown may be a secret that cannot be read here. The service can."""


class _Still:
    """A clock for what never waits."""

    now = 0.0

    def tick(self) -> None:
        """It stands still."""


class _Stranger:
    """The other end of a connection that is not made."""

    names: Names = ()
    validity: tuple[float, float] | None = None


def credential_headers(config: Config) -> set[str]:
    """Headers that may hold what proves a client, lower case."""
    headers: set[str] = set()
    for client in config.clients.values():
        if client.api_key is not None:
            headers.add(client.api_key.header)
        if client.jwt is not None:
            headers.add(client.jwt.header)
    return headers


def identifier(config: Config, wall_s: Callable[[], float] = time.time) -> Callable[[Request], str] | None:
    """What finds out who asks, with the secrets and files of this machine; None: the config has no clients."""
    if not config.clients:
        return None
    secrets, key_sets = Secrets(quiet()), KeySets(_Still())
    clients = Clients(config.clients, secrets, key_sets)
    for key_set in key_sets:
        if key_set.source.startswith("file:"):
            try:
                key_set.feed(
                    jose.read_keys(read_regular(key_set.source.removeprefix("file:"), jose.MOST_SET_BYTES))
                )
            except (UnfitFile, jose.BadKey) as error:
                key_set.fail(str(error))

    def identify(request: Request) -> str:
        credentials = clients.credentials(request.headers)
        found = clients.find(credentials, _Stranger(), "", wall_s)
        if found.may_change:
            claimed = clients.claimed(credentials, wall_s)
            if claimed is not None:
                found = Found(claimed)
                let_know(request, found)
                return f"{claimed}, if the token's signature holds: its keys are not at hand here"
        let_know(request, found)
        unread = sum(1 for _ in _unreadable(config, secrets))
        if unread and found.doubt == "unknown":
            request.doubt = UNREAD
            return (
                f"not known here: {unread} secret{'s' if unread > 1 else ''} of clients cannot be read; where they can, "
                "ask with -c FILE"
            )
        return _said(config, found)

    return identify


def _said(config: Config, found: Found) -> str:
    if found.name is not None:
        by = " and ".join(name.decode() for name in found.proof)
        kept = "goes on to the upstream" if not found.spent else "does not go on to the upstream"
        return f"{found.name}, by {by}, which {kept}"
    text = "nobody known" if found.doubt is None else f"nobody known ({found.doubt})"
    others = [name for name, client in config.clients.items() if client.mtls or client.network]
    if others:
        text += f"; by certificate or address it may be {' or '.join(others)}"
    return text


def _references(config: Config) -> Iterator[tuple[str, str]]:
    """Client and reference of each API key."""
    for name, client in config.clients.items():
        for reference in () if client.api_key is None else client.api_key.keys:
            yield name, reference


def _unreadable(config: Config, secrets: Secrets) -> Iterator[str]:
    passwords = ((name, client.basic.password) for name, client in config.clients.items() if client.basic)
    for _, reference in (*_references(config), *passwords):
        try:
            secrets.get(reference).value  # noqa: B018 - whether it can be read
        except SecretError:
            yield reference


def secret_values(config: Config) -> Iterator[tuple[str, str, str, str]]:
    """Client, header, reference and value of each API key that can be read here."""
    secrets = Secrets(quiet())
    for name, reference in _references(config):
        keys = config.clients[name].api_key
        assert keys is not None
        try:
            yield name, keys.header, reference, secrets.get(reference).value
        except SecretError:
            continue

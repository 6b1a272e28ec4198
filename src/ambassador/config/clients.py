"""What only the whole config can tell about clients: who is named and not there, and who cannot be told from whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ambassador.config import words
from ambassador.config.node import Node
from ambassador.config.part import BAD, Items, Part
from ambassador.proxy.policies.access import EVERYBODY


def check_clients(routes: Sequence[Part], upstreams: Sequence[Part], document: Part) -> None:
    """Report clients that are named and not there, `per: client` without any, and what two of them have in common.
    Nothing is said of what has mistakes of its own.
    """
    clients = document.values.get("clients")
    if clients is BAD or any(key.startswith("?") and "client" in key for key in document.values):
        return
    known = list(clients.values) if isinstance(clients, Part) else []
    for route in routes:
        for part, key in ((route, "access"), (route.values.get("match"), "client")):
            if isinstance(part, Part):
                _check_names(part, key, known)
    for owner in (*routes, *upstreams):
        _check_limits(owner, known)
    if isinstance(clients, Part):
        _check_shared(clients)


def _check_names(part: Part, key: str, known: list[str]) -> None:
    names = part.values.get(key)
    if not isinstance(names, Items):
        return
    for at, (name, node) in enumerate(zip(names.values, names.nodes, strict=True)):
        if not isinstance(name, str):
            continue
        path = part.place(key)[1] + (f"[{at}]" if names.is_list else "")
        if not known:
            node.report(path, f"'{key}' needs 'clients'", "write 'clients: {NAME: {api_key: env:…}}'")
            return
        if name != EVERYBODY and name not in known:
            node.report(path, f"there is no client '{name}'", words.did_you_mean(name, known))


def _check_limits(owner: Part, known: list[str]) -> None:
    limits = owner.values.get("limit")
    for limit in limits.values if isinstance(limits, Items) else ():
        if isinstance(limit, Part) and limit.values.get("per") == "client" and not known:
            node, path = limit.place("per")
            node.report(path, "'client' needs 'clients'", "use 'client_ip' or 'header:NAME'")


def _check_shared(clients: Part) -> None:
    """Secrets and networks that two clients have: nobody could tell who it is."""
    seen: dict[tuple[str, str], tuple[str, Node]] = {}
    for name, client in clients.values.items():
        if not isinstance(client, Part):
            continue
        for kind, value, node, path in _proofs(client):
            first, first_node = seen.setdefault((kind, value), (name, node))
            if first != name:
                node.report(path, f"the same {kind} is client '{first}'s already (line {first_node.line})")


def _proofs(client: Part) -> Iterator[tuple[str, str, Node, str]]:
    keys = client.values.get("api_key")
    if isinstance(keys, Part):
        header = keys.values.get("header", "x-api-key")
        for value, node, path in _texts(keys, "keys"):
            yield f"key in '{header}'", value, node, path
    for value, node, path in _texts(client, "network"):
        yield "network", value, node, path


def _texts(part: Part, key: str) -> Iterator[tuple[str, Node, str]]:
    items: Any = part.values.get(key)
    if isinstance(items, Items):
        for value, node in zip(items.values, items.nodes, strict=True):
            if isinstance(value, str):
                yield value, node, part.place(key)[1]

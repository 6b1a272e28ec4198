"""What tells listeners apart. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from ambassador.config.schema import Listener


def keyed(listeners: Iterable[Listener]) -> dict[str, Listener]:
    """Each listener by its key, in the config's order: its address, which is its own but for port 0.

    Further ones on the same address get a number: each has a port of its own, and keeps it over reloads as long as
    those before it stay.
    """
    found: dict[str, Listener] = {}
    for listener in listeners:
        numbered = (f"{listener.address} ({number})" for number in count(2))
        key = listener.address
        while key in found:
            key = next(numbered)
        found[key] = listener
    return found

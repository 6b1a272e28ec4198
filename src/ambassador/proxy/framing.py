"""Headers that belong to the connection, and so to the proxy: no config may set, add or remove them.

They say where a message ends and which way it goes; one of them written by hand next to the proxy's own makes two
readers of a message disagree (RFC 9112 11.2). `host` is `rewrite.host`.
"""

from __future__ import annotations

from collections.abc import Iterable

FRAMING = frozenset({
    "connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
"""Their names, lower case."""


def refusals(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each of `names` that, in any case, is one of FRAMING, and what is wrong with that."""
    return [
        (name, f"the header '{name}' is the proxy's own and cannot be changed here")
        for name in names
        if name.lower() in FRAMING
    ]

"""JSON for people: indented, and made in pieces, since a config of a thousand routes takes a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

_JSON: Final = msgspec.json.Encoder()
_LEVELS: Final = 2
"""How deep it is taken apart: a list of routes is, at the top and as a member; one route is a piece."""


def pieces(value: object) -> Iterator[bytes]:
    """The document of `value`, which joined is the text. Iterators are lists that are made while they are told."""
    yield from _pieces(value, _LEVELS, b"\n")
    yield b"\n"


def _pieces(value: object, levels: int, newline: bytes) -> Iterator[bytes]:
    if levels and isinstance(value, Mapping):
        members = ((_JSON.encode(str(key)) + b": ", each) for key, each in value.items())
        yield from _between(b"{", members, b"}", levels, newline)
    elif levels and isinstance(value, list | tuple | Iterator):
        yield from _between(b"[", ((b"", each) for each in value), b"]", levels, newline)
    else:
        # A line feed inside a string is written as \n, so what is replaced is the layout's.
        yield msgspec.json.format(_JSON.encode(value), indent=2).replace(b"\n", newline)


def _between(
    opening: bytes, members: Iterable[tuple[bytes, object]], closing: bytes, levels: int, newline: bytes
) -> Iterator[bytes]:
    inner = newline + b"  "
    before = opening + inner
    for label, value in members:
        yield before + label
        yield from _pieces(value, levels - 1, inner)
        before = b"," + inner
    yield opening + closing if before[:1] == opening else newline + closing

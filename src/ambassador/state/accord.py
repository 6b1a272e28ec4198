"""Which terms of a limit hold while replicas have different configs: of each number the lowest. Pure.

In a rolling change of the config some replicas have a limit's new rate and burst, others the old ones, and all of them
lease from one bucket. If each went by its own, the bucket would fill at the higher rate whenever one that has it asks.
So whoever knows of others' terms goes by the lower rate and the lower burst, until all tell the same.

What a replica has is *told* (`Told`): by limit and length of its calendar window (0: none), the rate and the burst.
Limits are known by their ids; one that was changed from a rate to a quota, or to another window, is another limit, and
has another bucket. Of 500 limits that is 25 KB, so beats carry only its *name*: a digest, and the number of *parts* of
at most `MAX_VALUE_BYTES` that the store has under `key_of`. Whoever hears a name that it does not know reads the parts,
once. So a beat costs the same whatever the number of limits, and replicas that agree never read anything.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import msgspec

from ambassador.state.protocol import MAX_VALUE_BYTES

Key: TypeAlias = tuple[str, int]
"""A limit's id, and the seconds of its calendar window; 0: it refills."""
Told: TypeAlias = dict[Key, tuple[float, float]]
"""Rate in tokens a second, and burst, of each limit."""

MOST_PARTS: Final = 64
"""A name that says more is none of ours: 80,000 limits."""
MOST_NAMES: Final = 32
"""Names that are known at a time. A change of the config makes two; beyond, those heard first count."""

_KIND: Final = "terms"
_NAME: Final = re.compile(r"[0-9a-f]{32}\.([1-9][0-9]?)").fullmatch
_ENTRY_BYTES: Final = 2 + 5 + 5 + 9 + 9
"""What msgpack needs at most for one limit besides its id: the array, the id's length, the window, two numbers."""

_Entry: TypeAlias = tuple[str, int, float, float]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Entry]).decode


def parts_of(told: Told) -> list[bytes]:
    """What the store is given: the same for equal terms, whatever their order. Empty for none."""
    parts: list[list[_Entry]] = []
    room = 0
    for (ident, window_s), (rate, burst) in sorted(told.items()):
        needs = _ENTRY_BYTES + len(ident.encode())
        if needs > room:
            parts.append([])
            room = MAX_VALUE_BYTES - 5
        parts[-1].append((ident, window_s, float(rate), float(burst)))
        room -= needs
    return [_encode(part) for part in parts]


def name_of(parts: Sequence[bytes]) -> str:
    """The name of what has these parts; empty for none."""
    if not parts:
        return ""
    return f"{hashlib.sha256(b''.join(parts)).hexdigest()[:32]}.{len(parts)}"


def count_of(name: str) -> int:
    """How many parts it has; 0: it is no name."""
    found = _NAME(name)
    count = int(found[1]) if found is not None else 0
    return count if count <= MOST_PARTS else 0


def key_of(name: str, part: int) -> str:
    """Under which name the store has a part; they are counted from 0."""
    return f"{_KIND}:{name}:{part}"


def place_of(key: str) -> tuple[str, int] | None:
    """The name and the part that the store has under this key, if it is one of `key_of`."""
    kind, _, rest = key.partition(":")
    name, _, part = rest.partition(":")
    if kind != _KIND or not part.isascii() or not part.isdecimal() or not 0 <= int(part) < count_of(name):
        return None
    return name, int(part)


def read_part(value: bytes) -> Told:
    """What a part tells. Whatever cannot be the terms of a limit is left out, and of what is no part, all."""
    try:
        entries = _decode(value)
    except msgspec.DecodeError:
        return {}
    return {
        (ident, window_s): (rate, burst)
        for ident, window_s, rate, burst in entries
        if 0 < rate < math.inf and 1 <= burst < math.inf and window_s >= 0
    }


class Accord:
    """What this worker's config tells, what others' do, and what follows."""

    def __init__(self) -> None:
        self.own: Told = {}
        self.parts: list[bytes] = []
        self.name = ""
        """Of the own terms."""
        self._others: tuple[str, ...] = ()
        """Names that live, other than the own one."""
        self._fresh: dict[str, int] = {}
        """Names that were just told, and whether one beat was answered since."""
        self._known: dict[str, dict[int, Told]] = {}
        """The parts of others, by name."""

    def have(self, own: Told, *, alone: bool) -> None:
        """This is what the config says from now on. `alone`: there is no other replica, which may go on with what this
        one had before.
        """
        former, parts = self.name, self.parts
        self.own = dict(own)
        self.parts = parts_of(own)
        self.name = name_of(self.parts)
        self._others = tuple(name for name in self._others if name != self.name)
        if not alone and former != self.name:
            for part, value in enumerate(parts):
                self.hear_part(former, part, value)

    def hear_names(self, names: Iterable[str]) -> None:
        """These live, said the answer to a beat. What was told on its way is given until the one after the next."""
        self._fresh = {name: answers - 1 for name, answers in self._fresh.items() if answers > 0}
        living = dict.fromkeys([*names, *self._fresh])
        self._others = tuple(name for name in living if name != self.name and count_of(name))[:MOST_NAMES]
        self._known = {name: parts for name, parts in self._known.items() if name in self._others}

    def hear_part(self, name: str, part: int, value: bytes) -> None:
        """This is a part of what has that name. If it was not known to live, it does: somebody has just begun."""
        if name == self.name:
            return
        if name not in self._others:
            if len(self._others) >= MOST_NAMES:
                return
            self._others += (name,)
            self._fresh[name] = 1
        self._known.setdefault(name, {})[part] = read_part(value)

    def missing(self) -> list[tuple[str, int]]:
        """The parts to be read: name and part."""
        return [
            (name, part)
            for name in self._others
            for part in range(count_of(name))
            if part not in self._known.get(name, ())
        ]

    def lowest(self, key: Key) -> tuple[float, float]:
        """The rate and the burst that hold for a limit of the own config."""
        rate, burst = self.own[key]
        for name in self._others:
            for told in self._known.get(name, {}).values():
                other = told.get(key)
                if other is not None:
                    rate, burst = min(rate, other[0]), min(burst, other[1])
        return rate, burst

"""Limits as the supervisor tells of them: what its workers say, as one list (contract 7.17). Pure.

A worker knows what it holds and what its last answer of the store said. So of what is left in the store the youngest
answer counts, and to it is added what all of them hold; what other replicas hold is not known here.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from ambassador.proxy.limit_keys import MOST_TOLD, LimitStatus

_ENCODER: Final = msgspec.json.Encoder()
_LINE: Final = msgspec.json.Decoder(LimitStatus)


class LimitView(msgspec.Struct, frozen=True, kw_only=True):
    """`/api/limits`: one key of a limit. Counts are this replica's since the config was loaded.

    `balance` is what is left for all that share the state, as far as this replica knows. `fallback`: of `admitted`,
    what was admitted without the store's tokens.
    """

    name: str
    rate: str
    burst: int
    key: str
    balance: int
    admitted: int
    limited: int
    fallback: int


class _Sum:
    """One key over all workers."""

    __slots__ = ("admitted", "fallback", "first", "held", "limited", "youngest")

    def __init__(self, first: LimitStatus) -> None:
        self.first = self.youngest = first
        self.held = 0.0
        self.admitted = self.fallback = self.limited = 0

    def add(self, status: LimitStatus) -> None:
        self.held += status.held
        self.admitted += status.admitted
        self.fallback += status.fallback
        self.limited += status.limited
        if _age_s(status) < _age_s(self.youngest):
            self.youngest = status

    def view(self) -> LimitView:
        first = self.first
        return LimitView(
            name=first.name,
            rate=first.rate,
            burst=first.burst,
            key=first.key,
            balance=min(first.burst, math.floor(self.youngest.left + self.held)),
            admitted=self.admitted,
            limited=self.limited,
            fallback=self.fallback,
        )


def _age_s(status: LimitStatus) -> float:
    return math.inf if status.age_s is None else status.age_s


def answer(statuses: list[LimitStatus]) -> bytes:
    """What a worker answers: a line of JSON for each key, so that they can be read one by one."""
    return _ENCODER.encode_lines(statuses)


class LimitViews:
    """Adds up what workers answer."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, _Sum]] = {}

    def add(self, answers: Iterable[bytes]) -> Iterator[None]:
        """Add all workers' answers, a step for each key."""
        for line in itertools.chain.from_iterable(map(bytes.splitlines, answers)):
            status = _LINE.decode(line)
            sums = self._sums.setdefault(status.name, {})
            if status.key not in sums:
                sums[status.key] = _Sum(status)
            sums[status.key].add(status)
            yield

    def views(self) -> Iterator[LimitView]:
        """By name, of each the keys with most traffic."""
        for _, sums in sorted(self._sums.items()):
            busiest = heapq.nlargest(MOST_TOLD, sums.values(), key=lambda each: each.admitted + each.limited)
            for each in busiest:
                yield each.view()

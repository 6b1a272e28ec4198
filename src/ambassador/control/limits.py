"""Limits as the supervisor tells of them: what its workers say, as one list (contract 7.17). Pure.

A worker knows what it holds and what its last answer of the store said. So of what is left in the store the youngest
answer counts, and to it is added what all of them hold; what other replicas hold is not known here.

What workers that have ended had counted stays in the sums until another config is loaded: they tell it when they end,
and every few seconds, for the case that they are killed.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from ambassador.control.orders import Counted
from ambassador.proxy.limit_keys import MOST_TOLD, LimitStatus
from ambassador.proxy.policies.concurrency import PermitStatus

_ENCODER: Final = msgspec.json.Encoder()
_MOST_PAST: Final = 10_000
"""Keys of workers that have ended; beyond, the half that was used least is forgotten."""
_LINE: Final = msgspec.json.Decoder(LimitStatus)
_PERMIT: Final = msgspec.json.Decoder(PermitStatus)


class LimitView(msgspec.Struct, frozen=True, kw_only=True):
    """`/api/limits`: one key of a limit. Counts are this replica's since the config was loaded.

    `balance` is what is left for all that share the state, as far as this replica knows. Of `admitted`, `fallback` was
    admitted while the store was late or away, and `credit` ahead of its tokens in bounded mode.
    """

    name: str
    rate: str
    burst: int
    key: str
    balance: int
    admitted: int
    limited: int
    fallback: int
    credit: int


class PermitView(msgspec.Struct, frozen=True, kw_only=True):
    """`/api/limits`, after the limits: how many requests of one route may be in progress on this replica, and are.

    Has all that a limit's entry has, so that whoever goes through the list need not tell them apart: `balance` is how
    many more may begin now; there is no rate and no burst. `limit` is `max`, or what `adaptive` has found; `queued`
    wait for a permit. `admitted` and `limited` are of the workers that live, since the config was loaded.
    """

    name: str
    rate: None = None
    burst: None = None
    key: str
    """The route."""
    balance: int
    admitted: int
    limited: int
    max: int
    limit: int
    in_use: int
    queued: int


class PastCounts:
    """What workers that have ended had counted since the config was loaded."""

    def __init__(self) -> None:
        self._generation = 0
        self._keys: dict[tuple[str, str], LimitStatus] = {}

    def fold(self, counts: Counted) -> None:
        """Add the last counts of a worker that has ended. Those of an earlier config are over."""
        if counts.generation > self._generation:
            self._generation = counts.generation
            self._keys.clear()
        if counts.generation == self._generation:
            for line in counts.lines.splitlines():
                self._add(_LINE.decode(line))
        if len(self._keys) > _MOST_PAST:
            busiest = heapq.nlargest(_MOST_PAST // 2, self._keys.items(), key=lambda each: _traffic(each[1]))
            self._keys = dict(busiest)

    def of(self, generation: int) -> Iterable[LimitStatus]:
        """The sums of those that served this generation."""
        return list(self._keys.values()) if generation == self._generation else ()

    def _add(self, told: LimitStatus) -> None:
        key = told.name, told.key
        known = self._keys.get(key)
        self._keys[key] = msgspec.structs.replace(
            told,
            admitted=told.admitted + (known.admitted if known else 0),
            fallback=told.fallback + (known.fallback if known else 0),
            credit=told.credit + (known.credit if known else 0),
            limited=told.limited + (known.limited if known else 0),
        )


class _Sum:
    """One key over all workers."""

    __slots__ = ("admitted", "credit", "fallback", "first", "held", "limited", "youngest")

    def __init__(self, first: LimitStatus) -> None:
        self.first = self.youngest = first
        self.held = 0.0
        self.admitted = self.fallback = self.credit = self.limited = 0

    def add(self, status: LimitStatus) -> None:
        self.held += status.held
        self.admitted += status.admitted
        self.fallback += status.fallback
        self.credit += status.credit
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
            credit=self.credit,
        )


def _traffic(status: LimitStatus) -> int:
    return status.admitted + status.limited


def _age_s(status: LimitStatus) -> float:
    return math.inf if status.age_s is None else status.age_s


def answer(statuses: list[LimitStatus]) -> bytes:
    """What a worker answers: a line of JSON for each key, so that they can be read one by one."""
    return _ENCODER.encode_lines(statuses)


def permit_answer(statuses: Iterable[PermitStatus]) -> bytes:
    """The same of permits to be in progress."""
    return _ENCODER.encode_lines(list(statuses))


def permits(answers: Iterable[bytes]) -> list[PermitView]:
    """All workers' permits, by name. The limit is as the worker knows it that has most in hand: who has none may not
    have heard of it.
    """
    sums: dict[str, list[PermitStatus]] = {}
    for line in itertools.chain.from_iterable(map(bytes.splitlines, answers)):
        status = _PERMIT.decode(line)
        sums.setdefault(status.name, []).append(status)
    return [_permit_view(each) for _, each in sorted(sums.items())]


def _permit_view(statuses: list[PermitStatus]) -> PermitView:
    known = max(statuses, key=lambda each: each.in_hand)
    in_use = sum(each.in_use for each in statuses)
    return PermitView(
        name=known.name,
        key=known.key,
        balance=max(0, known.limit - in_use),
        admitted=sum(each.admitted for each in statuses),
        limited=sum(each.limited for each in statuses),
        max=known.most,
        limit=known.limit,
        in_use=in_use,
        queued=sum(each.queued for each in statuses),
    )


def counted(statuses: list[LimitStatus]) -> bytes:
    """The same of keys that were used, without what is only true now."""
    return _ENCODER.encode_lines(
        [
            msgspec.structs.replace(each, held=0.0, left=float(each.burst), age_s=None)
            for each in statuses
            if _traffic(each)
        ]
    )


class LimitViews:
    """Adds up what workers answer."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, _Sum]] = {}

    def add(self, answers: Iterable[bytes]) -> Iterator[None]:
        """Add all workers' answers, a step for each key."""
        for line in itertools.chain.from_iterable(map(bytes.splitlines, answers)):
            self._add(_LINE.decode(line))
            yield

    def add_past(self, statuses: Iterable[LimitStatus]) -> Iterator[None]:
        """Add what workers had counted that are no longer asked, likewise. To be called last."""
        for status in statuses:
            self._add(status)
            yield

    def _add(self, status: LimitStatus) -> None:
        sums = self._sums.setdefault(status.name, {})
        if status.key not in sums:
            sums[status.key] = _Sum(status)
        sums[status.key].add(status)

    def views(self) -> Iterator[LimitView]:
        """By name, of each the keys with most traffic."""
        for _, sums in sorted(self._sums.items()):
            busiest = heapq.nlargest(MOST_TOLD, sums.values(), key=lambda each: each.admitted + each.limited)
            for each in busiest:
                yield each.view()

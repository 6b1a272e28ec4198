"""A worker's beats: once a second it says in every store that it lives, and hears how many others do.

The numbers count when a store is lost: each replica then takes its part. So a worker that is started meanwhile gets
those that its predecessors knew, from its replica's store; without any, the config's `expected_replicas` stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from ambassador.state.bridge import Bridge
from ambassador.state.protocol import Answer, Beat, Get, Named, Put

BEAT_EVERY_S: Final = 1.0
"""A third of the time after which a worker counts as gone."""

_KNOWN: Final = "fleet"


class Info(msgspec.Struct, frozen=True, array_like=True):
    """What a worker tells of itself with each beat; `/api/replicas` is made of it (contract 7.17).

    `since` is when its replica started, in unix seconds by its own clock, and `age_s` for how long it has run when this
    is said: whoever reads it may have another clock. None: an older version, which does not say it. `state_up`: it
    reaches the fleet's store.
    """

    since: float
    version: str
    generation: int
    state_up: bool
    age_s: float | None = None


class _Numbers(msgspec.Struct, frozen=True, array_like=True):
    replicas: int
    workers: int


encode_info = msgspec.msgpack.Encoder().encode
decode_info = msgspec.msgpack.Decoder(Info).decode
_decode_numbers = msgspec.msgpack.Decoder(_Numbers).decode


class Lives:
    """Beats. `greeting` makes the one of now.

    `local` is the replica's store and `fleet` the one beyond it, or None: then the replica is the fleet. `heard` is
    told what the fleet's answers to each beat.
    """

    def __init__(
        self,
        greeting: Callable[[], Beat],
        local: Bridge,
        fleet: Bridge | None,
        heard: Callable[[Answer | None], None] | None = None,
    ) -> None:
        self._greeting = greeting
        self._heard = heard
        self._local = local
        self._fleet = fleet
        self._told: _Numbers | None = None
        if fleet is not None:
            local.ask(Get(_KNOWN), self._remember)

    def beat(self) -> None:
        """Say that this worker lives. To be called every BEAT_EVERY_S."""
        self._say(self._greeting())
        if self._fleet is not None:
            self._hand_down(self._fleet)

    def leave(self) -> None:
        """Say that it lives no longer: it takes no more requests."""
        beat = self._greeting()
        self._say(Beat(beat.replica, beat.slot, leaving=True))

    def _say(self, beat: Beat) -> None:
        for scope in (self._local, self._fleet):
            if scope is not None and scope.up:
                scope.ask(beat, self._heard if scope is (self._fleet or self._local) else None)

    def _hand_down(self, fleet: Bridge) -> None:
        """Leave what is known with the replica's store, for whoever is started while the fleet's is away."""
        numbers = _Numbers(fleet.replicas, fleet.workers)
        if fleet.census.known and numbers != self._told:
            self._told = numbers
            self._local.ask(Put(_KNOWN, msgspec.msgpack.encode(numbers)))

    def _remember(self, answer: Answer | None) -> None:
        if self._fleet is not None and isinstance(answer, Named) and answer.version:
            numbers = _decode_numbers(answer.value)
            self._fleet.census.assume(numbers.replicas, numbers.workers)

"""How many replicas and workers live, as beats tell it. Pure: times are given.

Too low a number is the dangerous mistake: when the store is lost each replica takes its part of a limit, and parts of
too few replicas add up to more than the limit. A store that has just lost its data, or comes back after an outage that
outlived every beat, counts whoever beats first as the only one. So growth is believed at once, and fewer only after
every answer of SHRINKS_AFTER_S said fewer.
"""

from __future__ import annotations

from typing import Final

from ambassador.state.protocol import BEAT_TTL_US, Beaten

SHRINKS_AFTER_S: Final = BEAT_TTL_US / 1e6
"""By then everybody has beaten again who will: a beat a second, and three for one that was lost."""


class _Number:
    """A number that grows at once and shrinks slowly."""

    __slots__ = ("_fewer", "_since", "value")

    def __init__(self) -> None:
        self.value = 1
        self._since: float | None = None
        self._fewer = 1

    def grow(self, told: int) -> None:
        if told > self.value:
            self.value, self._since = told, None

    def hear(self, told: int, now: float) -> None:
        told = max(1, told)
        if told >= self.value:
            self.value, self._since = told, None
        elif self._since is None:
            self._since, self._fewer = now, told
        else:
            self._fewer = max(self._fewer, told)
            if now - self._since >= SHRINKS_AFTER_S:
                self.value, self._since = self._fewer, None


class Census:
    """Who lives. `known`: a store has said so, rather than the config or nobody."""

    __slots__ = ("_born_us", "_replicas", "_workers", "known")

    def __init__(self) -> None:
        self._replicas = _Number()
        self._workers = _Number()
        self._born_us: int | None = None
        self.known = False

    @property
    def replicas(self) -> int:
        """At least 1."""
        return self._replicas.value

    @property
    def workers(self) -> int:
        """Over all replicas; at least 1."""
        return self._workers.value

    def assume(self, replicas: int, workers: int) -> None:
        """Take these for true until a store says otherwise: from the config, or what a former worker knew."""
        if not self.known:
            self._replicas.value = max(1, replicas)
            self._workers.value = max(1, replicas, workers)

    def grow(self, replicas: int, workers: int) -> None:
        """Somebody came, and now there are so many, at least."""
        self._replicas.grow(replicas)
        self._workers.grow(workers)

    def count(self, beaten: Beaten, now: float) -> bool:
        """Take what a beat was answered, at `now` in seconds. True: the store lost its data since the last one."""
        self.known = True
        self._replicas.hear(beaten.replicas, now)
        self._workers.hear(beaten.workers, now)
        wiped = self._born_us is not None and self._born_us != beaten.born_us
        self._born_us = beaten.born_us
        return wiped

"""Fleets of gates at an upstream of which everything fails, with ways to the store and back that take their time: by
chance, out of a seed, each report and answer is on its way for a while, some for much longer, and some are lost.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial

from ambassador.state.passes import Pass, Result
from ambassador.state.protocol import State
from tests.state.fleet import Fleet, Worker, rules

_TICK_S = 0.01
_LOST_AFTER_S = 0.25
"""A store that does not answer is known by then."""
_SHAPES = ((2, 2), (1, 4), (2, 1), (3, 2), (1, 2))
"""Replicas, and workers of each."""


class Trip:
    """One fleet, well for a while and failing from `begin` on. `loss`: of reports, answers and events."""

    def __init__(self, seed: int, *, loss: float) -> None:
        self._chance = chance = random.Random(seed)
        self._loss = loss
        replicas, slots = chance.choice(_SHAPES)
        self._rate = chance.choice((10, 16, 50, 100))
        self._rate_before = chance.choice((self._rate, self._rate / 10))
        self._delay_s = chance.choice((0.0005, 0.005, 0.03))
        self._stalls = chance.choice((0.0, 0.02, 0.1))
        self._fleet = Fleet(
            rules(min_requests=chance.choice((5, 10, 20)), open_ms=5000, max_open_ms=60_000),
            replicas=replicas,
            slots=slots,
        )
        self.begin = self._fleet.now + chance.choice((0.0, 1.0, 3.0, 12.0))
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        for worker in self._fleet.workers:
            self._tick(worker)
        self._request()

    def run(self, seconds: float) -> float | None:
        """How long after `begin` the circuit opened; None: it did not, in so many seconds."""
        fleet = self._fleet
        while self._due[0][0] < self.begin + seconds:
            fleet.now, _, step = heapq.heappop(self._due)
            step()
            if fleet.circuit.row(fleet.now_us).state is not State.CLOSED:
                return fleet.now - self.begin
        return None

    def _after(self, seconds: float, step: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self._fleet.now + seconds, next(self._order), step))

    def _way_s(self) -> float:
        stalled = self._chance.uniform(0.1, 0.6) if self._chance.random() < self._stalls else 0.0
        return self._chance.expovariate(1 / self._delay_s) + stalled

    def _carry(self, worker: Worker) -> None:
        self._fleet.collect(worker)
        while worker.pending:
            self._after(self._way_s(), partial(self._arrive, worker, worker.pending.popleft()))

    def _arrive(self, worker: Worker, asked: tuple[object, float]) -> None:
        operation, at = asked
        fate = self._chance.random() / self._loss if self._loss else 1.0
        answer = self._fleet.perform(operation) if fate >= 0.5 else None  # type: ignore[arg-type]

        def told() -> None:
            heard = answer if fate >= 1.0 else None
            worker.gate.answered(operation, heard, at, self._fleet.now, self._chance.random())  # type: ignore[arg-type]
            self._carry(worker)

        self._after(self._way_s() if fate >= 1.0 else _LOST_AFTER_S, told)

    def _tick(self, worker: Worker) -> None:
        worker.gate.tick(self._fleet.now)
        self._carry(worker)
        self._after(_TICK_S, partial(self._tick, worker))

    def _request(self) -> None:
        now, chance = self._fleet.now, self._chance
        fails = now >= self.begin
        worker = chance.choice(self._fleet.workers)
        entry = worker.gate.enter(now, chance.random(), 1.0)
        self._carry(worker)
        if isinstance(entry, Pass):
            self._after(chance.uniform(0.001, 0.02), partial(self._end, worker, entry, fails=fails))
        wait_s = chance.expovariate(self._rate if fails else self._rate_before)
        self._after(wait_s if fails else min(wait_s, self.begin - now), self._request)

    def _end(self, worker: Worker, given: Pass, *, fails: bool) -> None:
        now = self._fleet.now
        if fails or not worker.gate.count(given, now):
            result = Result.FAILED if fails else Result.GOOD
            worker.gate.settle(given, result, now, self._chance.random())
        self._carry(worker)

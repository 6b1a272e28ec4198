"""Fleets of gates at an upstream that hangs while their circuit is half-open: by chance, out of a seed, workers and the
store stand still for up to two seconds, and answers are late or lost. A store that is late is taken for lost.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial

from ambassador.state.passes import OWN_PROBE, WAITING, Pass, ProbePass, Result
from ambassador.state.protocol import Answer, Operation, Row, State
from tests.state.fleet import TIMEOUT_S, Fleet, Worker, rules

_TICK_S = 0.01
_LOST_AFTER_S = 0.25
"""A store that does not answer for so long is taken for lost (`bridge.ANSWER_WITHIN_S`)."""


class Probing:
    """One fleet whose circuit has opened, and tries an upstream that never answers.

    `loss`: of operations, answers and events. `store_stalls` and `worker_stalls`: so many a second, of each. One client
    in ten does not wait for the end.
    """

    def __init__(
        self, seed: int, *, loss: float = 0.0, store_stalls: float = 0.0, worker_stalls: float = 0.0
    ) -> None:
        self._chance = chance = random.Random(seed)
        self._loss = loss
        self._worker_stalls = worker_stalls
        replicas, slots = chance.choice(((2, 2), (1, 4), (3, 2), (1, 2)))
        self.fleet = fleet = Fleet(rules(open_ms=500, max_open_ms=500), replicas=replicas, slots=slots)
        self._rate = chance.choice((20, 150))
        self._delay_s = chance.choice((0.0005, 0.005, 0.03))
        self._store_stalls = store_stalls
        self._store_still_until = 0.0
        self._still_until = dict.fromkeys(fleet.workers, 0.0)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.leased = self.own = self.most = 0
        """The most at once: of the fleet by leases, of one worker by itself, of all."""
        fleet.deliver()
        while fleet.circuit.row(fleet.now_us).state is State.CLOSED:
            for worker in fleet.workers:
                fleet.request(worker, Result.FAILED)
            fleet.advance(0.01)
        fleet.deliver()
        for worker in fleet.workers:
            self._tick(worker)
            self._stall(worker)
        self._stall_store()
        self._request()

    def run(self, seconds: float) -> None:
        """Have so much time pass."""
        fleet = self.fleet
        end = fleet.now + seconds
        while self._due[0][0] < end:
            fleet.now, _, step = heapq.heappop(self._due)
            step()

    def _after(self, seconds: float, step: Callable[[], None]) -> None:
        self._at(self.fleet.now + seconds, step)

    def _at(self, when: float, step: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._order), step))

    # Who stands still

    def _stall(self, worker: Worker) -> None:
        if self._worker_stalls:
            still_s = self._chance.uniform(0.0, 2.0)
            self._still_until[worker] = self.fleet.now + still_s
            self._after(still_s + self._chance.expovariate(self._worker_stalls), partial(self._stall, worker))

    def _stall_store(self) -> None:
        if self._store_stalls:
            still_s = self._chance.uniform(0.0, 2.0)
            self._store_still_until = self.fleet.now + still_s
            self._after(still_s + self._chance.expovariate(self._store_stalls), self._stall_store)

    def _by(self, worker: Worker, step: Callable[[], None]) -> Callable[[], None]:
        """The same, once the worker goes on; what comes together then comes in any order."""

        def tried() -> None:
            until = self._still_until[worker]
            if until > self.fleet.now:
                self._at(until + self._chance.uniform(0.0, 0.001), tried)
            else:
                step()

        return tried

    # To the store and back

    def _carry(self, worker: Worker) -> None:
        self.fleet.collect(worker)
        while worker.pending:
            operation, at = worker.pending.popleft()
            if worker.peers.up:
                self._ask(worker, operation, at)
            else:
                self._answer(worker, operation, None, at)
        while worker.events:
            row = worker.events.popleft()
            if self._chance.random() >= self._loss:
                self._after(self._way_s(), self._by(worker, partial(self._hear, worker, row)))

    def _way_s(self) -> float:
        return self._chance.expovariate(1 / self._delay_s)

    def _ask(self, worker: Worker, operation: Operation, at: float) -> None:
        answered: list[Answer | None] = []

        def arrive() -> None:
            if self._store_still_until > self.fleet.now:
                self._at(self._store_still_until, arrive)
                return
            if self._chance.random() < self._loss:
                return
            answer = self.fleet.perform(operation)
            for each in self.fleet.workers:
                self._carry(each)
            if self._chance.random() >= self._loss:
                self._after(self._way_s(), self._by(worker, partial(tell, answer)))

        def tell(answer: Answer | None) -> None:
            late = bool(answered)
            answered.append(answer)
            if not late:
                worker.peers.up = answer is not None
                self._answer(worker, operation, answer, at)
            elif not worker.peers.up and answer is not None:
                self._come_back(worker)
            if answer is None:
                # The client connects again.
                self._after(
                    self._chance.uniform(0.0, 0.5), self._by(worker, partial(self._come_back, worker))
                )

        def look() -> None:
            if not answered:
                tell(None)

        self._after(self._way_s(), arrive)
        self._after(_LOST_AFTER_S, self._by(worker, look))

    def _answer(self, worker: Worker, operation: Operation, answer: Answer | None, at: float) -> None:
        worker.gate.answered(operation, answer, at, self.fleet.now, self._chance.random())
        self._carry(worker)

    def _come_back(self, worker: Worker) -> None:
        if not worker.peers.up and self._store_still_until <= self.fleet.now:
            worker.peers.up = True
            worker.gate.read(self.fleet.now)
            self._carry(worker)
        elif not worker.peers.up:
            self._at(self._store_still_until, self._by(worker, partial(self._come_back, worker)))

    def _hear(self, worker: Worker, row: Row) -> None:
        if worker.peers.up:
            worker.gate.heard(row, self.fleet.now)
            self._carry(worker)

    # A worker

    def _tick(self, worker: Worker) -> None:
        worker.gate.tick(self.fleet.now)
        self._carry(worker)
        self._after(_TICK_S, self._by(worker, partial(self._tick, worker)))

    def _request(self) -> None:
        worker = self._chance.choice(self.fleet.workers)
        self._by(worker, partial(self._begin, worker, again=True))()
        self._after(self._chance.expovariate(self._rate), self._request)

    def _begin(self, worker: Worker, *, again: bool) -> None:
        fleet = self.fleet
        entry = fleet.enter(worker, self._chance.random())
        self._carry(worker)
        if entry is WAITING and again:
            self._after(2 * self._delay_s, self._by(worker, partial(self._begin, worker, again=False)))
        if not isinstance(entry, Pass):
            return
        leaves = self._chance.random() < 0.1
        wait_s = self._chance.uniform(0.0, TIMEOUT_S) if leaves else entry.until - fleet.now
        ends = partial(self._end, worker, entry, Result.NOTHING if leaves else Result.HARD)
        self._after(wait_s, self._by(worker, ends))
        leased = fleet.probes_in_flight
        own = [
            sum(isinstance(each, ProbePass) and each.lease == OWN_PROBE for each in one.inflight)
            for one in fleet.workers
        ]
        self.leased = max(self.leased, leased)
        self.own = max(self.own, *own)
        self.most = max(self.most, leased + sum(own))

    def _end(self, worker: Worker, given: Pass, result: Result) -> None:
        self.fleet.finish(worker, given, result)
        self._carry(worker)

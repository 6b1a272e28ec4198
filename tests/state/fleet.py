"""A fleet of gates around one circuit: workers whose operations and events a test delivers, loses, or holds back."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ambassador.state.circuit import Circuit
from ambassador.state.gate import Gate
from ambassador.state.passes import Entry, Pass, ProbePass, Result
from ambassador.state.protocol import Answer, Force, Operation, Probe, Report, Restore, Row, Rules
from ambassador.state.store_time import StoreTime

BASE_US = 1_700_000_000_000_000
TIMEOUT_S = 1.0
"""Of a probe."""
CHANCE = 0.5
"""No jitter, and never refused by the first step of the ramp unless a test says so."""


def rules(**changes: float) -> Rules:
    """Half of at least 10, in 10 s; open for 2 s, up to 8; three probes."""
    values = {
        "errors": 0.5,
        "slow": 2.0,
        "min_requests": 10,
        "window_ms": 10_000,
        "quorum": 0.3,
        "open_ms": 2000,
    }
    values |= {"max_open_ms": 8000, "probes": 3}
    return Rules(**(values | changes))  # type: ignore[arg-type]


class Peers:
    """Who is alive, as the scope of a worker says it."""

    def __init__(self, replicas: int, workers: int) -> None:
        self.up = True
        self.replicas = replicas
        self.workers = workers


@dataclass(eq=False)
class Worker:
    """One process: its gate, what it has asked, what it has not heard yet, what it has in flight."""

    gate: Gate
    peers: Peers
    pending: deque[tuple[Operation, float]] = field(default_factory=deque)
    events: deque[Row] = field(default_factory=deque)
    inflight: list[Pass] = field(default_factory=list)

    @property
    def probes(self) -> list[ProbePass]:
        """Probes by a lease that are in flight."""
        return [given for given in self.inflight if isinstance(given, ProbePass) and given.lease]


class Fleet:
    """`replicas` × `slots` workers. Time stands still but for `advance`; the store's is ahead by decades."""

    def __init__(self, rules: Rules, *, replicas: int = 1, slots: int = 1, consecutive: int = 0) -> None:
        self.rules = rules
        self.now = 100.0
        self.consecutive = consecutive
        self.circuit = Circuit()
        self.replicas, self.slots = replicas, slots
        self.born = 0
        self.workers = [self._worker(replica, slot) for replica in range(replicas) for slot in range(slots)]

    def _worker(self, replica: int, slot: int) -> Worker:
        peers = Peers(self.replicas, self.replicas * self.slots)
        self.born += 1
        gate = Gate(
            "up",
            self.rules,
            consecutive=self.consecutive,
            peers=peers,
            time=StoreTime(),
            replica=f"r{replica}",
            slot=slot,
            key=f"r{replica}.{slot}.{self.born}",
        )
        worker = Worker(gate, peers)
        gate.read(self.now)
        self.collect(worker)
        return worker

    @property
    def now_us(self) -> int:
        return BASE_US + round(self.now * 1e6)

    # Time and the store

    def advance(self, seconds: float) -> None:
        """Time passes; attempts whose time is over are cut, as an exchange cuts them."""
        self.now += seconds
        for worker in self.workers:
            for given in [given for given in worker.inflight if given.until <= self.now]:
                self.finish(worker, given, Result.HARD)
            worker.gate.tick(self.now)
            self.collect(worker)

    def perform(self, operation: Operation) -> Answer:
        circuit, now_us = self.circuit, self.now_us
        answer: Answer
        match operation:
            case Report():
                answer = circuit.report(operation, now_us, CHANCE)
            case Probe():
                answer = circuit.probe(operation, now_us, CHANCE)
            case Force():
                answer = circuit.force(operation, now_us)
            case Restore():
                answer = circuit.restore(operation, now_us)
            case _:
                raise AssertionError(operation)
        if circuit.take_published():
            for worker in self.workers:
                worker.events.append(circuit.row(now_us))
        return answer

    def wipe(self) -> None:
        """The store loses all that it has; everybody is told so (`on_up`)."""
        self.circuit = Circuit()
        for worker in self.workers:
            worker.gate.read(self.now)
            self.collect(worker)

    def force(self, to: str, for_s: float = 0.0) -> None:
        self.perform(Force("up", to, self.rules, round(for_s * 1000), "ann", "a test"))

    # What goes between

    def collect(self, worker: Worker) -> None:
        for operation in worker.gate.outbox:
            worker.pending.append((operation, self.now))
        worker.gate.outbox.clear()
        worker.gate.news.clear()

    def answer_next(self, worker: Worker, *, done: bool = True, heard: bool = True) -> None:
        """The next operation of a worker is done or not, its answer heard or not."""
        operation, asked_at = worker.pending.popleft()
        reachable = worker.peers.up
        answer = self.perform(operation) if done and reachable else None
        worker.gate.answered(operation, answer if heard else None, asked_at, self.now, CHANCE)
        self.collect(worker)

    def deliver(self, *workers: Worker) -> None:
        """Everything that is under way arrives, and what comes of it."""
        chosen = workers or tuple(self.workers)
        while any(worker.pending or worker.events for worker in chosen):
            for worker in chosen:
                while worker.pending:
                    self.answer_next(worker)
                while worker.events:
                    self.hear_next(worker)

    def hear_next(self, worker: Worker, *, lost: bool = False) -> None:
        row = worker.events.popleft()
        if not lost and worker.peers.up:
            worker.gate.heard(row, self.now)
            self.collect(worker)

    def cut_off(self, worker: Worker) -> None:
        worker.peers.up = False

    def heal(self, worker: Worker) -> None:
        while worker.pending:
            self.answer_next(worker)
        worker.peers.up = True
        worker.gate.read(self.now)
        self.collect(worker)

    # Requests

    def enter(self, worker: Worker, random: float = CHANCE) -> Entry:
        """What a request meets; a pass is in flight until `finish`."""
        entry = worker.gate.enter(self.now, random, TIMEOUT_S)
        self.collect(worker)
        if isinstance(entry, Pass):
            worker.inflight.append(entry)
        return entry

    def finish(self, worker: Worker, given: Pass, result: Result) -> None:
        worker.inflight.remove(given)
        worker.gate.settle(given, result, self.now, CHANCE)
        self.collect(worker)

    def request(self, worker: Worker, result: Result) -> bool:
        """One request from begin to end, with the lease that it may wait for; whether it was let through."""
        entry = self.enter(worker)
        if not isinstance(entry, Pass):
            self.deliver(worker)
            entry = self.enter(worker) if worker.gate.has_lease or not worker.gate.is_open else entry
        if isinstance(entry, Pass):
            self.finish(worker, entry, result)
            self.deliver()
            return True
        return False

    def kill(self, worker: Worker) -> Worker:
        """The process ends without a word, and another takes its place."""
        at = self.workers.index(worker)
        self.workers[at] = self._worker(*divmod(at, self.slots))
        return self.workers[at]

    @property
    def probes_in_flight(self) -> int:
        return sum(len(worker.probes) for worker in self.workers)

"""A memory store with several workers around it, for tests of policies that share: no process, no socket."""

from __future__ import annotations

from ambassador.state.memory import MemoryStore
from ambassador.state.protocol import Answer, Operation
from ambassador.state.scope import Scopes
from tests.state.fakes import DirectScope, StoreClock


class Time:
    """The time of a lane that a test moves; timers are those of `Lane`, called when it is time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[object] = []

    def arm(self, timer: object) -> None:
        if timer not in self.timers:
            self.timers.append(timer)


class SharedStore:
    """One store and the scopes of its workers. `time` moves the store's clock too."""

    def __init__(self, workers: int, *, replicas: int = 1) -> None:
        self.time = Time()
        self.clock = StoreClock()
        self.store = MemoryStore(self.clock.now_us)
        self.scopes = [
            DirectScope(self._perform, self.clock, replicas=replicas, workers=workers) for _ in range(workers)
        ]

    def _perform(self, operation: Operation, now_us: int) -> Answer:
        answer = self.store.perform(operation, now_us)
        for event in self.store.collect():
            for scope in self.scopes:
                scope.publish(event)
        return answer

    def scopes_of(self, worker: int) -> Scopes:
        return Scopes(self.scopes[worker], self.scopes[worker])

    def deliver(self) -> None:
        """Everything that was asked is answered, and what comes of it."""
        while any(scope.deliver() for scope in self.scopes):
            pass
        for scope in self.scopes:
            scope.deliver()

    def advance(self, seconds: float) -> None:
        self.time.now += seconds
        self.clock.advance(seconds)
        timers, self.time.timers = self.time.timers, []
        for timer in timers:
            if timer.deadline <= self.time.now:  # type: ignore[attr-defined]
                timer.expire()  # type: ignore[attr-defined]
            else:
                self.time.timers.append(timer)

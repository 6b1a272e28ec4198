"""One store and the scopes of its workers, for tests of whatever shares: no process, no socket, no clock of its own."""

from __future__ import annotations

import trio

from ambassador.state.holding import Terms
from ambassador.state.memory import MemoryStore
from ambassador.state.protocol import Answer, Operation
from ambassador.state.scope import Scopes
from tests.state.fakes import DirectScope, StoreClock


class OneStore:
    """A memory store. What it publishes every scope hears with its next delivery."""

    def __init__(self) -> None:
        self.clock = StoreClock()
        self.store = MemoryStore(self.clock.now_us)
        self.scopes: list[DirectScope] = []

    def open_scope(self, *, replicas: int = 1, workers: int = 1) -> DirectScope:
        """One more worker's."""
        scope = DirectScope(self.perform, self.clock, replicas=replicas, workers=workers)
        self.scopes.append(scope)
        return scope

    def scopes_of(self, worker: int) -> Scopes:
        return Scopes(self.scopes[worker], self.scopes[worker])

    def perform(self, operation: Operation, now_us: int) -> Answer:
        answer = self.store.perform(operation, now_us)
        for event in self.store.collect():
            for scope in self.scopes:
                scope.publish(event)
        return answer

    def wipe(self) -> None:
        """It loses everything."""
        self.store = MemoryStore(self.clock.now_us)

    def deliver(self) -> None:
        """Everything that was asked is answered, and what comes of it; then what is left to be heard."""
        while any([scope.deliver() for scope in self.scopes]):  # noqa: C419 - of all, each time
            pass
        for scope in self.scopes:
            scope.deliver()

    async def answers(self) -> None:
        """Answer everything, until cancelled."""
        while True:
            self.deliver()
            await trio.lowlevel.checkpoint()


class Limited:
    """A limit as `Rollout` sees it."""

    def __init__(self, configured: Terms, ident: str = "r/limit") -> None:
        self.id = ident
        self.configured = configured
        self.terms = configured
        self.obeyed: list[Terms] = []

    def obey(self, terms: Terms) -> None:
        self.terms = terms
        self.obeyed.append(terms)

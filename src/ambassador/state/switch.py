"""The fleet's scope as policies know it, for the whole life of a worker: whichever store the config names now.

A reload may name another store. Policies go on with the scope that they have, and what listens to it listens to the
new store; answers to what was asked before still come from the old one.
"""

from __future__ import annotations

from collections.abc import Callable

from ambassador.state.bridge import Answered, Bridge
from ambassador.state.protocol import Event, Operation


class Switch:
    """A `scope.Scope` that is another one: `target`, until `point` says otherwise."""

    def __init__(self, target: Bridge) -> None:
        self.target = target
        self._hearers: list[tuple[str, Callable[[Event], None]]] = []
        self._again: list[Callable[[], None]] = []
        self._attached: list[Bridge] = [target]

    def point(self, target: Bridge) -> None:
        """Be another one from now on; whoever wants to know when the store is back is told."""
        if target is self.target:
            return
        self.target = target
        if target not in self._attached:
            self._attached.append(target)
            for kind, heard in self._hearers:
                self._listen(target, kind, heard)
            for again in self._again:
                self._on_up(target, again)
        if target.up:
            for again in self._again:
                again()

    def forget(self, old: Bridge) -> None:
        """`old` will not be the target again."""
        self._attached = [each for each in self._attached if each is not old]

    @property
    def up(self) -> bool:
        """The store answers."""
        return self.target.up

    @property
    def replicas(self) -> int:
        """Replicas alive, as far as known; at least 1."""
        return self.target.replicas

    @property
    def workers(self) -> int:
        """Workers alive over all replicas, likewise."""
        return self.target.workers

    def ask(self, operation: Operation, answered: Answered | None = None) -> None:
        """Have an operation done; see `scope.Scope`."""
        self.target.ask(operation, answered)

    def listen(self, kind: str, heard: Callable[[Event], None]) -> None:
        """Have every event of this kind told."""
        self._hearers.append((kind, heard))
        for target in self._attached:
            self._listen(target, kind, heard)

    def on_up(self, again: Callable[[], None]) -> None:
        """Have `again` called when the store is back, or is another one."""
        self._again.append(again)
        for target in self._attached:
            self._on_up(target, again)

    def _listen(self, target: Bridge, kind: str, heard: Callable[[Event], None]) -> None:
        def heard_here(event: Event) -> None:
            if self.target is target:
                heard(event)

        target.listen(kind, heard_here)

    def _on_up(self, target: Bridge, again: Callable[[], None]) -> None:
        def again_here() -> None:
            if self.target is target:
                again()

        target.on_up(again_here)

"""The fleet's scope as policies know it, for the whole life of a worker: whichever store the config names now.

A reload may name another store. Policies go on with the scope that they have, and what listens to it listens to the
new store; answers to what was asked before still come from the old one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ambassador.state.bridge import Answered, Bridge
from ambassador.state.hearers import Hearers
from ambassador.state.protocol import Event, Operation


class Switch:
    """A `scope.Scope` that is another one: `target`, until `point` says otherwise."""

    def __init__(self, target: Bridge) -> None:
        self.target = target
        self._former_losses = 0
        self._hearers: dict[str, Hearers[Callable[[Event], None]]] = {}
        self._again: Hearers[Callable[[], None]] = Hearers()
        self._attached: list[Bridge] = []
        self._attach(target)

    def point(self, target: Bridge) -> None:
        """Be another one from now on; whoever wants to know when the store is back is told."""
        if target is self.target:
            return
        # Another store knows nothing of what the one before gave out.
        self._former_losses += self.target.losses + 1
        self.target = target
        if target not in self._attached:
            self._attach(target)
        if target.up:
            self._is_back(target)

    def _attach(self, target: Bridge) -> None:
        self._attached.append(target)
        target.on_up(partial(self._is_back, target))
        for kind in self._hearers:
            target.listen(kind, partial(self._heard, target))

    def forget(self, old: Bridge) -> None:
        """`old` will not be the target again."""
        self._attached = [each for each in self._attached if each is not old]

    @property
    def up(self) -> bool:
        """The store answers."""
        return self.target.up

    @property
    def losses(self) -> int:
        """How often the store, or its data, was lost, or was another one."""
        return self._former_losses + self.target.losses

    @property
    def born_at(self) -> float:
        """When the store's data began, as of when it was connected."""
        return self.target.born_at

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
        hearers = self._hearers.get(kind)
        if hearers is None:
            hearers = self._hearers[kind] = Hearers()
            for target in self._attached:
                target.listen(kind, partial(self._heard, target))
        hearers.add(heard)

    def on_up(self, again: Callable[[], None]) -> None:
        """Have `again` called when the store is back, or is another one."""
        self._again.add(again)

    def _heard(self, target: Bridge, event: Event) -> None:
        if target is self.target:
            target.call_each(self._hearers[event.kind], event)

    def _is_back(self, target: Bridge) -> None:
        if target is self.target:
            target.call_each(self._again)

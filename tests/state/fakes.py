"""A scope without a bridge: the store is a function, and the test says when what it answers arrives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import TypeAlias

from ambassador.state.hearers import Hearers
from ambassador.state.protocol import Answer, Event, Operation, Refused
from ambassador.state.scope import Scopes

Perform: TypeAlias = Callable[[Operation, int], Answer]
"""A store's step: the operation, and the store's time in microseconds."""
Answered: TypeAlias = Callable[[Answer | None], None]


class StoreClock:
    """The store's time, in microseconds; it moves only when it is told. Scopes of one store share one."""

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        self.now_us = now_us

    def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * 1_000_000)


class DirectScope:
    """A `scope.Scope` over `perform`, which a test drives with `deliver`.

    An operation is performed when its answer is delivered (or lost), in the order of asking, never inside `ask`.

    - `asked` is everything that was ever asked, in order; `pending` what has no answer yet.
    - `lose` and `drop` make the next answers None: after the store did it, or without its doing.
    - `go_down` and `come_up` are the loss of the store and its return.
    - `publish` has an event told by the next `deliver`: give it to the store as its way to publish.
    """

    def __init__(
        self, perform: Perform, clock: StoreClock | None = None, *, replicas: int = 1, workers: int = 1
    ) -> None:
        self._perform = perform
        self.clock = clock or StoreClock()
        self.up = True
        self.losses = 0
        self.born_at = -inf
        self.replicas = replicas
        self.workers = workers
        self.asked: list[Operation] = []
        self._pending: deque[tuple[Operation, Answered | None]] = deque()
        self._events: deque[Event] = deque()
        self._hearers: dict[str, Hearers[Callable[[Event], None]]] = {}
        self._again: Hearers[Callable[[], None]] = Hearers()
        self._lost = 0
        self._dropped = 0

    # What policies call

    def ask(self, operation: Operation, answered: Answered | None = None) -> None:
        self.asked.append(operation)
        self._pending.append((operation, answered))

    def listen(self, kind: str, heard: Callable[[Event], None]) -> None:
        self._hearers.setdefault(kind, Hearers()).add(heard)

    def on_up(self, again: Callable[[], None]) -> None:
        self._again.add(again)

    # What tests call

    @property
    def pending(self) -> list[Operation]:
        return [operation for operation, _ in self._pending]

    def deliver(self, count: int | None = None) -> int:
        """Answer the next `count` operations (None: all, also those asked meanwhile), then tell events.

        Returns how many were answered. While the store is down the answer is None, and nothing is performed.
        """
        done = 0
        while self._pending and (count is None or done < count):
            operation, answered = self._pending.popleft()
            answer = self._answer(operation)
            done += 1
            if answered is not None:
                answered(answer)
        while self._events:
            event = self._events.popleft()
            for heard in self._hearers.get(event.kind, ()):
                if self.up:
                    heard(event)
        return done

    def _answer(self, operation: Operation) -> Answer | None:
        if not self.up:
            return None
        if self._dropped:
            self._dropped -= 1
            return None
        answer = self._perform(operation, self.clock.now_us)
        if self._lost:
            self._lost -= 1
            return None
        return answer

    def lose(self, count: int = 1) -> None:
        """The answers of the next `count` operations are lost: they are done all the same."""
        self._lost += count

    def drop(self, count: int = 1) -> None:
        """The next `count` operations are lost on their way: they are not done."""
        self._dropped += count

    def publish(self, event: Event) -> None:
        self._events.append(event)

    def go_down(self) -> None:
        """The store is away: what is pending and what is asked from now on is answered None by `deliver`."""
        self.losses += self.up
        self.up = False

    def come_up(self) -> None:
        """The store is back: what is still pending gets its None first, then `on_up` is called."""
        if not self.up:
            self.deliver()
        self.up = True
        for again in self._again:
            again()


def no_scopes() -> Scopes:
    """For configs in which nothing is shared: a store that can do nothing."""
    scope = DirectScope(lambda _operation, _now_us: Refused("this test has no store"))
    return Scopes(scope, scope)

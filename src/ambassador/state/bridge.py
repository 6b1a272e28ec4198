"""What a worker's two scopes have in common: who hears what, who lives, and what is asked of a store that is away.

`local_scope.LocalScope` speaks with the supervisor's store, `remote_scope.RemoteScope` with the fleet's. Neither knows
a loop: whoever builds a worker registers their descriptors, calls `ready` when one can be read (or written), and
`pulse` at the time that the scope last gave to its `alarm`.

Rules that hold here
- A callback is never called inside `ask`: answers are delivered by `ready` and `pulse`, one after the other. An error
  of one does not lose the others; when all are delivered it is raised, for it is a defect of who asked.
- Times come from `time`, not from the loop's last turn: what is asked from outside a turn would be overdue at once.
- A store is lost when it has not answered in ANSWER_WITHIN_S, not when this process was not looking: a pulse that
  itself comes late gives the answer that much more time.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import Final, NamedTuple, ParamSpec, TypeAlias

from ambassador.state.census import Census
from ambassador.state.hearers import Hearers
from ambassador.state.protocol import Answer, Beaten, Event, Operation, decode_alive

P = ParamSpec("P")

ANSWER_WITHIN_S: Final = 0.25
"""An operation without an answer this long after it was sent is answered None, and its store is lost (contract 7.9)."""

_LATE_S: Final = 0.05  # a pulse this late: it was this process that stood still
_BELL_BYTES: Final = 64  # more rings than that are one

Answered: TypeAlias = Callable[[Answer | None], None]


class Asked(NamedTuple):
    """An operation and who waits for its answer."""

    operation: Operation
    answered: Answered | None


class Batch:
    """Operations that are under way since `sent_at`. All but that belongs to the worker's thread."""

    __slots__ = ("asked", "due", "excused", "given_up")

    def __init__(self, asked: list[Asked], sent_at: float) -> None:
        self.asked = asked
        self.due = sent_at + ANSWER_WITHIN_S
        self.excused = False
        self.given_up = False
        """They were answered None."""

    @property
    def operations(self) -> list[Operation]:
        """What is sent."""
        return [each.operation for each in self.asked]

    def is_overdue(self, now: float) -> bool:
        """Whether the store is lost. Asked much too late, this process stood still: once, that gives it more time."""
        if now < self.due:
            return False
        if now - self.due > _LATE_S and not self.excused:
            self.excused = True
            self.due = now + ANSWER_WITHIN_S
            return False
        return True


class Bell:
    """Wakes the loop, from any thread. `sock` is to be watched for reading; rings that were not heard yet are one.

    A pair of sockets: a lane watches sockets, and an eventfd would save one descriptor and nothing else.
    """

    __slots__ = ("_rings", "_rung", "sock")

    def __init__(self) -> None:
        self.sock, self._rings = socket.socketpair()
        self.sock.setblocking(False)
        self._rings.setblocking(False)
        self._rung = False

    def ring(self) -> None:
        """Have the loop call `ready`. A no-op once it is closed."""
        if self._rung:
            return
        self._rung = True
        try:
            self._rings.send(b"\0")
        except OSError:
            pass  # full: it rings already; closed: nobody listens

    def hush(self) -> None:
        """Heard: call it before looking for what it rang for."""
        try:
            self.sock.recv(_BELL_BYTES)
        except OSError:
            pass
        # In this order: a ring between the two is not sent, and what it is for is found by who looks now.
        self._rung = False

    def close(self) -> None:
        """Close this side; `sock` is closed by who watches it."""
        self._rings.close()


class Bridge:
    """Base of both scopes: who hears, who lives.

    `time` tells seconds of a monotonic clock, from any thread; `alarm` has `pulse` called at a time of it or a little
    later, instead of whenever was said before.
    """

    def __init__(self, time: Callable[[], float], alarm: Callable[[float], None]) -> None:
        self.up = False
        self.losses = 0
        """How often the store, or its data, was lost."""
        self.born_at = -inf
        """When the store's data began; see `scope.Scope`."""
        self.operations = 0
        """Sent so far."""
        self.bell = Bell()
        self.census = Census()
        self._time = time
        self._alarm = alarm
        self._refused: deque[Answered] = deque()
        self._hearers: dict[str, Hearers[Callable[[Event], None]]] = {}
        self._again: Hearers[Callable[[], None]] = Hearers()
        self._errors: list[Exception] = []

    @property
    def replicas(self) -> int:
        """Replicas alive, as far as known; at least 1."""
        return self.census.replicas

    @property
    def workers(self) -> int:
        """Workers alive over all replicas, likewise."""
        return self.census.workers

    def ask(self, operation: Operation, answered: Answered | None = None) -> None:
        """Have an operation done; see `scope.Scope`."""
        raise NotImplementedError

    def ready(self) -> None:
        """A descriptor of the scope is ready: deliver what has come."""
        raise NotImplementedError

    def pulse(self) -> None:
        """The time has come that was given to `alarm`: see whether an answer is overdue."""
        raise NotImplementedError

    def close(self, within_s: float) -> None:
        """Have done within this time what was asked, and ask no more. Blocks."""
        raise NotImplementedError

    def listen(self, kind: str, heard: Callable[[Event], None]) -> None:
        """Have every event of this kind told."""
        self._hearers.setdefault(kind, Hearers()).add(heard)

    def on_up(self, again: Callable[[], None]) -> None:
        """Have `again` called when the store is back, or there for the first time, or has lost its data."""
        self._again.add(again)

    # For the scopes

    def _refuse(self, answered: Answered | None) -> None:
        """Answer None in the next turn, without sending."""
        if answered is not None:
            self._refused.append(answered)
            self.bell.ring()

    def _deliver_refused(self) -> None:
        for _ in range(len(self._refused)):
            self._call(self._refused.popleft(), None)

    def _deliver(self, asked: Iterable[Asked], answers: Iterable[Answer]) -> None:
        for (_, answered), answer in zip(asked, answers, strict=True):
            self._count(answer)
            if answered is not None:
                self._call(answered, answer)

    def _count(self, answer: Answer) -> None:
        if isinstance(answer, Beaten) and self.census.count(answer, self._time()):
            self.losses += 1
            self._call_again()

    def _deliver_none(self, asked: Iterable[Asked]) -> None:
        for _, answered in asked:
            if answered is not None:
                self._call(answered, None)

    def _call(self, answered: Answered, answer: Answer | None) -> None:
        try:
            answered(answer)
        except Exception as error:  # noqa: BLE001 - raised by `_raise_errors`, after the others have theirs
            self._errors.append(error)

    def _tell(self, event: Event) -> None:
        if event.kind == "alive":
            alive = decode_alive(event.body)
            self.census.grow(alive.replicas, alive.workers)
        hearers = self._hearers.get(event.kind)
        if hearers is not None:
            self.call_each(hearers, event)

    def _call_again(self) -> None:
        self.call_each(self._again)

    def call_each(self, hearers: Hearers[Callable[P, None]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call all of them; an error of one is raised at the end of this turn of `ready` or `pulse`."""
        for hearer in hearers:
            try:
                hearer(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - likewise
                self._errors.append(error)

    def _raise_errors(self) -> None:
        if self._errors:
            errors, self._errors = self._errors, []
            if len(errors) == 1:
                raise errors[0]
            raise ExceptionGroup("errors of callbacks of shared state", errors)

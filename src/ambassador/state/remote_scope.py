"""A worker's side of the fleet's store: what `store_thread` does, as a `scope.Scope` of the worker's own thread.

The store is lost when a batch has no answer in time, also while the thread still waits for it, or when the client says
so. Everything that is asked until it is back is answered None without being sent; the thread sees to it that it comes
back. An answer that comes after all is dropped, for nobody waits for it, but says that the store is there.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ambassador.state.bridge import ANSWER_WITHIN_S, Answered, Asked, Batch, Bridge
from ambassador.state.protocol import Beat, Lease, Operation, Report, Roll
from ambassador.state.store_thread import Done, Lost, Refused, Store, StoreThread, Up


class RemoteScope(Bridge):
    """A `scope.Scope` over a store that waits. To be watched: `bell.sock`, for reading; `ready` is for it.

    `greeting` gives what is asked first on each new connection; see `StoreThread`. `reason` says why the store is
    away, for the log and the admin API; empty while it is there.
    """

    def __init__(
        self,
        store: Store,
        greeting: Callable[[], list[Operation]],
        time: Callable[[], float],
        alarm: Callable[[float], None],
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(time, alarm)
        self.reason = "not connected yet"
        self._thread = StoreThread(store, greeting, self.bell, time, chance=chance)
        self._watching = False
        self._closed = False

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def ask(self, operation: Operation, answered: Answered | None = None) -> None:
        """Have an operation done; see `scope.Scope`."""
        if not self.up:
            self._refuse(answered)
            return
        self.operations += 1
        self._thread.put(Asked(operation, answered), urgent=is_urgent(operation))
        if not self._watching:
            self._watch(self._time() + ANSWER_WITHIN_S)

    def ready(self) -> None:
        """Deliver what has come."""
        self.bell.hush()
        self._take_reports()
        self._deliver_refused()
        self._raise_errors()

    def pulse(self) -> None:
        """See whether the batch under way is overdue."""
        self._take_reports()
        self._watching = False
        batch = self._thread.batch
        now = self._time()
        if batch is not None and not batch.given_up:
            if batch.is_overdue(now):
                self.reason = f"no answer in {ANSWER_WITHIN_S * 1000:.0f} ms"
                self._fall(batch)
            else:
                self._watch(batch.due)
        elif self._thread.has_more:
            self._watch(now + ANSWER_WITHIN_S)
        self._raise_errors()

    def _watch(self, due: float) -> None:
        self._watching = True
        self._alarm(due)

    def close(self, within_s: float) -> None:
        """Have what was asked done within this time, and end.

        It is answered as long as `ready` is called; what is asked from now on is answered None.
        """
        self.up = False
        self._closed = True
        self._thread.stop(within_s)

    def _take_reports(self) -> None:
        for report in self._thread.reports():
            if isinstance(report, Done):
                self._take_answers(report)
            elif isinstance(report, Lost):
                self.reason = report.why
                self._fall(report.batch)
            elif isinstance(report, Up):
                self.born_at = report.born_at
                for answer in report.answers:
                    self._count(answer)
                self._rise()
            elif isinstance(report, Refused):
                self.reason = report.why
            elif report.event is not None:
                self._tell(report.event)
            elif self.up:
                self._call_again()

    def _take_answers(self, done: Done) -> None:
        if done.batch.given_up:
            self._rise()
        else:
            self._deliver(done.batch.asked, done.answers)

    def _rise(self) -> None:
        if self._closed:
            return
        self.up = True
        self.reason = ""
        self._call_again()

    def _fall(self, batch: Batch) -> None:
        self.losses += self.up
        self.up = False
        if not batch.given_up:
            batch.given_up = True
            self._deliver_none(batch.asked)
        self._deliver_none(self._thread.take_back())


def is_urgent(operation: Operation) -> bool:
    """Whether somebody waits for it, or the fleet shall know it at once. What is only told can wait for company."""
    if isinstance(operation, Lease):
        return operation.least > 0
    if isinstance(operation, Report):
        return operation.failures > 0 or operation.vote
    return not isinstance(operation, Beat | Roll)

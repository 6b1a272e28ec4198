"""A memory store with several workers around it, for tests of policies that share: no process, no socket."""

from __future__ import annotations

from tests.state.harness import OneStore


class Time:
    """The time of a lane that a test moves; timers are those of `Lane`, called when it is time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[object] = []

    def arm(self, timer: object) -> None:
        if timer not in self.timers:
            self.timers.append(timer)


class SharedStore(OneStore):
    """One store and the scopes of its workers. `time` moves the store's clock too."""

    def __init__(self, workers: int, *, replicas: int = 1) -> None:
        super().__init__()
        self.time = Time()
        for _ in range(workers):
            self.open_scope(replicas=replicas, workers=workers)

    def advance(self, seconds: float) -> None:
        self.time.now += seconds
        self.clock.advance(seconds)
        timers, self.time.timers = self.time.timers, []
        for timer in timers:
            if timer.deadline <= self.time.now:  # type: ignore[attr-defined]
                timer.expire()  # type: ignore[attr-defined]
            else:
                self.time.timers.append(timer)

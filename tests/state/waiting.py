"""A store whose client waits, played by a test: it hangs, refuses, is lost and comes back when the test says so.

The threads that wait for it are real. Tests wait for what they do by conditions, with bounded patience.
"""

from __future__ import annotations

import queue
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from math import inf

from ambassador.state.protocol import (
    Answer,
    Beat,
    Beaten,
    Event,
    Get,
    Named,
    NotAllowed,
    Operation,
    Put,
    Refused,
    StoreLost,
)
from ambassador.state.remote_scope import RemoteScope

PATIENCE_S = 10.0


class FakeSubscription:
    def __init__(self) -> None:
        self._queue: queue.Queue[Event | Exception | None] = queue.Queue()
        self.stopped = threading.Event()
        self.closed = False

    def publish(self, event: Event) -> None:
        self._queue.put(event)

    def lose(self, error: Exception | None = None) -> None:
        self._queue.put(error or StoreLost("the connection ended"))

    def stop(self) -> None:
        self.stopped.set()
        self._queue.put(None)

    def close(self) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[Event]:
        while (item := self._queue.get(timeout=PATIENCE_S)) is not None:
            if isinstance(item, Exception):
                raise item
            yield item


class WaitingStore:
    """`batches` are the names of what was performed, beats left out.

    - `hold` makes the next batch wait for `release`, which may say that it was lost.
    - `refusing`: connecting fails. `error` is raised by the next batch.
    - `subscription` is the one that is listened to.
    """

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.refusing = False
        self.refuses_subscriptions = False
        self.forbids_subscriptions = False
        self.subscribes = 0
        self.error: Exception | None = None
        self.beaten = Beaten(now_us=1, born_us=1, replicas=2, workers=6)
        self.values: dict[str, bytes] = {}
        """What there is to get; of other names, the name."""
        self.age_s = inf
        self.connects = 0
        self.closed = False
        self.greetings = 0
        self.refuses_beats = False
        self.subscriptions: list[FakeSubscription] = []
        self._held = False
        self._go = threading.Semaphore(0)

    @property
    def subscription(self) -> FakeSubscription:
        return self.subscriptions[-1]

    def hold(self) -> None:
        self._held = True

    def release(self, error: Exception | None = None) -> None:
        self._held = False
        self.error = error
        self._go.release()

    def connect(self) -> None:
        self.connects += 1
        if self.refusing:
            raise StoreLost("connection refused")

    def perform(self, operations: Sequence[Operation]) -> list[Answer]:
        if all(isinstance(each, Beat) for each in operations):
            self.greetings += 1
            if self.refuses_beats:
                return [Refused("out of memory") for _ in operations]
            return [self.beaten for _ in operations]
        self.batches.append([name_of(each) for each in operations if not isinstance(each, Beat)])
        if self._held:
            assert self._go.acquire(timeout=PATIENCE_S)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [self._answer(each) for each in operations]

    def _answer(self, operation: Operation) -> Answer:
        if isinstance(operation, Beat):
            return self.beaten
        if isinstance(operation, Get) and operation.name in self.values:
            return Named(now_us=1, version=1, value=self.values[operation.name], ttl_ms=0)
        return answer_to(operation)

    def subscribe(self) -> FakeSubscription:
        self.subscribes += 1
        if self.forbids_subscriptions:
            raise NotAllowed("may not subscribe")
        if self.refuses_subscriptions:
            raise StoreLost("connection refused")
        self.subscriptions.append(FakeSubscription())
        return self.subscription

    def close(self) -> None:
        self.closed = True


def name_of(operation: Operation) -> str:
    return getattr(operation, "name", "") or getattr(operation, "key", "") or type(operation).__name__


def answer_to(operation: Operation) -> Named:
    return Named(now_us=1, version=1, value=name_of(operation).encode(), ttl_ms=0)


class Remote:
    """A scope over a `WaitingStore`, and the loop that drives it: `until` waits for what threads bring about."""

    def __init__(self) -> None:
        self.store = WaitingStore()
        self.now = 100.0
        self.alarms: list[float] = []
        self.ups = 0
        self.scope = RemoteScope(
            self.store,
            lambda: [Beat("replica", 0)],
            lambda: self.now,
            self.alarms.append,
            chance=lambda: 0.1,
        )
        self.scope.on_up(self._up)

    def _up(self) -> None:
        self.ups += 1

    def start(self) -> None:
        """Start, and wait until the store is there and its events are listened to."""
        self.scope.start()
        self.until(lambda: self.scope.up and self.store.subscriptions and self.ups >= 2)

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait for what the threads do by themselves, without hearing their bell."""
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up, "what the test waits for does not happen"
            time.sleep(0.0005)

    def until(self, condition: Callable[[], object]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up, "what the test waits for does not happen"
            if select.select([self.scope.bell.sock], [], [], 0.001)[0]:
                self.scope.ready()

    def ask(self, name: str, answers: list[Answer | None] | None = None) -> None:
        self.scope.ask(Put(name, b""), None if answers is None else answers.append)

    def pass_time(self, seconds: float) -> None:
        """Time goes by, and the alarm is heard whenever it is due."""
        until = self.now + seconds
        while self.alarms and self.alarms[-1] <= until:
            self.now = max(self.now, self.alarms.pop())
            self.alarms.clear()
            self.scope.pulse()
        self.now = until

    def close(self) -> None:
        self.store.release()
        self.scope.close(PATIENCE_S)
        self.scope.bell.close()
        self.scope.bell.sock.close()

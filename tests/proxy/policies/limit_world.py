"""A fleet in a test: workers with the limit policy, stores, and lines between them that delay and lose.

Everything happens at times of the world's own clock, in order; nothing is random but what the test draws. Requests wait
as they do in a worker: their coroutine rests until it is woken or its time has come.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator, Iterable
from math import inf
from types import coroutine
from typing import Any

from ambassador.errors import Limited
from ambassador.messages import Request
from ambassador.proxy.limit_keys import Counts
from ambassador.proxy.policies.limit import Config, LimitPolicy, compile_limits
from ambassador.state import bucket
from ambassador.state.account import OnLoss
from ambassador.state.protocol import TELLING_US, Answer, Event, Lease, Leased, Operation

LOST_AFTER_S = 0.25
RETRY_S = 0.05


class World:
    """The time, and what is to happen. A `Clock`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    @property
    def now_us(self) -> int:
        return round((1_700_000_000 + self.now) * 1_000_000)

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), do))

    def run(self, seconds: float) -> None:
        """Let everything happen that happens in this time."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, do = heapq.heappop(self._events)
            do()
        self.now = end


class Store:
    """Buckets. `away`: it cannot be reached."""

    def __init__(self, world: World, born_s: float = -1e6) -> None:
        self.world = world
        self.away = False
        self.operations = 0
        self.buckets: dict[str, bucket.Bucket] = {}
        self._born_us = world.now_us + round(born_s * 1e6)

    def perform(self, operation: Operation) -> Answer:
        assert isinstance(operation, Lease)
        self.operations += 1
        now_us = self.world.now_us
        found = self.buckets.get(operation.key)
        if found is None:
            found = self.buckets[operation.key] = bucket.first(operation, now_us, self._born_us)
        return found.lease(operation, now_us, self._born_us, self._born_us + TELLING_US)

    @property
    def age_s(self) -> float:
        return (self.world.now_us - self._born_us) / 1e6

    def wipe(self) -> None:
        self.buckets.clear()
        self._born_us = self.world.now_us


class Line:
    """A worker's scope of a store. `delay` gives the seconds of each way, `loses` whether an answer is lost."""

    def __init__(
        self,
        store: Store,
        *,
        delay: Callable[[], float] = lambda: 0.0005,
        loses: Callable[[], bool] = lambda: False,
        replicas: int = 1,
        workers: int = 1,
    ) -> None:
        self.store = store
        self.world = store.world
        self.up = True
        self.losses = 0
        self.born_at = -inf
        self.replicas = replicas
        self.workers = workers
        self._delay = delay
        self._loses = loses
        self._again: list[Callable[[], None]] = []

    def ask(self, operation: Operation, answered: Callable[[Answer | None], None] | None = None) -> None:
        tell = answered or (lambda _: None)
        if not self.up:
            self.world.after(0, lambda: tell(None))
            return
        done: list[bool] = []

        def give_up() -> None:
            if not done:
                done.append(True)
                self._lost()
                tell(None)

        def answer(what: Answer) -> None:
            if not done:
                done.append(True)
                tell(what)

        def arrive() -> None:
            if self.store.away:
                return
            what = self.store.perform(operation)
            if not self._loses():
                self.world.after(self._delay(), lambda: answer(what))

        self.world.after(LOST_AFTER_S, give_up)
        self.world.after(self._delay(), arrive)

    def _lost(self) -> None:
        if self.up:
            self.losses += 1
            self.up = False
            self.world.after(RETRY_S, self._try)

    def _try(self) -> None:
        if self.store.away:
            self.world.after(RETRY_S, self._try)
            return
        self.up = True
        self.born_at = self.world.now - self.store.age_s
        for again in self._again:
            again()

    def listen(self, kind: str, heard: Callable[[Event], None]) -> None:
        raise AssertionError("limits hear no events")

    def on_up(self, again: Callable[[], None]) -> None:
        self._again.append(again)


class BatchLine(Line):
    """One batch under way at a time, as a store's thread has it; nothing is lost."""

    def __init__(self, store: Store, **options: Any) -> None:
        super().__init__(store, **options)
        self._asked: list[tuple[Operation, Callable[[Answer | None], None]]] = []
        self._flying = False

    def ask(self, operation: Operation, answered: Callable[[Answer | None], None] | None = None) -> None:
        self._asked.append((operation, answered or (lambda _: None)))
        if not self._flying:
            self._send()

    def _send(self) -> None:
        batch, self._asked, self._flying = self._asked, [], True

        def arrive() -> None:
            answers = [self.store.perform(operation) for operation, _ in batch]
            self.world.after(self._delay(), lambda: deliver(answers))

        def deliver(answers: list[Answer]) -> None:
            self._flying = False
            for (_, tell), what in zip(batch, answers, strict=True):
                tell(what)
            if self._asked and not self._flying:
                self._send()

        self.world.after(self._delay(), arrive)


class Gone(Exception):
    """The client left."""


class Rest:
    """A request's waiter, and what drives its coroutine."""

    def __init__(self, world: World, settled: Callable[[bool], None]) -> None:
        self._world = world
        self._settled = settled
        self._turn = 0
        self._resting = False
        self._running: Any = None
        self.gone = False

    def start(self, waiting: Any) -> None:
        self._running = waiting
        self._step()

    async def rest(self, until: float) -> None:
        assert until > self._world.now, "it would spin"
        await _pause(until)
        if self.gone:
            raise Gone

    def wake(self) -> None:
        if self._resting:
            self._at(0.0)

    def leave(self) -> None:
        """The client is gone."""
        self.gone = True
        self.wake()

    def _at(self, seconds: float) -> None:
        turn = self._turn
        self._world.after(seconds, lambda: self._step() if turn == self._turn else None)

    def _step(self) -> None:
        self._turn += 1
        self._resting = False
        try:
            until = self._running.send(None)
        except StopIteration:
            self._settled(True)
        except Limited:
            self._settled(False)
        except Gone:
            pass
        else:
            self._resting = True
            self._at(max(0.0, until - self._world.now))


@coroutine
def _pause(until: float) -> Generator[float, None, None]:
    yield until


def compiled(
    world: World, configs: Iterable[Config], fleet: Line, replica: Line | None = None, **options: Any
) -> LimitPolicy | None:
    """The limits of route `r`, as a worker compiles them; `options` as of `compile_limits`."""
    settings: dict[str, Any] = {"route": "r", "max_wait_s": 0.02, "on_loss": "share", "random": lambda: 0.5}
    return compile_limits(
        list(configs), clock=world, fleet=fleet, replica=replica or fleet, **(settings | options)
    )


class Worker:
    """One worker with the limits of a route, and what became of its requests."""

    def __init__(
        self,
        world: World,
        configs: Iterable[Config],
        *,
        fleet: Line,
        replica: Line | None = None,
        random: Callable[[], float] = lambda: 0.5,
        max_wait_s: float = 0.02,
        on_loss: OnLoss = "share",
        counts: Callable[[str], Counts] | None = None,
    ) -> None:
        self.world = world
        policy = compiled(
            world,
            configs,
            fleet,
            replica,
            random=random,
            max_wait_s=max_wait_s,
            on_loss=on_loss,
            counts=counts,
        )
        assert policy is not None
        self.policy: LimitPolicy = policy
        self._admit = policy.hook()
        self.fleet = fleet
        self.dead = False
        self.admitted: list[tuple[float, str]] = []
        self.refused: list[tuple[float, str]] = []
        self.waited: list[float] = []
        """How long those had to wait that had to."""

    def request(self, key: str = "a", headers: Iterable[tuple[bytes, bytes]] = ()) -> Rest | None:
        """Have a request come now; what drives it, if it must wait."""
        if self.dead:
            return None
        began = self.world.now
        request = Request("GET", b"/", list(headers), 1)
        request.client_ip, request.route = key, "r"

        def settled(admitted: bool) -> None:
            if not self.dead:
                (self.admitted if admitted else self.refused).append((self.world.now, key))
                if self.world.now > began:
                    self.waited.append(self.world.now - began)

        rest = Rest(self.world, settled)
        request.waiter = rest
        try:
            waiting = self._admit(request)
        except Limited:
            settled(False)
            return None
        if waiting is None:
            settled(True)
            return None
        rest.start(waiting)
        return rest

    def load(
        self, rate: float, seconds: float, random: Callable[[], float], key: str = "a", *, clump: int = 1
    ) -> None:
        """Have requests come for so long, `rate` a second on average, `clump` of them at once each time."""

        def come() -> None:
            for _ in range(clump):
                self.request(key)

        at = 0.0
        while (at := at + 2 * clump * random() / rate) < seconds:
            self.world.after(at, come)


def excess(times: Iterable[float], rate: float) -> float:
    """The greatest burst: max over all windows of (admitted - rate * length)."""
    most, least = 0.0, float("inf")
    for count, time in enumerate(sorted(times)):
        least = min(least, count - rate * time)
        most = max(most, count + 1 - rate * time - least)
    return most


def answer(granted: int, left: float, *, sharers: int = 1, retry_ms: int = 0) -> Leased:
    """What a store answers."""
    return Leased(0, granted, left, retry_ms, sharers)


def one_worker(*configs: Config, **options: Any) -> tuple[World, Store, Worker]:
    world = World()
    store = Store(world)
    return world, store, Worker(world, configs, fleet=Line(store), **options)


def four_workers(
    store: Store,
    config: Config,
    random: Callable[[], float],
    *,
    far: Callable[[Store], Line],
    near: Callable[[Store], Line] = Line,
) -> list[Worker]:
    """Of two replicas: `far` makes a worker's line to the store that all share, `near` to its replica's own."""
    replicas = [Store(store.world) for _ in range(2)]
    return [
        Worker(store.world, [config], fleet=far(store), replica=near(replica), random=random)
        for replica in replicas
        for _ in range(2)
    ]


def counts(worker: Worker) -> tuple[int, int]:
    return len(worker.admitted), len(worker.refused)


def a_policy(*configs: Config, **options: Any) -> LimitPolicy:
    _, _, worker = one_worker(*configs, **options)
    return worker.policy


def a_request(headers: list[tuple[bytes, bytes]] | None = None) -> Request:
    request = Request("GET", b"/", headers or [], 1)
    request.client_ip, request.route = "10.0.0.1", "r"
    return request

"""A worker's hand of permits: what it asks for, what it gives up, and what it does while the store is away."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambassador.state.allotment import PULSE_S, Allotment
from ambassador.state.protocol import Event, Permit, decode_share
from tests.proxy.stores import SharedStore


@dataclass
class Clock:
    store: SharedStore

    @property
    def now(self) -> float:
        return self.store.time.now


@dataclass
class Hand:
    """A worker whose requests wait in a number, not in a queue."""

    hand: Allotment = field(init=False)

    def ask(self) -> None:
        self.hand.ask()

    def serve(self) -> None:
        while self.hand.waiting and self.hand.used < self.hand.may:
            self.hand.waiting -= 1
            self.hand.used += 1

    def begin(self, count: int = 1) -> None:
        for _ in range(count):
            if self.hand.used < self.hand.may:
                self.hand.used += 1
            else:
                self.hand.waiting += 1
                self.hand.ask()

    def end(self, count: int = 1) -> None:
        for _ in range(min(count, self.hand.used)):
            self.hand.used -= 1
            if self.hand.over:
                self.hand.ended()
            self.serve()


class World:
    """Workers around one store."""

    def __init__(self, workers: int = 2, most: int = 10, least: int = 0) -> None:
        self.store = SharedStore(workers)
        self.workers = []
        for number, scope in enumerate(self.store.scopes):
            worker = Hand()
            worker.hand = Allotment(
                "k", scope, Clock(self.store), holder=f"w{number}", most=most, least=least, gained=worker.serve
            )  # fmt: skip
            scope.listen("permits", self._hearer(worker.hand))
            scope.on_up(worker.ask)
            self.workers.append(worker)

    def _hearer(self, hand: Allotment) -> Callable[[Event], None]:
        def heard(event: Event) -> None:
            hand.heard(decode_share(event.body))

        return heard

    def deliver(self) -> None:
        self.store.deliver()

    def advance(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds / PULSE_S))):
            self.store.advance(PULSE_S)
            for worker in self.workers:
                worker.hand.pulse(self.store.time.now)
            self.deliver()

    @property
    def used(self) -> list[int]:
        return [worker.hand.used for worker in self.workers]

    @property
    def may(self) -> list[int]:
        return [worker.hand.may for worker in self.workers]


def test_hand_is_filled_when_a_request_comes() -> None:
    world = World()
    a, _ = world.workers
    a.begin(3)
    assert world.used == [0, 0]
    world.deliver()
    assert world.used == [3, 0]
    asked = len(world.store.scopes[0].asked)
    a.begin()  # one more was in hand
    assert (world.used, len(world.store.scopes[0].asked)) == ([4, 0], asked)


def test_permits_move_to_who_lacks_them() -> None:
    world = World(2, 10)
    a, b = world.workers
    a.begin(10)
    world.deliver()
    a.end(9)
    b.begin(6)
    world.deliver()
    world.advance(0.1)
    assert world.used == [1, 6]


def test_hand_that_is_over_its_part_comes_down_as_requests_end() -> None:
    world = World(2, 10)
    a, b = world.workers
    a.begin(15)
    world.deliver()
    b.begin(15)
    world.deliver()
    assert world.used == [10, 0]
    for _ in range(8):
        a.end()
        world.deliver()
        world.advance(PULSE_S)
    assert world.used == [5, 5]


def test_one_permit_goes_round() -> None:
    world = World(3, 1)
    for worker in world.workers:
        worker.begin(20)
    world.deliver()
    served = [0, 0, 0]
    for _ in range(30):
        [now] = [number for number, used in enumerate(world.used) if used]
        served[now] += 1
        world.workers[now].end()
        world.deliver()
        world.advance(PULSE_S)
    assert min(served) >= 9


def test_permits_that_are_not_used_go_back() -> None:
    world = World(2, 10)
    world.workers[0].begin(8)
    world.deliver()
    world.workers[0].end(8)
    world.advance(6.0)
    assert world.may == [0, 0]
    assert world.workers[0].hand.is_idle


def test_hand_is_known_to_be_dry_when_all_is_used_fairly() -> None:
    world = World(2, 4)
    a, b = world.workers
    a.begin(2)
    b.begin(2)
    world.deliver()
    a.begin()
    world.deliver()
    assert a.hand.dry_until > world.store.time.now
    b.end()
    world.advance(0.2)
    assert world.used == [3, 1]


def test_worker_that_dies_is_forgotten() -> None:
    world = World(2, 4)
    a, b = world.workers
    a.begin(4)
    world.deliver()
    world.workers.remove(a)
    b.begin(3)
    world.advance(2.0)
    assert b.hand.used == 0
    world.advance(1.5)
    assert b.hand.used == 3


def test_worker_that_ends_gives_back_at_once() -> None:
    world = World(2, 4)
    a, b = world.workers
    a.begin(4)
    world.deliver()
    a.hand.leave()
    b.begin(3)
    world.deliver()
    assert b.hand.used == 3


def test_without_the_store_every_worker_has_an_equal_part() -> None:
    world = World(2, 10)
    a, b = world.workers
    for scope in world.store.scopes:
        scope.go_down()
    a.begin(10)
    b.begin(3)
    world.deliver()
    assert world.used == [5, 3]
    for scope in world.store.scopes:
        scope.come_up()
    world.advance(0.5)
    assert sum(world.used) == 10


@pytest.mark.parametrize("done", [True, False])
def test_lost_answer_is_asked_for_again(done: bool) -> None:
    world = World(2, 10)
    a, b = world.workers
    if done:
        world.store.scopes[0].lose()
    else:
        world.store.scopes[0].drop()
    a.begin(6)
    world.deliver()
    b.begin(2)
    world.advance(PULSE_S)
    assert world.used == [6, 2]


def test_other_settings_hold_from_the_next_answer_on() -> None:
    world = World(1, 10)
    [a] = world.workers
    a.begin(10)
    world.deliver()
    a.hand.configure(4, 0)
    world.deliver()
    assert a.hand.limit == 4
    a.begin(1)
    a.end(7)
    world.deliver()
    assert world.used == [4]
    a.hand.configure(6, 0)
    world.deliver()
    a.begin(3)
    world.deliver()
    assert world.used == [6]


def test_latencies_are_told_and_the_limit_is_heard_by_all() -> None:
    world = World(2, 100, 4)
    a, b = world.workers
    a.begin(15)
    b.begin(5)
    world.deliver()
    assert (a.hand.limit, b.hand.limit) == (20, 20)
    for _ in range(12):
        for _ in range(20):
            a.hand.sample(0.01, dropped=False)
        world.advance(0.15)
    assert a.hand.limit > 20
    assert b.hand.limit == a.hand.limit
    told = [asked for asked in world.store.scopes[0].asked if isinstance(asked, Permit)]
    assert sum(len(each.samples) for each in told) > 40
    before = sum(each.drops for each in told)
    a.hand.sample(0.0, dropped=True)
    world.advance(0.15)
    drops = sum(each.drops for each in world.store.scopes[0].asked if isinstance(each, Permit))
    assert drops == before + 1


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 12), st.booleans())
def test_never_more_in_use_than_there_are(seed: int, workers: int, most: int, lossy: bool) -> None:
    chance = random.Random(seed)
    world = World(workers, most)
    for _ in range(150):
        worker = chance.choice(world.workers)
        match chance.randrange(4):
            case 0:
                worker.begin(chance.randrange(4))
            case 1:
                worker.end(chance.randrange(4))
            case 2:
                scope = chance.choice(world.store.scopes)
                if lossy and chance.random() < 0.2:
                    scope._events.clear()  # told at most once
                scope.deliver(chance.randrange(3))
            case _:
                world.advance(PULSE_S)
        assert sum(world.used) <= most
        assert sum(world.may) <= most
    for _ in range(10):  # everybody ends, and everybody who waits is served
        for worker in world.workers:
            worker.end(most)
        world.advance(1.0)
    while any(worker.hand.need for worker in world.workers):
        before = sum(worker.hand.need for worker in world.workers)
        for worker in world.workers:
            worker.end(most)
        world.advance(0.3)
        assert sum(worker.hand.need for worker in world.workers) < before

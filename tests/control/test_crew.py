"""Who serves what and when, with fake workers and a mock clock."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ambassador.control import crew as crew_module
from ambassador.control.crew import Crew, NoWorker
from ambassador.control.orders import Drain, Message, Serve, Sockets

LOG = logging.getLogger("test")


class FakeWorker:
    """Ready after `starts_in_s`; None: it ends instead."""

    starts_in_s: float | None = 0.3
    made: list[FakeWorker]

    def __init__(self, slot: int, module: str) -> None:
        self.slot = slot
        self.made.append(self)
        self.pid = len(self.made)
        self.born = self.last_beat = trio.current_time()
        self.ready = self.ended = self.retiring = self.stalled = False
        self.serving: tuple[int, ...] = ()
        self.error: str | None = None
        self.exit_status: int | None = None
        self.orders: list[Message] = []
        self.settled, self.gone, self.stopped = trio.Event(), trio.Event(), trio.Event()
        self.busy = False
        self.on_leaving: Callable[[Any], None] = lambda _: None
        self.beats = True

    async def attend(self) -> None:
        if self.starts_in_s is None:
            self.error = "cannot start"
            self.end()
        else:
            with trio.move_on_after(self.starts_in_s):
                await self.gone.wait()
            if not self.ended:
                self.ready = True
                self.last_beat = trio.current_time()
                self.settled.set()
        while not self.ended:
            with trio.move_on_after(0.5):
                await self.gone.wait()
            if self.beats:
                self.last_beat = trio.current_time()

    def post(self, order: Message, descriptors: object = ()) -> None:
        self.orders.append(order)
        if isinstance(order, Drain) and not self.stalled and not self.busy:
            self.end()

    def end(self) -> None:
        self.ready, self.ended = False, True
        self.settled.set()
        self.stopped.set()
        self.gone.set()

    kill = end


class FakeEquipment:
    drain_timeout_s = 5.0

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.listening: list[int] = []

    def open_slot(self, slot: int) -> tuple[Sockets, list[int]]:
        self.opened.append(slot)
        return Sockets(sockets=()), []

    def listen_slot(self, slot: int) -> None:
        self.listening.append(slot)

    def stop_listening(self) -> None:
        self.listening.clear()

    def equip(self, worker: FakeWorker, nursery: trio.Nursery) -> None:
        pass

    async def catch_up(self, worker: FakeWorker) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    def settle(self, worker: FakeWorker) -> None:
        pass


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "Incarnation", FakeWorker)
    monkeypatch.setattr(FakeWorker, "made", [], raising=False)
    monkeypatch.setattr(FakeWorker, "starts_in_s", 0.3)


@pytest.fixture
async def crew(nursery: trio.Nursery) -> AsyncIterator[Crew]:
    yield Crew(FakeEquipment(), LOG)  # type: ignore[arg-type]
    nursery.cancel_scope.cancel()


def served(crew: Crew) -> dict[int, tuple[int, ...]]:
    return {worker.slot: worker.serving for worker in crew.current}


async def test_workers_start_in_parallel(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    begun = trio.current_time()
    await nursery.start(crew.run, 3)
    await trio.sleep(0.1)
    assert trio.current_time() - begun == pytest.approx(0.4)
    assert served(crew) == {0: (0,), 1: (1,), 2: (2,)}
    assert crew.complete


async def test_crew_has_begun_once_every_slot_has_had_a_worker(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(crew.run, 3)
    await wait_all_tasks_blocked()
    FakeWorker.made[2].end()  # before it was ready: the slot's next one comes later
    await trio.sleep(0.31)
    assert (len(crew.current), crew.begun) == (2, False)
    await trio.sleep(0.5)
    assert (len(crew.current), crew.begun) == (3, True)
    crew.resize(5)
    crew.current[0].kill()
    await wait_all_tasks_blocked()
    assert (len(crew.current), crew.begun) == (2, True)


async def test_crew_has_begun_without_slots_that_are_given_up_meanwhile(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(crew.run, 2)
    await wait_all_tasks_blocked()
    next(
        worker for worker in FakeWorker.made if worker.slot == 1
    ).end()  # in which order they begin is trio's
    await trio.sleep(0.31)
    assert not crew.begun
    crew.resize(1)
    assert crew.begun


async def test_when_none_can_start_the_error_is_told(crew: Crew, autojump_clock: MockClock) -> None:
    FakeWorker.starts_in_s = None
    with pytest.RaisesGroup(pytest.RaisesExc(NoWorker, match="cannot start")):
        await crew.run(2)


async def test_a_neighbour_takes_over_after_200_ms(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(crew.run, 2)
    await trio.sleep(20)
    FakeWorker.starts_in_s = 10.0
    crew.current[0].kill()
    await trio.sleep(0.1)
    assert served(crew) == {1: (1,)}
    await trio.sleep(0.2)
    assert served(crew) == {1: (0, 1)}
    await trio.sleep(11)
    assert served(crew) == {0: (0,), 1: (1,)}
    assert crew.restarts == 1


async def test_a_crash_loop_backs_off(crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    await nursery.start(crew.run, 2)
    await trio.sleep(1)
    FakeWorker.starts_in_s = None
    crew.current[0].kill()
    await trio.sleep(60)
    # 0.1 + 0.2 + 0.4 … + 25.6 s have passed, and the next one waits for 30 s.
    assert 8 <= len(FakeWorker.made) - 2 <= 10
    FakeWorker.starts_in_s = 0.1
    await trio.sleep(31)
    assert served(crew) == {0: (0,), 1: (1,)}


async def test_a_start_that_fails_is_told_with_its_reason_and_when_the_next_one_is(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await nursery.start(crew.run, 2)
    await trio.sleep(1)
    FakeWorker.starts_in_s = None
    crew.current[0].kill()
    await trio.sleep(0.35)
    assert caplog.messages[1:] == [
        "slot 0: cannot start; tried again in 0.2 s",
        "slot 0: cannot start; tried again in 0.4 s",
    ]
    caplog.clear()
    crew.current[0].kill()
    await trio.sleep(0.15)
    assert caplog.messages[1:] == [
        "slot 1: cannot start; tried again in 0.2 s; no worker is there, and connections wait for one"
    ]


async def test_a_replacement_that_cannot_start_is_not_tried_again(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await nursery.start(crew.run, 1)
    FakeWorker.starts_in_s = None
    assert not await crew.replace(0)
    assert caplog.messages == ["slot 0: cannot start"]


async def test_a_replaced_worker_goes_after_its_successor_has_come(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(crew.run, 1)
    (old,) = crew.current
    assert await crew.replace(0)
    (new,) = crew.current
    await wait_all_tasks_blocked()
    assert new is not old
    assert old.retiring
    assert [type(order) for order in old.orders] == [Serve, Drain]  # type: ignore[attr-defined]
    assert crew.restarts == 0


async def test_a_replacement_that_cannot_start_leaves_the_old_one(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(crew.run, 1)
    before = crew.current
    FakeWorker.starts_in_s = None
    assert not await crew.replace_all()
    assert crew.current == before
    assert not before[0].retiring


async def test_replacements_go_one_at_a_time(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(crew.run, 3)
    await trio.sleep(1)
    begun = trio.current_time()
    assert await crew.replace_all()
    assert trio.current_time() - begun == pytest.approx(0.9)


async def test_a_worker_that_loses_its_store_before_it_is_ready_never_serves(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    nursery.start_soon(crew.run, 2)
    await trio.sleep(0.1)
    worker, other = crew.live
    worker.on_leaving(worker)
    await trio.sleep(2)
    assert worker.ended
    assert len(crew.current) == 2
    assert worker not in crew.current
    assert other in crew.current
    assert "lost its store, before it was ready" in caplog.text


async def test_a_replacement_that_loses_its_store_leaves_the_old_worker(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(crew.run, 1)
    before = crew.current
    nursery.start_soon(crew.replace, 0)
    await trio.sleep(0.1)
    (successor,) = [worker for worker in crew.live if worker not in before]
    successor.on_leaving(successor)
    await trio.sleep(2)
    assert successor.ended
    assert crew.current == before


async def test_a_stalled_worker_is_replaced(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(crew.run, 2)
    await trio.sleep(1)
    old = crew.current[0]
    old.beats = False  # type: ignore[attr-defined]
    await trio.sleep(4.5)
    assert crew.current[0] is old
    await trio.sleep(2)
    assert crew.current[0] is not old
    assert crew.restarts == 1
    await trio.sleep(6.1)
    assert old.ended


async def test_scaling_down_leaves_the_slots_to_neighbours(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(crew.run, 3)
    await trio.sleep(1)
    crew.resize(1)
    assert served(crew) == {0: (0, 1, 2)}
    crew.resize(2)
    await trio.sleep(1)
    assert served(crew) == {0: (0, 2), 1: (1,)}
    assert crew.slots == range(3)


async def test_a_new_slot_listens_when_its_worker_is_ready(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(crew.run, 1)
    crew.resize(2)
    await trio.sleep(0.1)
    assert crew.listening == [0]
    await trio.sleep(1)
    assert crew.listening == [0, 1]


async def test_a_drain_waits_for_all_and_starts_none(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(crew.run, 2)
    await trio.sleep(1)
    await crew.drain(5.0, 20.0)
    await trio.sleep(60)
    assert crew.live == []
    assert len(FakeWorker.made) == 2


async def test_a_drain_ends_the_listening_once_no_worker_accepts(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(crew.run, 2)
    await trio.sleep(1)
    for worker in FakeWorker.made:
        worker.busy = True
    nursery.start_soon(crew.drain, 5.0, 20.0)
    await trio.sleep(5.5)
    FakeWorker.made[0].stopped.set()
    await trio.sleep(0.1)
    assert listening(crew) == [0, 1]
    FakeWorker.made[1].stopped.set()
    await trio.sleep(0.1)
    assert listening(crew) == []
    assert len(crew.live) == 2


async def test_a_stalled_worker_does_not_keep_a_drain_listening(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(crew.run, 2)
    await trio.sleep(1)
    FakeWorker.made[0].busy = True
    nursery.start_soon(crew.drain, 5.0, 20.0)
    await trio.sleep(9)
    assert listening(crew) == []
    assert len(crew.live) == 1


def listening(crew: Crew) -> list[int]:
    """The slots for which the equipment was told to listen."""
    equipment: Any = crew._provision
    return list(equipment.listening)


async def test_a_drain_before_the_first_worker_is_no_error(
    crew: Crew, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(crew.run, 2)
    await trio.sleep(0.1)
    await crew.drain(0.0, 1.0)
    await trio.sleep(10)
    assert crew.live == []
    assert len(FakeWorker.made) == 2

"""A worker's scopes on a real lane: a supervisor's store behind a socket, and a fleet's store behind threads."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing

from ambassador.config.schema import State
from ambassador.control.scopes import WorkerScopes
from ambassador.proxy.lane import Lane
from ambassador.state import accord
from ambassador.state.frames import HELLO, Unpacker, decode_questions, pack
from ambassador.state.holding import terms
from ambassador.state.lives import decode_info
from ambassador.state.memory import MemoryStore
from ambassador.state.protocol import Answer, Beat, Event, Get, Named, Operation, Put
from ambassador.state.store_thread import Store
from tests.proxy.harness import a_lane, until
from tests.state.harness import Limited
from tests.state.waiting import WaitingStore, answer_to

REMOTE = State(url="redis://fleet")
LOCAL = State()


class Supervisor:
    """The other end of the worker's socket, with a store behind it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._store = MemoryStore(1)
        self.done: list[Operation] = []
        self.silent = False

    async def serve(self) -> None:
        unpacker = Unpacker()
        await self._sock.send(HELLO)
        greeted = False
        while data := await self._sock.recv(65536):
            for body in unpacker.feed(data):
                if greeted and not self.silent:
                    await self._answer(body)
                greeted = True

    async def _answer(self, body: bytes) -> None:
        questions = decode_questions(body)
        self.done += questions.operations
        answers = [
            self._store.perform(operation, len(self.done) * 1_000_000) for operation in questions.operations
        ]
        await self._sock.send(pack([questions.number, answers]))

    def beats(self) -> list[Beat]:
        return [each for each in self.done if isinstance(each, Beat)]


class Worker:
    def __init__(self, lane: Lane, sock: socket.socket, supervisor: Supervisor) -> None:
        self.lane = lane
        self.supervisor = supervisor
        self.remote = WaitingStore()
        self.scopes = WorkerScopes(lane, sock, replica="host-1", slot=3, started=7.5, open_remote=self._open)

    def _open(self, state: State) -> Store:
        assert state.url != "local"
        return self.remote


@asynccontextmanager
async def a_worker() -> AsyncIterator[Worker]:
    ours, theirs = socket.socketpair()
    async with a_lane() as lane, trio.open_nursery() as nursery:
        supervisor = Supervisor(ours)
        worker = Worker(lane, theirs, supervisor)
        nursery.start_soon(supervisor.serve)
        yield worker
        worker.scopes.close()
        assert lane.link_count == 0
        nursery.cancel_scope.cancel()
    ours.close()


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    async with a_worker() as made:
        yield made


async def test_what_is_asked_of_a_local_fleet_is_answered_by_the_supervisor(worker: Worker) -> None:
    answers: list[Answer | None] = []
    worker.scopes.use(LOCAL)
    worker.scopes.scopes.fleet.ask(Put("a", b"1"), answers.append)
    worker.scopes.scopes.replica.ask(Get("a"), answers.append)
    await until(lambda: len(answers) == 2)
    put, got = answers
    assert isinstance(put, Named)
    assert isinstance(got, Named)
    assert (put.version, got.value) == (1, b"1")
    assert worker.scopes.up
    assert worker.scopes.operations == 3


async def test_worker_beats_once_a_second(mock_clock: trio.testing.MockClock, worker: Worker) -> None:
    worker.scopes.generation = 7
    await until(lambda: len(worker.supervisor.beats()) == 1)
    mock_clock.jump(1.02)
    await until(lambda: len(worker.supervisor.beats()) == 2)
    mock_clock.jump(1.02)
    await until(lambda: len(worker.supervisor.beats()) == 3)
    beat = worker.supervisor.beats()[-1]
    assert (beat.replica, beat.slot) == ("host-1", 3)
    info = decode_info(beat.info)
    assert (info.generation, info.since) == (7, 7.5)
    assert info.age_s is not None
    assert info.age_s > 0.0


async def test_supervisor_that_is_silent_is_noticed_in_time(
    mock_clock: trio.testing.MockClock, worker: Worker
) -> None:
    await until(lambda: len(worker.supervisor.beats()) == 1)
    await trio.testing.wait_all_tasks_blocked()
    worker.supervisor.silent = True
    answers: list[Answer | None] = []
    worker.scopes.scopes.fleet.ask(Get("a"), answers.append)
    mock_clock.jump(0.24)
    await trio.testing.wait_all_tasks_blocked()
    assert answers == []
    mock_clock.jump(0.03)
    await until(lambda: answers)
    assert answers == [None]
    assert not worker.scopes.up


async def test_worker_waits_for_the_fleet_before_it_serves(worker: Worker) -> None:
    worker.scopes.prepare(REMOTE)
    worker.scopes.use(REMOTE)
    await worker.scopes.wait_up(10.0)
    assert worker.scopes.up
    assert worker.scopes.scopes.fleet.workers == 6
    answers: list[Answer | None] = []
    worker.scopes.scopes.fleet.ask(Put("a", b""), answers.append)
    await until(lambda: answers)
    assert answers == [answer_to(Put("a", b""))]
    assert worker.remote.batches == [["a"]]


async def test_worker_knows_which_limits_hold_before_it_serves(worker: Worker) -> None:
    parts = accord.parts_of({("r/limit", 0): (50.0, 60.0)})
    name = accord.name_of(parts)
    worker.remote.values[accord.key_of(name, 0)] = parts[0]
    worker.remote.beaten = msgspec.structs.replace(worker.remote.beaten, terms=[name])
    worker.scopes.prepare(REMOTE)
    worker.scopes.use(REMOTE)
    limit = Limited(terms(100, 100))
    worker.scopes.govern([limit])
    await worker.scopes.wait_up(10.0)
    assert limit.terms == terms(50, 60)
    told = [each for each in worker.supervisor.beats() if each.terms]
    assert told
    await worker.scopes.wait_up(10.0)  # at once: it is known already


async def test_worker_does_not_wait_long_for_a_fleet_that_is_away(
    mock_clock: trio.testing.MockClock, worker: Worker
) -> None:
    worker.remote.refusing = True
    mock_clock.autojump_threshold = 0.01
    worker.scopes.prepare(State(url="redis://fleet", expected_replicas=5))
    worker.scopes.use(State(url="redis://fleet", expected_replicas=5, max_wait=0.01))
    started = trio.current_time()
    await worker.scopes.wait_up(0.5)
    assert trio.current_time() - started == pytest.approx(0.5, abs=0.1)
    assert not worker.scopes.up
    assert worker.scopes.scopes.fleet.replicas == 5


async def test_reload_moves_policies_to_another_store(worker: Worker) -> None:
    fleet = worker.scopes.scopes.fleet
    heard: list[str] = []
    fleet.listen("circuit", lambda event: heard.append(event.name))
    worker.scopes.prepare(REMOTE)
    worker.scopes.prepare(REMOTE)
    assert worker.scopes.up  # the store of the generation that is served
    worker.scopes.use(REMOTE)
    await worker.scopes.wait_up(10.0)
    await until(lambda: worker.remote.subscriptions)
    worker.remote.subscription.publish(Event("circuit", "a", b""))
    await until(lambda: heard)
    remote, answers = worker.remote, list[Answer | None]()
    remote.hold()
    fleet.ask(Put("late", b""), answers.append)
    await until(lambda: remote.batches)
    worker.scopes.use(LOCAL)
    fleet.ask(Get("here"), answers.append)
    await until(lambda: len(answers) == 1)
    remote.release()
    await until(lambda: len(answers) == 2)
    assert answers[1] == answer_to(Put("late", b""))
    await until(lambda: remote.closed)
    assert heard == ["a"]


async def test_store_that_was_prepared_for_nothing_is_ended(worker: Worker) -> None:
    worker.scopes.prepare(REMOTE)
    await until(lambda: worker.remote.connects)
    worker.scopes.use(LOCAL)
    await until(lambda: worker.remote.closed)
    assert worker.scopes.up


async def test_numbers_of_the_fleet_outlive_the_worker(
    mock_clock: trio.testing.MockClock, worker: Worker
) -> None:
    worker.scopes.prepare(REMOTE)
    worker.scopes.use(REMOTE)
    await worker.scopes.wait_up(10.0)
    mock_clock.jump(1.02)
    await until(lambda: [each for each in worker.supervisor.done if isinstance(each, Put)])


async def test_leaving_is_told_before_the_end() -> None:
    async with a_worker() as worker:
        worker.scopes.leave()
        supervisor = worker.supervisor
        await until(lambda: any(beat.leaving for beat in supervisor.beats()))

"""The supervisor's store over real sockets."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Sequence

import pytest
import trio

from ambassador.control import store
from ambassador.control.store import SteadyClock, StoreServer
from ambassador.state.frames import (
    GREETING,
    HELLO,
    MOST_OPERATIONS,
    Answers,
    Questions,
    Tidings,
    Unpacker,
    decode_reply,
    pack,
)
from ambassador.state.memory import MemoryStore
from ambassador.state.protocol import (
    Answer,
    Event,
    Force,
    Get,
    Lease,
    Leased,
    Named,
    Operation,
    Put,
    Row,
    Rules,
    State,
    decode_named,
    decode_row,
)

RULES = Rules(0.5, 2.0, 20, 10_000, 0.3, 5_000, 60_000, 3)


class Worker:
    """A worker's end. `cut` is what `serve` returned."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.ended = trio.Event()
        self.cut: bool | None = None
        self._unpacker = Unpacker()
        self._bodies: list[bytes] = []

    async def body(self) -> bytes | None:
        """The next frame's; None at the end."""
        while not self._bodies:
            data = await self.stream.receive_some()
            if not data:
                return None
            self._bodies += self._unpacker.feed(data)
        return self._bodies.pop(0)

    async def reply(self) -> Answers | Tidings:
        body = await self.body()
        assert body is not None
        return decode_reply(body)

    async def greet(self) -> None:
        await self.stream.send_all(HELLO)
        assert await self.body() == GREETING

    async def ask(self, number: int, *operations: Operation) -> Sequence[Answer]:
        await self.stream.send_all(pack(Questions(number, list(operations))))
        reply = await self.reply()
        assert isinstance(reply, Answers)
        assert reply.number == number
        return reply.answers


class Served:
    """A store and its workers."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.store = StoreServer(logging.getLogger("test"))
        self.workers: list[Worker] = []

    async def join(self) -> Worker:
        ours, theirs = socket.socketpair()
        worker = Worker(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
        self.workers.append(worker)

        async def serve() -> None:
            worker.cut = await self.store.serve(ours, f"worker {len(self.workers)}")
            worker.ended.set()

        self._nursery.start_soon(serve)
        return worker

    async def greeted(self) -> Worker:
        worker = await self.join()
        await worker.greet()
        return worker


@pytest.fixture
async def served(nursery: trio.Nursery) -> AsyncIterator[Served]:
    made = Served(nursery)
    with trio.fail_after(30):
        yield made
    for worker in made.workers:
        await worker.stream.aclose()
        await worker.ended.wait()


async def test_workers_share_what_the_store_holds(served: Served) -> None:
    one, two = await served.greeted(), await served.greeted()
    lease = Lease("k", 0.001, 10, 6)
    answers = [*await one.ask(1, lease), *await two.ask(1, lease)]
    assert [answer.granted for answer in answers if isinstance(answer, Leased)] == [6, 4]


async def test_questions_need_not_wait_for_the_greeting_or_for_answers(served: Served) -> None:
    worker = await served.join()
    frames = [pack(Questions(number, [Put(str(number), b"x"), Get("1")])) for number in range(1, 6)]
    await worker.stream.send_all(HELLO + b"".join(frames))
    assert await worker.body() == GREETING
    for number in range(1, 6):
        reply = await worker.reply()
        assert isinstance(reply, Answers)
        assert reply.number == number
        assert [answer.version for answer in reply.answers if isinstance(answer, Named)] == [1, 1]


async def test_everybody_hears_what_is_published(served: Served) -> None:
    one, two = await served.greeted(), await served.greeted()
    (row,) = await one.ask(1, Force("b", "open", RULES))
    for worker in (one, two):
        tidings = await worker.reply()
        assert isinstance(tidings, Tidings)
        assert [decode_row(event.body) for event in tidings.events] == [row]


async def test_the_supervisor_may_ask_too(served: Served) -> None:
    worker = await served.greeted()
    await worker.ask(1, Get("nothing"))
    row = served.store.perform(Force("b", "open", RULES))
    assert isinstance(row, Row)
    assert row.state is State.OPEN
    tidings = await worker.reply()
    assert isinstance(tidings, Tidings)
    assert [(event.kind, event.name) for event in tidings.events] == [("circuit", "b")]


async def test_frames_may_come_in_pieces(served: Served) -> None:
    worker = await served.join()
    for byte in HELLO + pack(Questions(1, [Get("v")])):
        await worker.stream.send_all(bytes([byte]))
    assert await worker.body() == GREETING
    assert isinstance(await worker.reply(), Answers)


async def test_a_worker_of_another_layout_is_left_without_a_store(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await served.join()
    await worker.stream.send_all(pack(["ambassador state", 999]))
    assert await worker.body() == GREETING
    assert await worker.body() is None
    await worker.ended.wait()
    assert worker.cut is False
    assert "layout" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        b"\xff\xff\xff\xff",
        pack(["no", "question"]),
        pack([1, [["steal", "x"]]]),
        pack(Questions(1, [Get("v")] * (MOST_OPERATIONS + 1))),
    ],
)
async def test_a_worker_that_sends_nonsense_is_cut_off(
    served: Served, wrong: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    other = await served.greeted()
    worker = await served.greeted()
    await worker.stream.send_all(wrong)
    assert await worker.body() is None
    await worker.ended.wait()
    assert worker.cut is True
    assert "worker 2 is cut off" in caplog.text
    assert len(await other.ask(1, Get("v"))) == 1


async def test_a_worker_that_does_not_read_is_cut_off_and_holds_nobody(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_MOST_HELD", 1024 * 1024)
    slow = await served.greeted()
    other = await served.greeted()
    value = bytes(60_000)
    number = 0
    while slow.cut is None:
        number += 1
        await other.ask(number, Put("v", value, publish=True))
        assert isinstance(await other.reply(), Tidings)
    assert slow.cut is True
    assert 15 < number < 40
    assert len(await other.ask(1, Get("v"))) == 1


async def test_what_does_not_fit_is_sent_when_the_worker_reads(served: Served) -> None:
    slow = await served.greeted()
    other = await served.greeted()
    for number in range(1, 101):
        await other.ask(number, Put("v", b"%d" % number * 10_000, publish=True))
        await other.reply()
    seen: list[Event] = []
    while len(seen) < 100:
        tidings = await slow.reply()
        assert isinstance(tidings, Tidings)
        seen += tidings.events
    assert [decode_named(event.body).version for event in seen] == list(range(1, 101))
    assert len(await slow.ask(1, Get("v"))) == 1


async def test_a_dead_worker_is_forgotten(served: Served) -> None:
    dead, other = await served.greeted(), await served.greeted()
    await dead.stream.aclose()
    await dead.ended.wait()
    assert dead.cut is False
    served.store.perform(Put("v", b"x", publish=True))
    assert isinstance(await other.reply(), Tidings)


async def test_the_longest_frames_pass(served: Served) -> None:
    worker = await served.greeted()
    value = bytes(65_536)
    answers = await worker.ask(1, *[Put(str(number), value) for number in range(MOST_OPERATIONS)])
    assert len(answers) == MOST_OPERATIONS
    assert all(isinstance(answer, Named) and answer.value == value for answer in answers)


def test_clock_follows_the_wall_clock_forwards() -> None:
    clock = SteadyClock(1_000_000, 0)
    assert clock.tell(1_500_000, 500_000) == 1_500_000
    assert clock.tell(9_000_000_000, 600_000) == 9_000_000_000


def test_clock_goes_on_slower_when_the_wall_clock_is_set_back_until_it_has_caught_up() -> None:
    clock = SteadyClock(100_000_000, 0)
    assert clock.tell(90_000_000, 1_600_000) == 101_500_000
    assert clock.tell(90_000_000, 1_600_000) == 101_500_000
    assert clock.tell(100_000_000, 17_600_000) == 116_500_000
    assert clock.tell(120_000_000, 19_200_000) == 120_000_000


def test_clock_stands_still_at_most_for_a_moment() -> None:
    clock = SteadyClock(100_000_000, 0)
    clock.tell(0, 0)
    times = [clock.tell(0, step * 1000) for step in range(100)]
    assert times == sorted(set(times))


async def test_server_tells_what_its_store_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        store, "MemoryStore", lambda *args, **kwargs: MemoryStore(*args, max_keys=1, **kwargs)
    )
    server = StoreServer(logging.getLogger("test"))
    assert server.findings() == ()
    server.perform(Lease("a", 0.0, 10.0, 1, window_s=86_400))
    (near,) = server.findings()
    assert "nearly full" in near

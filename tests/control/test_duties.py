"""A worker's side of the conversation, in this process, with a fake plane."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from ambassador.config.discover import Discover, Found, Server
from ambassador.config.load import load_text
from ambassador.config.schema import Config
from ambassador.control.channel import Channel
from ambassador.control.duties import CannotServe, Duties, _serve
from ambassador.control.orders import (
    Abort,
    Act,
    Addresses,
    Answer,
    Ask,
    Beat,
    Brief,
    Commit,
    Committed,
    Counted,
    Discovered,
    Drain,
    Failed,
    Health,
    KeySetName,
    KeySetTrouble,
    KeysRead,
    Leaving,
    Order,
    Prepare,
    Prepared,
    Refused,
    Reopen,
    Report,
    Serve,
    SocketRef,
    Sockets,
    Start,
    Stopped,
)

TEXT = "version: 1\nlisten: {listen}\nroutes:\n  - {{name: a, respond: 200}}\ndrain: {{timeout: 10s}}\n"


def config(*listen: str) -> Config:
    return load_text(TEXT.format(listen=f"[{', '.join(listen)}]"))


def brief(generation: int, *listen: str) -> Brief:
    encoded = msgspec.msgpack.encode(config(*listen))
    return Brief(generation=generation, config=encoded, blocks=b"", page_size=0, addresses={})


@dataclass
class FakePlane:
    accepting: list[tuple[str, int]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    connections: int = 0
    inflight: int = 0
    acts: list[tuple[bytes, Callable[[bytes], None]]] = field(default_factory=list)
    open_breakers: dict[str, tuple[int, int]] = field(default_factory=dict)
    ejections: dict[str, tuple[int, int]] = field(default_factory=dict)
    key_set_troubles: dict[str, KeySetTrouble] = field(default_factory=dict)
    read: list[KeysRead] = field(default_factory=list)
    error: Exception | None = None
    generation: int = 1

    def prepare(self, config: Config, brief: Brief) -> Iterator[None]:
        yield
        if self.error is not None:
            raise self.error

    def commit(self) -> None:
        self.done.append("commit")

    def abort(self) -> None:
        self.done.append("abort")

    def add(self, address: str, sock: socket.socket) -> None:
        self.accepting.append((address, os.fstat(sock.fileno()).st_ino))

    def remove(self, address: str, sock: socket.socket) -> None:
        self.accepting.remove((address, os.fstat(sock.fileno()).st_ino))

    def take_rest(self, address: str, sock: socket.socket) -> None:
        self.done.append(f"rest of {address}")

    def take_found(self, found: Found) -> None:
        self.done.append(f"found {len(found.servers)}")

    def set_addresses(self, host: str, addresses: tuple[str, ...]) -> None:
        self.done.append(f"{host} is {addresses}")

    def set_unhealthy(self, unhealthy: Mapping[str, Mapping[str, str]]) -> None:
        self.done.append(f"unhealthy: {unhealthy}")

    def drain(self, *, last: bool) -> None:
        self.done.append("drain")

    def close_idle(self) -> None:
        self.done.append("close idle")
        self.connections = 0

    def reopen(self) -> None:
        self.done.append("reopen")

    def answer(self, what: str, give: Callable[[bytes], None]) -> None:
        give(what.encode())

    def act(self, data: bytes, done: Callable[[bytes], None]) -> None:
        self.acts.append((data, done))

    def keys_read(self) -> list[KeysRead]:
        read, self.read = self.read, []
        return read

    def counts(self, *, whole: bool) -> Iterator[bytes]:
        yield b"all" if whole else b"few"

    def beat(self) -> float:
        return 1.5


class Boss:
    """The supervisor's end. `listeners` are sockets that stay open here."""

    def __init__(self, channel: Channel[Report], plane: FakePlane, addresses: Sequence[str]) -> None:
        self.channel = channel
        self.plane = plane
        self.ended = trio.Event()
        self.leave: trio.MemorySendChannel[int]
        self.listeners = {address: [listener() for _ in range(2)] for address in addresses}

    def refs(self, address: str) -> tuple[SocketRef, ...]:
        return tuple(SocketRef(address, slot) for slot in range(2))

    def send_sockets(self, address: str) -> None:
        self.channel.post(
            Sockets(sockets=self.refs(address)), [sock.fileno() for sock in self.listeners[address]]
        )

    async def order(self, order: Order) -> None:
        self.channel.post(order)
        await trio.testing.wait_all_tasks_blocked()

    async def report(self) -> Report:
        while isinstance(report := await self.channel.receive(), Beat | Counted):
            pass
        return report

    async def counts(self) -> Counted:
        while not isinstance(report := await self.channel.receive(), Counted):
            pass
        return report

    def served(self, address: str) -> list[int]:
        """The slots of a listener that the plane accepts from."""
        inodes = [os.fstat(sock.fileno()).st_ino for sock in self.listeners[address]]
        return sorted(inodes.index(inode) for name, inode in self.plane.accepting if name == address)


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


A, B = "127.0.0.1:1", "127.0.0.1:2"


@pytest.fixture
async def boss(nursery: trio.Nursery) -> AsyncIterator[Boss]:
    ours, theirs = socket.socketpair()
    plane = FakePlane()
    boss = Boss(Channel(ours, msgspec.msgpack.Decoder(Report)), plane, [A, B])
    channel: Channel[Order] = Channel(theirs, msgspec.msgpack.Decoder(Order))
    boss.leave, terminations = trio.open_memory_channel[int](1)

    async def work() -> None:
        await Duties(channel, plane, config(A)).run(terminations)
        with contextlib.suppress(OSError):
            await channel.flush()
        boss.ended.set()

    nursery.start_soon(boss.channel.run)
    nursery.start_soon(channel.run)
    nursery.start_soon(work)
    boss.send_sockets(A)
    yield boss
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await trio.lowlevel.checkpoint()
    boss.channel.close()
    channel.close()
    for sockets in boss.listeners.values():
        for sock in sockets:
            sock.close()


async def test_nothing_is_served_before_it_is_said_so(boss: Boss, autojump_clock: MockClock) -> None:
    await boss.order(Reopen())
    assert boss.plane.accepting == []
    await boss.order(Serve(slots=(0,)))
    assert boss.served(A) == [0]
    await boss.order(Serve(slots=(0, 1)))
    assert boss.served(A) == [0, 1]
    await boss.order(Serve(slots=(1,)))
    assert boss.served(A) == [1]


async def test_sockets_that_are_known_are_not_taken_twice(boss: Boss, autojump_clock: MockClock) -> None:
    await boss.order(Serve(slots=(0,)))
    boss.send_sockets(A)
    await boss.order(Serve(slots=(0, 1)))
    assert boss.served(A) == [0, 1]


async def test_a_new_listener_is_served_from_the_commit_and_a_removed_one_until_it(
    boss: Boss, autojump_clock: MockClock
) -> None:
    await boss.order(Serve(slots=(1,)))
    boss.send_sockets(B)
    await boss.order(Prepare(brief=brief(2, B)))
    assert await boss.report() == Prepared(generation=2)
    assert (boss.served(A), boss.served(B)) == ([1], [])
    await boss.order(Commit(generation=2))
    assert await boss.report() == Committed(generation=2)
    assert (boss.served(A), boss.served(B)) == ([], [1])


async def test_a_generation_that_is_refused_changes_nothing(boss: Boss, autojump_clock: MockClock) -> None:
    await boss.order(Serve(slots=(0,)))
    boss.plane.error = ValueError("no such thing")
    await boss.order(Prepare(brief=brief(2, A)))
    assert await boss.report() == Refused(generation=2, error="ValueError: no such thing")
    boss.plane.error = None
    await boss.order(Prepare(brief=brief(2, A, B)))
    assert await boss.report() == Prepared(generation=2)
    await boss.order(Abort(generation=2))
    assert boss.served(A) == [0]
    assert "commit" not in boss.plane.done


async def test_questions_and_news(boss: Boss, autojump_clock: MockClock) -> None:
    await boss.order(Ask(id=7, what="tasks"))
    assert await boss.report() == Answer(id=7, data=b"tasks")
    await boss.order(Addresses(addresses={"h": ("10.0.0.1",)}))
    await boss.order(Discovered(found=Found(Discover(file="/a"), (Server("http://h:80"),), {})))
    await boss.order(Health(unhealthy={"a": {"http://h:80": "down"}}))
    await boss.order(Reopen())
    assert boss.plane.done == [
        "h is ('10.0.0.1',)",
        "found 1",
        "unhealthy: {'a': {'http://h:80': 'down'}}",
        "reopen",
    ]


async def test_what_takes_a_moment_is_answered_when_it_is_done(boss: Boss, autojump_clock: MockClock) -> None:
    await boss.order(Act(id=8, data=b"slow"))
    await boss.order(Ask(id=9, what="tasks"))
    assert await boss.report() == Answer(id=9, data=b"tasks")
    ((data, done),) = boss.plane.acts
    assert data == b"slow"
    done(b"obeyed")
    assert await boss.report() == Answer(id=8, data=b"obeyed")


async def test_counts_are_told_when_they_have_changed_and_at_the_end(
    boss: Boss, autojump_clock: MockClock
) -> None:
    begun = trio.current_time()
    assert await boss.counts() == Counted(generation=1, lines=b"few")
    assert 1.9 < trio.current_time() - begun < 2.1
    await trio.sleep(5.9)
    boss.plane.generation = 2
    assert await boss.counts() == Counted(generation=2, lines=b"few")
    assert 7.9 < trio.current_time() - begun < 8.1
    await boss.order(Drain(delay_s=0.0, timeout_s=1.0, last=False))
    assert await boss.counts() == Counted(generation=2, lines=b"all")
    await boss.ended.wait()


async def test_sets_of_keys_that_were_read_are_reported_with_the_next_beat(
    boss: Boss, autojump_clock: MockClock
) -> None:
    read = KeysRead(name=KeySetName("file:/jwks", None, None), document=b"{}")
    boss.plane.read.append(read)
    assert await boss.report() == read
    assert boss.plane.read == []


async def test_beats_come_twice_a_second(boss: Boss, autojump_clock: MockClock) -> None:
    boss.plane.connections = 3
    boss.plane.open_breakers = {"up": (7, 1)}
    begun = trio.current_time()
    for _ in range(4):
        beat = await boss.channel.receive()
    assert beat == Beat(connections=3, inflight=0, loop_lag_ms=1.5, open_breakers={"up": (7, 1)})
    assert trio.current_time() - begun == pytest.approx(1.5, abs=0.51)


async def test_a_drain_goes_on_accepting_then_waits_for_what_is_under_way(
    boss: Boss, autojump_clock: MockClock
) -> None:
    await boss.order(Serve(slots=(0,)))
    boss.plane.connections = 1
    begun = trio.current_time()
    await boss.order(Drain(delay_s=5.0, timeout_s=20.0, last=True))
    assert boss.plane.done == ["drain"]
    assert boss.served(A) == [0]
    await trio.sleep(6)
    assert boss.plane.accepting == []
    await trio.sleep(4)
    assert not boss.ended.is_set()
    boss.plane.connections = 0
    await boss.ended.wait()
    assert trio.current_time() - begun < 10.5


@pytest.mark.parametrize("last", [True, False])
async def test_only_the_last_worker_of_a_socket_ends_its_listening(
    boss: Boss, autojump_clock: MockClock, last: bool
) -> None:
    await boss.order(Serve(slots=(0,)))
    boss.plane.connections = 1
    await boss.order(Drain(delay_s=1.0, timeout_s=20.0, last=last))
    assert await boss.report() == Stopped()
    assert [listens(sock) for sock in boss.listeners[A]] == [not last, True]
    assert not boss.ended.is_set()


def listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


async def test_idle_connections_go_in_the_last_second(boss: Boss, autojump_clock: MockClock) -> None:
    boss.plane.connections = 1
    begun = trio.current_time()
    await boss.order(Drain(delay_s=0.0, timeout_s=20.0, last=False))
    await boss.ended.wait()
    assert 19.0 <= trio.current_time() - begun < 19.5


async def test_a_second_order_to_drain_can_only_hasten(boss: Boss, autojump_clock: MockClock) -> None:
    boss.plane.connections = 1
    begun = trio.current_time()
    await boss.order(Drain(delay_s=5.0, timeout_s=20.0, last=True))
    await boss.order(Drain(delay_s=0.0, timeout_s=5.0, last=True))
    await boss.order(Drain(delay_s=0.0, timeout_s=50.0, last=True))
    await boss.ended.wait()
    assert trio.current_time() - begun < 5.1


async def test_when_the_supervisor_is_gone_the_worker_finishes(boss: Boss, autojump_clock: MockClock) -> None:
    boss.plane.connections = 1
    begun = trio.current_time()
    boss.channel.close()
    await boss.ended.wait()
    assert 8.9 < trio.current_time() - begun < 10.1


async def test_a_worker_told_to_end_asks_for_a_successor_first(boss: Boss, autojump_clock: MockClock) -> None:
    await boss.order(Serve(slots=(0,)))
    await boss.leave.send(15)
    assert await boss.report() == Leaving()
    assert boss.served(A) == [0]
    with trio.move_on_after(60):
        await boss.ended.wait()
    assert boss.ended.is_set()


async def test_a_setting_that_cannot_be_used_is_no_defect(capfd: pytest.CaptureFixture[str]) -> None:
    for error, told, has_stack in (
        (CannotServe("telemetry.access_log: no"), "telemetry.access_log: no", False),
        (KeyError("x"), "KeyError: 'x'", True),
    ):
        failed, errors = await start_that_fails(error), capfd.readouterr().err
        assert failed == Failed(error=told)
        assert ("Traceback" in errors) is has_stack


async def start_that_fails(error: Exception) -> Report:
    """What a worker says whose plane cannot be opened because of `error`."""

    @contextlib.asynccontextmanager
    async def fails(start: Start, config: Config, *descriptors: int) -> AsyncIterator[FakePlane]:
        for fd in descriptors:
            os.close(fd)
        async with trio.open_nursery():
            raise error
        yield FakePlane()

    ours, theirs = socket.socketpair()
    boss: Channel[Report] = Channel(ours, msgspec.msgpack.Decoder(Report))
    channel: Channel[Order] = Channel(theirs, msgspec.msgpack.Decoder(Order))
    leave, terminations = trio.open_memory_channel[int](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(boss.run)
        nursery.start_soon(channel.run)
        null = os.open(os.devnull, os.O_RDWR)
        start = Start(slot=0, instance="a", replica="a", started=0.0, brief=brief(1, A), sockets=())
        boss.post(start, [null, null, null])
        os.close(null)
        assert await _serve(channel, fails, terminations) == 1
        report = await boss.receive()
        nursery.cancel_scope.cancel()
    boss.close()
    channel.close()
    leave.close()
    return report


async def test_a_shared_socket_is_ended_first_and_then_emptied(
    boss: Boss, autojump_clock: MockClock, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as shared:
        shared.bind(str(tmp_path / "s"))
        shared.listen()
        boss.channel.post(Sockets(sockets=(SocketRef(A, None),)), [shared.fileno()])
        await boss.order(Serve(slots=()))
        await boss.order(Drain(delay_s=1.0, timeout_s=20.0, last=True))
        begun = trio.current_time()
        assert await boss.report() == Stopped()
        assert trio.current_time() - begun < 1.5
        assert boss.plane.done[-1] == f"rest of {A}"
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
            client.connect(str(tmp_path / "s"))


async def test_a_shared_socket_that_another_worker_has_ended_is_not_waited_for(
    boss: Boss, autojump_clock: MockClock, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as shared:
        shared.bind(str(tmp_path / "s"))
        shared.listen()
        boss.channel.post(Sockets(sockets=(SocketRef(A, None),)), [shared.fileno()])
        await boss.order(Serve(slots=()))
        shared.shutdown(socket.SHUT_RD)
        await boss.order(Drain(delay_s=1.0, timeout_s=20.0, last=True))
        begun = trio.current_time()
        assert await boss.report() == Stopped()
        assert trio.current_time() - begun < 1.5

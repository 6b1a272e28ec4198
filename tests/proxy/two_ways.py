"""A script of what clients and upstreams do, played twice: with the short way of a request, and without.

Everything that either side sees, in the step in which it sees it, and all that is counted must be the same. Sockets are
in memory, time is the mock clock's, chance is seeded: nothing else can differ.
"""

from __future__ import annotations

import functools
import json
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import trio
import trio.testing

import ambassador.proxy.http1
from ambassador.config.compile import compile_table
from ambassador.config.load import load_text
from ambassador.observe.access_log import AccessLog, AccessRecord, LineMaker
from ambassador.observe.trace import Tracer
from ambassador.proxy.breakers import Breakers
from ambassador.proxy.exchange import Exchange
from ambassador.proxy.express import ride
from ambassador.proxy.http1 import ClientConnection
from ambassador.proxy.http1_answers import SEEN_HEADS
from ambassador.proxy.lane import Lane
from ambassador.proxy.lasting import Lasting
from ambassador.proxy.listener import ListenerLimits
from ambassador.proxy.policies.retry import RetryBudget
from ambassador.proxy.service import Table
from ambassador.proxy.splice import Splice
from ambassador.state.protocol import Operation
from tests.proxy.fake_kernel import FakeSocket, Kernel
from tests.proxy.harness import Counts, Plane
from tests.proxy.stores import SharedStore

WALL_S = 1_795_761_874.25
DATE = b"Fri, 27 Nov 2026 06:44:34 GMT"


class Log:
    """An access log that keeps its lines, parsed."""

    def __init__(self) -> None:
        self.lines = LineMaker()
        self.written: list[dict[str, Any]] = []

    def wants(self, status: int, code: str | None = None) -> bool:
        return True

    def write(self, record: AccessRecord) -> None:
        self.put(self.lines.line(record))

    def put(self, line: bytes) -> None:
        fields = json.loads(line)
        for name in ("duration_ms", "upstream_ms"):  # one is rounded, the other cut
            fields[name] = fields[name] and round(fields[name], 2)
        self.written.append(fields)


class TimedCounts(Counts):
    """Counters that keep durations as well."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[tuple[str, float]] = []

    def settled(self, status_class: int, seconds: float) -> None:
        super().settled(status_class, seconds)
        self.seconds.append(("settled", seconds))

    def attempt(self, result: str, seconds: float) -> None:
        super().attempt(result, seconds)
        self.seconds.append(("attempt", seconds))


class NoPipes:
    """Fake sockets cannot be spliced."""

    def take(self) -> None:
        return None

    def give_back(self, splice: Splice) -> None:
        raise AssertionError


class Taps:
    """The far ends of one side's connections, and what was already told of each."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ends: list[FakeSocket] = []
        self._told: dict[FakeSocket, set[str]] = {}

    def at(self, number: int) -> FakeSocket | None:
        """The end of one connection, None if it is not there yet."""
        return self.ends[number] if number < len(self.ends) else None

    def news(self) -> list[tuple[str, bytes | str]]:
        """What came since the last time."""
        found: list[tuple[str, bytes | str]] = []
        for at, end in enumerate(self.ends):
            name, told = f"{self.name} {at}", self._told.setdefault(end, set())
            if data := end.take():
                found.append((name, data))
            for word, holds in (("FIN", end.has_ended), ("RST", end.was_reset)):
                if holds and word not in told:
                    told.add(word)
                    found.append((name, word))
        return found


@dataclass
class Setting:
    """Where a script is played."""

    config: str
    limits: ListenerLimits = field(default_factory=ListenerLimits)
    ip: str = "127.0.0.9"
    trusted: tuple[str, ...] = ()
    cancel_on_half_close: bool = False
    logged: bool = True
    refused: frozenset[str] = frozenset()
    prepare: Callable[[World], None] | None = None


_load = functools.cache(load_text)


class World:
    """What the steps of a script work on."""

    def __init__(self, setting: Setting, kernel: Kernel, plane: Plane) -> None:
        self.setting = setting
        self.kernel = kernel
        self.plane = plane
        self.clients = Taps("client")
        self.upstreams = Taps("upstream")
        self.upstreams.ends = kernel.upstreams
        self.asked: FakeSocket | None = None
        """The upstream's end of the connection that was written to last."""
        self.unanswered: FakeSocket | None = None
        """The same, until it has said anything."""
        self.clock = cast("trio.testing.MockClock", trio.lowlevel.current_clock())
        self.log = Log()
        self.counts = TimedCounts()
        self.deposits: list[float] = []
        self._tables: list[Table] = []
        self.store = SharedStore(1)
        breakers = Breakers(plane.lane, random=lambda: 0.5)  # asked more often in the long way
        self._lasting = Lasting(plane.lane, breakers=breakers, bulkheads=plane.bulkheads)
        service = plane.service
        service.tracer = Tracer(random.Random(1), sample=0.5)
        service.random = random.Random(2).random
        service.splices = NoPipes()  # type: ignore[assignment]
        service._date_at, service._date, service._wall_offset = 1e12, DATE, WALL_S
        if setting.logged:
            service.access_log = cast("AccessLog", self.log)
        plane.listener.configure(
            limits=setting.limits,
            head_limits=plane.listener.head_limits,
            trusted=setting.trusted,
            cancel_on_half_close=setting.cancel_on_half_close,
        )
        kernel.refused.update(setting.refused)
        self.reload(setting.config)
        if setting.prepare is not None:
            setting.prepare(self)

    def reload(self, config: str) -> None:
        service = self.plane.service
        service.table.retire()
        table = compile_table(
            _load(config), self.plane.lane, self.counts, {}, self.store.scopes_of(0), lasting=self._lasting
        )  # fmt: skip
        table.begin()
        for upstream in table.upstreams.values():
            upstream._random = random.Random(3).random
        self._tables.append(table)
        service.table = table

    def check_clean(self) -> None:
        """Nothing is left of any table that was in force."""
        for table in self._tables:
            table.retire()
            for upstream in table.upstreams.values():
                for endpoint in upstream.endpoints:
                    assert (endpoint.pool.open, endpoint.inflight) == (0, 0), endpoint.url
        self.plane.check_clean()

    def connect(self) -> FakeSocket:
        near, far = self.kernel.pair()
        self.clients.ends.append(far)
        self.plane.listener._admit(near, (self.setting.ip, 1))  # type: ignore[arg-type]
        return far

    def client(self, at: int) -> FakeSocket:
        while len(self.clients.ends) <= at:
            self.connect()
        return self.clients.ends[at]

    def pass_time(self, seconds: float) -> None:
        self.clock.jump(seconds)
        self.store.clock.advance(seconds)

    async def settle(self) -> None:
        """Until everybody waits, and the store has answered."""
        await trio.testing.wait_all_tasks_blocked()
        while self.store.scopes[0].pending:
            self.store.deliver()
            await trio.testing.wait_all_tasks_blocked()

    def look(self) -> list[object]:
        """What has happened since the last look."""
        news = self.upstreams.news()
        for name, _ in news:
            self.asked = self.unanswered = self.upstreams.ends[int(name.split()[1])]
        pools = [
            (endpoint.pool.open, endpoint.pool.idle_count, endpoint.inflight, endpoint.ewma_s)
            for endpoint in self.plane.endpoints
        ]
        return [*news, *self.clients.news(), pools, self.plane.leftovers()]


class Step:
    """Something that a client, an upstream or the operator does; shown as it is written in a test."""

    def __init__(self, text: str, act: Callable[[World], object]) -> None:
        self._text = text
        self._act = act

    def __call__(self, world: World) -> None:
        try:
            self._act(world)
        except OSError:
            pass  # a socket that is gone

    def __repr__(self) -> str:
        return self._text


def connects(client: int) -> Step:
    """A client that is not there yet. (Otherwise it comes with the first thing that it does.)"""
    return Step(f"connects({client})", lambda world: world.client(client))


def sends(data: bytes, client: int = 0) -> Step:
    return Step(f"sends({data!r}, {client})", lambda world: world.client(client).send(data))


def ends(client: int = 0) -> Step:
    return Step(f"ends({client})", lambda world: world.client(client).shutdown(socket.SHUT_WR))


def leaves(client: int = 0) -> Step:
    return Step(f"leaves({client})", lambda world: world.client(client).close())


def resets(client: int = 0) -> Step:
    return Step(f"resets({client})", lambda world: world.client(client).reset())


def takes(size: int | None, client: int = 0) -> Step:
    """The client takes so many bytes more; None: any number."""
    return Step(f"takes({size}, {client})", lambda world: world.client(client).make_room(size))


def _upstream(text: str, at: int | None, act: Callable[[FakeSocket], object]) -> Step:
    """Something on the connection with this number, or else on that which was written to last."""

    def find(world: World) -> None:
        end = world.asked if at is None else world.upstreams.at(at)
        if end is not None:
            act(end)

    return Step(text, find)


def answers(data: bytes, at: int | None = None) -> Step:
    def act(world: World) -> None:
        end = world.asked if at is None else world.upstreams.at(at)
        if end is not None:
            end.send(data)
            world.unanswered = None

    return Step(f"answers({data!r}, {at})", act)


def answers_if_asked(data: bytes) -> Step:
    """Answers what was asked since the last answer, if there is anything: a retry, say."""

    def act(world: World) -> None:
        end, world.unanswered = world.unanswered, None
        if end is not None:
            end.send(data)

    return Step(f"answers_if_asked({data!r})", act)


def upstream_ends(at: int | None = None) -> Step:
    return _upstream(f"upstream_ends({at})", at, FakeSocket.close)


def upstream_resets(at: int | None = None) -> Step:
    return _upstream(f"upstream_resets({at})", at, FakeSocket.reset)


def upstream_takes(size: int | None, at: int | None = None) -> Step:
    return _upstream(f"upstream_takes({size}, {at})", at, lambda end: end.make_room(size))


def upstream_vanishes(at: int) -> Step:
    """It is reset, but nobody is told of it before `upstream_is_told`."""
    return _upstream(f"upstream_vanishes({at})", at, FakeSocket.vanish)


def upstream_is_told(at: int) -> Step:
    return _upstream(f"upstream_is_told({at})", at, lambda end: end.peer.tell())


def upstream_is_gone(at: int) -> Step:
    """It takes what is written once more, and then answers with RST."""

    def act(end: FakeSocket) -> None:
        end.closed = True

    return _upstream(f"upstream_is_gone({at})", at, act)


def passes(seconds: float) -> Step:
    return Step(f"passes({seconds})", lambda world: world.pass_time(seconds))


def _drain(world: World) -> None:
    world.plane.service.draining = True


drains = Step("drains", _drain)


def reloads(config: str | None = None) -> Step:
    return Step(f"reloads({config!r})", lambda world: world.reload(config or world.setting.config))


def at_once(*steps: Step) -> Step:
    """Several things before anybody has a turn."""

    def act(world: World) -> None:
        for step in steps:
            step(world)

    return Step(f"at_once({', '.join(map(repr, steps))})", act)


cancelled = Step("cancelled", lambda world: world.plane.clients.cancel_scope.cancel())


@dataclass
class Seen:
    """All that a script brought about."""

    steps: list[list[object]]
    settlements: list[int]
    attempts: list[str]
    retries: list[str]
    seconds: list[tuple[str, float]]
    lines: list[dict[str, Any]]
    deposits: list[float]
    """When a retry budget was told of a request."""
    asked: list[Operation]
    """Of the store: what limits and breakers make of it all."""

    @property
    def counted(self) -> tuple[object, ...]:
        """What was counted. Its order is not compared: who is cancelled first at the end is trio's business."""
        lines = sorted(self.lines, key=lambda line: str(line["request_id"]))
        return (
            sorted(self.settlements), sorted(self.attempts), sorted(self.retries), sorted(self.seconds), lines, self.deposits,
            sorted(map(repr, self.asked)),
        )  # fmt: skip

    def of(self, name: str) -> list[bytes | str]:
        """What one connection was told."""
        return [
            each[1] for step in self.steps for each in step if isinstance(each, tuple) and each[0] == name
        ]

    def bytes_of(self, name: str) -> bytes:
        return b"".join(each for each in self.of(name) if isinstance(each, bytes))


class Rides:
    """How the requests were served, so that a test can tell that it tests something."""

    def __init__(self) -> None:
        self.handed_over = 0
        """Exchanges that began in the short way."""
        self.exchanges = 0
        """All of them; other requests were served in the short way to their end."""

    async def ride(self, client: ClientConnection) -> Exchange | None:
        exchange = await ride(client)
        self.handed_over += exchange is not None
        return exchange

    def note_exchanges(self, patch: pytest.MonkeyPatch) -> None:
        real = Exchange.run

        async def run(exchange: Exchange) -> None:
            self.exchanges += 1
            await real(exchange)

        patch.setattr(Exchange, "run", run)


async def _no_ride(client: ClientConnection) -> Exchange | None:
    return None


async def _play(setting: Setting, steps: Sequence[Step]) -> Seen:
    SEEN_HEADS.clear()
    kernel = Kernel()
    seen: list[list[object]] = []
    with kernel.in_charge(), pytest.MonkeyPatch.context() as patch:
        async with trio.open_nursery() as nursery:
            lane = Lane()
            await nursery.start(lane.run)
            async with trio.open_nursery() as clients:
                plane = Plane(lane, clients, setting.config, setting.limits)
                world = World(setting, kernel, plane)
                _note_deposits(patch, world.deposits)
                try:
                    for step in steps:
                        with trio.CancelScope(shield=True):
                            step(world)
                            await world.settle()
                            seen.append(world.look())
                finally:
                    plane.stop_accepting()
                    clients.cancel_scope.cancel()
            world.check_clean()
            seen.append(world.look())
            for end in [*world.clients.ends, *world.upstreams.ends]:
                end.close()
            nursery.cancel_scope.cancel()
    counts = world.counts
    return Seen(
        seen, counts.settlements, counts.attempts, counts.retries, counts.seconds, world.log.written, world.deposits,
        world.store.scopes[0].asked,
    )  # fmt: skip


def _note_deposits(patch: pytest.MonkeyPatch, deposits: list[float]) -> None:
    real = RetryBudget.deposit

    def deposit(budget: RetryBudget, now: float) -> None:
        deposits.append(now)
        real(budget, now)

    patch.setattr(RetryBudget, "deposit", deposit)


def play(setting: Setting, steps: Sequence[Step], *, short: bool = True) -> tuple[Seen, Rides]:
    """Play a script once, and tell how often the short way was taken."""
    rides = Rides()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ambassador.proxy.http1, "ride", rides.ride if short else _no_ride)
        rides.note_exchanges(patch)
        return trio.run(_play, setting, steps, clock=trio.testing.MockClock()), rides


def assert_same(setting: Setting, *steps: Step) -> Seen:
    """Play a script both ways; what was seen of it is the same, and given back."""
    short, _ = play(setting, steps)
    long, _ = play(setting, steps, short=False)
    for step, shortly, longly in zip([*steps, "the end"], short.steps, long.steps, strict=True):
        assert shortly == longly, f"after {step}:\nshort: {shortly}\nlong: {longly}"
    assert short.counted == long.counted
    return short

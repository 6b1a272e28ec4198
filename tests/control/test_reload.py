"""The steps of a reload, with fake workers."""

from __future__ import annotations

import logging
import socket
from typing import Any, cast

import pytest
import trio

from ambassador.config.load import load_text
from ambassador.config.schema import Config
from ambassador.control.checking import Checked
from ambassador.control.crew import Crew
from ambassador.control.deployment import Deployment
from ambassador.control.incarnation import Incarnation
from ambassador.control.orders import Abort, Commit, Message, Prepare, Prepared, Refused, Sockets
from ambassador.control.reload import Reload, catch_up
from tests.control.test_deployment import deployment

LOG = logging.getLogger("test")


class FakeWorker:
    slot = 0

    def __init__(self, *, refuses: str | None = None, mute: bool = False) -> None:
        self.generation = 1
        self.refuses = refuses
        self.mute = mute
        self.orders: list[str] = []

    def post(self, order: Message, descriptors: object = ()) -> None:
        self.orders.append(type(order).__name__)

    async def prepare(self, order: Prepare, timeout_s: float) -> Prepared | Refused | None:
        await trio.lowlevel.checkpoint()
        self.post(order)
        if self.mute:
            return None
        generation = order.brief.generation
        return (
            Refused(generation=generation, error=self.refuses)
            if self.refuses
            else Prepared(generation=generation)
        )

    async def commit(self, order: Commit, timeout_s: float) -> bool:
        await trio.lowlevel.checkpoint()
        self.post(order)
        self.generation = order.generation
        return not self.mute


class FakeCrew:
    slots = range(2)
    listening = (0, 1)

    def __init__(self, *workers: FakeWorker) -> None:
        self.current = list(workers)
        self.replaced: list[int] = []

    def post(self, order: Message) -> None:
        for worker in self.current:
            worker.post(order)

    async def replace(self, slot: int) -> bool:
        await trio.lowlevel.checkpoint()
        self.replaced.append(slot)
        return True


@pytest.fixture
def made() -> Any:
    made = deployment("127.0.0.1:0")
    made.bind(range(2))
    yield made
    made.close()


def config(*listen: str) -> Config:
    return load_text(f"version: 1\nlisten: [{', '.join(listen)}]\nroutes:\n  - {{name: b, respond: 200}}\n")


def reload(made: Deployment, crew: FakeCrew) -> Reload:
    return Reload(made, cast("Crew", crew), LOG)


async def test_all_prepare_before_any_commits(made: Deployment) -> None:
    crew = FakeCrew(FakeWorker(), FakeWorker())
    done = await reload(made, crew).apply(Checked(config=config("127.0.0.1:0")))
    assert done.ok
    assert made.generation == 2
    assert [worker.orders for worker in crew.current] == [["Prepare", "Commit"]] * 2


async def test_one_that_refuses_stops_it_for_all(made: Deployment) -> None:
    crew = FakeCrew(FakeWorker(), FakeWorker(refuses="no such thing"))
    before = made.config
    done = await reload(made, crew).apply(Checked(config=config("127.0.0.1:0")))
    assert (done.ok, done.errors) == (False, ("no such thing",))
    assert (made.generation, made.config) == (1, before)
    assert [worker.orders for worker in crew.current] == [["Prepare", "Abort"]] * 2


async def test_one_that_does_not_answer_is_replaced(made: Deployment) -> None:
    crew = FakeCrew(FakeWorker(), FakeWorker(mute=True))
    done = await reload(made, crew).apply(Checked(config=config("127.0.0.1:0")))
    assert done.ok
    assert crew.replaced == [0]


async def test_new_listeners_are_bound_first_and_removed_ones_closed_last(made: Deployment) -> None:
    crew = FakeCrew(FakeWorker())
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    done = await reload(made, crew).apply(Checked(config=config(f"127.0.0.1:{port}")))
    assert done.ok
    assert crew.current[0].orders == ["Sockets", "Prepare", "Commit"]
    assert list(made.bindings) == [f"127.0.0.1:{port}"]
    socket.create_connection(("127.0.0.1", port)).close()


async def test_a_further_listener_on_port_0_leaves_the_first_its_port(made: Deployment) -> None:
    crew = FakeCrew(FakeWorker())
    (before,) = made.urls()
    assert (await reload(made, crew).apply(Checked(config=config(*["127.0.0.1:0"] * 2)))).ok
    first, second = made.urls()
    assert first == before != second
    assert (await reload(made, crew).apply(Checked(config=config("127.0.0.1:0")))).ok
    assert made.urls() == [before]


async def test_an_address_that_is_taken_changes_nothing(made: Deployment) -> None:
    crew = FakeCrew(FakeWorker())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = await reload(made, crew).apply(Checked(config=config("127.0.0.1:0", address)))
    assert not done.ok
    assert address in done.errors[0]
    assert list(made.bindings) == ["127.0.0.1:0"]
    assert crew.current[0].orders == []


async def test_errors_of_the_check_are_told(made: Deployment) -> None:
    done = await reload(made, FakeCrew()).apply(
        Checked(config=None, errors=("a:1:1: error: x", "a:2:1: error: y"))
    )
    assert done.errors == ("a:1:1: error: x", "a:2:1: error: y")


async def test_the_control_socket_stays_where_it_is(made: Deployment) -> None:
    text = "version: 1\nlisten: 127.0.0.1:0\ncontrol: 'unix:/elsewhere'\nroutes: []\n"
    done = await reload(made, FakeCrew()).apply(Checked(config=load_text(text)))
    assert "control" in done.errors[0]


PLACES = {
    "control": "a.yaml:3:10: error: control",
    "telemetry.access_log": "a.yaml:4:25: error: telemetry.access_log",
    "listeners[1]": "a.yaml:2:23: error: listen[1]",
}


async def test_what_cannot_be_used_is_told_with_its_place(made: Deployment) -> None:
    text = "version: 1\nlisten: 127.0.0.1:0\nroutes: []\n"
    crew = FakeCrew(FakeWorker())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for config_, error in (
            (
                load_text(text + "control: 'unix:/elsewhere'\n"),
                "a.yaml:3:10: error: control: the control socket",
            ),
            (
                load_text(text + "telemetry: {access_log: /none/log}\n"),
                "a.yaml:4:25: error: telemetry.access_log: '/n",
            ),
            (config("127.0.0.1:0", address), "a.yaml:2:23: error: listen[1]: cannot listen on 127"),
        ):
            done = await reload(made, crew).apply(Checked(config=config_, places=PLACES))
            assert len(done.errors) == 1
            assert done.errors[0].startswith(error)
    assert crew.current[0].orders == []


async def test_a_setting_that_a_worker_cannot_use_is_told_with_its_place(made: Deployment) -> None:
    crew = FakeCrew(FakeWorker(refuses="telemetry.access_log: '/a' cannot be opened: no"))
    done = await reload(made, crew).apply(Checked(config=config("127.0.0.1:0"), places=PLACES))
    assert done.errors == ("a.yaml:4:25: error: telemetry.access_log: '/a' cannot be opened: no",)


async def test_a_worker_that_started_meanwhile_catches_up(made: Deployment) -> None:
    await reload(made, FakeCrew()).apply(Checked(config=config("127.0.0.1:0")))
    late = FakeWorker()
    assert await catch_up(made, cast("Incarnation", late))
    assert (late.generation, late.orders) == (2, [Sockets.__name__, Prepare.__name__, Commit.__name__])
    assert await catch_up(made, cast("Incarnation", late))
    assert not await catch_up(made, cast("Incarnation", FakeWorker(refuses="no")))
    assert Abort.__name__ not in late.orders

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest
import trio

from ambassador.control.limits import counted
from ambassador.control.orders import Counted, KeySetName, KeysRead, Message, Start
from ambassador.control.output import Output
from ambassador.control.provision import Equipment
from ambassador.control.store import StoreServer
from ambassador.proxy.limit_keys import LimitStatus
from ambassador.state.frames import HELLO, Answers, Questions, Unpacker, decode_reply, pack
from ambassador.state.protocol import Lease, Leased
from tests.control.test_deployment import deployment

LEARNED: list[KeysRead] = []


class FakeWorker:
    """Takes its first order as the channel does: with duplicates of the descriptors."""

    slot = 0
    pid = 1

    def __init__(self) -> None:
        self.generation = 0
        self.ended = False
        self.counted: Counted | None = None
        self.on_keys_read: Callable[[KeysRead], None] = print
        self.left: list[object] = []
        self.on_leaving = self.left.append

    def post(self, order: Message, descriptors: Sequence[int] = ()) -> None:
        assert isinstance(order, Start)
        self.start = order
        page, log, store, *sockets = [os.dup(fd) for fd in descriptors]
        for fd in (page, log, *sockets):
            os.close(fd)
        assert len(sockets) == len(order.sockets)
        self.store = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=store)))

    async def lease(self) -> int:
        """Greet, and take 6 tokens of 10."""
        await self.store.send_all(HELLO + pack(Questions(1, [Lease("k", 0.001, 10, 6)])))
        unpacker = Unpacker()
        bodies: list[bytes] = []
        while len(bodies) < 2:
            bodies += unpacker.feed(await self.store.receive_some())
        reply = decode_reply(bodies[1])
        assert isinstance(reply, Answers)
        (leased,) = reply.answers
        assert isinstance(leased, Leased)
        return leased.granted


def equip(equipment: Equipment, nursery: trio.Nursery) -> FakeWorker:
    worker = FakeWorker()
    equipment.equip(worker, nursery)  # type: ignore[arg-type]
    return worker


@pytest.fixture
def equipment() -> Iterator[Equipment]:
    made = deployment("127.0.0.1:0")
    made.bind([0])
    output = Output(os.open(os.devnull, os.O_WRONLY))
    LEARNED.clear()
    yield Equipment(made, output, StoreServer(logging.getLogger("test")), LEARNED.append)
    made.close()
    output.close(1.0)


def test_a_new_slot_is_told_alone(equipment: Equipment) -> None:
    assert equipment.open_slot(0)[0].sockets == ()
    order, descriptors = equipment.open_slot(1)
    assert [ref.slot for ref in order.sockets] == [1]
    assert len(descriptors) == 1
    assert equipment.drain_timeout_s == 20.0


async def test_workers_get_one_store(equipment: Equipment, nursery: trio.Nursery) -> None:
    workers = [equip(equipment, nursery) for _ in range(2)]
    assert [await worker.lease() for worker in workers] == [6, 4]
    for worker in workers:
        await worker.store.aclose()
        assert worker.left == []


async def test_sets_of_keys_that_a_worker_has_read_are_learned(
    equipment: Equipment, nursery: trio.Nursery
) -> None:
    worker = equip(equipment, nursery)
    read = KeysRead(name=KeySetName("file:/jwks", None, None), document=b"{}")
    worker.on_keys_read(read)
    assert [read] == LEARNED
    await worker.store.aclose()


async def test_every_worker_tells_when_the_replica_started(
    equipment: Equipment, nursery: trio.Nursery
) -> None:
    workers = [equip(equipment, nursery) for _ in range(2)]
    assert workers[0].start.started == workers[1].start.started == equipment._deployment.started
    for worker in workers:
        await worker.store.aclose()


async def test_counts_of_a_worker_that_has_ended_are_kept(
    equipment: Equipment, nursery: trio.Nursery
) -> None:
    told = LimitStatus(
        name="r/limit", rate="1/s", burst=1, key="r", held=0.0, left=0.0, age_s=None,
        admitted=5, fallback=0, credit=0, limited=2,
    )  # fmt: skip
    silent, worker = (equip(equipment, nursery) for _ in range(2))
    worker.counted = Counted(generation=1, lines=counted([told]))
    for each in (silent, worker):
        equipment.settle(each)  # type: ignore[arg-type]
        await each.store.aclose()
    (kept,) = equipment._deployment.past_counts.of(1)
    assert (kept.admitted, kept.limited) == (5, 2)


async def test_a_worker_that_is_cut_off_from_the_store_is_replaced(
    equipment: Equipment, nursery: trio.Nursery
) -> None:
    worker = equip(equipment, nursery)
    await worker.lease()
    await worker.store.send_all(b"\xff" * 8)
    assert await worker.store.receive_some() == b""
    await trio.testing.wait_all_tasks_blocked()
    assert worker.left == [worker]
    await worker.store.aclose()
